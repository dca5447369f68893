"""What an op rule can see and say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from autofit.dims import Axes, AxisConflictError, Cell, Evidence, Gap, Kind, Product, Use
from autofit.flow import CASTS, STRUCTURAL, flat_cells
from autofit.program import op_name, shape_of


class Context:
    """Axes of all values so far, and the relations that rules declare.

    Attributes:
        axes: the algebra.
        of: axes of each value by node name.
        origin: ``"data"``, ``"weight"`` or ``"constant"`` by node name.
        bent: weight values that have passed a nonlinear op.
        fed: values that depend on an input.
    """

    def __init__(self) -> None:
        self.axes = Axes()
        self.of: dict[str, tuple[Any, ...]] = {}
        self.origin: dict[str, str] = {}
        self.bent: set[str] = set()
        self.fed: set[str] = set()
        self.uses: list[Use] = []
        self.products: list[Product] = []
        self.evidence: list[Evidence] = []
        self.unruled: list[Gap] = []

    def fresh(self, node: fx.Node, value: Any = None) -> tuple[Any, ...]:
        """New axes for a node's value; nested tuples for several values."""
        value = node.meta.get("val") if value is None else value
        if isinstance(value, tuple | list):
            return tuple(self.fresh(node, v) if v is not None else () for v in value)
        return tuple(self.axes.new(s, node.name, i) for i, s in enumerate(shape_of(value)))

    def __getitem__(self, node: fx.Node) -> Any:
        return self.of[node.name]

    def is_tensor(self, value: object) -> bool:
        """Whether an argument is a node with a tensor value."""
        return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)

    def unify(self, a: Cell, b: Cell) -> None:
        """Declare two axes equal; axes of size 1 are left alone (broadcasting)."""
        if a.size == 1 or b.size == 1:
            self.axes._carry_origins(a, b)
            return
        self.axes.unify(a, b)

    def unify_all(self, left: Iterable[Cell], right: Iterable[Cell]) -> None:
        """Declare axes equal pairwise."""
        for a, b in zip(left, right, strict=False):
            self.unify(a, b)

    def broadcast(self, out: Sequence[Cell], operand: Sequence[Cell]) -> None:
        """Right-align ``operand`` with ``out`` and declare the axes equal."""
        self.unify_all(reversed(out), reversed(operand))

    def note(self, cell: Cell, kind: str, node: fx.Node) -> None:
        """Record a fact about an axis."""
        self.evidence.append(Evidence(cell, kind, node.name))

    def data(self, cells: Iterable[Cell], node: fx.Node, kind: str = "data") -> None:
        """Mark axes as data: fixed, and never refined again."""
        for cell in cells:
            self.axes.find(cell).fixed = True
            self.note(cell, kind, node)

    def regroup(self, node: fx.Node, before: Sequence[Cell], after: Sequence[Cell]) -> None:
        """Row-major reshape: equal runs of elements are equal products of axes."""
        ins = [c for c in before if c.size != 1]
        outs = [c for c in after if c.size != 1]
        i = j = 0
        while i < len(ins) and j < len(outs):
            left, right = [ins[i]], [outs[j]]
            i, j = i + 1, j + 1
            while (a := prod(c.size for c in left)) != (b := prod(c.size for c in right)):
                if a < b:
                    left.append(ins[i])
                    i += 1
                else:
                    right.append(outs[j])
                    j += 1
            self._same_run(node, left, right)

    def _same_run(self, node: fx.Node, left: list[Cell], right: list[Cell]) -> None:
        if len(left) == len(right) == 1:
            self.unify(left[0], right[0])
            return
        origins = frozenset().union(*(c.origins for c in left))
        if all(self.axes.find(c).fixed for c in left):
            self.data(right, node)
        elif len(left) == 1:
            self.axes.join(left[0], right)
        elif len(right) == 1:
            self.axes.join(right[0], left)
        else:
            whole = self.axes.new(prod(c.size for c in left), node.name, "run")
            self.axes.join(whole, left)
            self.axes.join(whole, right)
        for cell in right:
            cell.origins |= origins

    def contract(self, node: fx.Node, left: fx.Node, right: fx.Node, equation: tuple[str, str, str]) -> None:
        """Declare an einsum of two values; each letter of ``equation`` is one axis.

        Axes with one letter are equal. A letter that both sides have and the result lacks is contracted.
        """
        out = self.of[node.name]
        sides = [(self[left], equation[0]), (self[right], equation[1]), (out, equation[2])]
        first: dict[str, Cell] = {}
        for cells, letters in sides:
            for cell, letter in zip(cells, letters, strict=True):
                known = first.get(letter)
                if known is None or known.size == 1:
                    first[letter] = cell
                else:
                    self.unify(cell, known)
        for cells, letters in sides[:2]:
            for cell, letter in zip(cells, letters, strict=True):
                for result, other in zip(out, equation[2], strict=True):
                    if letter == other:
                        result.origins |= cell.origins
        by_letter = [dict(zip(letters, cells, strict=True)) for cells, letters in sides]
        shared = [k for k in by_letter[0] if k in by_letter[1]]
        contracted = [k for k in shared if k not in by_letter[2]]
        batch = [k for k in shared if k in by_letter[2] and by_letter[0][k].size > 1]
        origins = self._sides(node, left, right, equation)
        for side, (operand, partner) in enumerate([(left, right), (right, left)]):
            if origins[side] != "weight" or origins[1 - side] == "weight":
                continue
            kinds: list[tuple[Cell, Kind]] = []
            for letter, cell in by_letter[side].items():
                kind: Kind = "in" if letter in contracted else "stack" if letter in batch else "out"
                if not contracted:  # a product with broadcasting
                    kind = "elementwise"
                kinds.append((cell, kind))
                if kind == "in":
                    self.note(cell, "shares" if self._is_softmax(partner, cell) else "sizes", node)
                    self.note(by_letter[1 - side][letter], "weight", node)
                    self.note(cell, "weight", node)
                elif kind == "stack":
                    self.note(cell, "stack", node)
            self.use(node, operand, kinds, partner)
        held = [side for side in (0, 1) if (origins[side], origins[1 - side]) == ("constant", "data")]
        if held and contracted and self._is_held((left, right)[held[0]]):
            for cell in by_letter[held[0]].values():
                self.note(cell, "held", node)
        if origins == ("data", "data") and any(by_letter[0][k].size > 1 for k in contracted):
            pairs = tuple((by_letter[0][k], by_letter[1][k]) for k in contracted)
            self.product(node, left, right, pairs, tuple(by_letter[0][k] for k in batch))

    def _sides(self, node: fx.Node, left: fx.Node, right: fx.Node, equation: tuple[str, str, str]) -> tuple[str, str]:
        """Origins of two operands. Of two weights, the one that was bent by a nonlinear op, or that stands
        in the place of the input, is a table of activations; what is computed from it is data.
        """
        origins = [self.origin[left.name], self.origin[right.name]]
        if origins == ["weight", "weight"]:
            bent = [left.name in self.bent, right.name in self.bent]
            if bent[0] != bent[1] or "linear" in str(node.target):
                table = bent.index(True) if bent[0] != bent[1] else 0
                origins[table] = "data"
                self._table_use(node, (left, right)[table], equation[table], equation[1 - table])
                self.origin[node.name] = "data"
        elif origins == ["constant", "weight"] and op_name(node) == "aten.linear":  # of positions, or of zeros
            self.origin[node.name] = "data"
        return origins[0], origins[1]

    def _is_softmax(self, node: fx.Node, cell: Cell) -> bool:
        """Whether the elements of an axis of a value are shares of one."""
        while node.op == "call_function" and op_name(node) in STRUCTURAL | CASTS:
            node = node.all_input_nodes[0]
        if node.op != "call_function" or op_name(node) not in ("aten.softmax", "aten._softmax"):
            return False
        return self.axes.find(self[node][int(node.args[1])]) is self.axes.find(cell)  # type: ignore[arg-type]

    def _is_held(self, node: fx.Node) -> bool:
        """Whether a constant comes from a tensor that the model holds, as a quantised weight does."""
        while node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node.op in ("placeholder", "get_attr")

    def _table_use(self, node: fx.Node, table: fx.Node, letters: str, other: str) -> None:
        """Rows of a table of activations are looked up, its features are what it gives."""
        kinds: list[tuple[Cell, Kind]] = []
        for cell, letter in zip(self[table], letters, strict=True):
            kinds.append((cell, "out" if letter in other else "index"))
        self.use(node, table, kinds)

    def product(
        self,
        node: fx.Node,
        left: fx.Node,
        right: fx.Node,
        contracted: tuple[tuple[Cell, Cell], ...],
        batch: tuple[Cell, ...],
    ) -> None:
        """Record a contraction of two activations."""
        self.products.append(Product(node, left, right, contracted, batch))
        for a, b in contracted:
            self.note(a, "activations", node)
            self.note(b, "activations", node)

    def use(
        self,
        node: fx.Node,
        operand: fx.Node,
        kinds: Sequence[tuple[Cell, Kind]],
        partner: fx.Node | None = None,
    ) -> None:
        """Record what an op does to every parameter axis behind a weight operand."""
        axes: dict[str, dict[int, Kind]] = {}
        rank: dict[Kind, int] = {"in": 5, "taps": 4, "index": 3, "stack": 2, "out": 1, "elementwise": 0}
        for cell, kind in kinds:
            for name, axis in cell.origins:
                known = axes.setdefault(name, {})
                if axis not in known or rank[kind] > rank[known[axis]]:
                    known[axis] = kind
        for name, found in axes.items():
            self.uses.append(Use(name, node, operand, found, tuple(kinds), partner))

    def elementwise_use(self, node: fx.Node, operand: fx.Node) -> None:
        """Record that a weight enters an op without being contracted."""
        self.use(node, operand, [(c, "elementwise") for c in self[operand]])

    def holds_data(self, cell: Cell) -> bool:
        """Whether an axis is data, or data joined with what a program made to fill it up."""
        root = self.axes.find(cell)
        return any(a.fixed for a in self.axes.atoms(root)) if root.kind == "cat" else root.fixed

    def gap(self, node: fx.Node, reason: str, cells: tuple[Cell, ...] | None = None) -> None:
        """Record that the rules do not say what this op does with some axes, or with all axes of its inputs."""
        if cells is None:
            cells = tuple(c for n in node.all_input_nodes for c in flat_cells(self.of.get(n.name, ())))
        self.unruled.append(Gap(node, reason, cells))

    def recorded(self, node: fx.Node, operand: fx.Node) -> bool:
        """Whether a rule has already said how this weight is used here."""
        here = itertools.takewhile(lambda u: u.node is node, reversed(self.uses))
        return any(u.operand is operand for u in here)


Call = Any
"""An FX node that calls an op. Torch types its arguments as one wide union, which says nothing here."""

Rule = Callable[[Context, Call], None]

__all__ = ["AxisConflictError", "Call", "Context", "Rule"]
