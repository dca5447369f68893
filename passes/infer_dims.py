"""Infer which axes of a program are one dimension."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autofit.dims import AxisConflictError, Cell, Dims, Gap
from autofit.flow import is_linear
from autofit.passes.ops import RULES, Context
from autofit.passes.ops.elementwise import pointwise
from autofit.program import Program, op_name


@dataclass(frozen=True)
class InferDims:
    """``Program -> Dims``."""

    def __call__(self, program: Program) -> Dims:
        """Walk the graph once and apply each op's rule."""
        ctx = Context()
        parameter_of = {p.node: p for p in program.parameters if p.node}
        for node in program.graph.nodes:
            ctx.axes.node = node.name
            if node.op == "output":
                _mark_outputs(ctx, node)
                continue
            ctx.of[node.name] = ctx.fresh(node)
            if node.op == "placeholder":
                _enter(ctx, node, parameter_of, program.inputs)
            elif node.op == "call_function":
                _apply(ctx, node)
            else:
                ctx.origin[node.name] = "constant"
        of_parameter = {p.name: ctx.of[p.node] for p in program.parameters if p.node}
        unruled = list(ctx.unruled)
        by_name = {n.name: n for n in program.graph.nodes}
        unruled += [Gap(by_name[name], reason, cells) for name, reason, cells in ctx.axes.opaque]
        return Dims(
            program=program,
            axes=ctx.axes,
            of=ctx.of,
            of_parameter=of_parameter,
            uses=tuple(ctx.uses),
            products=tuple(ctx.products),
            evidence=tuple(ctx.evidence),
            origin=ctx.origin,
            unruled=tuple(unruled),
        )


def _enter(ctx: Context, node: fx.Node, parameter_of: dict[str, Any], inputs: tuple[str, ...]) -> None:
    if node.name in parameter_of:
        ctx.origin[node.name] = "weight"
        for i, cell in enumerate(ctx.of[node.name]):
            cell.origins = frozenset({(parameter_of[node.name].name, i)})
    elif node.name in inputs:
        ctx.origin[node.name] = "data"
        ctx.fed.add(node.name)
        ctx.data(_flat(ctx.of[node.name]), node)
    else:
        ctx.origin[node.name] = "constant"


def _apply(ctx: Context, node: fx.Node) -> None:
    operands = node.all_input_nodes
    origins = {ctx.origin.get(n.name, "constant") for n in operands}
    ctx.origin[node.name] = "data" if "data" in origins else "weight" if "weight" in origins else "constant"
    if any(n.name in ctx.fed for n in operands):
        ctx.fed.add(node.name)
    elif origins >= {"data", "weight"} and all(_is_number(n) for n in operands if ctx.origin[n.name] == "data"):
        ctx.gap(node, "a weight is scaled by what a contraction of weights gives (is it a spectral norm?)")
    if ctx.origin[node.name] == "weight":
        linear = is_linear(node) or node.target is operator.getitem
        if not linear or any(n.name in ctx.bent for n in operands):
            ctx.bent.add(node.name)
    if node.target is operator.getitem:
        ctx.of[node.name] = ctx.of[node.args[0].name][node.args[1]]  # type: ignore[union-attr, index]
        return
    name = op_name(node)
    rule = RULES.get(name)
    if name in ("aten.max", "aten.min") and len(node.args) > 1 and isinstance(node.args[1], int):
        rule = RULES["aten.amax"]
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = pointwise
    if rule is None:
        _match_by_size(ctx, node)
    else:
        try:
            rule(ctx, node)
        except AxisConflictError as conflict:
            ctx.gap(node, str(conflict))
        except (
            AttributeError,
            TypeError,
            ValueError,
            IndexError,
            KeyError,
        ) as error:  # arguments in a form that the rule does not know
            ctx.gap(node, f"the rule for {name} does not cover this call ({type(error).__name__}: {error})")
    if ctx.origin[node.name] == "data":
        for operand in operands:
            is_weight = ctx.is_tensor(operand) and ctx.origin.get(operand.name) == "weight"
            if is_weight and not ctx.recorded(node, operand):
                ctx.elementwise_use(node, operand)


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim == 0


def _match_by_size(ctx: Context, node: fx.Node) -> None:
    """No rule: an axis is matched only where exactly one input dimension has its size."""
    value = node.meta.get("val")
    tensor = isinstance(value, torch.Tensor | tuple | list)
    if not tensor or (isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_floating_point()):
        return  # a check, a mode or a count: nothing of a width is in it
    ctx.gap(node, f"no rule for {op_name(node)}")
    before = [c for n in node.all_input_nodes for c in _flat(ctx.of.get(n.name, ()))]
    for cell in _flat(ctx.of[node.name]):
        same = {ctx.axes.find(c).serial: c for c in before if c.size == cell.size and cell.size > 1}
        if len(same) == 1:
            ctx.axes.unify(cell, next(iter(same.values())))
        elif same:
            ctx.note(cell, "ambiguous", node)


def _mark_outputs(ctx: Context, node: fx.Node) -> None:
    for result in node.all_input_nodes:
        for cell in _flat(ctx.of.get(result.name, ())):
            ctx.note(cell, "output", result)


def _flat(value: Any) -> list[Cell]:
    if isinstance(value, Cell):
        return [value]
    return [c for v in value for c in _flat(v)]
