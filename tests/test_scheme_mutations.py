"""A wrong cell of any scheme besides muP's is seen in what models do; muP's own are in test_mutations.py.

Cells of ``fixed`` say nothing, for nothing grows there; but under u-mup, where they are those of ``hidden``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import test_unit_scaling as golden
import torch
from coordinates import slope
from test_updates import Decoder as Small
from torch import nn

import autofit
from autofit import rules
from autofit.monomial import Monomial
from autofit.rules import BRANCH, OWN, table

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3
FAMILIES = {"adam": "adam", "sgd": "sgd", "adafactor": "adafactor", "orthogonal": "shampoo"}
READ = rules._read


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Puts other data into the place of a scheme's file."""

    def clear() -> None:
        rules._listed.cache_clear()
        table.cache_clear()

    def write(scheme: str, data: dict[str, Any]) -> None:
        monkeypatch.setattr(rules, "_read", lambda name: data if name == scheme else READ(name))
        clear()

    yield write
    monkeypatch.undo()
    clear()


def cells(scheme: str) -> Iterator[tuple[Any, ...]]:
    """Places of all cells that a scheme has of its own."""
    data = READ(scheme)
    below = READ(scheme.partition("+")[0]) if "+" in scheme else {}
    for role, row in data["roles"].items():
        if row == below.get("roles", {}).get(role) or (role == "fixed" and scheme != "u-mup"):
            continue
        for column in ("multiplier", "init", "lr", "eps"):
            if row.get(column) == below.get("roles", {}).get(role, {}).get(column):
                continue  # of the scheme below
            if isinstance(row.get(column), str):
                yield "roles", role, column
            else:
                yield from (("roles", role, column, family) for family in row.get(column, ()))
    yield from (("sites", kind, "total") for kind in data["sites"] if kind not in below.get("sites", {}))


def other(text: str, place: tuple[Any, ...], scheme: str) -> str:
    """A cell that is wrong by the root of a ratio."""
    if place[0] == "sites":
        ratio = {
            "residual": "B" if scheme.startswith("u-mup") else "L",
            "attention": "n" if scheme.startswith("u-mup") else "r",
        }[place[1]]
    elif place[1] == BRANCH:
        ratio = "B" if scheme.startswith("u-mup") else "L"
    else:
        growing_out = place[1] in ("input", "vector", "embedding")
        ratio = (
            ("fan_out" if growing_out else "fan_in")
            if scheme.startswith("u-mup")
            else "r_out"
            if growing_out
            else "r_in"
        )
        ratio = "fan_in" if scheme.startswith("u-mup") and place[1] == "input" else ratio
    own = Monomial.parse("1" if text == OWN else text)
    return str(own * Monomial.parse(f"{ratio}^1/2"))


def sp_is_right() -> bool:
    """Nothing is changed, at twice the base's width."""
    ids = torch.zeros(2, 5, dtype=torch.long)
    for bottleneck in ("hidden", "output"):
        mu = autofit.analyze(Small(256), ids, base=Small(128), scheme="sp", bottleneck=bottleneck)
        groups = [g for name in ("adamw", *FAMILIES.values()) for g in mu.param_groups(name, lr=1.0, weight_decay=0.0)]
        factors = [g[k] for g in groups for k in ("lr", "eps") if k in g and k != "eps"]
        factors += [g["eps"] for g in mu.param_groups("adamw", lr=1.0, eps=1.0)]
        factors += [f for p in mu.plan.parameters.values() for f in (p.init_factor, p.multiplier)]
        if set(factors) != {1.0} or any(s.multiplier != 1 for s in mu.plan.sites):
            return False
    return _attention("sp") == 1


