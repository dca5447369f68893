"""What the static check looks at: how initial values, factors and the optimizer's settings grow from the base.

What `muify` made is read from its plan, and from the model and groups as they are now; a model that was edited by hand
from itself, its groups and a base model. All growths are natural logarithms.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from autofit import lowering, optim
from autofit.api import Analysis
from autofit.capture import capture
from autofit.errors import AutofitError, BaseError, LoweringError, OptimizerError
from autofit.flow import Factor, Flow
from autofit.growth import Growth
from autofit.measure import Spread, spreads
from autofit.passes.assign_roles import AssignRoles
from autofit.passes.infer_dims import InferDims
from autofit.passes.resolve_base import BaseModel, ResolveBase
from autofit.plan import ParameterPlan, Plan
from autofit.program import describe
from autofit.propagation import ZERO, Laws
from autofit.roles import Roles, Site
from autofit.rules import BY_SHAPE, Optimizer, factors, optimizers, table
from autofit.unwrap import planned_name, planned_paths

Groups = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """How the optimizer's settings of one parameter grow.

    Attributes:
        optimizer: whose.
        rate: of the learning rate, with what the optimizer itself multiplies it by.
        multiplier: of what multiplies the parameter itself in forward, beside its initial values.
        eps: of epsilon; ``None`` where there is none.
        decay: of what a step takes off the parameter by weight decay; ``None`` where nothing is, or no rule is known.
        group: its group.
    """

    optimizer: Optimizer
    rate: float
    multiplier: float
    eps: float | None
    decay: float | None
    group: Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        roles: of the captured program.
        laws: growth of what it is given.
        settings: by first name of the parameter.
        faults: parameters, or module paths, and what is wrong about them that needs no exponents.
        notes: what was assumed.
        landing: growth of the factors that a value meets on its way, by node.
        contested: parameters whose learning rate a scheme sets otherwise than widths ask for.
    """

    roles: Roles
    laws: Laws
    settings: Mapping[str, Setting]
    faults: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    landing: Callable[[fx.Node], float]
    contested: frozenset[str] = frozenset()


def log(value: float) -> float:
    """Natural logarithm; of zero, `ZERO`."""
    return math.log(value) if value > 0 else ZERO


# what muify made -------------------------------------------------------------------------------------------


def planned(found: Analysis, optimizer: str | type, groups: Groups | None, lr: float | None) -> Subject:
    """What `muify` or `analyze` returned, as its model and groups are now.

    Raises:
        OptimizerError: an unknown optimizer, or groups of other parameters.
        LoweringError: the model was baked since.
    """
    plan, roles, faults = found.plan, found.roles, []
    if found.applied and not lowering.is_muified(found.model):
        raise LoweringError("this model has no multipliers any more: it was baked", todo="check it before that")
    if found.applied:
        try:
            lowering.require_installed(found.model, plan)
        except LoweringError as error:
            faults.append((error.where or "the model", error.what, error.todo or "muify the model again"))
    cls, rule = optim.optimizer_class(optimizer)
    groups = found.param_groups(optimizer, lr=1.0 if lr is None else lr) if groups is None else groups
    held, wrong = _held(found.model, groups, plan)
    own = {p.name: _Planned(p, plan, roles) for p in plan.parameters.values()}
    paths = planned_paths(found.model, plan)
    live = {planned_name(name, paths): spread for name, spread in spreads(found.model).items()}
    parameters = {
        node: own[name].start(live.get(name), found.applied) + own[name].multiplier
        for name, r in roles.parameters.items()
        if (node := r.parameter.node) is not None
    }
    parameters |= _lengths(parameters, roles, plan, live)
    scaled = {
        n: optim.scaled(plan, plan.parameters[n], _rule_of(group, rule), settings=group) for n, group in held.items()
    }
    at_base, notes = _all_at_base(cls, held, scaled, lr)
    settings = {n: own[n].setting(group, _rule_of(group, rule), scaled[n], at_base) for n, group in held.items()}
    contested = frozenset(p.name for p in plan.parameters.values() if own[p.name].is_contested())
    laws = _site_laws(parameters, roles, plan)
    faults += [(describe(e.node), e.what, "take it out, or give what it scales the inverse") for e in roles.excess]
    return Subject(roles, laws, settings, (*faults, *wrong), notes, lambda node: 0.0, contested)


