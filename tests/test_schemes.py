"""Schemes besides muP: of depth, and for comparison; every claim from training runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from coordinates import slope
from families import FAMILIES
from torch import nn

import autofit

IDS = torch.randint(3, 90, (4, 16), generator=torch.Generator().manual_seed(0))
NORMS = {"llama": ("num_hidden_layers", "model.norm"), "gpt2": ("n_layer", "transformer.ln_f")}
"""Field of the depth, and the module that takes the residual stream."""


class Stack(nn.Module):
    """Branches of tanh on one stream."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(torch.tanh(x))
        return self.head(x)


X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One, of a classifier."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()


def test_sp_changes_nothing() -> None:
    torch.manual_seed(0)
    model = FAMILIES["gpt2"].build().eval()
    before, values = model(IDS).logits, {n: p.clone() for n, p in model.named_parameters()}
    mu = autofit.muify(model, base=32, scheme="sp")
    assert torch.equal(model(IDS).logits, before)
    assert all(torch.equal(p, values[n]) for n, p in model.named_parameters())
    (group,) = mu.param_groups("adamw", lr=0.1, weight_decay=0.2, eps=1e-6)
    assert (group["lr"], group["weight_decay"], group["eps"]) == (0.1, 0.2, 1e-6)
    assert not [s for s in mu.plan.sites if s.multiplier != 1]


def three(width: int) -> nn.Sequential:
    """An MLP."""
    first, second, last = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3, bias=False)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_ntk_is_the_kernel_limit(optimizer: str) -> None:
    """Outputs change by as much at any width, hidden values by r^-1/2: Tensor Programs IVb, section 1."""
    widths, changes = (128, 512, 2048), {"hidden": [], "output": []}
    for width in widths:
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = three(width)
            mu = autofit.muify(model, X, base=three(64), scheme="ntk")
            chosen = mu.optimizer(optimizer, lr=1e-3)
            before = model[:3](X).detach(), model(X).detach()
            step(model, chosen)
            after = model[:3](X).detach(), model(X).detach()
            found.append([(a - b).square().mean().sqrt().item() for a, b in zip(after, before, strict=True)])
        for name, values in zip(changes, zip(*found, strict=True), strict=True):
            changes[name].append(math.log2(sum(values) / len(values)))
    x = [math.log2(w) for w in widths]
    assert slope(x, changes["hidden"]) == pytest.approx(-0.5, abs=0.1)
    assert slope(x, changes["output"]) == pytest.approx(0.0, abs=0.1)


def moved(family: str, depth: int, scheme: str, optimizer: str) -> float:
    """Mean change of the residual stream's end by four steps."""
    key, norm = NORMS[family]
    torch.manual_seed(0)
    model = FAMILIES[family].build(**{key: depth}).eval()
    mu = autofit.muify(model, base=FAMILIES[family].build(**{key: 2}), scheme=scheme)
    chosen = mu.optimizer(optimizer, lr=0.003 if optimizer == "adamw" else 0.1)
    seen: list[torch.Tensor] = []
    model.get_submodule(norm).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for _ in range(4):
        logits = model(IDS).logits
        chosen.zero_grad()
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        chosen.step()
    with torch.no_grad():
        model(IDS)
    return (seen[-1] - seen[0]).abs().mean().item()


@pytest.mark.parametrize(
    ("family", "scheme", "optimizer", "lowest", "highest"),
    [
        ("gpt2", "mup+completep", "adamw", -0.1, 0.1),
        ("llama", "mup+completep", "adamw", -0.1, 0.1),
        ("llama", "mup+completep", "sgd", -0.2, 0.1),
        ("llama", "mup+depth", "adamw", -0.15, 0.15),
        ("llama", "mup", "adamw", 1.0, 2.0),  # the control
    ],
)
def test_depth(family: str, scheme: str, optimizer: str, lowest: float, highest: float) -> None:
    """Slope per doubling of what training does to the stream, two to thirty-two layers (CompleteP, Figure 3)."""
    depths = (2, 8, 32)
    found = slope([math.log2(d) for d in depths], [math.log2(moved(family, d, scheme, optimizer)) for d in depths])
    assert lowest <= found <= highest


