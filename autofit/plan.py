"""The plan: what muP asks of every parameter and site, as pure data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from autofit.errors import PlanError
from autofit.rules import table
from autofit.values import is_number, shown

VERSION = 1
POSITIVE = frozenset("r_in r_out fold multiplier depth gradient init_layers law_growth ratio power".split())
"""Fields that something is divided by, or multiplied with."""
SIGNED = frozenset(("exponent", "present", "scale"))
"""Fields that may be negative."""
MOST = 2.0**100
"""A factor and its inverse are less than this, so that powers of it are numbers, too."""


@dataclass(frozen=True)
class ParameterPlan:
    """What one parameter gets.

    Attributes:
        name: first name of the tensor; ``names`` are all (more than one: a tie).
        shape: sizes of its axes, in elements.
        role: ``input``, ``hidden``, ``output``, ``vector`` or ``fixed``.
        rule: row of the rule table: the role, or ``bottleneck``.
        r_in, r_out: width multipliers of the contracted and of the surviving axes, dimensionless.
        fold: multiplier moved into the weight by the abc-symmetry (TP5 Lemma J.1); 1 if none. One that was moved out of
            it, into ``multiplier``, is its inverse.
        init_law: what its initial std follows: ``constant``, ``fan_in``, ... or ``unknown``.
        init_std: measured std before muify, ``None`` if not measured.
        init_factor: factor that muify applies to the initial values.
        reason: why it has this role.
        where: module path and source line of the deciding use.
        segments: ``(start, stop, role)`` by run of the surviving axis where runs differ.
        kind: what it is to somebody who tunes it: ``embedding``, ``hidden``, ``norm_gain``, ...
        multiplier: factor on the parameter in forward; 1 if none.
        lr: what the user tuned on its learning rate.
        depth: growth of the number of branches, for one that is inside a residual branch; half their number where a
            scheme is absolute.
        base_shape: sizes of its axes in the base; empty if not known.
        fan_in, fan_out: elements that it contracts, kernel taps with them, and that survive.
        gradient: what takes its gradient to unit scale, where a scheme asks for that.
        zeros: axis, and runs along it that start at zero.
        init_layers: what its initial std is divided by the root of, for depth: the number of layers, or twice that.
        law_growth: factor by which the law of its initial values alone makes the base's std larger than the one here.
        drawn: whether its initial values become those of its rule; else they stay as the model has them.
        init_fan, init_gain: size whose root its initial std falls with, and what it is times that root; else 0.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    role: str
    rule: str
    r_in: float
    r_out: float
    fold: float
    init_law: str
    init_std: float | None
    init_factor: float
    reason: str
    where: str
    segments: tuple[tuple[int, int, str], ...] = ()
    kind: str = ""
    multiplier: float = 1.0
    lr: float = 1.0
    depth: float = 1.0
    base_shape: tuple[float, ...] = ()
    fan_in: int = 1
    fan_out: int = 1
    gradient: float = 1.0
    zeros: tuple[int, tuple[tuple[int, int], ...]] | None = None
    init_layers: float = 1.0
    init_fan: float = 0.0
    init_gain: float = 0.0
    law_growth: float = 1.0
    drawn: bool = True

    @property
    def ratios(self) -> dict[str, float]:
        """What a cell of the rule table is a product of, by symbol."""
        sizes = {"fan_in": self.fan_in, "fan_out": self.fan_out, "G": self.gradient}
        return {"r_in": self.r_in, "r_out": self.r_out, "L": self.depth, "B": self.depth, **sizes}