def _lengths(
    parameters: Mapping[str, float], roles: Roles, plan: Plan, live: Mapping[str, Spread]
) -> Iterator[tuple[str, float]]:
    """Lengths that weight normalization took from the initial values of what it divides by them: they grow like it."""
    for name, role in roles.parameters.items():
        lengths, rows = live.get(name), live.get(role.length_of)
        node, whole = role.parameter.node, roles.parameters.get(role.length_of)
        if lengths is None or rows is None or node is None or whole is None or whole.parameter.node is None:
            continue
        if math.isclose(lengths.mean, rows.std * math.sqrt(rows.count / lengths.count), rel_tol=0.1):
            a, b = plan.parameters[role.length_of], plan.parameters[name]
            yield node, parameters[whole.parameter.node] + math.log(a.r_in * a.r_out / (b.r_in * b.r_out)) / 2


def site_terms(roles: Roles, site: Site) -> float:
    """Growth of the number of terms that a site's exponent speaks of."""
    growth = roles.growth
    if site.kind == "attention":
        product = next(p for p in growth.dims.products if p.node is site.node)
        return sum(math.log(growth.ratio(a)) for a, _ in product.contracted)
    if site.kind == "residual":
        return 0.0
    kind = "in" if site.kind == "readout" else "out"
    use = next(u for u in growth.dims.uses if u.node is site.node and u.parameter == site.parameter)
    return sum(math.log(growth.ratio(c)) for c, k in use.cells if k == kind)


def _total(site: Site) -> float:
    """Exponent of all factors of a site, those of the program and that of the plan."""
    return site.exponent if site.treatment == "apply" else site.present


def _site_laws(parameters: Mapping[str, float], roles: Roles, plan: Plan) -> Laws:
    products, nodes, edges = {}, {}, {}
    for site, carrier in zip(roles.sites, (s.carrier for s in plan.sites), strict=True):
        inside = carrier.place == "weight"
        amount = ((site.present if inside else _total(site)) - site.natural) * site_terms(roles, site)
        if site.ratio != 1 and site.kind != "embedding":  # what stands in front of it is counted there
            there = ((roles.scalars.get((f.node.name, f.key), 0.0), f.inverse) for f in site.factors)
            amount -= sum(-grown if inverse else grown for grown, inverse in there)
        if site.kind == "attention":
            products[site.node.name] = amount
        elif site.kind == "readout":
            partner = next(
                u.partner for u in roles.growth.dims.uses if u.node is site.node and u.parameter == site.parameter
            )
            if partner is not None:
                edges[(site.node.name, partner.name)] = amount
        elif site.kind == "embedding":
            nodes[site.node.name] = amount
    return Laws(parameters, roles.scalars, products=products, nodes=nodes, edges=edges)


