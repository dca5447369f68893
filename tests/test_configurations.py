"""Fields of transformers configurations by name: those that are read, and those that nothing would."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

import autofit
from autofit.configurations import configured


def of(kind: str, **given: Any) -> Any:
    return configured(lambda **more: transformers.AutoConfig.for_model(kind, **more), given)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("gpt2", "n_embd", 96),
        ("gpt2", "hidden_size", 96),  # by attribute_map
        ("gpt2", "num_labels", 7),  # a property
        ("gpt2", "tie_word_embeddings", False),
        ("gpt2", "vocab_size", 99),
        ("llava", "text_config.hidden_size", 96),
        ("llava", "vision_config.num_hidden_layers", 3),
        ("llama", "rope_parameters.rope_theta", 5.0),
    ],
)
def test_fields_that_are_read(kind: str, name: str, value: Any) -> None:
    found = of(kind, **{name: value})
    for key in name.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_fields_that_go_elsewhere() -> None:
    assert of("gpt2", attn_implementation="eager")._attn_implementation == "eager"
    assert of("llama", rope_theta=5.0).rope_parameters["rope_theta"] == 5.0


def test_a_part_keeps_what_was_given_to_it_and_derives_the_rest() -> None:
    """CLIP's inner width is 4096 in LLaVA, 3072 by itself; Llama's head size follows from its width."""
    plain, made = of("llava"), of("llava", **{"vision_config.num_hidden_layers": 3, "text_config.hidden_size": 512})
    assert plain.vision_config.intermediate_size == made.vision_config.intermediate_size == 4096
    assert type(made.text_config) is type(plain.text_config)
    assert (plain.text_config.head_dim, made.text_config.head_dim) == (128, 16)
    whole = of("llava", text_config={"model_type": "qwen2", "hidden_size": 64})
    assert (whole.text_config.model_type, whole.text_config.hidden_size) == ("qwen2", 64)


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("gpt2", "n_layr", 2, r"GPT2Config has no field 'n_layr'(.|\n)*did you mean n_layer\?"),
        ("gpt2", "hidden_sise", 2, r"did you mean hidden_size\?"),
        ("gpt2", "zzz", 2, r"no field 'zzz'(.|\n)*choose one of: (.*), n_embd, "),
        (
            "llava",
            "text_config.hidden_sze",
            2,
            r"LlamaConfig has no field(.|\n)*did you mean text_config\.hidden_size\?",
        ),
        ("llava", "text_config", {"hidden_sze": 2}, r"did you mean text_config\.hidden_size\?"),
        ("llava", "txt_config.hidden_size", 2, r"no field 'txt_config'(.|\n)*did you mean text_config\?"),
    ],
)
def test_fields_that_nothing_reads_are_refused(kind: str, name: str, value: Any, said: str) -> None:
    with pytest.raises(autofit.TargetError, match=said):
        of(kind, **{name: value})