def test_every_setting_of_a_branch() -> None:
    """Four times as wide, three times as deep; a branch's initial std knows no depth, whatever the model draws."""
    key, base = "n_layer", FAMILIES["gpt2"].build(n_layer=2, n_embd=16, n_inner=40)
    model = FAMILIES["gpt2"].build(**{key: 6}, n_embd=64, n_inner=160)
    mu = autofit.analyze(model, base=base, scheme="mup+completep")
    plan = mu.plan
    assert [s.multiplier for s in plan.sites if s.kind == "residual"] == pytest.approx([1 / 3] * 12)
    groups = {n: g for g in mu.param_groups("adamw", lr=1.0, weight_decay=1.0, eps=1.0) for n in g["param_names"]}
    sgd = {n: g for g in mu.param_groups("sgd", lr=1.0) for n in g["param_names"]}
    for layer in range(6):
        name = f"transformer.h.{layer}.mlp.c_proj.weight"
        g = groups[name]
        assert (g["lr"], g["weight_decay"], g["eps"]) == pytest.approx((1 / 4, 4, 1 / 12))
        assert sgd[name]["lr"] == pytest.approx(3)
        assert plan.parameters[name].init_factor == pytest.approx(4**-0.5 * 3**0.5)
        gain = f"transformer.h.{layer}.ln_1.weight"
        assert (groups[gain]["lr"], groups[gain]["eps"], sgd[gain]["lr"]) == pytest.approx((1, 1 / 12, 12))
    assert groups["transformer.wte.weight"]["eps"] == pytest.approx(1 / 4)
    assert groups["transformer.ln_f.weight"]["eps"] == pytest.approx(1 / 4)


def test_a_base_of_other_depth_treats_all_layers_alike() -> None:
    """GPT-2 draws what ends a branch by 0.02 / sqrt(2 layers): in width alone that is the model's own affair."""
    plan = autofit.analyze(FAMILIES["gpt2"].build(n_layer=8), base=FAMILIES["gpt2"].build(n_layer=2)).plan
    assert {p.init_factor for n, p in plan.parameters.items() if n.endswith("c_proj.weight")} == {1.0}


def test_streams_of_encoder_and_decoder_grow_apart() -> None:
    model = FAMILIES["t5"].build(num_layers=2, num_decoder_layers=6)
    base = FAMILIES["t5"].build(num_layers=2, num_decoder_layers=2)
    mu = autofit.analyze(model, base=base, scheme="mup+completep")
    found = [(s.where.split(".")[0], s.multiplier) for s in mu.plan.sites if s.kind == "residual"]
    assert found == [("encoder", 1.0)] * 4 + [("decoder", pytest.approx(1 / 3))] * 18
    assert mu.plan.branches == (4, 6)
    assert mu.plan.parameters["encoder.block.0.layer.0.SelfAttention.q.weight"].depth == 1
    assert mu.plan.parameters["decoder.block.5.layer.0.SelfAttention.q.weight"].depth == 3


def residual_factors(**given: Any) -> list[float]:
    """Multipliers of the branches of six layers."""
    sites = autofit.analyze(Stack(64, 6), X, scheme="mup+completep", **given).plan.sites
    return [s.multiplier for s in sites if s.kind == "residual"]


def test_how_a_base_tells_the_depth(tmp_path: Path) -> None:
    third = pytest.approx([1 / 3] * 6)
    assert residual_factors(base=Stack(16, 2)) == third
    assert residual_factors(base=lambda: Stack(64, 2)) == third
    saved = autofit.analyze(Stack(64, 6), X, base=Stack(16, 2), scheme="mup+completep")
    assert saved.base()["residual_branches"] == 2
    saved.save_base(tmp_path / "base.json")
    assert json.loads((tmp_path / "base.json").read_text())["residual_branches"] == 2
    assert residual_factors(base=tmp_path / "base.json") == third
    assert residual_factors(base={"first": 16, "residual_branches": 2}) == third
    assert residual_factors(base=16, depth_ratio=3) == third
    autofit.analyze(Stack(64, 6), X, base=tmp_path / "base.json")  # in width alone nothing asks for it
    for given, message in (
        ({"base": 16}, "depth"),
        ({"base": 16, "depth_ratio": 0}, "depth_ratio is 0"),
        ({"base": 16, "depth_ratio": "x"}, "not a number"),
        ({"base": {"first": 16, "residual_branches": 0}}, "0 residual_branches"),
        ({"base": {"first": 16, "residual_branches": 2, "residual_branches.2": 2}}, "stream"),
    ):
        with pytest.raises(autofit.AutofitError, match=message):
            residual_factors(**given)


def test_a_constant_on_branches_counts() -> None:
    """MiniCPM multiplies branches by scale_depth / sqrt(layers): half of what alpha = 1 asks for is there."""
    fields = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    fields |= {"vocab_size": 99, "residual_multiplier": 0.5}

    def granite(layers: int, **more: Any) -> nn.Module:
        return transformers.GraniteForCausalLM(transformers.GraniteConfig(num_hidden_layers=layers, **(fields | more)))

    deep = granite(8, residual_multiplier=0.25)
    for scheme, expected in (("mup+completep", [0.5] * 16), ("mup+depth", [])):
        sites = autofit.analyze(deep, base=granite(2), scheme=scheme).plan.sites
        assert [s.multiplier for s in sites if s.kind == "residual"] == pytest.approx(expected)
        assert {s.present for s in sites if s.kind == "residual"} <= {-0.5}


def test_without_residual_branches_a_scheme_of_depth_says_so() -> None:
    plan = autofit.analyze(three(64), X, base=16, scheme="mup+completep").plan
    assert any("no residual stream was found" in note for note in plan.notes)
    assert {p.depth for p in plan.parameters.values()} == {1}
