"""Measure initial values, and tell whether their std follows the width."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn.parameter import is_lazy

from autofit.program import storage_key

FEW = 8
"""Below this many values a spread is taken around zero: one value has no spread around its mean."""


@dataclass(frozen=True)
class Spread:
    """Distribution of one parameter's values.

    Attributes:
        std: root mean square around the mean, or around zero for a few values.
        mean: mean value.
        bound: largest absolute value.
        count: number of values.
    """

    std: float
    mean: float
    bound: float
    count: int

    @property
    def uniform(self) -> bool:
        """Whether the largest value is where a centred uniform distribution of this std ends."""
        return self.count >= FEW and self.std > 0 and self.bound <= self.std * math.sqrt(3) * (1 + 2 * self.error)

    @property
    def error(self) -> float:
        """Relative sampling error of the std, one sigma."""
        return 0.75 / math.sqrt(max(self.count, 1))


def spreads(model: nn.Module, only: Collection[str] | None = None) -> dict[str, Spread]:
    """Spread of every parameter that holds values, by its first name; nothing is changed.

    Args:
        model: the model.
        only: names to measure, all if ``None``.
    """
    found: dict[str, Spread] = {}
    seen: set[object] = set()
    for name, p in model.named_parameters(remove_duplicate=False):
        key = storage_key(p)
        if only is not None and name not in only:
            continue
        if key in seen or not measurable(p):
            continue
        seen.add(key)
        measured = spread(p.detach())
        if math.isfinite(measured.std):
            found[name] = measured
    return found


def measurable(p: torch.Tensor) -> bool:
    """Whether a tensor holds real numbers one by one."""
    if is_lazy(p) or is_fake(p) or p.device.type == "meta" or p.layout != torch.strided:
        return False
    return p.numel() > 0 and p.is_floating_point()


def spread(values: torch.Tensor) -> Spread:
    """Spread of the values of one tensor, of any shape."""
    values = values.float() if values.dtype.itemsize < 4 else values
    # not std_mean: that op is seven times slower than var on a CPU
    std, mean = values.var(correction=0).sqrt(), values.mean()
    if values.numel() < FEW:
        std = values.square().mean().sqrt()
    low_end, high_end = torch.aminmax(values)
    bound = max(abs(float(low_end)), abs(float(high_end)))
    return Spread(float(std), float(mean), bound, values.numel())


@dataclass(frozen=True)
class Fan:
    """A size that an init law may follow.

    Attributes:
        name: what it is, for the report.
        size: elements.
        ratio: its growth.
    """

    name: str
    size: float
    ratio: float


GAINS = {"1": 1.0, "sqrt(2)": math.sqrt(2), "1/sqrt(3)": 1 / math.sqrt(3), "5/3": 5 / 3}


@dataclass(frozen=True)
class Law:
    """How a std depends on width and depth.

    Attributes:
        name: in words.
        growth: factor by which the std of the base exceeds the std here: ``ratio^(1/2)`` for a fan law.
        deep: whether it also falls like ``depth^-1/2``, which is not in ``growth``.
        layers: what it is divided by the root of, for that: the number of layers, or twice that.
        fan, gain: size whose root it falls with, and what it is times that root; 0 where it is a constant.
    """

    name: str
    growth: float
    deep: bool = False
    layers: float = 1.0
    fan: float = 0.0
    gain: float = 0.0


def pool(spreads: Sequence[Spread]) -> Spread:
    """One spread for tensors drawn alike; an object that is there twice is one sample."""
    spreads = list({id(s): s for s in spreads}.values())
    count = sum(s.count for s in spreads)
    std = math.sqrt(sum(s.std**2 * s.count for s in spreads) / max(count, 1))
    mean = sum(s.mean * s.count for s in spreads) / max(count, 1)
    return Spread(std, mean, max(s.bound for s in spreads), count)


def find_law(spread: Spread, fans: Iterable[Fan], depth: int, constants: Iterable[float]) -> Law:
    """Decide whether a measured std is a constant or follows a fan (RULES 5).

    A normal distribution whose std is one of the model's own configured constants is a constant. Otherwise
    the first law of Kaiming, Xavier or torch's default that agrees within sampling error is taken, plain laws
    before those with a factor for depth; if none does, the std is a constant.

    Args:
        spread: measured values.
        fans: sizes that the std may follow, most usual first.
        depth: number of repeated layers, for residual-branch factors ``depth^-1/2`` and ``(2 depth)^-1/2``.
        constants: standard deviations from the model's configuration.
    """
    s = spread.std
    if s == 0:
        return Law("constant value", 1.0)
    tolerance = 4 * spread.error + 1e-3
    depths = (1.0, float(max(depth, 1)), 2.0 * max(depth, 1))

    def near(value: float) -> bool:
        return abs(math.log(s / value)) < tolerance

    if not spread.uniform:
        for k in depths:
            if any(c > 0 and near(c / math.sqrt(k)) for c in constants):
                return Law(f"constant {s * math.sqrt(k):.4g}{_tail(k)}", 1.0, k != 1, k)
    fans = list(fans)
    if spread.count < FEW:  # too few to measure a scale: a draw inside torch's default bound is taken for one
        drawn = next((f for f in fans if spread.bound <= 1 / math.sqrt(f.size)), None)
        law = (
            Law(f"few values, inside 1 / sqrt({drawn.name} {drawn.size:g})", math.sqrt(drawn.ratio)) if drawn else None
        )
        return law or Law(f"constant {s:.4g}", 1.0)
    gains = sorted(GAINS.items(), key=lambda g: g[0] != "1/sqrt(3)") if spread.uniform else list(GAINS.items())
    for k in depths:
        for fan in fans:
            for name, gain in gains:
                if near(gain / math.sqrt(fan.size * k)):
                    text = f"{name} / sqrt({fan.name} {fan.size:g}){_tail(k)}"
                    return Law(text, math.sqrt(fan.ratio), k != 1, k, fan.size, gain)
    return Law(f"constant {s:.4g}", 1.0)


def _tail(k: float) -> str:
    return "" if k == 1 else f" / sqrt({k:g})"
