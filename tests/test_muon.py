"""Muon beside AdamW, Prodigy's one learning rate, and optimizers joined to one."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping
from typing import Any

import prodigyopt
import pytest
import pytorch_optimizer
import torch
from coordinates import slope
from families import FAMILIES
from torch import nn

import autofit
from autofit.exponents import ENDS, fit, updates
from autofit.rules import BY_SHAPE, table
from autofit.together import Together

MINE = ("hidden", "bottleneck", "bottleneck as output", "up")
"""Roles of the probe that Muon takes."""
X = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


def mlp(width: int) -> nn.Sequential:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 3)
    )


def fits(adjust: str, scaled: bool, widths: tuple[int, ...]) -> dict[str, float]:
    """Largest exponents of RMS(dW x) by role, under torch's Muon beside SGD for the rest."""
    base = 128

    def shape(role: str, pair: tuple[float, float]) -> tuple[float, float]:
        sizes = {"a": pair[0], "b": pair[1]}
        out, into = (sizes.get(e, e) if isinstance(e, str) else e for e in ENDS[role])
        return out, into

    def at(pair: tuple[int, int]) -> dict[str, float]:
        def settings(role: str, growth: Mapping[str, float]) -> dict[str, float]:
            if role not in MINE:
                return {"lr": 0.0}
            rule = table("mup", "muon").rules["input" if role == "up" else role].lr(growth)
            factor = BY_SHAPE[adjust]
            grown = factor(*shape(role, pair)) / factor(*shape(role, (base, base)))
            return {"lr": 1e-5 * (rule / grown if scaled else 1.0)}

        def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            mine = [g for g, role in zip(groups, ENDS, strict=True) if role in MINE]
            rest = [g for g, role in zip(groups, ENDS, strict=True) if role not in MINE]
            return Together([torch.optim.Muon(mine, adjust_lr_fn=adjust, weight_decay=0.0), torch.optim.SGD(rest)])

        found = updates(make, settings, scheme="mup", widths=pair, base=base, steps=4, seed=0)
        return {role: value if role in MINE else 1.0 for role, value in found.items()}

    return {role: max(map(abs, found.exponents.values())) for role, found in fit(at, widths).items() if role in MINE}


@pytest.mark.parametrize("adjust", BY_SHAPE)
def test_muon_moves_hidden_values_by_as_much_at_every_width(adjust: str) -> None:
    """Two widths that grow apart, so that Muon's own factor of the shape grows in either direction."""
    assert max(fits(adjust, True, (128, 256, 512)).values()) <= 0.1
    assert max(fits(adjust, False, (128, 256, 512)).values()) >= 0.4


def test_who_takes_what() -> None:
    """Matrices inside the model; tables, readouts, stacks of experts and vectors are AdamW's."""
    family = FAMILIES["deepseek_v3"]
    model = family.build()
    mu = autofit.muify(model, base=family.main // 2)
    groups = mu.param_groups("muon", lr=0.02, beside={"lr": 1e-3, "betas": (0.9, 0.95)})
    muon = {n for g in groups if g["use_muon"] for n in g["param_names"]}
    adamw = {n for g in groups if not g["use_muon"] for n in g["param_names"]}
    named = dict(model.named_parameters())
    assert muon | adamw == set(named)
    assert not muon & adamw
    assert all(named[n].ndim == 2 for n in muon)
    assert {n for n in adamw if named[n].ndim == 2} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert any("kv_b_proj" in n for n in muon)  # from a latent of fixed rank
    assert any("kv_a_proj" in n for n in muon)
    assert any("gate.weight" in n for n in muon)
    assert any("experts" in n and named[n].ndim == 3 for n in adamw)
    assert all(g["betas"] == (0.9, 0.95) for g in groups if not g["use_muon"])


def test_factors_follow_the_layout() -> None:
    """HF's Conv1D holds (in, out), nn.Linear (out, in): Muon's own factor takes rows and columns as they lie."""

    class Turned(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.w = nn.Linear(10, width), nn.Parameter(torch.randn(width, 4 * width) / width**0.5)
            self.v = nn.Linear(4 * width, width)
            self.last = nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.v(torch.tanh(torch.tanh(self.first(x)) @ self.w)))

    mu = autofit.muify(Turned(64), X, base=Turned(16))
    lr = {n: g["lr"] for g in mu.param_groups("muon", lr=1.0, beside={"lr": 1.0}) for n in g["param_names"]}
    assert lr["w"] == pytest.approx(1.0)
    assert lr["v.weight"] == pytest.approx(1.0)
    rms = mu.param_groups("muon", lr=1.0, adjust_lr_fn="match_rms_adamw", weight_decay=0.1)
    found = {n: (g["lr"], g["weight_decay"]) for g in rms for n in g["param_names"]}
    assert found["w"] == pytest.approx((0.5, 0.2))
    assert found["last.weight"] == pytest.approx((1.0, 0.1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One, and the loss before it."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    return loss.item()


def test_one_object_trains_saves_and_loads() -> None:
    torch.manual_seed(0)
    model = mlp(64)
    mu = autofit.muify(model, X, base=mlp(16))
    optimizer = mu.optimizer("muon", lr=0.02, beside={"lr": 1e-3}, momentum=0.9)
    assert [type(part) for part in optimizer.parts] == [torch.optim.Muon, torch.optim.AdamW]
    assert optimizer.parts[0].param_groups[0]["momentum"] == 0.9
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    losses = [step(model, optimizer) for _ in range(3)]
    assert losses[-1] < losses[0]
    schedule.step()
    assert optimizer.parts[0].param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.parts[1].param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]

    kept = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), kept)
    kept.seek(0)
    weights, state = torch.load(kept)
    twin = mlp(64)
    again = autofit.muify(twin, X, base=mlp(16), init="keep")
    twin.load_state_dict(weights)
    other = again.optimizer("muon", lr=0.5, beside={"lr": 0.5}, momentum=0.1)
    other.load_state_dict(state)
    both = copy.deepcopy((model, optimizer))
    assert step(model, optimizer) == step(twin, other) == step(*both)
    assert step(model, optimizer) == step(twin, other) == step(*both)  # with the state of the step before
    assert sum(len(part.state) for part in other.parts) == 2 * len(other.state)
    with pytest.raises(RuntimeError, match="before they are joined"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})


