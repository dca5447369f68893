"""The small model to tune on: widths change and nothing else, head sizes stay, and it is a base for the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import autofit

CASES: dict[str, tuple[str, dict[str, Any], int, dict[str, tuple[int, int]]]] = {
    "gpt2": ("GPT2Config", {"n_layer": 2, "n_embd": 256, "n_head": 8}, 64, {"n_embd": (256, 64), "n_head": (8, 2)}),
    "llama, few key heads": (
        "LlamaConfig",
        {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 1003,
        },
        128,
        {
            "hidden_size": (512, 128),
            "intermediate_size": (1408, 352),
            "num_attention_heads": (16, 4),
            "num_key_value_heads": (4, 1),
        },
    ),
    "t5": (
        "T5Config",
        {"num_layers": 2, "d_model": 256, "num_heads": 4, "d_ff": 1024, "vocab_size": 1003},
        128,
        {"d_model": (256, 128), "num_heads": (4, 2), "d_ff": (1024, 512)},
    ),
    "bert": (
        "BertConfig",
        {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
        64,
        {"hidden_size": (256, 64), "num_attention_heads": (4, 1), "intermediate_size": (1024, 256)},
    ),
    "vit": (
        "ViTConfig",
        {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
        128,
        {"hidden_size": (256, 128), "num_attention_heads": (4, 2), "intermediate_size": (1024, 512)},
    ),
    "mixtral": (
        "MixtralConfig",
        {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 1003,
        },
        128,
        {
            "hidden_size": (256, 128),
            "intermediate_size": (512, 256),
            "num_attention_heads": (8, 4),
            "num_key_value_heads": (4, 2),
        },
    ),
    "mamba": (
        "MambaConfig",
        {"hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 1003},
        64,
        {"hidden_size": (256, 64), "intermediate_size": (512, 128), "time_step_rank": (16, 4)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_widths_and_nothing_else(name: str) -> None:
    config, given, width, expected = CASES[name]
    made = getattr(transformers, config)(**given)
    found = autofit.proxy(made, width=width)
    changed = {k: v for k, v in found.changed.items() if k != "pooler_output_size"}  # of a head that is not there
    assert changed == expected
    target = type(found.model)(made)
    assert found.parameters == (target.num_parameters(), found.model.num_parameters())
    ratio = made.hidden_size / width
    mu = autofit.analyze(target, base=found.model)
    assert {d.ratio for d in mu.roles.growth.dimensions} <= {1.0, ratio}
    heads = [s for s in mu.plan.sites if s.kind == "attention"]
    assert all(s.ratio == 1 for s in heads)  # head sizes stay
    by_number = autofit.analyze(target, base=width).plan
    assert {n: p.role for n, p in mu.plan.parameters.items()} == {n: p.role for n, p in by_number.parameters.items()}


def test_depth() -> None:
    config = transformers.LlamaConfig(num_hidden_layers=6, **{k: v for k, v in CASES["llama, few key heads"][1].items() if k != "num_hidden_layers"})  # fmt: skip  # noqa: E501
    found = autofit.proxy(config, width=128, depth=2)
    assert found.changed["num_hidden_layers"] == (6, 2)
    assert len(found.model.model.layers) == 2
    deep = transformers.LlamaForCausalLM(config)
    plan = autofit.muify(deep, base=found.model, scheme="mup+completep").plan
    assert [s.multiplier for s in plan.sites if s.kind == "residual"] == pytest.approx([1 / 3] * 12)


def test_a_model_with_a_tensor_that_heeds_no_device() -> None:
    small = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": (32,) * 7}
    config = transformers.Wav2Vec2Config(num_hidden_layers=1, classifier_proj_size=64, **small)
    found = autofit.proxy(config, width=32)
    assert found.changed["hidden_size"] == (64, 32)
    assert next(found.model.parameters()).device.type == "cpu"


class Net(nn.Module):
    """With a head size, and an inner width that is twice the outer."""

    def __init__(self, width: int = 256, heads: int = 8, layers: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(7, width)
        make = lambda: nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)  # noqa: E731
        self.layers, self.last = nn.ModuleList(make() for _ in range(layers)), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


X = torch.zeros(2, 5, 7)


def test_a_factory() -> None:
    found = autofit.proxy(Net, X, width=64, depth=2)
    assert found.changed == {"width": (256, 64), "heads": (8, 2), "layers": (3, 2)}
    autofit.muify(Net(), X, base=found.model)
    made = autofit.family(Net, X, widths=(32, 64))(32)
    assert (made[0].first.out_features, made[1] is X) == (32, True)
    larger = autofit.proxy(Net, X, width=64, arguments={"width": 512, "heads": 16})
    assert larger.changed == {"width": (512, 64), "heads": (16, 2)}
    assert [line.split() for line in str(larger).splitlines()][2] == ["width", "512", "64"]


def test_flops_are_twice_the_products() -> None:
    found = autofit.proxy(
        lambda width=64: nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, 3)), X, width=16
    )
    assert found.flops == tuple(2 * 10 * (7 * w + w * 3) for w in (64, 16))


def test_refusals() -> None:
    def needs(width: int) -> nn.Module:
        return Net(width)

    gpt2 = transformers.GPT2Config(n_layer=2)
    for source, given, message in (
        (gpt2, {"width": 1024}, r"width=1024, and n_embd of the target is 768(.|\n)*a width below 768"),
        (gpt2, {"width": 100}, r"no proxy of this width: n_head = 12 would be 1\.5625(.|\n)*head count divides"),
        (gpt2, {"width": 192, "depth": 3}, "depth=3: no field"),
        (needs, {"width": 64}, r"the factory needs width(.|\n)*arguments="),
        (lambda classes=10: Net(256, classes=classes), {"width": 64}, "no choice of fields"),
        (Net, {"width": 64, "arguments": {"widht": 512}}, r"no argument 'widht'(.|\n)*did you mean width\?"),
        (Net(), {"width": 64}, "tells no way to build it"),
        (gpt2, {"width": 192, "arguments": {"n_layer": 2}}, "arguments are a factory's"),
    ):
        with pytest.raises(autofit.BaseError, match=message):
            autofit.proxy(source, None if source is gpt2 else X, **given)
