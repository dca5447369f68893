"""Slopes of sizes over width, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autofit.checking import Check
from autofit.program import fold_layers
from autofit.report import fold_names, printed

TOLERANCE = 0.25
"""Of a slope: what muP leaves at widths as small as these."""
MUP, WITHOUT = "muP", "without muP"
SILENT = 1e-12
"""Sizes below this are none."""


@dataclass(frozen=True)
class Slope:
    """Of log2 of a size against log2 of the width.

    Attributes:
        value: least squares over widths and seeds.
        error: half of its 95 % interval.
    """

    value: float
    error: float

    def beyond(self, low: float, high: float) -> float:
        """By how much the whole interval is outside of two bounds; 0 if it is not."""
        above, below = self.value - self.error - high, self.value + self.error - low
        return above if above > 0 else min(below, 0.0)

    def __str__(self) -> str:
        return f"{round(self.value, 2) + 0.0:+.2f} ±{self.error:.2f}"


@dataclass(frozen=True)
class Line:
    """What was measured of one module, parameter or product of activations.

    Attributes:
        kind: ``module``, ``parameter`` or ``logits``.
        name: of it.
        start, change: sizes before training and of the change, by width and seed.
        start_slope, change_slope: over widths; ``None`` where something is zero.
        predicted: both slopes for one small step, from exponents of width and sizes at the smallest one, if known.
        role: of a parameter.
        limit: exponent of a parameter's change by the static check, which the predicted slope approaches.
    """

    kind: str
    name: str
    start: Mapping[int, tuple[float, ...]]
    change: Mapping[int, tuple[float, ...]]
    start_slope: Slope | None
    change_slope: Slope | None
    predicted: tuple[float | None, float | None] = (None, None)
    role: str = ""
    limit: float | None = None

    @property
    def finite(self) -> float:
        """How far widths like these are from the limit, by prediction, which is what a slope may be off."""
        if self.limit is None or self.predicted[1] is None:
            return 0.0
        return max(-0.5, min(self.predicted[1] - self.limit, 0.5))


@dataclass(frozen=True)
class Fault:
    """A slope that muP does not have.

    Attributes:
        line: what was measured.
        what: ``start`` or ``change``.
        excess: of the slope's whole interval, beyond what is allowed.
        cause: what usually gives this.
    """

    line: Line
    what: str
    excess: float
    cause: str

    @property
    def slope(self) -> Slope | None:
        """The faulty one; ``None`` where there are no numbers."""
        return self.line.start_slope if self.what == "start" else self.line.change_slope


@dataclass(frozen=True)
class Slopes:
    """What a coordinate check measured, and what is wrong with it.

    Attributes:
        lines: all that was measured, in the order of the forward pass.
        faults: what is wrong, worst first.
        static: findings of the static check on the same model.
        control: the same measured without muP; empty if not asked for.
        widths, base, seeds, steps, optimizer, lr: of the runs.
        interrupted: whether it was stopped before all runs were done.
        title: what was checked.
    """

    lines: tuple[Line, ...]
    faults: tuple[Fault, ...]
    static: Check | None = field(repr=False)
    control: tuple[Line, ...]
    widths: tuple[int, ...]
    base: int
    seeds: int
    steps: int
    optimizer: str
    lr: float | None
    interrupted: bool = False
    title: str = ""

    @property
    def ok(self) -> bool:
        """Whether all was measured, and nothing grows or fades that must not, nor is wrong by the static check."""
        measured = any(ln.change_slope is not None for ln in self.lines) and not self.interrupted
        return measured and not self.faults and (self.static is None or self.static.ok)

    @property
    def slopes(self) -> dict[str, float]:
        """Slopes of what training changes in the output of every module; the model's own is ``""``."""
        return {ln.name: ln.change_slope.value for ln in self.lines if ln.kind == "module" and ln.change_slope}

    @property
    def worst(self) -> Line | None:
        """The module or parameter whose change has the slope farthest from zero."""
        known = [ln for ln in self.lines if ln.change_slope is not None and ln.kind != "logits"]
        return max(known, key=lambda ln: abs(ln.change_slope.value), default=None)  # type: ignore[union-attr]

    def summary(self) -> list[str]:
        """The verdict, then what was run."""
        static = 0 if self.static is None else sum(f.severe for f in self.static.findings)
        wrong = f"wrong: faulty slopes: {len(self.faults)}, findings of the static check: {static}"
        lr = "" if self.lr is None else f", lr {self.lr:g}"
        widths = ", ".join(map(str, self.widths))
        if not any(ln.change_slope is not None for ln in self.lines):
            wrong = "no answer: nothing was measured that changed, at two widths or more"
        elif self.interrupted and not self.faults:
            wrong = "no answer: interrupted before all was measured, and nothing wrong until then"
        said = ["right: nothing that is learned grows or fades with width" if self.ok else wrong]
        said += [f"widths {widths}, base {self.base}, {self.seeds} seeds, {self.steps} steps of {self.optimizer}{lr}"]
        return said + ["interrupted: these are the widths and seeds that were done"] * self.interrupted

    def renderables(self) -> list[RenderableType]:
        """For a terminal."""
        said, *more = self.summary()
        pieces: list[RenderableType] = [Text(said, style="bold green" if self.ok else "bold red"), *map(Text, more)]
        if self.faults:
            pieces += [Text(), self._worst_first()]
        if self.static is not None and self.static.findings:
            pieces += [Text("\nThe static check:"), *self.static.renderables()]
        return [*pieces, Text(), self._all()]

    def _worst_first(self) -> Table:
        shown = Table(box=None, title="Worst first", title_justify="left")
        shown.add_column("what", overflow="fold", ratio=3)
        shown.add_column("slope", no_wrap=True)
        shown.add_column("likely cause", ratio=3)
        alike: dict[tuple[str, str, str], list[Fault]] = {}
        for f in self.faults:
            alike.setdefault((f.what, fold_layers(f.line.name), f.cause), []).append(f)
        for (what, _, cause), found in alike.items():
            names = ", ".join(fold_names(dict.fromkeys(f.line.name for f in found))) or "the model"
            shown.add_row(Text(f"{what} of {names}"), _cell(found[0].slope), cause)
        return shown

    def _all(self) -> Table:
        """Slopes of all, layers folded: those of the layer that is farthest from zero."""
        shown = Table(box=None, title="Slopes over width", title_justify="left")
        shown.add_column("of", overflow="fold")
        columns = ["start", "change", "predicted", *(["without muP"] if self.control else [])]
        for name in columns:
            shown.add_column(name, no_wrap=True, justify="right")
        plain = {(ln.kind, ln.name): ln.change_slope for ln in self.control}
        alike: dict[tuple[str, str, str], list[Line]] = {}
        for ln in self.lines:
            alike.setdefault((ln.kind, fold_layers(ln.name), ln.role), []).append(ln)
        for (kind, *_), found in alike.items():
            worst = max(found, key=lambda ln: abs(ln.change_slope.value) if ln.change_slope else -1.0)
            names = ", ".join(fold_names(dict.fromkeys(ln.name for ln in found))) or "the model"
            predicted = "" if worst.predicted[1] is None else f"{worst.predicted[1] + 0.0:+.2f}"
            cells = [*map(_cell, (worst.start_slope, worst.change_slope)), predicted]
            cells += [_cell(plain.get((worst.kind, worst.name)))] if self.control else []
            shown.add_row(Text(names if kind != "logits" else f"logits: {names}"), *cells)
        return shown

    def __str__(self) -> str:
        return printed(self.renderables())

    def to_json(self) -> dict[str, Any]:
        """The whole answer as plain data."""
        data = {k: v for k, v in asdict(self).items() if k != "static"}
        static = self.static.to_json() if self.static else None
        return {"format": "autofit coordinate check", "version": 1, "ok": self.ok, **_plain(data), "static": static}


def _plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(slope: Slope | None) -> str:
    return "-" if slope is None else str(slope)


def fit(points: Mapping[int, Sequence[float]]) -> Slope | None:
    """Least squares of log2 of sizes over log2 of widths; ``None`` if a size is zero, or not finite."""
    pairs = [(math.log2(width), size) for width, sizes in points.items() for size in sizes]
    if len({x for x, _ in pairs}) < 2 or any(not math.isfinite(size) or size < SILENT for _, size in pairs):
        return None
    xs, ys = [x for x, _ in pairs], [math.log2(size) for _, size in pairs]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mx) ** 2 for x in xs)
    value = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / spread
    free = len(pairs) - 2
    rest = sum((y - my - value * (x - mx)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Slope(value, student(free) * math.sqrt(rest / free / spread) if free else 0.0)


def student(free: int) -> float:
    """Quantile 0.975 of Student's t distribution (Hill's expansion; within 1 % from 3 degrees of freedom on)."""
    if free < 3:
        return (12.706, 4.303)[free - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = [z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384]
    return float(sum(t / free**i for i, t in enumerate(terms)))