class _Planned:
    """Growth of what a plan gives one parameter: every cell of its rule, at the growth of the sizes in it."""

    def __init__(self, p: ParameterPlan, plan: Plan, roles: Roles) -> None:
        self.p, self.plan, self.roles = p, plan, roles
        self.rules = table(plan.scheme)
        sizes = {"r_in": p.r_in, "r_out": p.r_out, "fan_in": p.r_in, "fan_out": p.r_out}
        self.ratios = {**sizes, "L": 1.0, "B": 1.0, "G": 1.0}
        moved = table(plan.scheme, form=plan.form).own_multiplier(p.rule)
        self.multiplier = 0.0 if math.isclose(p.multiplier, 1) else math.log(moved(self.ratios))
        self.fold = math.log(self.rules.own_multiplier(p.rule)(self.ratios)) - self.multiplier
        for site, carrier in zip(roles.sites, (s.carrier for s in plan.sites), strict=True):
            if carrier.place == "weight" and p.name in (carrier.path, *carrier.also) and site.treatment == "apply":
                self.fold += (site.exponent - site.present) * site_terms(roles, site)
        self.ratios["G"] = math.exp(self._unit_gradient())

    def start(self, live: Spread | None, applied: bool) -> float:
        """Of its initial root mean square, as it is now where it has values."""
        p, cell = self.p, self.rules.rules[self.p.rule].init
        if live is not None and live.std == 0 and live.mean == 0:
            return ZERO
        if live is not None and abs(live.mean) > 2 * live.std:
            return self.fold  # around one, say
        grown = math.log(cell(self.ratios)) + self.fold if cell is not None and p.drawn else -math.log(p.law_growth)
        intended = (p.init_std or 0.0) * (p.init_factor if applied else 1.0)
        return grown + (math.log(live.std / intended) if live is not None and intended and live.std else 0.0)

    def is_contested(self) -> bool:
        """Whether an absolute scheme has a rule of its own: for tables, and gradients of inner bottlenecks."""
        return self.rules.absolute and (self.p.rule == "embedding" or self.p.rule.startswith("bottleneck"))

    def _unit_gradient(self) -> float:
        """Of what takes a true gradient to unit scale, in absolute schemes."""
        if not self.rules.absolute:
            return 0.0
        readouts = {s.parameter: _total(s) * site_terms(self.roles, s) for s in self.roles.sites if s.kind == "readout"}
        if self.p.name in readouts and not self.roles.parameters[self.p.name].tied:
            return -readouts[self.p.name]
        behind = next(iter(readouts.values()), 0.0)
        if any(s.kind == "readout" and s.where == self.p.where for s in self.roles.sites):
            behind = 0.0
        return -behind - self.multiplier - self.fold

    def setting(
        self, group: Mapping[str, Any], rule: str, scaled: Mapping[str, float], at_base: Mapping[str, float]
    ) -> Setting:
        """Of a group, whose values may be others than the plan's.

        Args:
            group: its settings.
            rule: optimizer of the group.
            scaled: factors of the plan.
            at_base: what they are on.
        """
        chosen = table(self.plan.scheme, rule)
        moved = factors(chosen.optimizer)

        def grown(column: str) -> float:
            cell = getattr(chosen.rules[self.p.rule], column)
            return math.log(cell(self.ratios)) - moved[column] * self.fold

        rate, eps, decay = grown("lr") + log(group["lr"] / (at_base["lr"] * scaled["lr"])), None, None
        if "eps" in scaled and group.get("eps"):
            eps = grown("eps") + log(group["eps"] / (at_base["eps"] * scaled["eps"]))
        if group.get("weight_decay") and (chosen.optimizer.decay != "gradient" or chosen.optimizer.power == 1):
            decay = grown("weight_decay") + (rate if chosen.optimizer.decay != "independent" else 0.0)
        return Setting(chosen.optimizer, rate, self.multiplier, eps, decay, group)


# the optimizer's groups ------------------------------------------------------------------------------------


def groups_of(optimizer: Any) -> tuple[type, Groups]:
    """The class of an optimizer, the first where two share the parameters, and all groups."""
    return type(getattr(optimizer, "parts", [optimizer])[0]), optimizer.param_groups


def _rule_of(group: Mapping[str, Any], rule: str) -> str:
    """The optimizer of a group, where two share the parameters."""
    beside = optimizers()[rule].beside
    return rule if not beside or group.get(f"use_{rule}", True) else beside


