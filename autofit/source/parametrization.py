"""muP in the exported file: growth, multipliers, initial values and optimizer groups as functions of its sizes."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import nn

from autofit.dims import Cell
from autofit.errors import LoweringError
from autofit.growth import Dimension
from autofit.measure import GAINS, Spread
from autofit.monomial import ONE, Monomial
from autofit.multiply import exponent, in_forward
from autofit.plan import ParameterPlan, Plan
from autofit.program import LAYER_INDEX
from autofit.roles import Roles, Site
from autofit.rules import BRANCH, table
from autofit.rules import factors as powers
from autofit.source.buffers import by_formula, by_one
from autofit.source.classes import Classes
from autofit.source.names import distinct, identifier
from autofit.source.numbers import Formula, Term, constant
from autofit.source.syntax import parse

OPTIMIZERS = {"adamw": (1e-2, 1e-8), "adam": (0.0, 1e-8), "sgd": (0.0, None)}
"""What an exported file makes groups for, with torch's defaults of weight decay and eps."""


@dataclass(frozen=True)
class Multiplier:
    """A factor in forward, as a property of the configuration.

    Attributes:
        name: of the property.
        value: expression in other properties.
        why: for its docstring.
    """

    name: str
    value: ast.expr
    why: str


@dataclass
class Parametrization:
    """What the configuration of an exported file has besides sizes.

    Attributes:
        bases: base sizes by field.
        growths: properties: growth by name, with size and field of the base.
        multipliers: properties, by name.
        by_site: name of a site's, by its identity.
        of_dimension: name of a growth, by that of the dimension.
        widths: sizes that grow, by the property that says how; with them all else that grows does.
    """

    roles: Roles
    plan: Plan
    bases: dict[str, float] = field(default_factory=dict)
    growths: dict[str, tuple[Formula, str, str]] = field(default_factory=dict)
    multipliers: dict[str, Multiplier] = field(default_factory=dict)
    by_site: dict[int, str] = field(default_factory=dict)
    of_dimension: dict[str, str] = field(default_factory=dict)
    widths: dict[str, str] = field(default_factory=dict)

    def label(self, site: Site) -> str:
        """Name of a site's factor in the configuration."""
        return self.by_site[id(site)]


def require_exportable(plan: Plan) -> None:
    """Refuse what an exported file could not say as a function of its sizes.

    Raises:
        LoweringError: multipliers inside weights, a scheme without a base, or factors on parameters.
    """
    inside = {n: s for s in plan.sites if s.carrier.place == "weight" for n in (s.carrier.path, *s.carrier.also)}
    for p in plan.parameters.values():
        if p.multiplier != 1 or (p.fold != 1 and getattr(inside.get(p.name), "kind", "") != "readout"):
            raise LoweringError(
                f"form {plan.form}: {p.name} holds a multiplier inside, or has one of its own",
                where=p.where,
                todo="export form='table8', which trains the same (TP5 Lemma J.1)",
            )


def name_multipliers(roles: Roles, plan: Plan) -> Parametrization:
    """Give every factor in forward a name, equal ones the same."""
    made = Parametrization(roles, plan)
    growth = roles.growth
    for d in growth.dimensions:
        if d.grows:
            numeric = growth.number is not None
            made.of_dimension[d.name] = "width_mult" if numeric else f"{identifier(_short(d))}_mult"
    known: dict[tuple[str, str], str] = {}
    for site in in_forward(roles, plan):
        power = exponent(site)
        over = "depth_mult" if site.kind == "residual" else _product_of(_growing(made, site))
        text = _power(over, power) if site.tuned == 1 else f"{site.tuned!r} * {_power(over, power)}"
        key = site.kind, text
        if key not in known:
            name = distinct(f"{site.kind}_multiplier", known.values())
            known[key] = name
            made.multipliers[name] = Multiplier(name, parse(text, **_own(text)), _why(site, plan))
        made.by_site[id(site)] = known[key]
    return made


def _own(text: str) -> dict[str, ast.expr]:
    return {n: parse(f"self.{n}") for n in set(re.findall(r"[A-Za-z_]\w*_mult\b", text))}


def _short(d: Dimension) -> str:
    return d.name if "." not in d.name else d.name.replace(".", "_")


