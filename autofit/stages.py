"""Each stage of an analysis as text."""

from __future__ import annotations

import torch
from torch import fx

from autofit.dims import Cell, Dims
from autofit.plan import Plan
from autofit.program import module_path, source_line
from autofit.roles import Roles


def stages(roles: Roles, plan: Plan) -> str:
    """Program, growth, roles and plan, each under a heading; equal for equal runs."""
    growth = roles.growth
    parts = [("program", annotated(growth.dims)), ("growth", str(growth)), ("roles", str(roles)), ("plan", str(plan))]
    return "\n\n".join(f"# {name}\n{text}" for name, text in parts) + "\n"


def annotated(dims: Dims) -> str:
    """Every node with its dtype, its axes by what they are made of, its module, and its line in the user's source."""
    return "\n".join(_line(node, dims) for node in dims.program.graph.nodes)


def _line(node: fx.Node, dims: Dims) -> str:
    value = node.meta.get("val")
    axes = [dims.axes.show(c) for c in dims.of.get(node.name, ()) if isinstance(c, Cell)]
    kind = f"{str(value.dtype).removeprefix('torch.')}[{', '.join(axes)}]" if isinstance(value, torch.Tensor) else ""
    said = "  ".join(s for s in (kind, module_path(node), source_line(node)) if s)
    return f"{node.format_node() or node.name}" + (f"  # {said}" if said else "")
