"""Stock models, nothing edited: every role against expectations written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES
from inputs import example_for, logits

import autofit


@pytest.mark.parametrize("name", FAMILIES)
def test_every_role_is_the_architectures(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    keys = list(model.state_dict())
    mu = autofit.muify(model, base=family.main // 2)
    wrong = {n: (p.role, family.role(n)) for n, p in mu.plan.parameters.items() if p.role != family.role(n)}
    assert not wrong
    for first, second in family.tied:
        assert first in mu.plan.parameters[second].names
        assert model.get_parameter(first) is model.get_parameter(second)
    assert list(model.state_dict()) == keys
    assert mu.model is model


@pytest.mark.parametrize("name", FAMILIES)
def test_readouts_are_found_and_scaled_once(name: str) -> None:
    family = FAMILIES[name]
    mu = autofit.analyze(family.build(), base=family.main // 2)
    readouts = [s for s in mu.plan.sites if s.kind == "readout"]
    assert len(readouts) == (2 if name == "clip" else 1)
    # T5 multiplies by d_model^-1/2 before its tied head: only the other half is missing (RULES 4)
    expected = {"t5": 0.5**0.5}.get(name, 1 / readouts[0].ratio)
    assert readouts[0].multiplier == pytest.approx(expected)


IDENTITY = ("gpt2", "llama", "gemma2", "t5", "bert", "vit", "mixtral", "resnet")


@pytest.mark.parametrize("name", IDENTITY)
def test_at_the_base_everything_is_bit_identical(name: str) -> None:
    """Outputs, gradients and one AdamW step of the untouched model (RULES 2)."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    plain = family.build().eval()
    model = copy.deepcopy(plain)
    inputs = example_for(plain)
    mu = autofit.muify(model, base=family.main)
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    optimizer = mu.optimizer("adamw", lr=1e-2, weight_decay=0.1)
    for net, _opt in ((plain, plain_optimizer), (model, optimizer)):
        logits(net, inputs).square().mean().backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
    plain_optimizer.step()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))
    assert torch.equal(logits(plain, inputs), logits(model, inputs))


@pytest.mark.parametrize("name", IDENTITY)
def test_init_keep_changes_no_value(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    before = copy.deepcopy(model.state_dict())
    autofit.muify(model, base=family.main // 4, init="keep")
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_fixed_key_value_heads_are_an_inner_bottleneck() -> None:
    """Llama whose kv heads do not grow: k and v are output-role, without a multiplier (RULES 7)."""
    family = FAMILIES["llama"]
    narrow = family.build(hidden_size=32, intermediate_size=80, num_attention_heads=2, head_dim=16)
    wide = family.build(head_dim=16)
    mu = autofit.muify(wide, base=narrow)
    for layer in (0, 1):
        for name in ("k_proj", "v_proj"):
            p = mu.plan.parameters[f"model.layers.{layer}.self_attn.{name}.weight"]
            assert (p.role, p.rule, p.r_in, p.r_out) == ("output", "bottleneck", 2.0, 1.0)
    assert [s.kind for s in mu.plan.sites if s.multiplier != 1] == ["readout"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert", "mixtral"])
def test_static_and_differential_answers_agree(name: str) -> None:
    """The same base as a number and as a second model gives one plan."""
    family = FAMILIES[name]
    half = {
        "gpt2": {"n_embd": 32, "n_head": 2},
        "t5": {"d_model": 32, "num_heads": 2, "d_ff": 80},
    }.get(name, {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 2})
    if "num_key_value_heads" in family.fields:
        half |= {"num_key_value_heads": 1, "head_dim": 16}
    wide = family.build(**({"head_dim": 16} if "head_dim" in half else {}))
    by_number = autofit.analyze(wide, base=32)
    by_model = autofit.analyze(wide, base=family.build(**half))
    for n, p in by_number.plan.parameters.items():
        q = by_model.plan.parameters[n]
        assert (p.role, p.rule, p.r_in, p.r_out) == (q.role, q.rule, q.r_in, q.r_out), n
    ours, theirs = by_number.plan.sites, by_model.plan.sites
    assert [s.kind for s in ours] == [s.kind for s in theirs]
    assert [s.multiplier for s in ours] == pytest.approx([s.multiplier for s in theirs])
