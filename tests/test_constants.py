"""Constants that stock models already contain: what power of the width they are, and what is added to them.

Every row was worked out by hand from the model's code and configuration, for twice the base width (RULES 4: the
constants on a path times what is added must have the required exponent: -1 at a readout and in attention, 0 behind an
embedding). A number in a configuration does not follow the width unless the base model has another one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import autofit

ROOT = 0.5**0.5
TOKENS = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama_like(model: str, config: str, **fixed: Any) -> Callable[..., nn.Module]:
    """Families whose configurations have Llama's field names."""

    def build(width: int, heads: int = 0, **other: Any) -> nn.Module:
        count = heads or width // 16
        sizes = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "head_dim": width // count,
        }
        sizes |= {"num_attention_heads": count, "num_key_value_heads": count}
        fields = {k: v(width) if callable(v) else v for k, v in (fixed | other).items()}
        return getattr(hf, model)(getattr(hf, config)(**{**TOKENS, **sizes, **fields}))

    return build


def encoder_decoder(model: str, config: str) -> Callable[..., nn.Module]:
    """BART and its relatives, with ``scale_embedding``."""

    def build(width: int, heads: int = 0) -> nn.Module:
        sizes: dict[str, Any] = {"d_model": width, "vocab_size": 101, "max_position_embeddings": 64}
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_layers": 1, f"{side}_ffn_dim": 2 * width}
            sizes |= {f"{side}_attention_heads": heads or width // 16}
        tokens = {"pad_token_id": 100, "decoder_start_token_id": 100}
        return getattr(hf, model)(getattr(hf, config)(**sizes, **tokens, scale_embedding=True))

    return build


def t5(model: str, config: str, **fixed: Any) -> Callable[..., nn.Module]:
    def build(width: int, heads: int = 0) -> nn.Module:
        count = heads or width // 16
        sizes = {"d_model": width, "d_kv": width // count, "d_ff": 2 * width, "num_heads": count, "num_layers": 1}
        made = getattr(hf, config)(**sizes, vocab_size=101, decoder_start_token_id=0, **fixed)
        return getattr(hf, model)(made)

    return build


def renamed(model: str, config: str, names: str, **fixed: Any) -> Callable[..., nn.Module]:
    """Families with other names for width, heads and layers."""
    width_name, heads_name, layers_name = names.split()

    def build(width: int, heads: int = 0) -> nn.Module:
        fields = {width_name: width, heads_name: heads or width // 16, layers_name: 2, "vocab_size": 101}
        fields |= {k: v(width) if callable(v) else v for k, v in fixed.items()}
        return getattr(hf, model)(getattr(hf, config)(**fields))

    return build


LATENT = {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}


@dataclass(frozen=True)
class Row:
    """One family at twice the base width.

    Attributes:
        constant: where the constant stands.
        build: the model of a width, with heads of 16 or a number of heads.
        readout: factor added in front of the logits.
        embedding: factor added behind the table, ``None`` if there is nothing to undo.
        attention: factor added where the head size grows, too; ``None`` if the family's head size cannot.
        alone: what one model cannot tell: the site and the factor that is added then; the report says so.
    """

    constant: str
    build: Callable[..., nn.Module]
    readout: float = 0.5
    embedding: float | None = None
    attention: float | None = ROOT
    alone: tuple[str, float] | None = None


TABLE = {
    "t5": Row(
        "d_model**-0.5 before the tied head; no 1/sqrt(d)",
        t5("T5ForConditionalGeneration", "T5Config"),
        ROOT,
        None,
        0.5,
    ),
    "t5 v1.1": Row(
        "none: the scale goes with the tie",
        t5("T5ForConditionalGeneration", "T5Config", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        attention=0.5,
    ),
    "mt5": Row("none, untied", t5("MT5ForConditionalGeneration", "MT5Config"), attention=0.5),
    "gemma": Row("embeddings times sqrt(hidden_size)", llama_like("GemmaForCausalLM", "GemmaConfig"), embedding=ROOT),
    "gemma2": Row(
        "sqrt(hidden_size); query_pre_attn_scalar**-0.5 as configured; soft caps",
        llama_like("Gemma2ForCausalLM", "Gemma2Config", query_pre_attn_scalar=16),
        embedding=ROOT,
        attention=0.5,
        alone=("attention", ROOT),  # 16**-0.5 is taken for the head size's
    ),
    "gemma3": Row(
        "sqrt(hidden_size); queries and keys are normalized",
        llama_like("Gemma3ForCausalLM", "Gemma3TextConfig", query_pre_attn_scalar=16),
        embedding=ROOT,
        attention=1.0,
    ),
    "granite": Row(
        "embedding_, attention_, residual_multiplier and logits_scaling as configured",
        llama_like(
            "GraniteForCausalLM",
            "GraniteConfig",
            embedding_multiplier=5.0,
            attention_multiplier=0.3,
            residual_multiplier=0.7,
            logits_scaling=3.0,
        ),
        attention=0.5,
    ),
    "granite, logits_scaling with the width": Row(
        "the base is configured with half of it",
        llama_like("GraniteForCausalLM", "GraniteConfig", logits_scaling=lambda width: width / 24),
        readout=1.0,
        attention=0.5,
        alone=("readout", 0.5),
    ),
    "minicpm3": Row(
        "logits divided by hidden_size / dim_model_base; scale_emb, scale_depth as configured",
        llama_like(
            "MiniCPM3ForCausalLM",
            "MiniCPM3Config",
            dim_model_base=24,
            scale_emb=12,
            scale_depth=1.4,
            **LATENT,
            head_dim=8,
        ),
        readout=1.0,
        attention=None,
        alone=("readout", 0.5),
    ),
    "falcon_h1": Row(
        "its multipliers as configured",
        llama_like(
            "FalconH1ForCausalLM",
            "FalconH1Config",
            mamba_d_ssm=lambda width: 2 * width,
            mamba_n_heads=lambda width: width // 8,
            mamba_d_head=16,
            mamba_d_state=9,
            mamba_n_groups=1,
            lm_head_multiplier=0.3,
            embedding_multiplier=5.0,
            key_multiplier=0.6,
        ),
        attention=None,  # one model would let its state size grow, too, which is refused
    ),
    "cohere": Row("logit_scale as configured", llama_like("CohereForCausalLM", "CohereConfig", logit_scale=0.07)),
    "gpt2": Row(
        "1/sqrt(d) divided by the layer's number; c_proj drawn with 0.02/sqrt(2 n_layer)",
        renamed(
            "GPT2LMHeadModel",
            "GPT2Config",
            "n_embd n_head n_layer",
            n_positions=64,
            scale_attn_by_inverse_layer_idx=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "gpt_neo": Row(
        "no 1/sqrt(d)",
        renamed(
            "GPTNeoForCausalLM",
            "GPTNeoConfig",
            "hidden_size num_heads num_layers",
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        ),
        attention=0.5,
    ),
    "deepseek_v3": Row(
        "routed_scaling_factor on hidden activations: no site",
        llama_like(
            "DeepseekV3ForCausalLM",
            "DeepseekV3Config",
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            moe_intermediate_size=lambda width: width,
            routed_scaling_factor=2.5,
            **LATENT,
            head_dim=8,
        ),
        attention=None,
    ),
    "bart": Row("sqrt(d_model)", encoder_decoder("BartForConditionalGeneration", "BartConfig"), embedding=ROOT),
    "marian": Row("sqrt(d_model)", encoder_decoder("MarianMTModel", "MarianConfig"), embedding=ROOT),
    "pegasus": Row(
        "sqrt(d_model)", encoder_decoder("PegasusForConditionalGeneration", "PegasusConfig"), embedding=ROOT
    ),
    "bloom": Row(
        "ALiBi slopes are added: no factor", renamed("BloomForCausalLM", "BloomConfig", "hidden_size n_head n_layer")
    ),
    "mpt": Row(
        "ALiBi; 1/sqrt(d)", renamed("MptForCausalLM", "MptConfig", "d_model n_heads n_layers", expansion_ratio=2)
    ),
    "gpt_neox": Row(
        "RoPE on a part of each head: a rotation, no factor",
        renamed(
            "GPTNeoXForCausalLM",
            "GPTNeoXConfig",
            "hidden_size num_attention_heads num_hidden_layers",
            intermediate_size=lambda width: 2 * width,
        ),
    ),
    "llama": Row("RoPE; 1/sqrt(d)", llama_like("LlamaForCausalLM", "LlamaConfig")),
    "mistral": Row("RoPE; 1/sqrt(d)", llama_like("MistralForCausalLM", "MistralConfig")),
    "nemotron": Row("RoPE on a part; 1/sqrt(d)", llama_like("NemotronForCausalLM", "NemotronConfig")),
}


@functools.cache
def analysis(name: str, base: str, heads: str) -> autofit.Analysis:
    """Of 64 wide against 32 wide: more heads of 16, or four heads twice as wide."""
    row = TABLE[name]
    model = row.build(64)
    if base == "number":
        return autofit.analyze(model, base=32, grow="heads" if heads == "more" else "head_dim")
    return autofit.analyze(model, base=row.build(32, 0 if heads == "more" else 4))


def added(found: autofit.Analysis, kind: str) -> list[float]:
    """The distinct factors of all sites of a kind."""
    return sorted({round(s.multiplier, 6) for s in found.plan.sites if s.kind == kind})


def expected(row: Row, kind: str, base: str) -> float | None:
    known = {"readout": row.readout, "attention": row.attention, "embedding": row.embedding}[kind]
    return row.alone[1] if base == "number" and row.alone and row.alone[0] == kind else known


@pytest.mark.parametrize("base", ["number", "model"])
@pytest.mark.parametrize("name", TABLE)
def test_readouts_and_embeddings(name: str, base: str) -> None:
    row = TABLE[name]
    found = analysis(name, base, "more")
    assert added(found, "readout") == pytest.approx([expected(row, "readout", base)], abs=1e-6)
    wanted = [] if row.embedding is None else [row.embedding]
    assert added(found, "embedding") == pytest.approx(wanted, abs=1e-6)
    assert added(found, "attention") == [1.0]  # heads of one size: nothing to add


@pytest.mark.parametrize("base", ["number", "model"])
@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row.attention is not None])
def test_attention_where_the_head_size_grows(name: str, base: str) -> None:
    wanted = expected(TABLE[name], "attention", base)
    assert added(analysis(name, base, "wider"), "attention") == pytest.approx([wanted], abs=1e-6)


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row.alone])
def test_what_one_model_cannot_tell_is_said(name: str) -> None:
    row = TABLE[name]
    assert row.alone is not None
    kind = row.alone[0]
    found = analysis(name, "number", "more" if kind == "readout" else "wider")
    reasons = [s.reason for s in found.plan.sites if s.kind == kind]
    told = "taken to be the same at any width" if kind == "readout" else "because it has that value"
    assert all(told in r for r in reasons)
    assert kind != "readout" or any("A base model would tell" in n for n in found.plan.notes)


def test_init_of_gpt2s_residual_projections() -> None:
    """Drawn with 0.02 / sqrt(2 n_layer): a constant, which muP divides by sqrt(r) as it does 0.02."""
    for base in ("number", "model"):
        for name, p in analysis("gpt2", base, "more").plan.parameters.items():
            if "c_proj.weight" in name:
                assert p.init_std == pytest.approx(0.02 / 4**0.5, rel=0.05)
                assert p.init_factor == pytest.approx(ROOT)


LINEAR = ("t5", "granite", "minicpm3", "cohere", "llama", "granite, logits_scaling with the width")


@pytest.mark.parametrize("name", LINEAR)
def test_logits_are_scaled_by_what_was_added(name: str) -> None:
    """Heads of one size and no value rescaled: the readout's factor is all that changes."""
    row = TABLE[name]
    torch.manual_seed(0)
    model = row.build(64).eval()
    inputs = {"input_ids": torch.arange(34).reshape(2, 17)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        before = model(**inputs).logits
        autofit.muify(model, base=row.build(32), init="keep")
        torch.testing.assert_close(model(**inputs).logits, before * row.readout)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "bart", "t5", "minicpm3"])
def test_at_its_own_base_nothing_changes(name: str) -> None:
    torch.manual_seed(0)
    model = TABLE[name].build(64).eval()
    inputs = {"input_ids": torch.arange(34).reshape(2, 17)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        before = model(**inputs).logits
        autofit.muify(model, base=TABLE[name].build(64))
        assert torch.equal(model(**inputs).logits, before)


class PerLayer(nn.Module):
    """One table gives the features of two layers, each scaled by the root of one layer's width (Gemma 3n)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(31, 2 * width), width**0.5
        self.parts, self.head = nn.ModuleList(nn.Linear(width, width) for _ in range(2)), nn.Linear(width, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first, second = (self.table(ids) * self.scale).unflatten(-1, (2, -1)).unbind(-2)
        return self.head(self.parts[0](first).relu() + self.parts[1](second).relu())


@pytest.mark.parametrize("base", [16, PerLayer(16)], ids=["number", "model"])
def test_a_table_for_all_layers_has_the_scale_of_one(base: object) -> None:
    sites = autofit.analyze(PerLayer(64), torch.zeros(3, 7, dtype=torch.long), base=base).plan.sites
    assert [(s.present, s.multiplier) for s in sites if s.kind == "embedding"] == [(0.5, 0.5)]


class Rounded(nn.Module):
    """An embedding times the root of its width, kept in bfloat16 (RecurrentGemma)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(31, width), nn.Linear(width, 5)
        self.normalizer = nn.Buffer(torch.tensor(width**0.5, dtype=torch.bfloat16))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids) * self.normalizer.float())


def test_a_constant_that_was_rounded_is_read_to_its_last_bit() -> None:
    """bfloat16 keeps sqrt(32) as 5.65625."""
    sites = autofit.analyze(Rounded(64), torch.zeros(3, 7, dtype=torch.long), base=Rounded(32)).plan.sites
    assert [(s.present, s.multiplier) for s in sites if s.kind == "embedding"] == [(0.5, 0.5**0.5)]
    assert [(s.present, s.multiplier) for s in sites if s.kind == "readout"] == [(0.0, 0.5)]  # it is undone already