class Narrow(nn.Module):
    """One parameter of each role, whose effects are apart: a bottleneck beside two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width, bias=False), nn.Linear(width, width, bias=False)
        self.bias, self.down = nn.Parameter(0.1 * torch.randn(width)), nn.Linear(width, 4, bias=False)
        self.up, self.head = nn.Linear(4, width, bias=False), nn.Linear(width, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x) + self.bias)
        return self.head(torch.tanh(x + self.up(torch.tanh(self.down(x)))))


KERNEL = {"first": -0.5, "second": -0.5, "bias": -0.5, "down": 0.0, "head": 0.0}
"""Exponents of what one step changes in what a parameter gives, in the kernel limit."""


def ntk_run(width: int, optimizer: str, bottleneck: str, seed: int) -> dict[str, tuple[float, float, float]]:
    """By parameter: log2 RMS of what it gives, of what a step changes in that, and of its gradient over eps."""
    torch.manual_seed(seed)
    model, given, out = Narrow(width), {}, {}
    mu = autofit.muify(model, X, base=Narrow(128), scheme="ntk", bottleneck=bottleneck)
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[0].detach()}))
        module.register_forward_hook(lambda _, args, result, name=name: out.update({name: result.detach()}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    chosen = mu.optimizer(optimizer, lr=1e-3, **({"eps": 1e-12} if optimizer == "adam" else {}))
    nn.functional.cross_entropy(model(X), Y).backward()
    chosen.step()
    eps = {n: g["eps"] if optimizer == "adam" else 1.0 for g in chosen.param_groups for n in g["param_names"]}
    found = {}
    for n, p in model.named_parameters():
        path, change = n.removesuffix(".weight"), p.detach() - before[n]
        effect = change if path == "bias" else given[path] @ change.T
        size = out.get(path, before[n])
        sizes = (size, effect, p.grad / eps[n])
        found[path] = tuple(math.log2(v.double().square().mean().sqrt().item()) for v in sizes)
    return found


def ntk_is_right() -> bool:
    """In the kernel limit, at random initial values."""
    x = (7, 9, 11)
    for family in ("adam", "sgd", "adafactor"):
        for bottleneck in ("hidden", "output"):
            runs = [[ntk_run(2**k, FAMILIES[family], bottleneck, seed) for seed in (0, 1)] for k in x]
            for path, expected in KERNEL.items():
                size, effect, gradient = (
                    slope(x, [sum(r[path][i] for r in run) / len(run) for run in runs]) for i in range(3)
                )
                noise = 0.22  # a root of the width is half
                if abs(size) > noise or abs(effect - expected) > noise or (family == "adam" and abs(gradient) > noise):
                    return False
    plan = autofit.analyze(golden.Decoder(64, 1), torch.zeros(2, 5, dtype=torch.long), base=32, scheme="ntk").plan
    return all(s.multiplier == 1 for s in plan.sites if s.kind == "attention") and _attention("ntk") == 4**-0.5


def _attention(scheme: str) -> float:
    """Scale that attention gains where its head grows fourfold and there is none."""

    class Heads(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(5, width), nn.Linear(5, width), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.q(x) @ self.k(x).mT).softmax(-1) @ x)

    sites = autofit.analyze(Heads(64), X[None], base=Heads(16), scheme=scheme).plan.sites
    (site,) = (s for s in sites if s.kind == "attention")
    return site.multiplier


class Stack(nn.Module):
    """Branches on one stream."""

    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, width), nn.Linear(width, 3, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(torch.tanh(x))
        return self.head(x)


def depth_run(scheme: str, optimizer: str, depth: int) -> tuple[float, float, float]:
    """log2 of: what a block gives at first, what a step of the blocks changes in the stream, gradient over eps."""
    torch.manual_seed(0)
    model = Stack(depth)
    mu = autofit.muify(model, X, base=Stack(2), scheme=scheme)
    chosen = mu.optimizer(optimizer, lr=1e-4, **({"eps": 1e-12} if optimizer == "adam" else {}))
    for group in chosen.param_groups:
        if not any("blocks" in n for n in group["param_names"]):
            group["lr"] = 0.0
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    nn.functional.cross_entropy(model(X), Y).backward()
    chosen.step()
    model(X)
    inside = next(g for g in chosen.param_groups if any("blocks" in n for n in g["param_names"]))
    eps = inside["eps"] if optimizer == "adam" else 1.0
    gradient = torch.stack([b.weight.grad for b in model.blocks])
    weights = torch.stack([b.weight.detach() for b in model.blocks])
    return tuple(
        math.log2(v.double().square().mean().sqrt().item()) for v in (weights, seen[1] - seen[0], gradient / eps)
    )


def depth_is_right(scheme: str) -> bool:
    """What all branches together change is the same at any depth; the first two layers are few, so from four on."""
    x = (2, 3, 4, 5)
    for optimizer in FAMILIES.values():
        runs = [depth_run(scheme, optimizer, 2**k) for k in x]
        if any(
            abs(slope(x, column)) > 0.22 for column in list(zip(*runs, strict=True))[: 3 if optimizer == "adam" else 2]
        ):
            return False
    return True


def unit_is_right() -> bool:
    """The unit-scaling package's outputs, gradients and steps; and what it has no layers for is as hidden."""
    rows = READ_NOW("u-mup")["roles"]
    if any(rows[r][c] != rows["hidden"][c] for r in ("bottleneck", "bottleneck as output", "fixed") for c in COLUMNS):
        return False
    try:
        for name in golden.MODELS:
            golden.test_outputs_and_gradients(name)
            for optimizer in ("adamw", "sgd"):
                golden.test_training_steps(name, optimizer)
        golden.test_values_start_at_unit_scale()
    except AssertionError:
        return False
    return True


