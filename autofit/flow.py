"""Dataflow questions about a captured graph: which way a value goes, and what scales it on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autofit.dims import Cell, Dims
from autofit.program import op_name

STRUCTURAL = frozenset(
    f"aten.{n}"
    for n in "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as permute transpose "
    "swapaxes swapdims t numpy_T mT movedim expand expand_as broadcast_to repeat tile repeat_interleave split "
    "split_with_sizes chunk unsafe_chunk unsafe_split tensor_split unbind slice narrow select contiguous clone "
    "alias detach lift_fresh_copy flip roll index index_select gather".split()
)
CASTS = frozenset(f"aten.{n}" for n in "to _to_copy type_as float double half bfloat16 dropout".split())
SUMS = frozenset(f"aten.{n}" for n in "add sub rsub cat stack mean sum".split())
WRITES = frozenset(f"aten.{n}" for n in "select_scatter slice_scatter diagonal_scatter".split())
BLANKS = frozenset(f"aten.{n}" for n in "empty zeros empty_like zeros_like new_empty new_zeros".split())
SCALINGS = frozenset(f"aten.{n}" for n in "mul div true_divide neg".split())
NORMS = frozenset(
    f"aten.{n}" for n in "layer_norm rms_norm _fused_rms_norm group_norm batch_norm instance_norm rsqrt".split()
)

MULTILINEAR = (
    frozenset(
        f"aten.{n}"
        for n in "linear matmul mm bmm mv dot addmm addmv addbmm baddbmm einsum tensordot bilinear convolution "
        "_convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding mul "
        "_grouped_mm grouped_mm".split()
    )
    | NORMS
)
"""Ops whose result is homogeneous of degree one in their weight and bias together."""
LENGTHS = frozenset(f"aten.{n}" for n in "sqrt norm linalg_norm linalg_vector_norm".split())


def is_linear(node: fx.Node) -> bool:
    """Whether an op is linear in its tensor operands, for fixed structure."""
    return op_name(node) in STRUCTURAL | CASTS | SUMS | SCALINGS | WRITES


def flat_cells(value: object) -> Iterator[Cell]:
    """All axes of a value, tuples opened."""
    if isinstance(value, Cell):
        yield value
    else:
        for v in value:  # type: ignore[attr-defined]
            yield from flat_cells(v)


def reaching_output(dims: Dims, grows: Callable[[Cell], bool]) -> set[str]:
    """Names of nodes with a differentiable path to an output on which no value has a growing axis."""
    found: set[str] = set()
    for node in reversed(list(dims.program.graph.nodes)):
        if not any(u.op == "output" or u.name in found for u in node.users) or not is_float(node):
            continue
        if not any(grows(c) for c in flat_cells(dims.of.get(node.name, ()))):
            found.add(node.name)
    return found


def behind(dims: Dims, grows: Callable[[Cell], bool]) -> set[str]:
    """Names of nodes that are differentiable in some value with a growing axis."""
    found: set[str] = set()
    for node in dims.program.graph.nodes:
        if dims.origin.get(node.name) == "data" and is_float(node):
            before = [n for n in node.all_input_nodes if dims.origin.get(n.name) == "data"]
            wide = any(grows(c) for c in flat_cells(dims.of.get(node.name, ())))
            if wide or any(n.name in found for n in before):
                found.add(node.name)
    return found


def is_float(node: fx.Node) -> bool:
    """Whether a value has, or its parts have, real or complex numbers."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or value.is_complex()
    values = value if isinstance(value, tuple | list) else ()
    return any(isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in values)


@dataclass(frozen=True)
class Factor:
    """A scalar on a path.

    Attributes:
        node: the op that multiplies.
        key: which argument holds the constant: position or keyword.
        value: the factor itself (a division by 8 is 0.125).
        inverse: whether the argument divides.
    """

    node: fx.Node
    key: str
    value: float
    inverse: bool