def _growing(made: Parametrization, site: Site) -> tuple[str, ...]:
    """Names of the growths that a site's is a product of."""
    dims = made.roles.growth.dims
    if site.kind == "attention":
        product = next(p for p in dims.products if p.node is site.node)
        cells: Iterable[Cell] = [a for a, _ in product.contracted]
    else:
        kind = "in" if site.kind == "readout" else "out"
        use = next(u for u in dims.uses if u.node is site.node and u.parameter == site.parameter)
        cells = [c for c, k in use.cells if k == kind]
    return tuple(n for c in cells for n in growths_of(made, c))


def growths_of(made: Parametrization, cell: Cell) -> tuple[str, ...]:
    """Names of the growths that an axis's is a product of; of one that is joined of parts, those of the first."""
    growth, axes = made.roles.growth, made.roles.growth.dims.axes
    root = axes.find(cell)
    if root.kind == "product":
        return tuple(n for p in root.parts for n in growths_of(made, p))
    if root.kind == "cat":
        parts = [growths_of(made, p) for p in root.parts]
        return max(parts, key=len) if parts else ()
    d = growth.dimension(root)
    return (made.of_dimension[d.name],) if d is not None and d.grows else ()


def _product_of(names: tuple[str, ...]) -> str:
    return " * ".join(names) if names else "1"


def _power(text: str, power: float) -> str:
    if text == "1" or power == 0:
        return "1"
    inner = f"({text})" if "*" in text else text
    exact = Fraction(power).limit_denominator(8)
    if power == -1:
        return f"1 / {inner}"
    return inner if power == 1 else f"{inner} ** {float(exact)!r}"


def _why(site: Site, plan: Plan) -> str:
    source = table(plan.scheme).sites[site.kind].source if site.kind in table(plan.scheme).sites else ""
    rule = table(plan.scheme).rules["output"].source("multiplier") if site.kind == "readout" else source
    what = {"readout": "what a readout sums", "attention": "what a product of activations sums"}
    what |= {"embedding": "the width of what is looked up", "residual": "the number of residual branches"}
    said = f"By {what[site.kind]}: in all it has to go with the power {site.exponent:g} of its growth"
    return f"{said} ({rule or plan.scheme})."


# growth as functions of sizes


def settle_growths(made: Parametrization, classes: Classes) -> None:
    """Find what growths are in terms of sizes, once these are known."""
    growth = made.roles.growth
    if growth.number is not None:
        formula, size = _main(made, classes)
        base = f"base_{formula.symbols[0]}" if len(formula.symbols) == 1 else "base_width"
        made.bases[identifier(base)] = growth.number
        made.growths["width_mult"] = (
            formula,
            identifier(base),
            f"growth of the width over the base ({size} elements here)",
        )
    else:
        for d in growth.dimensions:
            if d.grows:
                name = made.of_dimension[d.name]
                field_ = f"base_{name.removesuffix('_mult')}"
                made.bases[field_] = d.base
                made.growths[name] = (_size_of(d, classes), field_, f"growth of {d.name} over the base")
    deep = next((s for s in made.roles.sites if s.kind == "residual"), None)
    if deep is not None and "depth_mult" in "".join(ast.dump(m.value) for m in made.multipliers.values()):
        ratio = deep.ratio
        stacks = list(classes.worlds.stacks)
        layers = len(classes.worlds.first.model.get_submodule(classes.worlds.stacks[stacks[0]][0])) if stacks else 0  # type: ignore[arg-type]
        if not stacks:
            made.bases["base_depth"], made.growths["depth_mult"] = (
                1 / ratio,
                (constant(1), "base_depth", "growth of the depth"),
            )
        else:
            formula = _symbol(stacks[0])
            made.bases[f"base_{identifier(stacks[0])}"] = layers / ratio
            made.growths["depth_mult"] = (
                formula,
                f"base_{identifier(stacks[0])}",
                "growth of the number of residual branches",
            )
    _settle_widths(made, classes)


def _settle_widths(made: Parametrization, classes: Classes) -> None:
    """Which sizes of the configuration are to be smaller for a model at the base."""
    known: dict[str, tuple[str, ...]] = {}
    equations = list(_equations(made, classes))
    for _ in equations:
        for symbols, growths in equations:
            open_ = [n for n in symbols if n not in known]
            rest = list(growths)
            for g in (g for n in symbols if n in known for g in known[n]):
                if g in rest:
                    rest.remove(g)
            if len(open_) == 1:
                known[open_[0]] = tuple(rest)
    made.widths = {n: growths[0] for n, growths in known.items() if len(growths) == 1}