def _at_base(
    key: str, held: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, float], default: float | None
) -> tuple[float, str]:
    """The base's value of a setting, and what was assumed for it.

    Where all parameters have one value, and it is the optimizer's default, or they should have several, it is the
    base's own; else it is the one by which most parameters have what they should.

    Args:
        key: of the setting.
        held: groups by parameter.
        wanted: factor on the base's value by parameter.
        default: of the optimizer.
    """
    given = {n: float(group[key]) for n, group in held.items() if n in wanted and group.get(key)}
    if not given:
        return 0.0, ""
    votes = Counter(float(f"{value / wanted[n]:.4g}") for n, value in given.items())
    if len(set(given.values())) == 1 and (len(votes) > 1 or default in given.values()):
        return next(iter(given.values())), ""
    (found, count), *others = votes.most_common()
    said = f"the base's {key} is taken to be {found:g}, which suits {count} of {len(given)} parameters"
    return found, said if others else ""


def _all_at_base(
    cls: type,
    held: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, Mapping[str, float]],
    lr: float | None,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Settings of the base, and what was assumed; ``lr`` if it is known.

    Raises:
        OptimizerError: nothing is trained.
    """
    found, notes = {}, []
    for key in ("lr", "eps"):
        default = inspect.signature(cls).parameters.get(key)
        found[key], said = _at_base(
            key,
            held,
            {n: w[key] for n, w in wanted.items() if key in w},
            default.default if default and key == "eps" else None,
        )
        notes += [said] if said and (key != "lr" or lr is None) else []
    if lr is not None:
        found["lr"] = optim.check_number("lr", lr)
    if not found["lr"]:
        raise OptimizerError("no parameter has a learning rate above zero")
    return found, tuple(notes)


def _held(
    model: nn.Module, groups: Groups, plan: Plan | None = None
) -> tuple[dict[str, Mapping[str, Any]], list[tuple[str, str, str]]]:
    """The group of every parameter by its first name, and what is in none or two.

    Raises:
        OptimizerError: a group holds another tensor.
    """
    paths = planned_paths(model, plan) if plan else {}
    named = [(planned_name(name, paths), p) for name, p in model.named_parameters()]
    names = {id(p): name for name, p in named}
    held: dict[str, Mapping[str, Any]] = {}
    wrong = []
    for group in groups:
        params = group["params"]
        for item in [params] if isinstance(params, torch.Tensor) else params:
            name = names.get(id(item[1] if isinstance(item, tuple) else item))
            if name is None:
                raise OptimizerError(
                    "a group holds a tensor that is no parameter of the model",
                    todo="make the optimizer from the parameters that the model has now",
                )
            if name in held:
                wrong.append((name, "it is in two groups, and stepped twice", "leave it in one"))
            held[name] = group
    frozen = plan.frozen if plan else ()
    for name, p in named:
        if p.requires_grad and name not in held and name not in frozen:
            wrong.append((name, "no group has it: it is never trained", "give it to a group, or freeze it"))
    return held, wrong


# edited by hand --------------------------------------------------------------------------------------------


def edited(
    model: nn.Module,
    example: Any,
    base: Any,
    optimizer: str | type,
    groups: Groups | None,
    lr: float | None,
) -> Subject:
    """A model that somebody edited by hand, beside the same model at the base width.

    Raises:
        AutofitError: no groups, no base model, or one that does not fit.
    """
    if not isinstance(model, nn.Module):
        raise AutofitError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if lowering.is_muified(model):
        raise LoweringError("this model is muified", todo="pass the object that muify returned in its place")
    if groups is None:
        raise OptimizerError("there are no groups to check", todo="pass param_groups=, the optimizer or its groups")
    if callable(base) and not isinstance(base, nn.Module):
        base = base()
    narrow, small = base if isinstance(base, tuple) and len(base) == 2 else (base, example)
    if not isinstance(narrow, nn.Module):
        raise BaseError(
            f"base is a {type(base).__name__}: a number does not tell which factors of a model depend on width",
            todo="pass the same model at the base width, with its initial values",
        )
    cls, rule = optim.optimizer_class(optimizer)
    if lowering.is_muified(narrow):
        raise BaseError("the base model is muified", todo="build it as the model itself was built")
    dims, drawn, other = InferDims()(capture(model, example)), spreads(model), spreads(narrow)
    second = BaseModel(InferDims()(capture(narrow, small)), {n: s.std for n, s in other.items()})
    growth = ResolveBase(second)(dims)
    roles = AssignRoles(strict=False)(growth)
    starts = {p.node: _start(p.name, drawn, other, growth) for p in dims.program.parameters if p.node is not None}
    scalars = {
        key: math.log(abs(here / there))
        for key, (here, there) in (growth.constants or {}).items()
        if here and there and here != there
    }
    held, wrong = _held(model, groups)
    wanted = {n: _wanted(roles, n, _rule_of(group, rule)) for n, group in held.items()}
    at_base, notes = _all_at_base(cls, held, wanted, lr)
    settings = {n: _setting(roles, n, group, _rule_of(group, rule), at_base, held) for n, group in held.items()}
    return Subject(
        roles, Laws(starts, scalars), settings, tuple(wrong), (*growth.notes, *notes), _landing(roles, scalars)
    )


def _landing(roles: Roles, scalars: Mapping[tuple[str, str], float]) -> Callable[[fx.Node], float]:
    """Growth of the factors behind a value, but for those that a product of two activations or a readout meets."""
    flow = Flow(roles.growth.dims)
    within = {n for s in roles.sites if s.kind in ("attention", "readout") for path in s.paths for n in path}

    def growth_of(factor: Factor) -> float:
        found = scalars.get((factor.node.name, factor.key), 0.0)
        return -found if factor.inverse else found

    def landing(node: fx.Node) -> float:
        return sum(growth_of(f) for f in flow.downstream(node)[1] if f.node not in within)

    return landing


def _start(name: str, here: Mapping[str, Spread], there: Mapping[str, Spread], growth: Growth) -> float:
    """Growth of an initial root mean square that was measured in both models; sampling errors are none."""
    mine, base = here.get(name), there.get(name)
    if mine is None:
        raise BaseError(f"{name} has no values", todo="check a model edited by hand with its initial values")
    if base is None:
        std = growth.std_at_base(name)
        return log(mine.std / std) if std else 0.0
    size, other = (math.hypot(s.std, s.mean) if s.count > 1 else s.bound for s in (mine, base))
    if not size or not other:
        return 0.0 if size else ZERO
    found = math.log(size / other)
    return 0.0 if abs(found) < 4 * math.hypot(mine.error, base.error) else found


def _wanted(roles: Roles, name: str, rule: str) -> dict[str, float]:
    """Factors of the default scheme on a parameter's settings."""
    r = roles.parameters[name]
    cells = table("mup", rule).rules["bottleneck" if r.bottleneck else r.role].cells()
    return {column: cell(r.ratios) for column, cell in cells if column in ("lr", "eps")}


