"""Find for every site a module boundary, or a weight, that can carry its multiplier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from autofit.dims import Use
from autofit.errors import LoweringError, PlanError
from autofit.flow import CASTS, MULTILINEAR, STRUCTURAL, SUMS, Flow
from autofit.plan import Carrier, Fold, Plan
from autofit.program import module_path, module_paths, op_name
from autofit.roles import Roles, Site


@dataclass(frozen=True)
class PlaceMultipliers:
    """``Roles -> {node name: Carrier}``.

    Attributes:
        modules: the model's modules by path.
        folds: kinds of sites whose multipliers go into weights, and nowhere else.
    """

    modules: Mapping[str, nn.Module]
    folds: frozenset[str] = frozenset()

    def __call__(self, roles: Roles) -> dict[str, Carrier]:
        """Place every multiplier that differs from one.

        Raises:
            LoweringError: no boundary carries this site's multiplier alone.
        """
        placer = _Placer(roles, self.modules)
        for site in roles.sites:
            if site.multiplier != 1 and site.node not in placer.placed:
                (placer.fold if site.kind in self.folds else placer.place)(site)
        return {node.name: carrier for node, carrier in placer.placed.items()}


def folds(roles: Roles, plan: Plan, untie: bool = False) -> tuple[Fold, ...]:
    """For every multiplier of a site that is in forward, the parameters that can take it in the place of that.

    Args:
        roles: the sites.
        plan: which of their multipliers are in a weight already.
        untie: whether a tied parameter may become one for each module that has it, where nothing else can.

    Raises:
        LoweringError: none can: they are used elsewhere, too, as a tied table is.
    """
    placer = _Placer(roles, {})
    placer.untie = untie
    inside = {s.node for s in plan.sites if s.carrier.place == "weight"}
    sites = [site for site in roles.sites if site.multiplier != 1 and site.node.name not in inside]
    return tuple(fold for site in sites for fold in placer.into_parameters(site))


def queries(roles: Roles) -> dict[str, tuple[int, tuple[tuple[int, int], ...]]]:
    """Weights and biases that give the queries of attention: by name, their axis and the runs along it.

    Raises:
        PlanError: what gives a query has another use, as a tied or shared weight has, or is no weight.
    """
    placer, found = _Placer(roles, {}), {}
    for site in roles.sites:
        side = _query_side(site.node) if site.kind == "attention" else None
        if side is None:
            continue
        path = site.paths[side]
        uses = placer.at.get(path[-1], [])
        mine, others = placer._runs(path[-1], {(site.node, path[0])})
        whole = [u.parameter for u in uses if sum(v.parameter == u.parameter for v in placer.dims.uses) > 1]
        if not any("in" in u.kinds.values() for u in uses) or not mine or others is None or mine & others or whole:
            shared = f"{whole[0]} is used elsewhere, too" if whole else "no weight gives it alone"
            raise PlanError(
                f"zero_query=True, and the query of this attention cannot start at zero: {shared}",
                where=site.where,
                todo="leave zero_query=False, or set the values yourself",
            )
        for use in uses:
            axis = next((a for a, k in use.kinds.items() if k in ("out", "elementwise")), 0)
            found[use.parameter] = axis, _ranges(mine)
    return found


def _query_side(node: fx.Node) -> int | None:
    """Which operand of a product has the queries, if a softmax over the other's positions follows."""
    if op_name(node) == "aten.scaled_dot_product_attention":
        return 0
    at = node
    while op_name(at) not in ("aten.softmax", "aten._softmax"):
        readers = [u for u in at.users if u.op == "call_function" and "_assert" not in op_name(u)]
        shape = at.meta["val"].shape if isinstance(at.meta.get("val"), torch.Tensor) else ()
        if len(readers) != 1 or len(shape) < 2 or op_name(at) in TURNS:
            return None
        at = readers[0]
    last = at.args[1] in (-1, len(at.meta["val"].shape) - 1)
    return 0 if last else 1


