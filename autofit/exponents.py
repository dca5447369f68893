"""How an optimizer's updates grow with width, measured: the exponents that its learning rates have to undo."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from autofit.errors import OptimizerError
from autofit.monomial import ONE, Monomial
from autofit.rules import Optimizer, register, table

FEATURES, LATENT, CLASSES, SAMPLES = 16, 4, 4, 32
UNITS = 16
"""Different units in a width; the others are copies of them."""
AXES = {
    "input": ("r_out",),
    "hidden": ("r_in", "r_out"),
    "output": ("r_in",),
    "bottleneck": ("r_in",),
    "bottleneck as output": ("r_in",),
    "vector": ("r_out",),
}
"""Roles that the probe has, and the ratios that each can grow by."""
ENDS: dict[str, tuple[int | str, ...]] = {
    "input": ("a", FEATURES),
    "hidden": ("b", "a"),
    "bottleneck": (LATENT, "b"),
    "bottleneck as output": (LATENT, "b"),
    "up": ("b", LATENT),
    "output": (CLASSES, "b"),
    "vector": ("b",),
}
"""What the probe's parameters give and contract: two widths, and sizes that are fixed."""
NOISY = ("hidden", "bottleneck", "bottleneck as output")
"""Roles whose learned part is smaller than their initial values, by the root of the width."""