def test_errors() -> None:
    mu = autofit.muify(mlp(64), X, base=mlp(16))
    for given, message in (
        ({"optimizer": "muon", "lr": 0.1}, r"beside=\{'lr'"),
        ({"optimizer": "muon", "lr": 0.1, "adjust_lr_fn": "mine"}, "has no rule"),
        ({"optimizer": "muon", "lr": 0.1, "beside": {"lr": 0.1, "bets": 1}}, "no setting 'bets'"),
        ({"optimizer": "adamw", "lr": 0.1, "beside": {"lr": 0.1}}, "takes all parameters"),
        ({"optimizer": "prodigy", "lr": 1.0}, "form='one_lr'"),
    ):
        with pytest.raises(autofit.OptimizerError, match=message):
            mu.optimizer(**given)
    ntk = autofit.analyze(mlp(64), X, base=mlp(16), scheme="ntk")
    with pytest.raises(autofit.OptimizerError, match="has no rule for shampoo"):
        ntk.param_groups("shampoo", lr=0.1)


def prodigy(width: int, form: str | None, seed: int) -> tuple[float, float]:
    """Prodigy's step size after some steps, and the change of hidden values."""
    torch.manual_seed(seed)
    model = mlp(width)
    if form is None:
        optimizer = prodigyopt.Prodigy(model.parameters())
    else:
        optimizer = autofit.muify(model, X, base=mlp(64), form=form).optimizer("prodigy", lr=1.0)
        assert type(optimizer) is prodigyopt.Prodigy
    before = model[:3](X).detach()
    for _ in range(10):
        step(model, optimizer)
    return optimizer.param_groups[0]["d"], (model[:3](X) - before).abs().mean().item()


def test_prodigy_with_one_learning_rate() -> None:
    """Its step size is one for all parameters: multipliers stand in for what they differ in."""
    widths, x = (64, 128, 256, 512), [6, 7, 8, 9]

    def slopes(form: str | None) -> list[float]:
        runs = [[prodigy(w, form, seed) for seed in (0, 1, 2)] for w in widths]
        return [slope(x, [math.log2(sum(r[i] for r in run)) for run in runs]) for i in (0, 1)]

    assert max(map(abs, slopes("one_lr"))) <= 0.1
    assert slopes(None)[0] <= -0.9


def test_soap_is_refused_with_what_was_measured() -> None:
    """Adam in a rotated basis: what it does with directions that no gradient has is noise, and no power of a width."""
    with pytest.raises(autofit.OptimizerError, match="no power law"):
        autofit.measure_optimizer(pytorch_optimizer.SOAP, widths=(128, 256), weight_decay=0.0)
    mu = autofit.analyze(mlp(64), X, base=mlp(16))
    with pytest.raises(autofit.OptimizerError, match="no muP rule is known for the optimizer 'SOAP'"):
        mu.param_groups(pytorch_optimizer.SOAP, lr=1e-3)