def multipliable(roles: Roles, modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Parameters that a hook on their own module can multiply: read inside its calls, by attribute, as they are.

    Not so where another module reads them, where a module keeps a list of them, and where they give a length.
    """
    nodes = {n.name: n for n in roles.growth.dims.program.graph.nodes}
    lengths = {r.length_of for r in roles.parameters.values()}
    found = set()
    for name, role in roles.parameters.items():
        p = role.parameter
        owners = [n.rpartition(".")[0] for n in p.names]
        if p.node is None or role.length_of or name in lengths or any(map(_keeps_lists, map(modules.get, owners))):
            continue
        if all(any(not o or o in module_paths(u) for o in owners) for u in nodes[p.node].users):
            found.add(name)
    return frozenset(found)


def _keeps_lists(module: nn.Module | None) -> bool:
    """Whether a module holds its parameters in a list, as recurrent ones do, besides by name."""
    lists = [v for v in vars(module).values() if isinstance(v, list | tuple)] if module else []
    return any(isinstance(item, nn.Parameter) for value in lists for item in value)


GIVE_TUPLES = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)
"""Modules of torch that return more than a tensor, which no hook can scale."""
STATISTICS = (
    STRUCTURAL
    | CASTS
    | {
        f"aten.{n}"
        for n in "pow square mean sum var std abs add sub mul div rsqrt sqrt reciprocal clamp clamp_min maximum norm "
        "linalg_vector_norm".split()
    }
)
"""Ops that a norm written by hand is made of."""
TURNS = frozenset(f"aten.{n}" for n in "transpose permute movedim swapaxes t mT".split())


class _Placer:
    def __init__(self, roles: Roles, modules: Mapping[str, nn.Module]) -> None:
        self.roles, self.modules = roles, modules
        self.dims = roles.growth.dims
        self.flow = Flow(self.dims)
        self.sites = {s.node: s for s in roles.sites}
        self.at: dict[fx.Node, list[Use]] = {}
        for use in self.dims.uses:
            self.at.setdefault(use.node, []).append(use)
        self.untie = False
        self.placed: dict[fx.Node, Carrier] = {}
        self.calls: dict[str, set[str]] = {}
        self.inside: dict[str, list[fx.Node]] = {}
        for node in self.dims.program.calls():
            for key, path in zip(node.meta.get("nn_module_stack") or {}, module_paths(node), strict=True):
                self.calls.setdefault(path, set()).add(key)
                self.inside.setdefault(key, []).append(node)

    def place(self, site: Site) -> None:
        """Nearest carrier: input of the site's module, output upstream, key, weight, learned scale, outputs."""
        found = (
            (self.module_input(site) if site.kind == "readout" else None)
            or self.module_output(site)
            or (self.key_input(site) if site.kind == "attention" else None)
            or self.weight(site)
            or self.learned_scale(site)
            or self.both_sides(site)
        )
        shared = None if found else self.outputs(site) or self.shared_output(site)
        if shared is not None:
            carrier, nodes = shared
            self.placed |= dict.fromkeys(nodes, carrier)
            return
        if found is None:
            raise LoweringError(
                f"no module boundary can carry the factor {site.multiplier:g} of this {site.kind} alone",
                where=site.where,
                todo="make the projection in front of it a module of its own, or keep the head size fixed",
            )
        self.placed[site.node] = found

    def fold(self, site: Site) -> None:
        """Into the weight alone."""
        found = self.weight(site) or self.learned_scale(site)
        if found is None:
            raise LoweringError(
                f"the multiplier {site.multiplier:g} of this {site.kind} cannot go into a weight: what it would scale "
                "is used elsewhere, too, as a tied table or a fused projection is",
                where=site.where,
                todo="use form='table8', which puts it into forward, or give the site a weight of its own",
            )
        self.placed[site.node] = found

    def module_input(self, site: Site) -> Carrier | None:
        """The module around a readout, if nothing else in it reads the value that enters."""
        path = module_path(site.node)
        outer = [n for n in site.paths[0] if path not in module_paths(n)]
        if not path or not outer or not self._all_calls_are_sites(path, site):
            return None
        entering = outer[0]
        on_path = {*site.paths[0], site.node}
        call = set(self.inside[list(site.node.meta["nn_module_stack"])[-1]])
        readers = [
            n for n in call if any(i not in call and (self._is_data(i) or i is entering) for i in n.all_input_nodes)
        ]
        if any(n not in on_path for n in readers) or entering not in {i for n in readers for i in n.all_input_nodes}:
            return None
        return Carrier("input", path)

    def _is_data(self, node: fx.Node) -> bool:
        return self.dims.origin.get(node.name) == "data"

    def _all_calls_are_sites(self, path: str, site: Site) -> bool:
        sites = [s for s in self.sites.values() if module_path(s.node) == path and s.kind == site.kind]
        return len(self.calls[path]) == len(sites) and all(math.isclose(s.multiplier, site.multiplier) for s in sites)

    def module_output(self, site: Site) -> Carrier | None:
        """An upstream module whose output, or a run of it, goes to this site alone."""
        for path in site.paths:
            for node in path:
                carrier = self._output_of(node, path, site)
                if carrier is not None:
                    return carrier
        return None

    def _output_of(self, node: fx.Node, path: tuple[fx.Node, ...], site: Site) -> Carrier | None:
        module = module_path(node)
        owner = next((m for m in module_paths(node)[::-1] if m == module), "")
        if not owner or not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        if isinstance(self.modules.get(owner), GIVE_TUPLES):
            return None
        readers = [u for u in node.users if "_assert" not in op_name(u)]
        if not readers or any(owner in module_paths(u) for u in readers):
            return None
        if site.kind == "embedding":  # the path is the value's only way on: all of it is scaled
            return Carrier("output", owner) if self._all_calls_are_sites(owner, site) else None
        if len(self.calls[owner]) > 1 and any(self._on_both_sides(owner, s) for s in self.sites.values()):
            return None  # would count twice
        mine = self._claim(node, path, site)
        if not mine or any(self._claim_of_call(key, owner, site) != mine for key in self.calls[owner]):
            return None
        width = node.meta["val"].shape[-1]
        return Carrier("output", owner, () if len(mine) == width else _ranges(mine))

    @staticmethod
    def _on_both_sides(owner: str, site: Site) -> bool:
        """Whether one call of a module is on one side of a product, and another call on the other."""
        sides = [{n for n in path if module_path(n) == owner} for path in site.paths]
        return len(sides) == 2 and all(sides) and sides[0].isdisjoint(sides[1])

    def _claim(self, node: fx.Node, path: tuple[fx.Node, ...], *sites: Site, by: fx.Node | None = None) -> set[int]:
        """Elements of the last axis of a value that go to these sites and nowhere else; none if any does.

        ``path`` is the first site's; it and the others' paths pass ``by``, which is the value itself unless told.
        """
        by = by or node
        ends = {(sites[0].node, path[0])} | {(s.node, p[0]) for s in sites[1:] for p in s.paths if by in p}
        if len({site for site, _ in ends}) < len(ends):
            return set()  # both sides of one product
        mine, others = self._runs(node, ends)
        return mine if mine and others is not None and not mine & others else set()

    def outputs(self, site: Site) -> tuple[Carrier, list[fx.Node]] | None:
        """The modules whose outputs are the terms of a sum, or the parts of a stack, that goes to this site, or to
        several of one multiplier; and the nodes of these sites.
        """
        for path in site.paths:
            terms = [n for n in path[-1].all_input_nodes if self._is_data(n)]
            if op_name(path[-1]) not in SUMS or len(terms) < 2:
                continue
            sites = [site, *(s for s in self.sites.values() if s is not site and self._shares(s, site, path[-1]))]
            found = [next(self._whole_outputs(term, path, sites), None) for term in terms]
            owners = [owner for owner in found if owner is not None]
            if len(owners) == len(set(owners)) == len(terms):
                return Carrier("output", owners[0], (), tuple(owners[1:])), [s.node for s in sites]
        return None

    def _whole_outputs(self, term: fx.Node, path: tuple[fx.Node, ...], sites: list[Site]) -> Iterator[str]:
        """Modules, called once, whose whole output goes to these sites by one term."""
        nodes = self.flow.upstream(term).nodes
        along = {*nodes, *path, *(n for s in sites for n in (s.node, *itertools.chain(*s.paths)))}
        for node in nodes:
            owner = module_path(node)
            leaves = owner and not any(owner in module_paths(u) for u in node.users)
            alone = leaves and len(self.calls[owner]) == 1 and self._scales_once(node, along)
            if alone and len(self._claim(node, path, *sites, by=path[-1])) == node.meta["val"].shape[-1]:
                yield owner

    def both_sides(self, site: Site) -> Carrier | None:
        """An upstream module whose whole output is both sides of this product and goes nowhere else: it carries the
        root of the factor.
        """
        if len(site.paths) != 2:
            return None
        for node in site.paths[0]:
            owner = module_path(node)
            leaves = owner and not any(owner in module_paths(u) for u in node.users)
            if node not in site.paths[1] or not leaves or len(self.calls[owner]) > 1:
                continue
            mine, others = self._runs(node, {(site.node, path[0]) for path in site.paths})
            if mine and others is not None and not others and len(mine) == node.meta["val"].shape[-1]:
                return Carrier("output", owner, power=0.5)
        return None

    def shared_output(self, site: Site) -> tuple[Carrier, list[fx.Node]] | None:
        """An upstream module whose output goes to several sites of one multiplier, as queries do that meet keys and
        positions; and the nodes of these sites.
        """
        for path in site.paths:
            for node in path:
                owner = module_path(node)
                alike = [s for s in self.sites.values() if s is not site and self._shares(s, site, node)]
                if not alike or not owner or any(owner in module_paths(u) for u in node.users):
                    continue
                mine = self._claim(node, path, site, *alike) if len(self.calls[owner]) == 1 else set()
                if mine:
                    whole = len(mine) == node.meta["val"].shape[-1]
                    carrier = Carrier("output", owner, () if whole else _ranges(mine))
                    return carrier, [site.node, *(s.node for s in alike)]
        return None

    def _shares(self, other: Site, site: Site, node: fx.Node) -> bool:
        """Whether another site may take the same factor from a value."""
        alike = other.kind == site.kind and math.isclose(other.multiplier, site.multiplier)
        return alike and other.node not in self.placed and any(node in p for p in other.paths)

    def _claim_of_call(self, key: str, owner: str, like: Site) -> set[int]:
        """What a site of the same multiplier claims of one call's output: a shared module scales all its calls."""
        call = set(self.inside[key])
        for site in self.sites.values():
            if site.kind != like.kind or not math.isclose(site.multiplier, like.multiplier):
                continue
            for path in site.paths:
                node = next((n for n in path if n in call and module_path(n) == owner), None)
                claim = self._claim(node, path, site) if node is not None else set()
                if claim:
                    return claim
        return set()

    def _between(self, start: fx.Node, end: fx.Node, site: fx.Node) -> set[fx.Node]:
        """Nodes on any way from ``start`` to ``end``."""
        above: set[fx.Node] = set()
        stack = [end]
        while stack:
            n = stack.pop()
            if n not in above:
                above.add(n)
                stack += n.all_input_nodes
        below: set[fx.Node] = set()
        stack = [start]
        while stack:
            n = stack.pop()
            if n not in below and n is not site:
                below.add(n)
                stack += n.users
        return above & below

    def _runs(self, start: fx.Node, ends: set[tuple[fx.Node, fx.Node]]) -> tuple[set[int] | None, set[int] | None]:
        """Elements of the last axis of ``start`` that go to sites by their operands, and those that go elsewhere."""
        if not isinstance(start.meta["val"], torch.Tensor):
            return None, None
        shape = start.meta["val"].shape
        sites = {site for site, _ in ends}
        between = set().union(*(self._between(start, operand, site) for site, operand in ends))
        values: dict[fx.Node, Any] = {start: torch.arange(shape[-1]).expand(shape).contiguous()}
        mine: set[int] = set()
        others: set[int] = set()
        stack = [start]
        while stack:
            node = stack.pop()
            for user in node.users:
                if user.op == "output":
                    others |= _members(values[node])
                    continue
                if "_assert" in op_name(user):
                    continue
                arrives = (user, node) in ends
                if arrives or (user in between and not _moves(user)):
                    if not arrives and not self._stays(user, between, sites):
                        return None, None
                    mine |= _members(values[node])
                elif _moves(user):
                    values[user] = _evaluate(user, node, values[node])
                    stack.append(user)
                else:
                    others |= _members(values[node])
        return mine, others

    def _stays(self, node: fx.Node, between: set[fx.Node], sites: set[fx.Node]) -> bool:
        """Whether everything computed from a node goes to the sites and nowhere else."""
        stack, seen = [node], set()
        while stack:
            n = stack.pop()
            for u in n.users:
                if u in sites or "_assert" in op_name(u) or u in seen:
                    continue
                if u not in between:
                    return False
                seen.add(u)
                stack.append(u)
        return True

    def key_input(self, site: Site) -> Carrier | None:
        """``nn.MultiheadAttention`` projects inside: scaling the key's input scales the logits, up to a bias
        term that is constant along the softmax and so has no effect.
        """
        for path in module_paths(site.node)[::-1]:
            module = self.modules.get(path)
            if isinstance(module, nn.MultiheadAttention):
                plain = module.bias_k is None and not module.add_zero_attn
                return Carrier("key", path) if plain and len(self.calls[path]) == 1 else None
        return None

    def weight(self, site: Site) -> Carrier | None:
        """The weight whose product this site is, or is homogeneous in, if it is used nowhere else."""
        if site.kind == "readout":
            uses = [u for u in self.dims.uses if u.parameter == site.parameter]
            return Carrier("weight", site.parameter) if len(uses) == 1 and self._homogeneous(uses[0]) else None
        for path in site.paths:
            end = path[-1]
            uses = [u for u in self.dims.uses if u.node is end]
            mine, others = self._runs(end, {(site.node, path[0])})
            alone = mine is not None and others is not None and not others
            single = all(sum(v.parameter == u.parameter for v in self.dims.uses) == 1 for u in uses)
            if uses and alone and single and op_name(end) in MULTILINEAR and all(map(self._homogeneous, uses)):
                first, *rest = sorted(uses, key=lambda u: "in" not in u.kinds.values())
                return Carrier("weight", first.parameter, (), tuple(u.parameter for u in rest))
        return None

    def into_parameters(self, site: Site) -> list[Fold]:
        """A readout's or lookup's own weight, or what gives the value upstream, or the runs of it that this site takes.

        Raises:
            LoweringError: all of these have other uses.
        """
        own = [u for u in self.at.get(site.node, []) if u.parameter == site.parameter]
        for untie in (False, True) if self.untie else (False,):
            single = len(own) == 1 and self._homogeneous(own[0]) and self._alone(own[0], untie)
            if site.kind in ("readout", "embedding") and single:
                return [self._onto(own[0], site.multiplier)]
            for path in site.paths:
                found = self._into(path, (site.node, path[0]), site.multiplier, untie)
                if found:
                    return found
        shared = f": {site.parameter} is tied or used elsewhere, too" if site.parameter else ""
        raise LoweringError(
            f"no weight can take the multiplier {site.multiplier:g} of this {site.kind}{shared}",
            where=site.where,
            todo=("bake(untie=True) gives a tied weight's modules one each, or " if shared and not self.untie else "")
            + "put a norm with a gain before it; nothing was changed",
        )

    def _alone(self, use: Use, untie: bool) -> bool:
        """Whether a parameter has no other use, or none by its own name in the module of this one."""
        others = [v for v in self.dims.uses if v.parameter == use.parameter and v is not use]
        own = self._name_of(use)
        return not others or (untie and own is not None and all(self._name_of(v) not in (own, None) for v in others))

    def _homogeneous(self, use: Use) -> bool:
        """Whether an op reads a parameter itself, a multiple of it, or its product with what does not know it: not
        ``1 + weight``, as a gain of Gemma's, nor a direction over its own length.
        """
        start = self.dims.program.parameter(use.parameter).node
        return any(self._is_multiple(value, start) for value in use.node.all_input_nodes)

    def _is_multiple(self, value: fx.Node, start: str | None) -> bool:
        while value.op == "call_function":
            operands = value.all_input_nodes
            if op_name(value) == "aten.mul" and len(operands) == 2:
                operands = [n for n in operands if self._comes_from(n, start)]
            elif not (_moves(value) or _scales(value)):
                return False
            if len(operands) != 1:
                return False
            (value,) = operands
        return value.name == start

    def _comes_from(self, value: fx.Node, start: str | None) -> bool:
        """Whether a value that is made of parameters is made of this one."""
        if self._is_data(value):
            return False
        return value.name == start or any(self._comes_from(n, start) for n in value.all_input_nodes)

    def _name_of(self, use: Use) -> str | None:
        """The name by which the module of an op has its parameter."""
        names = self.dims.program.parameter(use.parameter).names
        return next((n for n in names if n.rpartition(".")[0] == module_path(use.node)), None)

    def _onto(self, use: Use, factor: float, axis: int = 0, runs: tuple[tuple[int, int], ...] = ()) -> Fold:
        if self._alone(use, False):
            return Fold(use.parameter, factor, axis, runs)
        return Fold(self._name_of(use) or use.parameter, factor, axis, runs, untie=True)

    def _scales_once(self, term: fx.Node, along: Collection[fx.Node]) -> bool:
        """Whether a scaled term of a sum changes the sum by its own way alone: what else is computed from it is
        normalized first, and so does not know its scale.

        Args:
            term: of the sum, or what it comes from.
            along: its way to the sum, and from there to the end.
        """
        stack, seen = [term], set[fx.Node]()
        while stack:
            node = stack.pop()
            for user in node.users:
                if user in seen or "_assert" in op_name(user):
                    continue
                if user in along and node is not term and node not in along:
                    return False
                if user not in along and self.flow.is_normalized(user):
                    continue
                if user not in along and op_name(user) not in STATISTICS:
                    return False
                seen.add(user)
                stack += [user] if user not in self.sites else []
        return True

    def _into(
        self,
        path: tuple[fx.Node, ...],
        end: tuple[fx.Node, fx.Node],
        factor: float,
        untie: bool,
        along: frozenset[fx.Node] = frozenset(),
    ) -> list[Fold]:
        """The nearest parameters of a path, or of all terms of the sum that it comes from, that go to ``end`` alone.

        ``along`` is the way on from a term of a sum.
        """
        for node in path:
            if along and not self._scales_once(node, {*along, *path}):
                continue
            uses = self.at.get(node, [])
            if not uses or op_name(node) not in MULTILINEAR or not all(map(self._homogeneous, uses)):
                continue
            if not all(self._alone(u, untie) for u in uses):
                continue
            mine, others = self._runs(node, {end})
            if mine and others is not None and not mine & others:
                runs = () if len(mine) == node.meta["val"].shape[-1] else _ranges(mine)
                axes = [next((a for a, k in u.kinds.items() if k in ("out", "elementwise")), 0) for u in uses]
                return [self._onto(u, factor, a, runs) for u, a in zip(uses, axes, strict=True)]
        terms = [n for n in path[-1].all_input_nodes if self._is_data(n)]
        if op_name(path[-1]) not in ("aten.add", "aten.sub") or len(terms) < 2 or self.at.get(path[-1]):
            return []
        along = along | {*path, end[0]}
        each = [self._into(self.flow.upstream(term).nodes, end, factor, untie, along) for term in terms]
        return [fold for part in each for fold in part] if all(each) else []

    def learned_scale(self, site: Site) -> Carrier | None:
        """A parameter that multiplies what this site gives and is used nowhere else, as a learned temperature is."""
        value = site.node
        while len(value.users) == 1 and (_moves(user := next(iter(value.users))) or _scales(user)):
            value = user
        if len(value.users) != 1 or op_name(product := next(iter(value.users))) != "aten.mul":
            return None
        uses = [u for u in self.dims.uses if u.node is product]
        if len(uses) != 1 or sum(v.parameter == uses[0].parameter for v in self.dims.uses) != 1:
            return None
        (factor,) = (n for n in product.all_input_nodes if n is not value)
        while factor.op == "call_function" and _moves(factor) and len(factor.users) == 1:
            (factor,) = factor.all_input_nodes
        return Carrier("weight", uses[0].parameter) if factor.op != "call_function" else None


def _moves(node: fx.Node) -> bool:
    """Whether an op only moves elements, given one tensor."""
    name = op_name(node)
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor | tuple | list)]
    return (name in STRUCTURAL | CASTS or name == "getitem") and len(tensors) == 1


def _scales(node: fx.Node) -> bool:
    """Whether an op multiplies one tensor by a number."""
    return op_name(node) in ("aten.mul", "aten.div") and node.all_input_nodes == [node.args[0]]


def _evaluate(node: fx.Node, operand: fx.Node, value: Any) -> Any:
    if op_name(node) in CASTS:
        return value
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: value if n is operand else n)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _members(value: Any) -> set[int]:
    if isinstance(value, tuple | list):
        return set().union(*(_members(v) for v in value))
    return set(value.flatten().bincount().nonzero().flatten().tolist())


def _ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted half-open runs of a set of indices."""
    runs: list[list[int]] = []
    for i in sorted(indices):
        if runs and runs[-1][1] == i:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    return tuple((a, b) for a, b in runs)