class Probe(nn.Module):
    """A net with one parameter of each role, scaled by hand as the table says; two widths that grow apart.

    ``FEATURES -> a -> b -> CLASSES``, with two latents of fixed size beside the second layer. All units are copies of
    a few, so that what has been learned adds up over a width exactly, as it does in the limit of a large one (the law
    of large numbers in Tensor Programs V, section 3). What has not been learned is noise of the std that the table
    says. It has opposite signs in two copies of a unit, on either side: a sum over random signs gives nothing.
    Every parameter is divided by ``theta``, and multiplied by it in forward.
    """

    def __init__(self, scheme: str, a: int, b: int, base: int, seed: int, theta: float = 1.0) -> None:
        super().__init__()
        generator, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        self.rules, self.ratios = table(scheme).rules, {"r_in": a / base, "r_out": b / base}
        self.parts, self.theta = nn.ParameterDict(), theta
        self.given: dict[str, torch.Tensor] = {}
        widths = {"a": a, "b": b}
        for role, ends in ENDS.items():
            shape = [widths[e] if isinstance(e, str) else e for e in ends]
            units = [UNITS if isinstance(e, str) else e // 2 if e == LATENT else e for e in ends]
            fan = base if isinstance(ends[-1], str) else shape[-1]
            rule, ratios = self.rules[_rule(role)], self.growth(role)
            assert rule.init is not None
            learned = torch.randn(units, generator=generator, dtype=torch.float64)
            value = learned.repeat([n // k for n, k in zip(shape, units, strict=True)]) * fan**-0.5
            if role in NOISY:
                value = value / (16 * ratios["r_in"])  # small beside the noise, whose RMS is to follow the table
                drawn = torch.randn([n // 2 for n in shape], generator=noise, dtype=torch.float64)
                signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
                rows, columns = (_paired(n, k) for n, k in zip(shape, units, strict=True))
                value += torch.kron(drawn, signs)[rows][:, columns] * (fan**-0.5 * rule.init(ratios))
            self.parts[role] = nn.Parameter(value / theta)

    def growth(self, role: str) -> dict[str, float]:
        """Growth of what a role contracts and gives."""
        a, b = self.ratios["r_in"], self.ratios["r_out"]
        ratios = {"input": (1.0, a), "hidden": (a, b), "vector": (1.0, b), "up": (1.0, b)}.get(role, (b, 1.0))
        return dict(zip(("r_in", "r_out"), ratios, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.give("input", x))
        h = torch.tanh(self.give("hidden", h) + self.theta * self.parts["vector"])
        latent = torch.tanh(self.give("bottleneck", h) + self.give("bottleneck as output", h))
        return self.give("output", torch.tanh(h + self.give("up", latent)))

    def give(self, role: str, x: torch.Tensor) -> torch.Tensor:
        """What a weight makes of a value, which is remembered."""
        self.given[role] = x.detach()
        weight: torch.Tensor = self.parts[role]
        return self.multiplier(role) * (x @ weight.T)

    def multiplier(self, role: str) -> float:
        """Forward factor on what a weight gives."""
        factor = self.rules[_rule(role)].multiplier
        assert factor is not None
        return self.theta * factor(self.growth(role))


def _paired(size: int, units: int) -> torch.Tensor:
    """Places, in an order of neighbouring pairs, such that each pair is two copies of one unit."""
    copies = torch.arange(size).reshape(-1, 2, units)  # neighbours in the middle are copies
    places = torch.empty(size, dtype=torch.long)
    places[copies.transpose(1, 2).reshape(-1)] = torch.arange(size)
    return places


def _rule(role: str) -> str:
    return "input" if role == "up" else role


def updates(
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    settings: Callable[[str, Mapping[str, float]], Mapping[str, float]],
    *,
    scheme: str,
    widths: tuple[int, int],
    base: int,
    steps: int,
    seed: int,
    theta: float = 1.0,
) -> dict[str, float]:
    """RMS, by role, of how much the last of a few steps changed what a parameter gives.

    Args:
        optimizer: makes an optimizer from groups.
        settings: of the group of a role, given its growth.
        scheme: whose multipliers and initial values the probe has.
        widths: of the two layers, in elements.
        base: width at which all factors are 1.
        steps: how many; the last one counts.
        seed: of the initial values and the data.
        theta: forward factor on all parameters, which are as much smaller.
    """
    net = Probe(scheme, *widths, base, seed, theta)
    data = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(SAMPLES, FEATURES, generator=data, dtype=torch.float64)
    y = torch.randn(SAMPLES, CLASSES, generator=data, dtype=torch.float64)

    chosen = optimizer([{"params": [p], **settings(role, net.growth(role))} for role, p in net.parts.items()])
    if hasattr(chosen, "train"):  # schedule-free ones step in that mode only
        chosen.train()
    before: dict[str, torch.Tensor] = {}
    for _ in range(steps):
        before = {role: p.detach().clone() for role, p in net.parts.items()}
        chosen.zero_grad()
        (net(x) * y).mean().backward()  # linear, so that no gradient ends as the fit gets better
        chosen.step()
    found = {}
    for role in AXES:
        change = net.parts[role].detach() - before[role]
        change = theta * change if role == "vector" else net.multiplier(role) * (net.given[role] @ change.T)
        found[role] = change.square().mean().sqrt().item()
    return found


@dataclass(frozen=True)
class Fit:
    """Exponents of an update in growth ratios.

    Attributes:
        exponents: by ratio.
        error: largest distance of a measurement from the fit, as an exponent over the range of widths.
    """

    exponents: Mapping[str, float]
    error: float


@dataclass(frozen=True)
class Measured:
    """What was measured of an optimizer, and the rule that follows.

    Attributes:
        optimizer: its entry, in the table of rules from now on.
        fits: by role, of the RMS of what one learning rate for all changes.
        lr: by role, the factor that undoes it.
        power: of the gradient's scale that an update goes with, where the parameter is as much smaller.
        widths: where it was measured, in elements.
    """

    optimizer: Optimizer
    fits: Mapping[str, Fit]
    lr: Mapping[str, Monomial]
    power: float
    widths: tuple[int, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.optimizer.name} ({self.optimizer.classes[0]}), widths {', '.join(map(str, self.widths))}",
            f"{'role':<21} {'what one lr for all changes':<31} {'error':>6}  lr",
        ]
        for role, found in self.fits.items():
            shown = " ".join(f"{ratio}^{round(e, 2) + 0.0:.2f}" for ratio, e in found.exponents.items())
            lines.append(f"{role:<21} {shown:<31} {found.error:>6.3f}  {self.lr[role]}")
        lines.append(f"an update goes with the gradient's scale to the power {round(self.power, 2) + 0.0:.2f}")
        lines.append(f"weight decay: {DECAYS[self.optimizer.decay]}; eps is left alone")
        return "\n".join(lines)


DECAYS = {
    "with lr": "lr * weight_decay is kept",
    "independent": "weight_decay is kept",
    "gradient": "added to the gradient: no rule is sourced",
}
TOLERANCE = 0.1
"""Of exponents, from the next quarter and from the fit."""
THETA = 16.0


def fit(measure: Callable[[tuple[int, int]], Mapping[str, float]], widths: Sequence[int]) -> dict[str, Fit]:
    """Exponents of updates, by role, over all pairs of widths.

    Raises:
        OptimizerError: an update is zero or not finite.
    """
    pairs = [(a, b) for a in widths for b in widths]
    values = [measure(pair) for pair in pairs]
    base, span = widths[0], math.log(widths[-1] / widths[0])
    found = {}
    for role, axes in AXES.items():
        columns = {"r_in": 0 if role == "hidden" else 1, "r_out": 0 if role == "input" else 1}
        rows = torch.tensor([[1.0, *(math.log(p[columns[x]] / base) for x in axes)] for p in pairs]).double()
        logs = torch.tensor([math.log(v[role]) if v[role] > 0 else math.nan for v in values]).double()
        if not logs.isfinite().all():
            raise OptimizerError(f"updates of {role} are zero or not finite: no exponent can be measured")
        solution = torch.linalg.lstsq(rows, logs[:, None]).solution[:, 0]
        error = (rows @ solution - logs).abs().max().item() / span
        found[role] = Fit(dict(zip(axes, solution[1:].tolist(), strict=True)), error)
    return found


def measure_optimizer(
    optimizer: type,
    *,
    name: str | None = None,
    scheme: str = "mup",
    widths: Sequence[int] = (128, 256, 512, 1024),
    lr: float = 1e-7,
    steps: int = 8,
    seed: int = 0,
    **settings: Any,
) -> Measured:
    """Measure how an optimizer's updates grow with width, and put the rule that follows into the table of rules.

    A small net with one parameter of each role takes a few steps at widths that grow apart, with one learning rate
    for all. The exponents of the RMS of what changes, ``RMS(dW x)``, are what the learning rates have to undo
    (spectral condition, arXiv 2310.17813), to the next quarter.

    Args:
        optimizer: a class that takes parameter groups, ``lr`` and ``settings``.
        name: of its rule, for `Analysis.optimizer` and `Analysis.param_groups`; ``None`` is the class's in small
            letters. The class itself finds it, too.
        scheme: whose initial values and multipliers the net has.
        widths: in elements, multiples of 32.
        lr: so small that nothing else changes.
        steps: how many; the last one is measured.
        seed: of the net and its data.
        settings: for the optimizer.

    Raises:
        OptimizerError: bad widths, a name or class that the table has, updates that are no power of the widths, or
            whose exponents are no quarters.
    """
    if len(set(widths)) < 2 or any(w % (2 * UNITS) or w <= 0 for w in widths):
        raise OptimizerError(f"widths={tuple(widths)!r}: give at least two different multiples of {2 * UNITS}")
    widths = sorted(set(widths))
    name = name or optimizer.__name__.lower()
    path = f"{optimizer.__module__.partition('.')[0]}.{optimizer.__qualname__}"

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = optimizer(groups, lr=lr, **settings)
        return made

    def at(pair: tuple[int, int], theta: float = 1.0) -> dict[str, float]:
        return updates(
            make, lambda *_: {}, scheme=scheme, widths=pair, base=widths[0], steps=steps, seed=seed, theta=theta
        )

    fits = fit(at, widths)
    smallest = (widths[0], widths[0])
    plain, moved = at(smallest), at(smallest, THETA)
    powers = {role: math.log(moved[role] / plain[role]) / math.log(THETA) - 1 for role in AXES}
    power = sum(powers.values()) / len(powers)
    problems = [
        f"{role}: {ratio}^{e:.2f}"
        for role, found in fits.items()
        for ratio, e in found.exponents.items()
        if found.error > TOLERANCE or abs(e - round(4 * e) / 4) > TOLERANCE
    ]
    problems += [f"{role}: power {p:.2f} of the gradient" for role, p in powers.items() if abs(p - round(power)) > 0.1]
    if problems:
        raise OptimizerError(
            f"updates of {optimizer.__qualname__} follow no power law that a rule could undo: {'; '.join(problems)}",
            todo="try another lr, more steps, or the optimizer's settings as you use them",
        )
    rules = {
        role: Monomial.of({ratio: -Fraction(round(4 * e), 4) for ratio, e in found.exponents.items()})
        for role, found in fits.items()
    } | {"fixed": ONE}
    entry = Optimizer(name, (path,), name, round(power), _decay(make, lr), False, "autofit.measure_optimizer")
    register(entry, rules)
    return Measured(entry, fits, rules, power, tuple(widths))


def _decay(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], lr: float) -> str:
    """How weight decay enters, seen on two parameters without gradient of which one is a thousand times as large."""
    sizes, decay = (1.0, 1e-3), 0.5
    values = [nn.Parameter(torch.full((8, 8), size, dtype=torch.float64)) for size in sizes]
    chosen = make([{"params": values, "weight_decay": decay}])
    for value in values:
        value.grad = torch.zeros_like(value)
    chosen.step()
    shares = [(size - value.mean().item()) / size for size, value in zip(sizes, values, strict=True)]
    if not math.isclose(*shares, rel_tol=1e-3):
        return "gradient"
    return "independent" if math.isclose(shares[0], decay, rel_tol=1e-3) else "with lr"