@dataclass(frozen=True)
class Carrier:
    """Where a site's multiplier goes.

    Attributes:
        place: ``input``, ``output``, ``key``, ``weight`` or ``none``.
        path: module path, or parameter name for ``weight``.
        indices: runs of the last axis to scale, empty for all of it.
        also: further parameters to fold the factor into (a bias), or modules whose outputs are scaled, too.
        power: of the multiplier that goes there; a half where both sides of a product are this value.
    """

    place: Literal["input", "output", "key", "weight", "none"]
    path: str = ""
    indices: tuple[tuple[int, int], ...] = ()
    also: tuple[str, ...] = ()
    power: float = 1.0

    def __str__(self) -> str:
        more = f" and {len(self.also)} more" if self.also and self.place == "output" else ""
        return f"{self.place} {self.path}{more}".strip()


@dataclass(frozen=True)
class Fold:
    """A factor on a parameter, or on runs along one of its axes.

    Attributes:
        parameter: name.
        factor: dimensionless.
        axis: of the runs.
        runs: half-open; empty for all of it.
        untie: whether the module of that name has to get a parameter of its own for it.
    """

    parameter: str
    factor: float
    axis: int = 0
    runs: tuple[tuple[int, int], ...] = ()
    untie: bool = False


@dataclass(frozen=True)
class SitePlan:
    """What one readout, attention or embedding site gets.

    Attributes:
        kind: ``readout``, ``attention``, ``embedding`` or ``residual``.
        parameter: name of the weight, empty for attention and residual branches.
        node: FX node name in the captured program.
        where: module path and source line.
        size, ratio: summed elements and their growth.
        exponent, present: exponent of ``ratio`` required, and already there.
        scale: scalar factors in the program, multiplied.
        multiplier: factor that muify adds.
        carrier: where the multiplier goes.
        reason: why.
    """

    kind: str
    parameter: str
    node: str
    where: str
    size: int
    ratio: float
    exponent: float
    present: float
    scale: float
    multiplier: float
    carrier: Carrier
    reason: str