def plain_embedding_is_right() -> bool:
    """All but tables learn as under u-mup; tables at the same rate at every width."""
    ids = torch.zeros(2, 5, dtype=torch.long)
    rates = {}
    for scheme in ("u-mup", "u-mup+plain-embedding"):
        mu = autofit.analyze(golden.Decoder(64, 1), ids, base=32, scheme=scheme)
        for name in ("adamw", "sgd"):
            groups = mu.param_groups(name, lr=1.0)
            rates[scheme, name] = {n: g["lr"] for g in groups for n in g["param_names"]}
    for name in ("adamw", "sgd"):
        ratios = {n: r / rates["u-mup", name][n] for n, r in rates["u-mup+plain-embedding", name].items()}
        if ratios != pytest.approx({n: 8.0 if n == "tokens.weight" else 1.0 for n in ratios}):
            return False
    return True


COLUMNS = ("multiplier", "init", "lr", "eps")


def READ_NOW(name: str) -> dict[str, Any]:
    """A scheme as it is read at this moment."""
    return rules._read(name)


CHECKS: dict[str, Callable[[], bool]] = {
    "sp": sp_is_right,
    "ntk": ntk_is_right,
    "mup+completep": lambda: depth_is_right("mup+completep"),
    "mup+depth": lambda: depth_is_right("mup+depth"),
    "u-mup": unit_is_right,
    "u-mup+plain-embedding": plain_embedding_is_right,
}


def test_every_scheme_is_checked() -> None:
    assert set(CHECKS) | {"mup"} == set(rules.schemes())


@pytest.mark.parametrize("scheme", CHECKS)
def test_the_scheme_is_right(scheme: str) -> None:
    assert CHECKS[scheme]()


@pytest.mark.parametrize(("scheme", "place"), [(s, place) for s in CHECKS for place in cells(s)], ids=str)
def test_a_wrong_cell_is_seen(written: Any, scheme: str, place: tuple[Any, ...]) -> None:
    data = copy.deepcopy(READ(scheme))
    row = data
    for key in place[:-1]:
        row = row[key]
    row[place[-1]] = other(row[place[-1]], place, scheme)
    written(scheme, data)
    assert not CHECKS[scheme]()
