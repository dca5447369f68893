"""Run a captured program twice side by side, before and after training, and measure what differs and by whose doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from autofit.dims import Cell, Dims, Use
from autofit.flow import is_float
from autofit.program import Program, module_path, module_paths, op_name
from autofit.propagation import Sizes

Key = tuple[str, str]
"""Of a measurement: ``module``, ``parameter`` or ``logits``, and its name."""


def states(program: Program, tensors: Mapping[str, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Values of a program's placeholders and constants, by node.

    Args:
        program: captured.
        tensors: parameters and buffers by any of their names.
        inputs: tensors of the call, in order.
    """
    found: dict[str, Any] = dict(program.tensors)
    found |= {p.node: tensors[p.name] for p in program.parameters if p.node is not None}
    found |= {node: tensors[name] for node, name in program.buffers.items()}
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    given = [n for n in program.inputs if isinstance(nodes[n].meta.get("val"), torch.Tensor)]
    return found | dict(zip(given, inputs, strict=True))


def side_by_side(program: Program, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Step]:
    """Every op under both states, in order; values are dropped after their last use, and noise is the same."""
    values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
    last: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        for n in node.all_input_nodes:
            last[n] = node
    done: dict[fx.Node, list[fx.Node]] = {}
    for n, by in last.items():
        done.setdefault(by, []).append(n)
    for i, node in enumerate(program.graph.nodes):
        if node.op in ("placeholder", "get_attr"):
            for held, given in zip(values, (before, after), strict=True):
                other = None if node.op == "placeholder" else getattr(program.module, str(node.target))
                value = given.get(node.name, other)
                held[node] = value.clone() if isinstance(value, torch.Tensor) else value
        elif node.op == "call_function":
            step = Step(node, values, i)
            values[0][node], values[1][node] = step.run(values[0].__getitem__), step.run(values[1].__getitem__)
            yield step
        for n in done.get(node, ()):
            del values[0][n], values[1][n]


class Step:
    """One op under both states.

    Attributes:
        node: the op.
        values: of all nodes that are still in use, before and after.
    """

    def __init__(self, node: fx.Node, values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]], seed: int) -> None:
        self.node, self.values, self.seed = node, values, seed
        tags = getattr(node.target, "tags", ())
        self.random = torch.Tag.nondeterministic_seeded in tags

    def run(self, value: Callable[[fx.Node], Any]) -> Any:
        """The op, on other values."""
        args, kwargs = fx.map_arg((self.node.args, dict(self.node.kwargs)), value)
        if self.random:
            torch.manual_seed(self.seed)
        return self.node.target(*args, **kwargs)  # type: ignore[operator]

    def with_operand(self, operand: fx.Node, value: Any) -> Any:
        """The op before training, but for one operand."""
        return self.run(lambda n: value if n is operand else self.values[0][n])


MASK = 1e8
"""What is larger than this stands for minus infinity in logits."""


def size(value: Any) -> float:
    """Mean absolute value, masks left out; of several tensors, of the first that has numbers."""
    for item in value if isinstance(value, tuple | list) else [value]:
        if isinstance(item, torch.Tensor) and item.numel() and (item.is_floating_point() or item.is_complex()):
            absolute = item.detach().abs().double()
            kept = absolute[~(absolute >= MASK)]  # what is no number stays, and shows
            return float(kept.mean()) if kept.numel() else math.inf
    return 0.0


def _logits(step: Step, values: Mapping[fx.Node, Any]) -> Any:
    """A product of two activations; inside of a fused op it is formed again."""
    if op_name(step.node) != "aten.scaled_dot_product_attention":
        return values[step.node]
    query, key = (values[n] for n in step.node.all_input_nodes[:2])
    scale = step.node.kwargs.get("scale")
    key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3) if key.ndim > 2 else key
    return query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)


def _difference(a: Any, b: Any) -> Any:
    if isinstance(a, tuple | list):
        return [_difference(x, y) for x, y in zip(a, b, strict=True)]
    same = isinstance(a, torch.Tensor) and a.is_floating_point()
    return a.double() - b.double() if same else torch.zeros(())


