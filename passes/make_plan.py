"""Turn roles into a plan by the table of rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Literal

from autofit.errors import PlanError
from autofit.measure import Fan, Law, Spread, find_law, pool
from autofit.plan import Carrier, ParameterPlan, ParameterTable, Plan, SitePlan
from autofit.program import LAYER_INDEX, Parameter
from autofit.roles import ParameterRole, Roles
from autofit.rules import BRANCH, table
from autofit.tunables import Knob, Tunables


@dataclass(frozen=True)
class MakePlan:
    """``Roles -> Plan``.

    Attributes:
        carriers: where each site's multiplier goes, by FX node name.
        spreads: measured initial values by parameter name.
        shapes: parameter shapes by name.
        scheme: row set of the rule table.
        form: where its multipliers are.
        bottleneck: init of inner bottlenecks, RULES 7.
        init: ``auto`` rescales initial values, ``keep`` touches none.
        loaded: names of parameters whose values are of a checkpoint in this parametrization, and stay.
        constants: numbers of the model's configuration that its init may use.
        frozen: what becomes of parameters without gradient: ``keep`` their values, ``plan`` them like all, or
            ``None``: refuse where these differ.
        unused: ``freeze`` marks parameters that the example does not reach as not to be trained.
        zero_readout: start every readout weight at zero, as TP5 appendix D.2 advises.
        queries: axis and runs of what is to start at zero with the queries of attention, by parameter name.
        tunables: the user's own factors.
        multipliable: parameters that can have a factor of their own in forward.
    """

    carriers: Mapping[str, Carrier]
    spreads: Mapping[str, Spread]
    shapes: Mapping[str, tuple[int, ...]]
    scheme: str = "mup"
    form: str = "table8"
    bottleneck: Literal["hidden", "output"] = "hidden"
    init: Literal["auto", "keep"] = "auto"
    loaded: frozenset[str] = frozenset()
    constants: tuple[float, ...] = field(default=())
    frozen: Literal["keep", "plan"] | None = None
    unused: Literal["freeze"] | None = None
    zero_readout: bool = False
    queries: Mapping[str, tuple[int, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    tunables: Tunables = field(default_factory=Tunables)
    multipliable: frozenset[str] = frozenset()

    def __call__(self, roles: Roles) -> Plan:
        """Make the plan.

        Raises:
            PlanError: a multiplier has to be folded into a weight whose values must be kept or are shared, or a
                readout that is to start at zero is tied to a table.
        """
        growth = roles.growth
        zeroed = self._zeroed(roles) if self.zero_readout else set()
        folds: dict[str, float] = {}
        for site in roles.sites:
            carrier = self.carriers.get(site.node.name, Carrier("none"))
            if carrier.place == "weight" and site.multiplier != 1:
                self._check_values_may_change(f"the multiplier {site.multiplier:g} of {site.where}", site.where)
                for name in (carrier.path, *carrier.also):
                    if self.frozen == "keep" and not roles.parameters[name].parameter.trainable:
                        raise PlanError(
                            f"the multiplier {site.multiplier:g} of {site.where} can only go into {name}, which is "
                            "frozen and to be kept",
                            where=site.where,
                            todo="put a module around what is multiplied, or train this parameter",
                        )
                    folds[name] = folds.get(name, 1.0) * site.multiplier
        depth = _depth(roles.parameters)
        plans = tuple(self._parameter(r, folds.get(n, 1.0), depth, roles) for n, r in roles.parameters.items())
        plans = tuple(replace(p, init_factor=0.0) if p.name in zeroed and not self._kept(p) else p for p in plans)
        if self.queries and self.init == "keep":
            raise PlanError("zero_query=True changes values, and init='keep' forbids it", todo="choose one of them")
        plans = tuple(replace(p, zeros=None if self._kept(p) else self.queries.get(p.name)) for p in plans)
        plans = tuple(self._unfrozen(p, roles) for p in plans)
        made = {p.name: p.init_factor for p in plans}
        lengths = {r.parameter.name: r.length_of for r in roles.parameters.values() if r.length_of}
        plans = tuple(replace(p, init_factor=made[lengths[p.name]]) if p.name in lengths else p for p in plans)
        sites = tuple(
            SitePlan(
                kind=s.kind,
                parameter=s.parameter,
                node=s.node.name,
                where=s.where,
                size=s.size,
                ratio=s.ratio,
                exponent=s.exponent,
                present=s.present,
                scale=s.scale,
                multiplier=s.multiplier,
                carrier=self.carriers.get(s.node.name, Carrier("none")),
                reason=s.reason,
            )
            for s in roles.sites
        )
        base = {d.name: int(d.base) if d.base == int(d.base) else d.base for d in growth.dimensions}
        return Plan(
            scheme=self.scheme,
            form=self.form,
            model=growth.dims.program.model_name,
            base=base,
            sizes={d.name: d.size for d in growth.dimensions},
            parameters=ParameterTable(plans),
            sites=sites,
            notes=(
                *growth.notes,
                *roles.notes,
                *self._unmoved(plans),
                *self._of_absolute_scheme(roles),
                *self._nothing_to_add(plans, sites),
            ),
            frozen=roles.unused if self.unused == "freeze" else (),
            branches=roles.branches,
        )

    def _kept(self, p: ParameterPlan | Parameter) -> bool:
        return bool(self.loaded.intersection(p.names))

    def _unfrozen(self, p: ParameterPlan, roles: Roles) -> ParameterPlan:
        """Keep a parameter without gradient as it is, or ask whether to."""
        if self.frozen == "plan" or roles.parameters[p.name].parameter.trainable:
            return p
        multiplied = [s for s in roles.sites if s.parameter == p.name and s.multiplier != 1]
        if self.frozen is None and (p.init_factor != 1 or multiplied):
            what = f"its output by {multiplied[0].multiplier:g}" if multiplied else f"its values by {p.init_factor:g}"
            raise PlanError(
                f"{p.name} is frozen, and muP would multiply {what}: right for weights drawn like the others, "
                "wrong for pretrained ones",
                where=p.where,
                todo="pass frozen='keep' for pretrained weights (adapters, LoRA), or frozen='plan' for frozen copies "
                "and random features",
            )
        return replace(p, init_factor=1.0, zeros=None, drawn=False) if self.frozen == "keep" else p

    def _zeroed(self, roles: Roles) -> set[str]:
        if self.init == "keep":
            raise PlanError("zero_readout=True changes values, and init='keep' forbids it", todo="choose one of them")
        names = {s.parameter for s in roles.sites if s.kind == "readout"}
        for name in names:
            if roles.parameters[name].tied:
                others = " = ".join(roles.parameters[name].parameter.names)
                raise PlanError(
                    f"the readout {name} is tied to a table: zeroing it would zero the embedding ({others})",
                    where=roles.parameters[name].where,
                    todo="untie the readout (tie_word_embeddings=False), or leave zero_readout=False",
                )
        return names

    def _row(self, r: ParameterRole) -> str:
        if r.bottleneck:
            return "bottleneck" if self.bottleneck == "hidden" else "bottleneck as output"
        if r.kind == "embedding" and "embedding" in table(self.scheme).rules:
            return "embedding"
        return r.role

    def _knob(self, r: ParameterRole, roles: Roles) -> Knob:
        return self.tunables.of_parameter(r.kind, r.parameter.names, r.parameter.name in roles.with_site)

    def _multiplier(self, r: ParameterRole, roles: Roles) -> tuple[float, float]:
        """Factor of a parameter in forward, and the one by which its values are larger for it or instead of it.

        Raises:
            PlanError: the user wants a factor where none can be.
        """
        name, chosen = r.parameter.name, table(self.scheme, form=self.form)
        theta = chosen.own_multiplier(self._row(r))(r.ratios)
        moved = theta if name in self.multipliable else 1.0
        own = self._knob(r, roles).multiplier
        kept = table(self.scheme).own_multiplier(self._row(r))(r.ratios)  # its values are planned for that factor
        if own == 1:
            return moved, kept / moved
        if self.tunables.folded:
            if r.tied:
                raise PlanError(
                    f"the tuned multiplier {own:g} of {name} cannot go into its values: they are the readout's, too",
                    where=r.where,
                    todo="leave folded=False, and lookups alone are multiplied",
                )
            self._check_values_may_change(f"the tuned multiplier {own:g} of {name}", r.where)
            return moved, kept * own / moved
        if name not in self.multipliable:
            raise PlanError(
                f"the tuned multiplier {own:g} has no place in forward: {name} is no attribute that its module reads",
                where=r.where,
                todo="pass Tunables(..., folded=True), which trains the same",
            )
        return moved * own, kept / moved

    def _check_values_may_change(self, what: str, where: str) -> None:
        if self.init == "keep":
            raise PlanError(
                f"{what} goes into a weight, and init='keep' forbids changing its values",
                where=where,
                todo="use init='auto', or form='table8' with the readout as a module of its own",
            )

    def _unmoved(self, plans: tuple[ParameterPlan, ...]) -> Iterator[str]:
        """Parameters whose factor a form cannot put into forward, so that it stays in their values."""
        thetas = table(self.scheme, form=self.form).thetas
        kept = [p.name for p in plans if p.rule in thetas and p.name not in self.multipliable and p.r_in * p.r_out != 1]
        if kept:
            names = ", ".join(kept)
            yield f"form {self.form}: {names}: no attribute that a module reads, so the multiplier stays inside"

    def _nothing_to_add(self, plans: tuple[ParameterPlan, ...], sites: tuple[SitePlan, ...]) -> Iterator[str]:
        """What a model is told that has all of its multipliers and initial values already."""
        untouched = all(math.isclose(p.init_factor, 1, rel_tol=0.02) and p.multiplier == 1 for p in plans)
        grown = any(p.r_in != 1 and p.rule == "hidden" for p in plans) and self.scheme != "sp"
        if grown and self.init == "auto" and untouched and all(s.multiplier == 1 for s in sites):
            yield f"already {self.scheme}: nothing to add to forward and initial values"

    def _of_absolute_scheme(self, roles: Roles) -> Iterator[str]:
        """What a base is for there, and readouts whose unit gradients would have to be made in the backward pass."""
        sizes = {roles.parameters[s.parameter].fan_out for s in roles.sites if s.kind == "readout"}
        if table(self.scheme).absolute:
            yield f"scheme {self.scheme} has no base: the one that is given only tells which dimensions are widths"
        if table(self.scheme).absolute and len(sizes) > 1:
            yield f"readouts of {', '.join(map(str, sorted(sizes)))} outputs: SGD and eps go by the first of them"

    def _parameter(self, r: ParameterRole, fold: float, depth: int, roles: Roles) -> ParameterPlan:
        row = self._row(r)
        rule = table(self.scheme).rules[row]
        multiplier, larger = self._multiplier(r, roles)
        fold *= larger
        knob = self._knob(r, roles)
        kept = self._kept(r.parameter)
        spread = None if kept else self.spreads.get(r.parameter.name)
        alike = self.pooled.get(_fold(r.parameter.name, r.parameter.shape))
        law, factor, drawn = Law("loaded" if kept else "not measured", 1.0), 1.0, rule.init is not None and not kept
        if spread is not None:
            law = self._law(r, alike or spread, spread, depth, roles)
            if rule.init is not None:
                factor = rule.init(r.ratios)
                if not table(self.scheme).absolute:
                    factor *= law.growth * self._deeper(r, law)
                elif r.fan_in > 1 or r.kind == "embedding":
                    factor /= (alike or spread).std or 1.0
        if self.init == "keep" or not (spread and spread.std) or r.parameter.name in roles.unused:
            factor, drawn = 1.0, False
        if row == "vector" and spread is not None and abs(spread.mean) > 2 * spread.std:
            factor, drawn = 1.0, False  # gains around one, decay rates: not a draw around zero
        if self.init == "keep" and fold * knob.init != 1:
            self._check_values_may_change(f"a factor of {r.parameter.name}", r.where)
        factor *= 1.0 if kept else fold * knob.init
        factor = 1.0 if math.isclose(factor, 1.0, rel_tol=1e-12) else factor  # roots and powers leave a rest
        return ParameterPlan(
            name=r.parameter.name,
            names=r.parameter.names,
            shape=r.parameter.shape,
            role=r.role,
            rule=row,
            r_in=r.r_in,
            r_out=r.r_out,
            fold=fold,
            init_law=law.name,
            init_layers=law.layers,
            init_fan=law.fan,
            init_gain=law.gain,
            law_growth=law.growth,
            drawn=drawn,
            init_std=spread.std if spread else None,
            init_factor=factor,
            reason=r.reason,
            where=r.where,
            segments=tuple((s.start, s.stop, s.role) for s in r.segments),
            kind=r.kind,
            multiplier=multiplier,
            lr=knob.lr,
            depth=r.depth,
            fan_in=r.fan_in,
            fan_out=r.fan_out,
            gradient=self._gradient(r, multiplier * fold, roles),
            base_shape=tuple(
                map(float, map(roles.growth.base_size, roles.growth.dims.of_parameter.get(r.parameter.name, ())))
            ),
        )

    def _gradient(self, r: ParameterRole, multiplier: float, roles: Roles) -> float:
        """What takes a true gradient to that of u-muP's backward pass (arXiv 2407.17465, section 4.2)."""
        if not table(self.scheme).absolute:
            return 1.0
        readouts = {s.parameter: s for s in roles.sites if s.kind == "readout"}
        own = readouts.get(r.parameter.name)
        if own is not None and not r.tied:
            return 1 / own.multiplier
        first = next(iter(readouts.values()), None)
        if any(site.where == r.where for site in readouts.values()):
            first = None  # the bias of a readout, which no multiplier is behind
        behind = 1 / (first.multiplier * math.sqrt(roles.parameters[first.parameter].fan_out)) if first else 1.0
        looked_up = math.sqrt(r.parameter.shape[0]) if r.kind == "embedding" else 1.0
        return behind * looked_up * r.unit_gradient / multiplier

    def _deeper(self, r: ParameterRole, law: Law) -> float:
        """What a scheme of depth asks of the initial values in a branch, where their own law may know depth, too."""
        own = table(self.scheme).rules.get(BRANCH)
        if own is None or own.init is None or r.depth == 1:
            return 1.0
        return own.init(r.ratios) * (math.sqrt(r.depth) if law.deep else 1.0)

    @cached_property
    def pooled(self) -> dict[tuple[str, tuple[int, ...]], Spread]:
        """Spread of all layers' copies of a parameter together; copies of another scale are not pooled."""
        groups: dict[tuple[str, tuple[int, ...]], list[Spread]] = {}
        for name, spread in self.spreads.items():
            groups.setdefault(_fold(name, self.shapes[name]), []).append(spread)
        alike = {
            key: members
            for key, members in groups.items()
            if max(m.std for m in members) <= min(m.std for m in members) * (1 + 6 * members[0].error)
        }
        return {key: pool(members) for key, members in alike.items()}

    def _law(self, r: ParameterRole, alike: Spread, spread: Spread, depth: int, roles: Roles) -> Law:
        base_std = roles.growth.std_at_base(r.parameter.name)
        fans = [Fan("fan_in", float(r.law_fan), r.r_law)] if r.law_fan > 1 else []
        fans += [f for f in r.sibling_fans if f.size > 1]
        if r.fan_in > 1 and r.fan_out > 1 and r.role in ("hidden", "output", "input"):
            fans.append(Fan("fan_out", float(r.fan_out * r.taps), r.r_out))
            out = r.fan_out * r.taps
            fans.append(Fan("fan_avg", (r.fan_in + out) / 2, (r.fan_in + out) / (r.fan_in / r.r_in + out / r.r_out)))
        fans += [Fan("fan_in x head size", r.law_fan * s, r.r_law * q) for s, q in roles.head_sizes if r.law_fan > 1]
        law = find_law(alike, fans, depth, self.constants)
        if base_std is None or base_std == 0 or spread.std == 0:
            return law
        growth, deeper = base_std / alike.std, math.sqrt(depth / _depth(roles.growth.base_std or ()))
        tolerance = 6 * spread.error * max(1.0, math.sqrt(r.r_in * r.r_out)) + 1e-3
        likely = product((deeper, 1.0) if law.deep else (1.0, deeper), (law.growth, 1.0, *map(math.sqrt, _ratios(r))))
        for more, candidate in likely:
            if abs(math.log(growth / candidate / more)) < tolerance:
                tail = "" if more == 1 else f", and x{1 / more:.4g} by depth"
                name = f"measured against the base: x{1 / candidate:.4g}{tail}"
                known = law if candidate == law.growth else Law("", 1.0)
                return Law(name, candidate, more != 1, law.layers, known.fan, known.gain)
        return Law(f"measured against the base: x{1 / growth:.4g}", growth, layers=law.layers)


def _ratios(r: ParameterRole) -> tuple[float, float, float]:
    return r.r_law, r.r_in, r.r_out


def _fold(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    return LAYER_INDEX.sub("*", name), shape


def _depth(names: Iterable[str]) -> int:
    """Largest repetition count in parameter names: the number of layers."""
    numbers = [int(n) + 1 for name in names for n in LAYER_INDEX.findall(name)]
    return max(numbers, default=1)
