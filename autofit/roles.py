"""What each parameter does, and where multipliers belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import fx

from autofit.flow import Factor
from autofit.growth import Growth
from autofit.measure import Fan
from autofit.program import Parameter, describe

Role = Literal["input", "hidden", "output", "vector", "fixed"]
Treatment = Literal["apply", "nothing", "norm", "unsupported"]


@dataclass(frozen=True)
class Segment:
    """A run of a parameter's surviving axis that has one role.

    Attributes:
        start, stop: range along the axis, in elements.
        role: the role of this run.
    """

    start: int
    stop: int
    role: Role


@dataclass(frozen=True)
class ParameterRole:
    """How one parameter is used.

    Attributes:
        parameter: the parameter.
        role: its role (RULES: input, hidden, output, vector, fixed).
        kind: what it is to somebody who tunes it (``autofit.kinds``).
        r_in: growth of the axes contracted with the activation, dimensionless.
        r_out: growth of the axes that survive.
        fan_in: contracted elements, kernel taps included.
        fan_out: surviving elements.
        taps: kernel taps, 1 without.
        bottleneck: an output-role weight whose result passes a growing dimension again on every path.
        tied: looked up and contracted: one tensor with two uses.
        segments: role by run of the surviving axis where runs differ, else empty.
        law_fan: contracted size of the layer a vector belongs to, which its init may follow.
        r_law: growth of ``law_fan``.
        sibling_fans: contracted sizes of the other weights of the same op (recurrent cells).
        length_of: name of the weight whose rows it gives a length (weight normalization), else empty.
        reason: why, in words.
        where: module path and source line.
        depth: growth of the number of branches, for one that is inside a residual branch; half their number where the
            scheme is absolute.
        unit_gradient: what takes its gradient to that of u-muP's branches, which are scaled in the forward pass alone.
    """

    parameter: Parameter
    role: Role
    kind: str
    r_in: float
    r_out: float
    fan_in: int
    fan_out: int
    taps: int
    bottleneck: bool
    tied: bool
    segments: tuple[Segment, ...]
    law_fan: int
    r_law: float
    sibling_fans: tuple[Fan, ...]
    length_of: str
    reason: str
    where: str
    depth: float = 1.0
    unit_gradient: float = 1.0

    @property
    def ratios(self) -> dict[str, float]:
        """What a cell for multipliers or initial values is a product of, by symbol."""
        sizes = {"fan_in": self.fan_in, "fan_out": self.fan_out}
        return {"r_in": self.r_in, "r_out": self.r_out, "L": self.depth, "B": self.depth, **sizes}


@dataclass(frozen=True)
class Site:
    """A place in the forward pass whose scale muP prescribes.

    Attributes:
        kind: ``readout``, ``attention``, ``embedding`` or ``residual``.
        parameter: name of the weight, empty for a product of two activations and for a residual branch.
        node: the op.
        where: module path and source line.
        size: summed elements (for an embedding: its width).
        ratio: growth of these.
        exponent: exponent of ``ratio`` that the total scale must have.
        present: exponent that constants in the program already give it.
        scale: the scalar factors found in the program, multiplied.
        paths: values that may carry a multiplier, one tuple per operand, nearest first.
        treatment: ``apply``, ``nothing`` (already right), ``norm`` (left alone) or ``unsupported``.
        reason: why, in words.
        tuned: factor that the user wants on it, at any width.
        factors: scalar factors in the program that are counted here.
        natural: part of ``present`` that norms behind it give, as one by the root of a sum of squares.
    """

    kind: Literal["readout", "attention", "embedding", "residual"]
    parameter: str
    node: fx.Node
    where: str
    size: int
    ratio: float
    exponent: float
    present: float
    scale: float
    paths: tuple[tuple[fx.Node, ...], ...]
    treatment: Treatment
    reason: str
    tuned: float = 1.0
    factors: tuple[Factor, ...] = ()
    natural: float = 0.0

    @property
    def multiplier(self) -> float:
        """Factor to put on this site, dimensionless."""
        if self.treatment != "apply":
            return self.tuned
        return float(self.ratio ** (self.exponent - self.present)) * self.tuned


@dataclass(frozen=True)
class Excess:
    """A number that depends on width, and that no rule takes.

    Attributes:
        node: the op that takes it.
        value: it.
        base: what it is in the base; ``None`` where it was judged by its value.
        judged: what it looks like; empty where it was measured.
        at: where it matters.
        certain: whether the value cannot be there for another reason.
    """

    node: fx.Node
    value: float
    base: float | None
    judged: str
    at: fx.Node
    certain: bool = True

    @property
    def what(self) -> str:
        """In words."""
        known = f"{self.base:.6g} in the base" if self.base is not None else f"it looks like {self.judged}"
        at = "the model's output" if self.at.op == "output" else describe(self.at)
        return f"a scale factor that no rule takes depends on width: {self.value:.6g}, {known}; it matters in {at}"


@dataclass(frozen=True)
class Roles:
    """Roles of all parameters and all scale sites.

    Attributes:
        growth: dimensions and their ratios.
        parameters: by parameter name.
        sites: readouts, attention, embeddings, residual branches.
        unused: parameters that the forward pass never reads.
        notes: remarks for the report.
        branches: number of branches on each residual stream of the base; empty where that is not asked.
        excess: numbers that depend on width, and that no rule takes.
        scalars: growth of numbers by (node, argument), but for those behind sites that count them; natural logarithms.
    """

    growth: Growth
    parameters: dict[str, ParameterRole]
    sites: tuple[Site, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    branches: tuple[float, ...] = ()
    excess: tuple[Excess, ...] = ()
    scalars: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @cached_property
    def with_site(self) -> frozenset[str]:
        """Names of the parameters at which a site is."""
        return frozenset(s.parameter for s in self.sites)

    @cached_property
    def head_sizes(self) -> frozenset[tuple[int, float]]:
        """Sizes of heads of attention, with their ratios."""
        return frozenset((s.size, s.ratio) for s in self.sites if s.kind == "attention")

    def __str__(self) -> str:
        lines = [f"Roles of {self.growth.dims.program.model_name}"]
        for name, r in self.parameters.items():
            lines.append(f"  {name}: {r.role} in x{r.r_in:g} out x{r.r_out:g}: {r.reason}")
        for s in self.sites:
            lines.append(f"  {s.kind} {s.parameter or s.node.name}: {s.treatment} x{s.multiplier:g}: {s.reason}")
        return "\n".join(lines)