def _setting(
    roles: Roles,
    name: str,
    group: Mapping[str, Any],
    rule: str,
    at_base: Mapping[str, float],
    held: Mapping[str, Mapping[str, Any]],
) -> Setting:
    """Growth of a group's settings, where the base's decay is the one that most parameters have."""
    entry = optimizers()[rule]
    rate, eps, decay = log(group["lr"] / at_base["lr"]), None, None
    if entry.eps and group.get("eps"):
        eps = math.log(group["eps"] / at_base["eps"])
    if group.get("weight_decay") and (entry.decay != "gradient" or entry.power == 1):
        usual = Counter(_off(g, entry) for g in held.values() if g.get("weight_decay")).most_common(1)[0][0]
        decay = log(_off(group, entry) / usual)
    if entry.by_shape:
        factor = BY_SHAPE[group.get(entry.by_shape) or next(iter(BY_SHAPE))]
        shape = [roles.growth.base_size(c) for c in roles.growth.dims.of_parameter[name]]
        rate += math.log(factor(*roles.parameters[name].parameter.shape) / factor(*shape))
    return Setting(entry, rate, 0.0, eps, decay, group)


def _off(group: Mapping[str, Any], entry: Optimizer) -> float:
    """What a step takes off a parameter."""
    rate = 1.0 if entry.decay == "independent" else float(group["lr"])
    return float(f"{rate * group['weight_decay']:.6g}")