def _equations(made: Parametrization, classes: Classes) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Axes that are a product of sizes, with the growths that this product has."""
    dims = made.roles.growth.dims
    axes = [(classes.shapes(n, a), c) for n, cells in dims.of_parameter.items() for a, c in enumerate(cells)]
    for product in dims.products:
        node = classes.places.get(product.left)
        for axis, cell in enumerate(dims.of.get(product.left.name, ())):
            if node is not None and isinstance(cell, Cell):
                axes.append((classes.of_size(node, axis), cell))
    for vector, cell in axes:
        formula = classes.solver(vector) if vector[0] is not None else None
        if formula is not None and len(formula.terms) == 1 and all(p == 1 for _, p in formula.terms[0].powers):
            yield list(formula.symbols), growths_of(made, cell)


def _symbol(name: str) -> Formula:
    return Formula((Term(Fraction(1), ((name, Fraction(1)),)),), True)


def _main(made: Parametrization, classes: Classes) -> tuple[Formula, int]:
    """The width that a numeric base speaks of: the whole axis that the last readout contracts."""
    growth, dims = made.roles.growth, made.roles.growth.dims
    main = next(d for d in growth.dimensions if d.name == growth.main)
    assert growth.number is not None
    wanted_size = growth.number * main.ratio
    for use in sorted(
        dims.uses, key=lambda u: not any(s.node is u.node and s.kind == "readout" for s in made.roles.sites)
    ):
        for axis, kind in use.kinds.items():
            cell = dims.of_parameter[use.parameter][axis]
            inside = any(growth.dimension(a) is main for a in dims.axes.atoms(cell))
            if kind == "in" and inside and math.isclose(cell.size, wanted_size):
                owner, _, name = use.parameter.rpartition(".")
                return classes.of_shape(owner, name, axis), cell.size
    return _size_of(main, classes), main.size


def _size_of(d: Dimension, classes: Classes) -> Formula:
    """A dimension's size: an axis of a parameter that is nothing else, else what has its name, else as it is."""
    dims = classes.growth.dims
    for name, cells in dims.of_parameter.items():
        for axis, cell in enumerate(cells):
            root = dims.axes.find(cell)
            if root.kind == "atom" and root.serial in d.cells:
                owner, _, own = name.rpartition(".")
                return classes.of_shape(owner, own, axis)
    symbols = classes.worlds.symbols
    named = next((n for n in (d.name, *d.aliases) if symbols.get(n) == d.size), None)
    if named is not None:
        return _symbol(named)
    for name, cells in dims.of_parameter.items():
        for axis, cell in enumerate(cells):
            if any(a.serial in d.cells for a in dims.axes.atoms(cell)):
                owner, _, own = name.rpartition(".")
                formula = classes.of_shape(owner, own, axis)
                rest = Fraction(cell.size, d.size)
                return Formula(tuple(type(t)(t.factor / rest, t.powers) for t in formula.terms), True)
    return constant(d.size)


# initial values and groups


@dataclass(frozen=True)
class Entry:
    """Parameters that are drawn alike and have one rule.

    Attributes:
        pattern: their name, with ``*`` for the numbers of layers.
        rule: key of their factors.
        r_in, r_out: growths.
        kind: how they are drawn.
        value: the std at the base, or the constant; with a fan what the std is times its root.
        layers: depth that divides the std by its root, as a multiple of what field.
        expression: values that are a function of sizes.
        fan: size whose root the std falls with, and the growth of that size.
    """

    pattern: str
    rule: str
    r_in: tuple[str, ...]
    r_out: tuple[str, ...]
    kind: str
    value: float
    layers: tuple[float, str] | None
    expression: ast.expr | None = None
    fan: tuple[Formula, tuple[str, ...]] | None = None


@dataclass
class Factors:
    """Powers of the growths by rule: of the std, and by optimizer of lr, weight decay and eps."""

    init: dict[str, Monomial] = field(default_factory=dict)
    settings: dict[str, dict[str, tuple[Monomial, Monomial, Monomial]]] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)