@dataclass(frozen=True)
class Path:
    """Values of which another value is a homogeneous function of degree one, nearest first.

    Attributes:
        nodes: multiplying any of these by c multiplies the end by c.
        factors: scalar factors met on the way.
        normalized: whether the path starts behind a normalization, whose gain sets the scale.
    """

    nodes: tuple[fx.Node, ...]
    factors: tuple[Factor, ...]
    normalized: bool


class Flow:
    """Path queries on one program."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims
        self.order = {n: i for i, n in enumerate(dims.program.graph.nodes)}
        self._scalars: dict[str, float | None] = {}

    def upstream(self, end: fx.Node) -> Path:
        """Walk back from ``end`` while it stays homogeneous of degree one."""
        nodes: list[fx.Node] = [end]
        factors: list[Factor] = []
        while True:
            node = nodes[-1]
            step = self._step(node)
            if step is None:
                break
            source, factor = step
            factors += [factor] if factor else []
            nodes.append(source)
        return Path(tuple(nodes), tuple(factors), self.is_normalized(nodes[-1]))

    def downstream(self, start: fx.Node) -> tuple[tuple[fx.Node, ...], tuple[Factor, ...]]:
        """Walk forward over the single reader of a value, while each only reshapes, scales or adds to it.

        What scales a sum scales its terms, so factors are collected behind a sum; the nodes end before it, where
        a multiplier would scale the other terms, too. A fused attention op gives no logits: nothing to follow.
        """
        nodes, factors = [start], []
        at, joined = start, False
        while op_name(start) != "aten.scaled_dot_product_attention":
            readers = [u for u in at.users if "_assert" not in op_name(u)]
            if len(readers) != 1 or readers[0].op != "call_function":
                break
            reader = readers[0]
            if op_name(reader) in ("aten.add", "aten.sub") and "alpha" not in reader.kwargs:
                joined = True
            elif op_name(reader) in SUMS and len(reader.all_input_nodes) > 1:
                break
            else:
                step = self._step(reader)
                if step is None or step[0] is not at:
                    break
                factors += [step[1]] if step[1] else []
            at = reader
            nodes += [] if joined else [reader]
        return tuple(nodes), tuple(factors)

    def _step(self, node: fx.Node) -> tuple[fx.Node, Factor | None] | None:
        """The nearest value that ``node`` is homogeneous of degree one in, and the scalar between."""
        if node.op != "call_function":
            return None
        name = op_name(node)
        operands = [n for n in node.all_input_nodes if is_float(n)]
        if name == "getitem" or name in STRUCTURAL or name in CASTS:
            return (operands[0], None) if operands else None
        if name in ("aten.mean", "aten.sum", "aten.cat", "aten.stack") and len(operands) == 1:
            return operands[0], None
        if name == "aten.neg":
            return (operands[0], None) if operands else None
        if name in ("aten.mul", "aten.div", "aten.true_divide"):
            return self._scaling(node, name)
        if name in WRITES:
            operands = [n for n in operands if op_name(n) not in BLANKS]
            common = operands[0] if len(operands) == 1 else self._common(operands)
            return (common, None) if common is not None else None
        if name in ("aten.add", "aten.sub", "aten.cat", "aten.stack"):
            if len(operands) < 2 or (name in ("aten.add", "aten.sub") and len(operands) != len(node.args[:2])):
                return None
            common = self._common(operands)
            return (common, None) if common is not None else None
        return None

    def _scaling(self, node: fx.Node, name: str) -> tuple[fx.Node, Factor | None] | None:
        left, right = node.args[:2]
        for value, other, key in ((left, right, "1"), (right, left, "0")):
            if not isinstance(value, fx.Node) or (key == "0" and name != "aten.mul"):
                continue
            scalar = self.scalar(other)
            if scalar is not None and self.scalar(value) is None and scalar != 0:
                inverse = name != "aten.mul"
                return value, Factor(node, key, 1 / scalar if inverse else scalar, inverse)
        tensors = [a for a in (left, right) if isinstance(a, fx.Node)]
        if len(tensors) != 2:
            return None
        free = [t for t in tensors if not self._from_parameters(t)]
        bound = [t for t in tensors if self._from_parameters(t)]
        if not free:  # a learned scale times data: follow the data
            free = [t for t in tensors if self.dims.origin.get(t.name) != "data"]
            bound = [t for t in tensors if self.dims.origin.get(t.name) == "data"]
        if name != "aten.mul" and bound[:1] != [left]:
            return None
        return (bound[0], None) if len(free) == len(bound) == 1 else None

    def _common(self, operands: list[fx.Node]) -> fx.Node | None:
        """Nearest value that all operands are homogeneous of degree one in."""
        chains = [self.upstream(n).nodes for n in operands]
        shared = set(chains[0]).intersection(*map(set, chains[1:]))
        return max(shared, key=self.order.__getitem__) if shared else None

    def _from_parameters(self, node: fx.Node) -> bool:
        """Whether any parameter flows into a value."""
        known: set[str] = self.__dict__.setdefault("_bound", set())
        if not known:
            names = {p.node for p in self.dims.program.parameters}
            for n in self.order:
                if n.name in names or any(i.name in known for i in n.all_input_nodes):
                    known.add(n.name)
        return node.name in known

    def is_normalized(self, node: fx.Node) -> bool:
        """A norm op, or a value divided by a statistic of itself, possibly under a gain."""
        if node.op != "call_function":
            return False
        if op_name(node) in NORMS:
            return True
        if op_name(node) in ("aten.mul", "aten.div", "aten.add"):
            operands = list(node.all_input_nodes)
            if any(self._is_length(n) for n in operands):
                return True
            inner = [n for n in operands if self.dims.origin.get(n.name) == "data"]
            return len(inner) == 1 and any(self.is_normalized(n) for n in self.upstream(inner[0]).nodes[-1:])
        if op_name(node) in STRUCTURAL | CASTS:
            return any(self.is_normalized(n) for n in node.all_input_nodes)
        return False

    def _is_length(self, node: fx.Node) -> bool:
        """A statistic of data's size, as norms divide by: possibly with an epsilon, a bound or a new shape."""
        for _ in range(6):
            if node.op != "call_function":
                return False
            if op_name(node) in NORMS | LENGTHS or (op_name(node) == "aten.pow" and node.args[1] in (0.5, -0.5)):
                return True
            if op_name(node) not in STRUCTURAL | CASTS | {"aten.add", "aten.clamp", "aten.clamp_min", "aten.maximum"}:
                return False
            moved = op_name(node) in STRUCTURAL | CASTS  # of what such an op takes, the rest gives a shape
            inner = [n for n in node.all_input_nodes[: 1 if moved else None] if self.dims.origin.get(n.name) == "data"]
            if len(inner) != 1:
                return False
            node = inner[0]
        return False

    def scalar(self, value: Any) -> float | None:
        """A number, or the value of a 0-d tensor that the program computes from numbers alone."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, fx.Node):
            return None
        if value.name not in self._scalars:
            self._scalars[value.name] = self._fold(value)
        return self._scalars[value.name]

    def _fold(self, node: fx.Node) -> float | None:
        constants: Mapping[str, float] = self.dims.program.constants
        if node.name in constants:
            return constants[node.name]
        val = node.meta.get("val")
        if node.op != "call_function" or not isinstance(val, torch.Tensor) or val.numel() != 1:
            return None
        if self.dims.origin.get(node.name) != "constant":
            return None
        folded: dict[fx.Node, Any] = {}
        for n in node.all_input_nodes:
            number = self.scalar(n)
            if number is None:
                return None
            folded[n] = torch.full(n.meta["val"].shape, number, dtype=n.meta["val"].dtype)
        try:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), folded.__getitem__)
            on_cpu = {k: v for k, v in kwargs.items() if k != "device"}
            return float(node.target(*args, **on_cpu))  # type: ignore[operator]
        except (TypeError, ValueError, RuntimeError, IndexError):
            return None