class ParameterTable(Mapping[str, ParameterPlan]):
    """Plans by parameter name; every name of a tied tensor finds it, iteration gives each once."""

    def __init__(self, plans: Iterator[ParameterPlan] | tuple[ParameterPlan, ...]) -> None:
        self._plans = {p.name: p for p in plans}
        self._alias = {n: p.name for p in self._plans.values() for n in p.names}

    def __getitem__(self, name: str) -> ParameterPlan:
        return self._plans[self._alias[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plans)

    def __len__(self) -> int:
        return len(self._plans)

    def __repr__(self) -> str:
        return f"ParameterTable({len(self)} parameters)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterTable) and self._plans == other._plans

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Plan:
    """Everything that lowering and optimizers need.

    Attributes:
        scheme: name of the parametrization.
        form: where its multipliers are: in forward (``table8``), or in initial values and learning rates.
        model: class of the model.
        base: base size by dimension name.
        sizes: size by dimension name in this model.
        parameters: by name.
        sites: in execution order.
        notes: remarks and warnings.
        frozen: parameters that the example does not reach, and that are therefore not to be trained.
        branches: number of branches on each residual stream of the base, where the scheme scales with depth.
    """

    scheme: str
    form: str
    model: str
    base: dict[str, float]
    sizes: dict[str, int]
    parameters: ParameterTable
    sites: tuple[SitePlan, ...]
    notes: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    branches: tuple[float, ...] = ()

    def rescaled(self) -> set[str]:
        """Names of the parameters whose initial values change."""
        return {p.name for p in self.parameters.values() if p.init_factor != 1.0 or p.zeros}

    def multiplied(self) -> dict[str, ParameterPlan]:
        """Parameters with a factor of their own in forward, by name."""
        return {p.name: p for p in self.parameters.values() if p.multiplier != 1.0}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` gives an equal plan back."""
        return {
            "format": "autofit plan",
            "version": VERSION,
            "scheme": self.scheme,
            "form": self.form,
            "model": self.model,
            "base": self.base,
            "sizes": self.sizes,
            "parameters": [asdict(p) for p in self.parameters.values()],
            "sites": [asdict(s) for s in self.sites],
            "notes": list(self.notes),
            "frozen": list(self.frozen),
            "branches": list(self.branches),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote, also after a round trip through JSON.

        Raises:
            PlanError: not a plan, another version, or malformed.
        """
        if not isinstance(data, Mapping) or data.get("format") != "autofit plan":
            raise PlanError("this is not an autofit plan")
        version = data.get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise PlanError(f"the plan has the version {shown(version)}, which no autofit wrote")
        if version > VERSION:
            raise PlanError(
                f"the plan was written by a newer autofit: its version is {shown(version)}, this one reads {VERSION}",
                todo="update autofit, or make the plan again with this version",
            )
        read = {k: v for k, v in data.items() if k not in ("format", "version")}
        parameters = _listed(read.pop("parameters", None), "parameters", ParameterPlan)
        names = [n for p in parameters for n in p.names]
        if len(set(names)) != len(names) or any(p.name not in p.names for p in parameters):
            raise PlanError("the plan is malformed: names of parameters that are there twice, or not at all")
        plan: Plan = _record(
            {**read, "parameters": ParameterTable(parameters), "sites": _listed(read.get("sites"), "sites", SitePlan)},
            cls,
            "plan",
        )
        rules = table(plan.scheme, form=plan.form).rules
        if unknown := [p for p in parameters if p.rule not in rules]:
            raise PlanError(f"the plan is malformed: {unknown[0].name} has the rule {shown(unknown[0].rule)}")
        return plan

    def __str__(self) -> str:
        lines = [f"Plan of {self.model}, scheme {self.scheme}, form {self.form}, base {self.base}"]
        for p in self.parameters.values():
            lines.append(f"  {p.name}: {p.rule} in x{p.r_in:g} out x{p.r_out:g} init x{p.init_factor:g}")
        lines += [f"  {s.kind} {s.parameter or s.node}: x{s.multiplier:g} on {s.carrier}" for s in self.sites]
        return "\n".join(lines)


def _listed(values: Any, name: str, kind: type) -> tuple[Any, ...]:
    """Records of a class, out of a list of mappings.

    Raises:
        PlanError: one has other fields than the class, or values of another type.
    """
    if not isinstance(values, list | tuple):
        raise PlanError(f"the plan is malformed: {name} is {shown(values)}, not a list")
    return tuple(_record(value, kind, f"{name}[{i}]") for i, value in enumerate(values))


def _record(value: Any, kind: type, name: str) -> Any:
    """A record of a class, out of a mapping; lists, as JSON gives them, become tuples again."""
    hints = _hints(kind)
    if not isinstance(value, Mapping) or not hints.keys() >= value.keys():
        unknown = next((k for k in value if k not in hints), None) if isinstance(value, Mapping) else value
        raise PlanError(f"the plan is malformed: {name} has {shown(unknown)}")
    made: dict[str, Any] = {}
    for key, given in value.items():
        read = _record(given, Carrier, f"{name}.{key}") if hints[key] is Carrier else _tuples(given)
        if not _fits(read, hints[key]) or not _in_range(key, read):
            raise PlanError(f"the plan is malformed: {name}.{key} is {shown(given)}")
        made[key] = read
    try:
        return kind(**made)
    except TypeError as error:
        raise PlanError(f"the plan is malformed: {name}: {error}") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, all the way down; a whole number is a float, too."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_fits(value, h) for h in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if kind is tuple and inner[-1] is Ellipsis:
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:
        return is_number(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _in_range(key: str, value: Any) -> bool:
    """Whether all numbers of a field are some that a plan can have."""
    if isinstance(value, tuple):
        return all(_in_range(key, v) for v in value)
    if isinstance(value, dict):
        return all(0 < v < MOST for v in value.values())
    if not is_number(value):
        return True
    return 1 / MOST < value < MOST if key in POSITIVE else abs(value) < MOST and (key in SIGNED or value >= 0)


def _tuples(value: Any) -> Any:
    """Lists (as JSON gives them) back to tuples, dict keys kept."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