def entries(
    made: Parametrization,
    classes: Classes,
    spreads: Mapping[str, Spread],
    values: Mapping[str, torch.Tensor],
    constants: Iterable[float],
) -> tuple[list[Entry], Factors]:
    """All parameters with their rules, in the model's order.

    Raises:
        LoweringError: initial values are not known.
    """
    factors = Factors()
    found: list[Entry] = []
    by_pattern: dict[tuple[str, tuple[int, ...]], list[ParameterPlan]] = {}
    for p in made.plan.parameters.values():
        recurrent = isinstance(classes.modules.get(p.name.rpartition(".")[0]), nn.RNNBase)
        by_pattern.setdefault((_folded(p.name, recurrent), p.shape), []).append(p)
    shapes = Counter(pattern for pattern, _ in by_pattern)
    for (pattern, _), members in by_pattern.items():
        groups: dict[object, list[ParameterPlan]] = {}
        for p in members:
            groups.setdefault(_alike(p, spreads.get(p.name)), []).append(p)
        for group in groups.values():
            whole = len(groups) == 1 and shapes[pattern] == 1
            for p in group[:1] if whole else group:
                found.append(
                    _entry(made, classes, pattern if whole else p.name, p, group, spreads, values, constants, factors)
                )
    return found, factors


RECURRENT_LAYER = re.compile(r"(?<=_l)[1-9]\d*$")
"""The number of a layer of torch's recurrent modules; the first reads another width."""


def _folded(name: str, recurrent: bool) -> str:
    name = RECURRENT_LAYER.sub("*", name) if recurrent else name
    return LAYER_INDEX.sub("*", name) if any(c.isalpha() for c in name) else name


def _alike(p: ParameterPlan, spread: Spread | None) -> object:
    if spread is None:
        return p.rule, p.lr, None
    return p.rule, p.lr, p.init_law.split()[0], p.init_layers, round(spread.mean, 6) if spread.std == 0 else "drawn"


def _entry(
    made: Parametrization,
    classes: Classes,
    pattern: str,
    p: ParameterPlan,
    group: list[ParameterPlan],
    spreads: Mapping[str, Spread],
    values: Mapping[str, torch.Tensor],
    constants: Iterable[float],
    factors: Factors,
) -> Entry:
    role, dims = made.roles.parameters[p.name], made.roles.growth.dims
    use = next(iter(dims.uses_of(role.parameter)), None)
    r_in: tuple[str, ...] = ()
    r_out: tuple[str, ...] = ()
    if use is not None:
        for axis, kind in sorted(use.kinds.items()):
            names = growths_of(made, dims.of_parameter[p.name][axis])
            if kind in ("in",):
                r_in += names
            elif kind in ("out", "elementwise"):
                r_out += names
    spread = spreads.get(p.name)
    if 0 in p.shape:
        spread = Spread(0.0, 0.0, 0.0, 0)  # nothing to draw
    if spread is None:
        raise LoweringError(
            f"how {p.name} is initialized was not seen",
            where=p.where,
            todo="build a model on meta by autofit.deferred_init(factory), or export one that has values",
        )
    rule = _rule(p, made.plan, factors)
    layers = _layers(p, classes)
    if spread.std == 0:
        return Entry(pattern, rule, r_in, r_out, "constant", spread.mean, None)
    if abs(spread.mean) > 2 * spread.std:
        owner, _, own = p.name.rpartition(".")
        tensor = values[p.name]
        shape = [
            classes.of_shape(owner, own, a).to_ast(lambda n: parse(f"config.{identifier(n)}"))
            for a in range(tensor.dim())
        ]
        made_of = by_formula(tensor.detach(), shape) or by_one(tensor.detach())
        return Entry(pattern, rule, r_in, r_out, "values" if made_of is not None else "unknown", 0.0, None, made_of)
    drawn = "uniform" if spread.uniform else "normal"
    fan = _fan(made, p, classes) if p.init_fan else None
    if fan is not None:
        return Entry(pattern, rule, r_in, r_out, drawn, p.init_gain, layers, None, fan)
    known = [s for q in group if (s := spreads.get(q.name)) is not None]
    count = sum(s.count for s in known)
    std = math.sqrt(sum(s.std**2 * s.count for s in known) / count)
    std *= _base_over_here(p, made.plan)
    if layers is not None:
        std *= math.sqrt(p.init_layers)
    pooled = Spread(std, 0.0, spread.bound, count)
    return Entry(pattern, rule, r_in, r_out, drawn, _snapped(pooled, p, constants), layers)