@torch.no_grad()
def measure(
    dims: Dims,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    factor: Callable[[fx.Node], float],
) -> dict[Key, tuple[float, float]]:
    """Sizes at the start, and of the change since: of every module's output, of all products of two activations, and
    of what each parameter alone gives, where the rest is as it was.

    Args:
        dims: of the program.
        before, after: values of its placeholders.
        factor: what multiplies the result of an op further on.

    Returns:
        Mean absolute values of both by key.
    """
    program = dims.program
    ends = {n: path for path, n in module_ends(program).items()}
    products = {p.node: p for p in dims.products}
    uses: dict[fx.Node, list[tuple[str, Use]]] = {}
    for name, use in named_uses(dims):
        uses.setdefault(use.node, []).append((name, use))
    found: dict[Key, tuple[float, float]] = {}
    for step in side_by_side(program, before, after):
        node, (old, new) = step.node, step.values
        change = _difference(new[node], old[node])
        if node in ends:
            found["module", ends[node]] = size(old[node]), size(change)
        if node in products:
            logits = [_logits(step, values) for values in (old, new)]
            own, name = abs(factor(node)), f"{module_path(node)} {node.name}"
            found["logits", name] = size(logits[0]) * own, size(_difference(*logits[::-1])) * own
        for name, use in uses.get(node, ()):
            own = abs(factor(node))
            without = step.with_operand(use.operand, torch.zeros_like(old[use.operand]))
            trained = step.with_operand(use.operand, new[use.operand])
            start = size(_difference(old[node], without)) * own
            moved = size(_difference(trained, old[node])) * own
            found["parameter", name] = start, moved
    return found


def named_uses(dims: Dims) -> Iterator[tuple[str, Use]]:
    """Every use of every parameter with a name: of the parameter, numbered where it has several."""
    counts: dict[str, int] = {}
    for use in dims.uses:
        if use.node.op == "call_function":
            counts[use.parameter] = counts.get(use.parameter, 0) + 1
            number = counts[use.parameter]
            yield use.parameter if number == 1 else f"{use.parameter} #{number}", use


def module_ends(program: Program) -> dict[str, fx.Node]:
    """The last op of every module that gives numbers, by path."""
    found: dict[str, fx.Node] = {}
    for node in program.calls():
        if is_float(node):
            for path in module_paths(node):
                if path:
                    found[path] = node
    return found


@torch.no_grad()
def term_sizes(dims: Dims, before: Mapping[str, Any], after: Mapping[str, Any]) -> Sizes:
    """What every operand of every op alone gives there, and what its change alone changes: root mean squares.

    A change is also tried in another order along what a weight contracts, in which it is aligned with nothing.
    """
    found = {}
    uses = {(u.node, u.operand): u for u in dims.uses}
    partners = {(u.node, u.partner): u for u in dims.uses if u.partner is not None and "in" in u.kinds.values()}
    for step in side_by_side(dims.program, before, after):
        node, (old, new) = step.node, step.values
        operands = [o for o in node.all_input_nodes if is_float(o) and isinstance(old[o], torch.Tensor)]
        for operand in operands:
            start, noise = old[operand], 0.0
            axis = None
            if (node, operand) in uses:
                axis = _contracted_of_weight(dims, uses[node, operand])
                start = _difference(old[node], step.with_operand(operand, torch.zeros_like(start)))
            changed = root_mean_square(_difference(step.with_operand(operand, new[operand]), old[node]))
            if (node, operand) in partners:
                axis = _contracted(dims, partners[node, operand])
            if axis is not None:
                mixed = _shuffled(old[operand], new[operand], axis)
                noise = root_mean_square(_difference(step.with_operand(operand, mixed), old[node]))
            found[node.name, operand.name] = root_mean_square(start), changed, noise
    return found


def _contracted(dims: Dims, use: Use) -> int:
    """The axis of an activation that a weight contracts; the last one if it is not told apart."""
    assert use.partner is not None
    mine = {dims.axes.find(c).serial for c, k in use.cells if k == "in"}
    axes = [
        i
        for i, c in enumerate(dims.of.get(use.partner.name, ()))
        if isinstance(c, Cell) and dims.axes.find(c).serial in mine
    ]
    return axes[0] if axes else -1


def _contracted_of_weight(dims: Dims, use: Use) -> int | None:
    """The axis of a weight, as it stands in an op, that is contracted."""
    axes = [i for i, (_, k) in enumerate(use.cells) if k == "in"]
    return axes[0] if axes and use.partner is not None else None


def _shuffled(old: torch.Tensor, new: torch.Tensor, axis: int) -> torch.Tensor:
    """A value with its change in another order along one axis, the same for all else."""
    order = torch.randperm(old.shape[axis], generator=torch.Generator().manual_seed(0)).to(old.device)
    return old + (new - old).index_select(axis % old.ndim, order)


def root_mean_square(value: Any) -> float:
    """Of all finite elements of one or several tensors."""
    leaves = [t for t in (value if isinstance(value, tuple | list) else [value]) if isinstance(t, torch.Tensor)]
    flat = [t.detach().abs().double().flatten() for t in leaves if t.is_floating_point() or t.is_complex()]
    if not flat:
        return 0.0
    whole = torch.cat(flat)
    whole = whole[whole < MASK]
    return float(whole.square().mean().sqrt()) if whole.numel() else 0.0
