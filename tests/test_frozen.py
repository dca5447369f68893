"""Frozen weights: pretrained ones beside adapters keep their scale, frozen copies are planned like all others."""

from __future__ import annotations

import copy
import re

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import autofit

IDS = {"input_ids": torch.arange(3 * 17).reshape(3, 17)}


def llama(width: int, queries: int = 1) -> nn.Module:
    """With so many queries to a key."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 16}
    sizes |= {"num_key_value_heads": width // 16 // queries}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=307, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config)


def with_lora(width: int) -> nn.Module:
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    return peft.get_peft_model(llama(width), config)


@pytest.mark.parametrize("base", [64, "second"])
def test_lora_pair_on_a_frozen_base(base: int | str) -> None:
    model = with_lora(256)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    logits = model(**IDS).logits
    mu = autofit.muify(model, IDS, base=with_lora(64) if base == "second" else base, frozen="keep")
    for name, p in model.named_parameters():
        planned = mu.plan.parameters[name]
        assert torch.equal(p, before[name]), name  # the down-projection starts as 1/sqrt(fan_in) already
        if "lora_A" in name:  # the rank is fixed
            assert (planned.rule, planned.r_in, planned.r_out) == ("bottleneck", 4, 1)
        if "lora_B" in name:
            assert (planned.rule, planned.r_in, planned.r_out) == ("input", 1, 4)
    assert torch.equal(model(**IDS).logits, logits)
    assert {s.multiplier for s in mu.plan.sites} == {1.0}
    groups = mu.param_groups("adamw", lr=1e-3)
    lr = {id(p): g["lr"] for g in groups for p in g["params"]}
    trained = {n: lr.pop(id(p)) for n, p in model.named_parameters() if p.requires_grad}
    assert not lr
    assert {n: rate for n, rate in trained.items() if rate != (1e-3 if "lora_B" in n else 2.5e-4)} == {}


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_peft_needs_no_example(task: str | None) -> None:
    """Its forward takes anything, and what it wraps has the names; a cache, which it would return, is left out."""
    config = peft.LoraConfig(task_type=task, r=8, target_modules="all-linear")
    found = autofit.analyze(peft.get_peft_model(llama(128), config), base=64, frozen="keep")
    program = found.roles.growth.dims.program
    assert program.front_end == "torch.export"
    assert program.example.kwargs.keys() == {"input_ids", "use_cache"}


@pytest.mark.parametrize("rank", [2, 4, 8, 16])
def test_a_rank_is_what_it_is_whatever_else_has_its_size(rank: int) -> None:
    """Two layers, four heads of keys, eight of queries, sixteen elements in each: some are fields with that value."""

    def adapted(width: int) -> nn.Module:
        return peft.get_peft_model(llama(width, queries=2), peft.LoraConfig(r=rank, target_modules="all-linear"))

    saved = autofit.analyze(adapted(128), IDS, base=64, frozen="keep").base()
    for base in (64, adapted(64), saved):
        found = autofit.analyze(adapted(128), IDS, base=base, frozen="keep")
        rules = {(n.rpartition("lora_")[2][0], p.rule) for n, p in found.plan.parameters.items() if "lora_" in n}
        assert rules == {("A", "bottleneck"), ("B", "input")}
        assert found.base() == saved


def test_an_adapter_size_given_in_a_mapping_counts() -> None:
    found = autofit.analyze(with_lora(256), IDS, base=64, frozen="keep")
    assert sum("and 2 more: 8 elements" in n and "adapter's own size" in n for n in found.plan.notes) == 1
    sizes = found.base()
    rank = next(n for n in sizes if "down_proj.lora_A" in n)
    grown = autofit.analyze(with_lora(256), IDS, base={**sizes, rank: 4}, frozen="keep")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight"
    assert grown.plan.parameters[name].r_out == 2


def test_frozen_readout_and_heads_keep_their_scale() -> None:
    """With a growing head size muP would change the attention scale, and with it what frozen weights compute."""
    model = with_lora(256)
    logits = model(**IDS).logits
    mu = autofit.muify(model, IDS, base=64, frozen="keep", grow="head_dim")
    assert torch.equal(model(**IDS).logits, logits)
    assert [s.reason for s in mu.plan.sites] == ["computed by frozen weights, whose scale is kept"] * 3


def test_what_it_means_is_asked() -> None:
    with pytest.raises(autofit.PlanError, match=re.escape("frozen='keep' for pretrained weights")):
        autofit.analyze(with_lora(256), IDS, base=64)
    with pytest.raises(autofit.PlanError, match="choose one of: None, keep, plan"):
        autofit.analyze(with_lora(256), IDS, base=64, frozen="thaw")
    at_base = autofit.analyze(with_lora(64), IDS, base=64)  # nothing would change, so nothing is asked
    assert at_base.plan.rescaled() == set()


class Distilled(nn.Module):
    """A student, and a frozen copy of it that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 7))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            target = self.teacher(x)
        return self.student(x), target


def test_a_frozen_copy_is_planned_like_the_original() -> None:
    model = Distilled()
    x = torch.randn(5, 10)
    mu = autofit.muify(model, x, base=64, frozen="plan")
    student, teacher = model(x)
    assert torch.equal(student, teacher)
    assert student.abs().mean() > 0
    plans = mu.plan.parameters
    for n, _ in model.student.named_parameters():
        mine, copied = plans[f"student.{n}"], plans[f"teacher.{n}"]
        assert (mine.rule, mine.init_factor) == (copied.rule, copied.init_factor)


def test_frozen_tables_that_nothing_would_change_are_not_asked_about() -> None:
    """Sines as positions: frozen, and right as they are."""
    sizes = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 1}
    config = transformers.MarianConfig(**sizes, **heads, vocab_size=307, pad_token_id=0, decoder_start_token_id=0)
    found = autofit.analyze(transformers.MarianMTModel(config), base=32)
    assert any(not p.requires_grad for p in found.model.parameters())


class Held(nn.Module):
    """A layer whose weight is eight-bit numbers in a buffer, beside a pair of trained ones (QLoRA)."""

    def __init__(self, fan_in: int, fan_out: int, rank: int = 4) -> None:
        super().__init__()
        weight = torch.randn(fan_out, fan_in) / fan_in**0.5
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.down, self.up = nn.Linear(fan_in, rank, False), nn.Linear(rank, fan_out, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale) + self.up(self.down(x))


def held(width: int) -> nn.Module:
    return nn.Sequential(Held(10, width), nn.ReLU(), Held(width, width), nn.ReLU(), Held(width, 5))


@pytest.mark.parametrize("base", [32, "second"])
def test_quantised_weights_in_buffers_are_frozen_ones(base: int | str) -> None:
    x = torch.randn(7, 10)
    found = autofit.analyze(held(64), x, base=held(32) if base == "second" else base, frozen="keep")
    assert {n: (p.r_in, p.r_out) for n, p in found.plan.parameters.items()} == {
        "0.down.weight": (1, 1),
        "0.up.weight": (1, 2),
        "2.down.weight": (2, 1),
        "2.up.weight": (1, 2),
        "4.down.weight": (2, 1),
        "4.up.weight": (1, 1),
    }