def _fan(made: Parametrization, p: ParameterPlan, classes: Classes) -> tuple[Formula, tuple[str, ...]] | None:
    """The size that an initial std follows: what the parameter contracts or gives, or its neighbour in the module."""
    dims, owner = made.roles.growth.dims, p.name.rpartition(".")[0]
    beside = [q for q in made.plan.parameters.values() if q.name.rpartition(".")[0] == owner and q is not p]
    for q in (p, *beside):
        use = next(iter(dims.uses_of(made.roles.parameters[q.name].parameter)), None)
        if use is None:
            continue
        taps = [a for a, k in use.kinds.items() if k == "taps"]
        for end in ("in", "out"):
            axes = [a for a, k in use.kinds.items() if k == end]
            vectors = [classes.shapes(q.name, a) for a in (*axes, *taps)]
            if axes and math.isclose(math.prod(v[0] or 0 for v in vectors), p.init_fan):
                whole = tuple(math.prod(v[i] or 0 for v in vectors) for i in range(len(vectors[0])))
                formula = classes.solver(whole)
                growths = tuple(n for a in axes for n in growths_of(made, dims.of_parameter[q.name][a]))
                return None if formula is None else (formula, growths)
    return None


def _base_over_here(p: ParameterPlan, plan: Plan) -> float:
    """The std that the base's own initialization has, over the one here."""
    init = table(plan.scheme).rules[p.rule].init
    if init is None or p.init_factor == 0:
        return 1.0
    return p.init_factor / init(p.ratios) / p.fold


def _snapped(spread: Spread, p: ParameterPlan, constants: Iterable[float]) -> float:
    """A measured std as the number that it is a sample of, if one of the usual is as near as it can be."""
    fans = {p.fan_in / p.r_in, p.fan_out / p.r_out} - {0.0}
    usual = [*constants, 1.0, *(g / math.sqrt(f) for f in fans for g in GAINS.values())]
    near = [u for u in usual if abs(math.log(spread.std / u)) < 5 * spread.error + 1e-4]
    best = min(near, key=lambda u: abs(math.log(spread.std / u)), default=None)
    return float(f"{spread.std:.4g}") if best is None else float(f"{best:.8g}")


def _layers(p: ParameterPlan, classes: Classes) -> tuple[float, str] | None:
    """The number of layers that divides a std by its root, as a multiple of the field of its stack."""
    if p.init_layers == 1:
        return None
    for name, paths in classes.worlds.stacks.items():
        for path in paths if name in classes.deep else ():
            length = len(classes.worlds.first.model.get_submodule(path))  # type: ignore[arg-type]
            if p.name.startswith(f"{path}.") and (p.init_layers / length) in (1.0, 2.0):
                return p.init_layers / length, name
    return None


def _rule(p: ParameterPlan, plan: Plan, factors: Factors) -> str:
    """The key of a parameter's factors: its rule, numbered where the user tuned some apart."""
    key = p.rule
    settings = {}
    inside = [s for s in plan.sites if s.carrier.place == "weight" and p.name in (s.carrier.path, *s.carrier.also)]
    fold = (
        Monomial.of({"r_in": Fraction(inside[0].exponent - inside[0].present).limit_denominator(8)}) if inside else ONE
    )
    key = f"{key} with multiplier" if inside else key
    for optimizer in OPTIMIZERS:
        chosen = table(plan.scheme, optimizer)
        rule, branch = chosen.rules[p.rule], chosen.rules.get(BRANCH)
        deeper = branch is not None and p.depth != 1
        cells = [rule.lr, rule.weight_decay, rule.eps or ONE]
        if deeper and branch is not None:
            cells = [a * b for a, b in zip(cells, (branch.lr, branch.weight_decay, branch.eps or ONE), strict=True)]
        moved = powers(chosen.optimizer)
        cells = [c * fold ** -moved[k] for c, k in zip(cells, ("lr", "weight_decay", "eps"), strict=True)]
        settings[optimizer] = cells[0], cells[1], cells[2]
    init = (table(plan.scheme).rules[p.rule].init or ONE) * fold
    if BRANCH in table(plan.scheme).rules and p.depth != 1:
        key = f"{key} in a branch"
    if p.lr != 1:
        key = f"{key}, lr x{p.lr:g}"
    factors.init[key], factors.settings[key], factors.tuned[key] = init, settings, p.lr
    return key
