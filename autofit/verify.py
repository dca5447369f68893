"""Capture the rewritten model again and check it against the plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from autofit.dims import Dims
from autofit.errors import VerificationError
from autofit.flow import Factor, Flow
from autofit.measure import Spread
from autofit.plan import Carrier, Plan, SitePlan
from autofit.program import Program, describe, module_path, op_name
from autofit.roles import Roles

ADDED = ("aten.mul", "aten.slice", "aten.cat")


def verify_program(before: Roles, after: Dims, plan: Plan) -> None:
    """Check that the new graph is the old one plus the planned multipliers, and that each arrived.

    Args:
        before: roles of the captured original.
        after: axes of the captured rewritten model.
        plan: what was applied.

    Raises:
        VerificationError: anything else than the planned multipliers changed, or one did not arrive.
    """
    old, new = before.growth.dims.program, after.program
    pairs, added_nodes = _match(old, new, plan)
    _check_parameters(new, added_nodes, plan)
    flow_old, flow_new = Flow(before.growth.dims), Flow(after)
    for site, planned in zip(before.sites, plan.sites, strict=True):
        if planned.carrier.place in ("weight", "key"):
            continue
        twin = pairs.get(site.node)
        if twin is None:
            raise VerificationError(f"the site {planned.where} is gone after rewriting")
        if planned.carrier.also:
            added = _added_terms(twin, added_nodes, planned.carrier)
            if not math.isclose(added, planned.multiplier, rel_tol=1e-6):
                raise _not_arrived(added, planned)
            continue
        at = site.node.all_input_nodes.index(site.paths[0][0]) if site.kind == "residual" else None
        was = _scale(flow_old, site.node, site.kind, at)
        now = _scale(flow_new, twin, site.kind, at)
        added = _added_runs(twin, planned.carrier.indices, added_nodes) if planned.carrier.indices else now / was
        if not math.isclose(added, planned.multiplier, rel_tol=1e-6):
            raise _not_arrived(added, planned)


def _check_parameters(program: Program, added: set[fx.Node], plan: Plan) -> None:
    """Every reader of a parameter with a factor of its own is the multiplication by that."""
    nodes = {n.name: n for n in program.graph.nodes}
    for p in plan.multiplied().values():
        readers = list(nodes[program.parameter(p.name).node or ""].users)
        factors = [float(n.args[1]) if n in added and op_name(n) == "aten.mul" else 1.0 for n in readers]
        if not readers or any(not math.isclose(f, p.multiplier, rel_tol=1e-6) for f in factors):
            raise VerificationError(
                f"{p.name} got the factors {factors} in forward instead of {p.multiplier:g}",
                where=p.where,
                todo="the model was left as it was; please report it with this message",
            )


def _not_arrived(added: float, planned: SitePlan) -> VerificationError:
    return VerificationError(
        f"the {planned.kind} site got the factor {added:g} instead of {planned.multiplier:g}",
        where=planned.where,
        todo="the model was left as it was; please report it with this message",
    )


def _added_terms(site: fx.Node, added: set[fx.Node], carrier: Carrier) -> float:
    """The one factor that the outputs of all of a carrier's modules get on their way to a site."""
    above: set[fx.Node] = set()
    stack = [site]
    while stack:
        node = stack.pop()
        if node not in above:
            above.add(node)
            stack += node.all_input_nodes
    paths = (carrier.path, *carrier.also)
    factors = [(module_path(n), float(n.args[1])) for n in added & above if module_path(n) in paths]  # type: ignore[arg-type]
    once = sorted(path for path, _ in factors) == sorted(paths)
    return factors[0][1] if once and len({f for _, f in factors}) == 1 else math.nan


def _match(old: Program, new: Program, plan: Plan) -> tuple[dict[fx.Node, fx.Node], set[fx.Node]]:
    """Pair the nodes of the old graph with those of the new one; what is left are the multipliers' nodes."""
    hooked = [s.carrier for s in plan.sites if s.multiplier != 1 and s.carrier.place in ("input", "output")]
    rewritten = {path for carrier in hooked for path in (carrier.path, *carrier.also)}
    rewritten |= {n.rpartition(".")[0] for p in plan.multiplied().values() for n in p.names}
    ignored = {s.carrier.path for s in plan.sites if s.multiplier != 1 and s.carrier.place == "key"}
    mine = [n for n in old.calls() if not _within(n, ignored)]
    theirs = [n for n in new.calls() if not _within(n, ignored)]
    pairs: dict[fx.Node, fx.Node] = {}
    added: set[fx.Node] = set()
    at = 0
    for b in theirs:
        a = mine[at] if at < len(mine) else None
        path = module_path(b)
        same = a is not None and op_name(a) == op_name(b) and _same_constants(a, b)
        ours = path in rewritten and op_name(b) in ADDED
        if ours and not (same and a is not None and module_path(a) == path):
            added.add(b)
        elif same and a is not None:
            pairs[a] = b
            at += 1
        else:
            raise VerificationError(f"rewriting put {describe(b)} in the place of {describe(a) if a else 'nothing'}")
    if at != len(mine):
        raise VerificationError(f"rewriting lost {describe(mine[at])}")
    return pairs, added


def _within(node: fx.Node, paths: Iterable[str]) -> bool:
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return any(str(entry[0]) in paths for entry in stack)


def _same_constants(a: fx.Node, b: fx.Node) -> bool:
    mine = [x for x in a.args if isinstance(x, int | float | str)]
    theirs = [x for x in b.args if isinstance(x, int | float | str)]
    return mine == theirs


def _scale(flow: Flow, node: fx.Node, kind: str, branch: int | None) -> float:
    """All scalar factors on the paths of one site, multiplied; of a residual sum, on its branch."""
    if branch is not None:
        return math.prod(f.value for f in flow.upstream(node.all_input_nodes[branch]).factors)
    factors: list[Factor] = []
    if kind != "embedding":
        data = [n for n in node.all_input_nodes if flow.dims.origin.get(n.name) == "data"]
        operands = data or [n for n in node.all_input_nodes if n.op == "call_function"]  # of learned queries
        for operand in operands[: 2 if kind == "attention" else 1]:
            factors += flow.upstream(operand).factors
    factors += flow.downstream(node)[1]
    return math.prod(f.value for f in factors)


def _added_runs(site: fx.Node, runs: tuple[tuple[int, int], ...], added: set[fx.Node]) -> float:
    """The one factor that the multiplier's nodes upstream of a site apply to runs of an axis."""
    stack, seen = [site], set()
    while stack:
        node = stack.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node in added and op_name(node) == "aten.cat":
            parts: Any = node.args[0]
            scaled = [p for p in parts if op_name(p) == "aten.mul"]
            values = {float(p.args[1]) for p in scaled}
            widths = sum(p.meta["val"].shape[-1] for p in scaled)
            if len(values) == 1 and widths == sum(b - a for a, b in runs):
                return values.pop()
            return math.nan
        stack += node.all_input_nodes
    return math.nan


def verify_values(plan: Plan, after: Mapping[str, Spread]) -> None:
    """Check that the measured std of every rescaled parameter is the planned one.

    Raises:
        VerificationError: it is not.
    """
    for name, spread in after.items():
        if plan.parameters[name].zeros:
            continue  # of fewer values
        planned = (plan.parameters[name].init_std or 0.0) * plan.parameters[name].init_factor
        if not math.isclose(spread.std, planned, rel_tol=5e-3, abs_tol=1e-12 + 1e-6 * abs(spread.mean)):
            raise VerificationError(f"{name} has std {spread.std:g} instead of the planned {planned:g}")
