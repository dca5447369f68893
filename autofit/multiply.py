"""The plan's multipliers as nodes of a captured graph, each at its site."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from autofit.dims import Dims
from autofit.errors import LoweringError
from autofit.plan import Plan
from autofit.program import live, op_name
from autofit.roles import Roles, Site

aten = torch.ops.aten
SCALED = {"aten.scaled_dot_product_attention": "scale", "aten.baddbmm": "alpha", "aten.addmm": "alpha"}
"""Ops with a factor of their own on the product, and its argument."""


def wanted(site: Site) -> bool:
    """Whether a site has a factor in some model of this kind, be it one at the base."""
    return (site.treatment == "apply" and site.exponent != site.present) or site.tuned != 1


def in_forward(roles: Roles, plan: Plan) -> list[Site]:
    """Sites that have a factor in forward, in some model of this kind."""
    inside = {s.node for s in plan.sites if s.carrier.place == "weight"}
    return [s for s in roles.sites if wanted(s) and s.node.name not in inside]


def multiply(
    graph: fx.Graph,
    roles: Roles,
    plan: Plan,
    at: Mapping[fx.Node, fx.Node],
    name: Callable[[Site], str] | None = None,
) -> dict[fx.Node, Site]:
    """Insert a multiplication for every site that has a factor; in place, linted.

    On a readout it stands before the weight's op, so that no bias is multiplied, and outside of the module that holds
    the op where this module reads nothing else; on attention it goes into the op's own scale where it has one; behind
    a lookup; on a residual branch before the sum.

    Args:
        graph: that of the captured program, or of another capture of the same model.
        roles: its sites.
        plan: what was made of these; a factor that is in a weight already is passed over.
        at: nodes of the graph by those of the captured program.
        name: of a site's factor; given, nodes carry it as ``meta["multiplier"]`` (``"scaled_by"`` for a scale that an
            op has itself, which then stays as it is), for source to be written from.

    Returns:
        The site of every node that was made or changed.

    Raises:
        LoweringError: the graph lacks a site.
    """
    dims, made = roles.growth.dims, dict[fx.Node, Site]()
    alive = live(dims.program.graph)
    for site in in_forward(roles, plan):
        if site.node not in alive or (name is None and site.multiplier == 1):
            continue
        node = at.get(site.node)
        if node is None:
            raise LoweringError(f"the graph has no op for this {site.kind}", where=site.where)
        label = None if name is None else name(site)
        made[_at_site(graph, dims, site, node, at, label)] = site
    graph.lint()
    return made


def _at_site(
    graph: fx.Graph, dims: Dims, site: Site, node: fx.Node, at: Mapping[fx.Node, fx.Node], label: str | None
) -> fx.Node:
    factor = site.multiplier
    if site.kind == "attention" and (own := SCALED.get(op_name(node))) is not None:
        if label is not None:
            node.meta["scaled_by"], node.meta["factor"] = label, factor
            return node
        given: Any = node.kwargs.get(own)
        if given is None:
            query: Any = node.args[0]
            given = query.meta["val"].shape[-1] ** -0.5 if own == "scale" else 1
        node.kwargs = {**node.kwargs, own: given * factor}
        return node
    if site.kind == "readout":
        partner = next(u.partner for u in dims.uses if u.node is site.node and u.parameter == site.parameter)
        if partner is None or len(node.all_input_nodes) != len(site.node.all_input_nodes):
            raise LoweringError("the value that this readout reads is not in the graph", where=site.where)
        entering = node.all_input_nodes[site.node.all_input_nodes.index(partner)]
        return _before(graph, node, entering, {at[n] for n in site.paths[0] if n in at}, factor, label)
    if site.kind == "residual":
        branch = node.all_input_nodes[site.node.all_input_nodes.index(site.paths[0][0])]
        with graph.inserting_before(node):
            new = _product(graph, branch, factor, label, node, 0)
        node.replace_input_with(branch, new)
        return new
    depth = len(node.meta.get("nn_module_stack") or {})
    outer = 1 if site.kind == "embedding" and depth > 1 and _alone(graph, node) else 0
    readers = list(node.users)
    with graph.inserting_after(node):
        new = _product(graph, node, factor, label, node, outer)
    for reader in readers:
        reader.replace_input_with(node, new)
    return new


def _before(
    graph: fx.Graph, node: fx.Node, entering: fx.Node, path: set[fx.Node], factor: float, label: str | None
) -> fx.Node:
    """On what enters the module around an op if that reads nothing else, else on what the op itself reads."""
    inside = _call(graph, node)
    outside = {i for n in inside for i in n.all_input_nodes if i not in set(inside) and i.op != "placeholder"}
    whole = len(outside) == 1 and (outside <= path or outside == {entering}) and not _held(inside, entering, node)
    if not whole:
        with graph.inserting_before(node):
            new = _product(graph, entering, factor, label, node, 0)
        node.replace_input_with(entering, new)
        return new
    (value,) = outside
    with graph.inserting_before(inside[0]):
        new = _product(graph, value, factor, label, inside[0], 1)
    for n in inside:
        n.replace_input_with(value, new)
    return new


def _held(inside: list[fx.Node], entering: fx.Node, node: fx.Node) -> bool:
    """Whether a module uses what enters a readout for something else, too."""
    own = set(inside)
    return entering in own and any(u is not node for u in entering.users)


def _call(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """All nodes of the innermost module call around one."""
    keys = list(node.meta.get("nn_module_stack") or {})
    if not keys:
        return [node]
    return [n for n in graph.nodes if keys[-1] in (n.meta.get("nn_module_stack") or {})]


def _alone(graph: fx.Graph, node: fx.Node) -> bool:
    """Whether a module does nothing but this op."""
    return _call(graph, node) == [node]


def _product(graph: fx.Graph, value: fx.Node, factor: float, label: str | None, like: fx.Node, outer: int) -> fx.Node:
    """A multiplication that stands in the module of another node, or in one around it."""
    new = graph.call_function(aten.mul.Tensor, (value, factor))
    stack = list((like.meta.get("nn_module_stack") or {}).items())
    kept = len(stack) - outer
    new.meta["nn_module_stack"] = dict(stack[:kept])
    frames = (like.meta.get("stack_trace") or "").split('File "')[1:]
    if len(frames) == len(stack):
        new.meta["stack_trace"] = "".join(f'File "{frame}' for frame in frames[:kept])
    new.meta["val"] = value.meta.get("val")
    if label is not None:
        new.meta["multiplier"] = label
    return new


def exponent(site: Site) -> float:
    """Power of the growth of what a site sums that its factor is, what the user tuned apart."""
    return (
        0.0 if site.treatment != "apply" or math.isclose(site.exponent, site.present) else site.exponent - site.present
    )
