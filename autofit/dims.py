"""The algebra of tensor axes: which axes a program forces to have one size.

Every axis of every value is a `Cell`. Ops unify cells; ``view`` refines a cell into a *product* of smaller
cells, ``split`` and ``cat`` into a *concatenation*. Refinement is lazy, and unification goes part by part:
unifying ``768 = cat(256, 256, 256)`` with ``768 = cat(256, 512)`` cuts the 512. The edges of the constraint
graph carry the FX node that imposed them, so that a shortest path answers "why are these two axes one?".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import networkx as nx
from torch import fx

from autofit.program import Parameter, Program


class Cell:
    """One axis of one value, or a segment or factor of an axis.

    Attributes:
        size: number of elements.
        owner: name of the FX node whose value has this axis.
        axis: index of the axis in that value, in words.
        origins: axes of parameters that this axis *is*, for values computed from parameters alone.
        fixed: known during inference to be data; such axes are not refined.
    """

    __slots__ = ("axis", "fixed", "kind", "origins", "owner", "parent", "parts", "serial", "size")

    def __init__(self, size: int, owner: str, axis: str, serial: int) -> None:
        self.size, self.owner, self.axis, self.serial = size, owner, axis, serial
        self.parent: Cell = self
        self.kind: Literal["atom", "product", "cat"] = "atom"
        self.parts: tuple[Cell, ...] = ()
        self.origins: frozenset[tuple[str, int]] = frozenset()
        self.fixed = False

    def __repr__(self) -> str:
        return f"{self.owner}[{self.axis}]:{self.size}"


class AxisConflictError(Exception):
    """Two axes that the program makes one cannot be one; carries the sizes."""


class Axes:
    """Union-find over cells with lazy refinement. All mutation of cells happens here."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.edges: list[tuple[Cell, Cell, str]] = []
        self.whole_of: list[tuple[Cell, Cell, str]] = []
        self.node = ""
        self.opaque: list[tuple[str, str, tuple[Cell, ...]]] = []
        self._depth = 0

    def new(self, size: int, owner: str, axis: object) -> Cell:
        """Make a cell of its own dimension."""
        cell = Cell(size, owner, str(axis), len(self.cells))
        self.cells.append(cell)
        return cell

    def find(self, cell: Cell) -> Cell:
        """Representative of the cell's dimension."""
        root = cell
        while root.parent is not root:
            root = root.parent
        while cell.parent is not root:
            cell.parent, cell = root, cell.parent
        return root

    def unify(self, a: Cell, b: Cell) -> None:
        """Make two axes one dimension. Axes of size 1 carry no information and stay apart.

        Raises:
            AxisConflictError: the sizes differ.
        """
        self._carry_origins(a, b)
        ra, rb = self.find(a), self.find(b)
        if a.size != b.size:
            raise AxisConflictError(f"{a} and {b} are made equal by {self.node}")
        if ra is rb or a.size == 1:
            return
        self.edges.append((a, b, self.node))
        fixed = ra.fixed or rb.fixed
        ra.fixed = rb.fixed = fixed
        if ra.kind == "atom" or (fixed and rb.kind != "atom"):
            ra.parent = rb
        elif rb.kind == "atom":
            rb.parent = ra
        else:
            self._merge_structures(ra, rb)

    def _carry_origins(self, a: Cell, b: Cell) -> None:
        if a.owner == self.node and b.owner != self.node:
            a.origins |= b.origins
        elif b.owner == self.node and a.owner != self.node:
            b.origins |= a.origins

    def _merge_structures(self, ra: Cell, rb: Cell) -> None:
        self._depth += 1
        try:
            if self._depth > 24:
                self.opaque.append((self.node, f"{ra.size} is cut in overlapping ways", (ra, rb)))
                rb.parent = ra
                return
            if ra.kind == rb.kind == "product":
                left, right = list(self.factors(ra)), list(self.factors(rb))
                rb.parent = ra
                self._align_products(left, right)
                return
            if ra.kind == "product":
                ra, rb = rb, ra
            # ra is a cat, rb a cat or a product: cut both at each other's boundaries
            if rb.kind == "cat":
                for offset in self._boundaries(rb):
                    self.cut(ra, offset)
            for offset in self._boundaries(ra):
                self.cut(rb, offset)
            left, right = list(self.segments(ra)), list(self.segments(rb))
            if [s.size for s in left] == [s.size for s in right]:
                rb.parent = ra
                for p, q in zip(left, right, strict=True):
                    self.unify(p, q)
            elif rb.kind == "product":
                self._unify_stacked(ra, rb)
            else:
                rb.parent = ra
                self.opaque.append((self.node, f"{ra.size} = {self.show(ra)} against {self.show(rb)}", (ra, rb)))
        finally:
            self._depth -= 1

    def _unify_stacked(self, whole: Cell, product: Cell) -> None:
        """``cat(n, n, n)`` against ``3 x n``: the segments are one dimension, the 3 counts them."""
        segments = list(self.segments(whole))
        outer, *inner = self.factors(product)
        rest = prod(f.size for f in inner)
        if outer.size * segments[0].size == product.size and all(s.size == rest for s in segments):
            for s in segments:
                self.join(s, inner)
            whole.parent = product
        else:
            product.parent = whole
            self.opaque.append((self.node, f"{self.show(whole)} against {self.show(product)}", (whole, product)))

    def _align_products(self, left: list[Cell], right: list[Cell]) -> None:
        """Unify two factorizations of one axis, refining whichever factor is coarser."""
        while left and right:
            p, q = left[0], right[0]
            if p.size == q.size:
                self.unify(p, q)
                left.pop(0), right.pop(0)
                continue
            if p.size > q.size:
                left, right, p, q = right, left, q, p
            if q.size % p.size == 0:
                head, tail = self.split_factor(q, p.size)
                self.unify(p, head)
                left.pop(0)
                right[:1] = [tail]
            else:
                self.opaque.append((self.node, f"factors {p.size} and {q.size} do not divide", (p, q)))
                return

    def split_factor(self, cell: Cell, outer: int) -> tuple[Cell, Cell]:
        """Refine ``n`` into ``outer x n/outer`` and give the two factors."""
        root = self.find(cell)
        if root.kind == "product":
            first, *others = self.factors(root)
            rest = self.bundle(others, root)
            if first.size == outer:
                return first, rest
            if first.size % outer == 0:
                a, b = self.split_factor(first, outer)
                return a, self.bundle([b, *others], root)
            if outer % first.size == 0:
                a, b = self.split_factor(rest, outer // first.size)
                return self.bundle([first, a], root), b
            self.opaque.append((self.node, f"{outer} does not divide {self.show(root)}", (root,)))
            return self.new(outer, self.node, "part"), self.new(root.size // outer, self.node, "part")
        a = self.new(outer, root.owner, f"{root.axis}.outer")
        b = self.new(root.size // outer, root.owner, f"{root.axis}.inner")
        if root.kind == "cat":
            wanted = self.new(root.size, root.owner, root.axis)
            self.set_product(wanted, [a, b])
            self.unify(root, wanted)
        else:
            self.set_product(root, [a, b])
        return a, b

    def bundle(self, factors: Sequence[Cell], like: Cell) -> Cell:
        """One cell for a run of factors."""
        factors = [f for f in factors if f.size != 1]
        if len(factors) == 1:
            return factors[0]
        cell = self.new(prod(f.size for f in factors), like.owner, like.axis)
        if factors:
            self.set_product(cell, factors)
        return cell

    def set_product(self, whole: Cell, parts: Sequence[Cell]) -> None:
        """Declare ``whole = product(parts)``, outermost factor first."""
        self.join(whole, parts)

    def join(self, whole: Cell, parts: Sequence[Cell]) -> None:
        """Declare or check that ``whole`` is the product of ``parts``."""
        for p in parts:
            self._carry_origins(whole, p)
        kept = [p for p in parts if p.size != 1]
        if len(kept) == 1:
            self.unify(whole, kept[0])
            return
        if not kept:
            return
        root = self.find(whole)
        self.whole_of += [(whole, p, self.node) for p in kept]
        if root.kind == "atom":
            root.kind, root.parts = "product", tuple(kept)
        elif root.kind == "product":
            self._align_products(list(self.factors(root)), [f for p in kept for f in self.factors(p)])
        else:
            fresh = self.new(whole.size, whole.owner, whole.axis)
            fresh.kind, fresh.parts = "product", tuple(kept)
            self._merge_structures(root, fresh)

    def concatenate(self, whole: Cell, parts: Sequence[Cell]) -> None:
        """Declare ``whole = cat(parts)``."""
        for p in parts:
            self._carry_origins(whole, p)
        if len(parts) == 1:
            self.unify(whole, parts[0])
            return
        self.whole_of += [(whole, p, self.node) for p in parts]
        root = self.find(whole)
        if root.kind == "atom":
            root.kind, root.parts = "cat", tuple(parts)
        else:
            fresh = self.new(whole.size, whole.owner, whole.axis)
            fresh.kind, fresh.parts = "cat", tuple(parts)
            self._merge_structures(root, fresh)

    def cut(self, cell: Cell, offset: int) -> bool:
        """Make ``offset`` a boundary of the concatenation; ``False`` where the structure forbids it."""
        root = self.find(cell)
        if offset in (0, root.size):
            return True
        if root.kind == "atom":
            root.kind = "cat"
            root.parts = (
                self.new(offset, root.owner, f"{root.axis}[:{offset}]"),
                self.new(root.size - offset, root.owner, f"{root.axis}[{offset}:]"),
            )
            self.whole_of += [(root, p, self.node) for p in root.parts]
            return True
        if root.kind == "product":
            outer, *inner = self.factors(root)
            step = prod(f.size for f in inner)
            return offset % step == 0 and self.cut(outer, offset // step)
        at = 0
        for part in root.parts:
            if at < offset < at + part.size:
                return self.cut(part, offset - at)
            at += part.size
        return True

    def slice(self, cell: Cell, start: int, stop: int, into: Cell) -> None:
        """Declare ``into = cell[start:stop]``."""
        self._carry_origins(into, cell)
        if not (self.cut(cell, start) and self.cut(cell, stop)):
            self.whole_of.append((cell, into, self.node))
            return
        at, inside = 0, []
        for part in self.segments(cell):
            if start <= at and at + part.size <= stop:
                inside.append(part)
            at += part.size
        if sum(p.size for p in inside) == into.size:
            self.whole_of += [(cell, p, self.node) for p in inside]
            self.concatenate(into, inside)

    def _boundaries(self, cell: Cell) -> list[int]:
        at, found = 0, []
        for part in self.segments(cell):
            at += part.size
            found.append(at)
        return found[:-1]

    def factors(self, cell: Cell) -> Iterator[Cell]:
        """Factors of an axis, outermost first, nested products opened."""
        root = self.find(cell)
        if root.kind == "product":
            for part in root.parts:
                yield from self.factors(part)
        else:
            yield root

    def segments(self, cell: Cell) -> Iterator[Cell]:
        """Segments of an axis in order, nested concatenations opened.

        A product whose outermost factor is cut gives one segment per piece of that factor.
        """
        root = self.find(cell)
        if root.kind == "cat":
            for part in root.parts:
                yield from self.segments(part)
        elif root.kind == "product":
            outer, *inner = self.factors(root)
            pieces = list(self.segments(outer)) if outer.kind == "cat" else [outer]
            if len(pieces) == 1:
                yield root
            else:
                for piece in pieces:
                    yield self.bundle([piece, *inner], root)
        else:
            yield root

    def atoms(self, cell: Cell) -> Iterator[Cell]:
        """All indivisible cells below an axis."""
        root = self.find(cell)
        if root.kind == "atom":
            yield root
        else:
            for part in root.parts:
                yield from self.atoms(part)

    def show(self, cell: Cell) -> str:
        """The structure of an axis, e.g. ``(4 x 64) + (4 x 64)``."""
        root = self.find(cell)
        if root.kind == "atom":
            return str(root.size)
        text = (" x " if root.kind == "product" else " + ").join(self.show(p) for p in root.parts)
        return f"({text})"


Kind = Literal["in", "out", "stack", "taps", "index", "elementwise"]


@dataclass(frozen=True)
class Use:
    """One place where a parameter meets the rest of the program.

    Attributes:
        parameter: name of the parameter.
        node: the op.
        operand: the value derived from the parameter that enters the op.
        kinds: what happens to each axis of the parameter: contracted (``in``), surviving (``out``),
            a batch of independent maps (``stack``), a kernel tap, looked up, or elementwise.
        cells: the axes of the operand, with the kind of each.
        partner: the activation on the other side, if any.
    """

    parameter: str
    node: fx.Node
    operand: fx.Node
    kinds: dict[int, Kind]
    cells: tuple[tuple[Cell, Kind], ...]
    partner: fx.Node | None


@dataclass(frozen=True)
class Product:
    """A contraction of two activations.

    Attributes:
        node: the op.
        left, right: the two activations.
        contracted: pairs of axes that are summed over.
        batch: axes that both sides share and that are not summed (heads).
    """

    node: fx.Node
    left: fx.Node
    right: fx.Node
    contracted: tuple[tuple[Cell, Cell], ...]
    batch: tuple[Cell, ...]


@dataclass(frozen=True)
class Evidence:
    """A fact about one axis: data, index, output, taps, created, weight (contracted with one), ..."""

    cell: Cell
    kind: str
    node: str


@dataclass(frozen=True)
class Gap:
    """Something about an op that no rule says.

    Attributes:
        node: the op.
        reason: what is missing, in words.
        cells: the axes concerned.
    """

    node: fx.Node
    reason: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Dims:
    """Dimensions of a program.

    Attributes:
        program: what was analysed.
        axes: the algebra, complete.
        of: axes of each value by node name; nested tuples for values that are tuples.
        of_parameter: axes of each parameter by its name.
        uses: every use of every parameter.
        products: every contraction of two activations.
        evidence: facts that decide which axes may grow.
        origin: by node name: ``"weight"`` (computed from parameters alone), ``"constant"`` or ``"data"``.
        unruled: what the rules could not say.
    """

    program: Program
    axes: Axes
    of: dict[str, tuple[object, ...]]
    of_parameter: dict[str, tuple[Cell, ...]]
    uses: tuple[Use, ...]
    products: tuple[Product, ...]
    evidence: tuple[Evidence, ...]
    origin: dict[str, str]
    unruled: tuple[Gap, ...] = ()
    _uses: dict[str, list[Use]] = field(default_factory=dict, repr=False, compare=False)
    _graph: list[nx.Graph[int]] = field(default_factory=list, repr=False, compare=False)

    @property
    def graph(self) -> nx.Graph[int]:
        """Constraint graph: nodes are cell serials, edges carry the name of the FX node behind them."""
        if not self._graph:
            graph: nx.Graph[int] = nx.Graph()
            for a, b, node in self.axes.edges:
                graph.add_edge(a.serial, b.serial, node=node, relation="is")
            for whole, part, node in self.axes.whole_of:
                graph.add_edge(whole.serial, part.serial, node=node, relation="contains")
            self._graph.append(graph)
        return self._graph[0]

    def why(self, a: Cell, b: Cell) -> list[tuple[str, str, str]]:
        """Shortest chain of constraints from one axis to another, as (axis, node, axis); [] if none."""
        graph = self.graph
        if a.serial not in graph or b.serial not in graph or not nx.has_path(graph, a.serial, b.serial):
            return []
        path = nx.shortest_path(graph, a.serial, b.serial)
        cells = self.axes.cells
        return [(repr(cells[u]), graph.edges[u, v]["node"], repr(cells[v])) for u, v in itertools.pairwise(path)]

    def uses_of(self, parameter: Parameter) -> Iterable[Use]:
        """All uses of one parameter, in execution order."""
        if not self._uses:
            for use in self.uses:
                self._uses.setdefault(use.parameter, []).append(use)
        return self._uses.get(parameter.name, [])

    def __str__(self) -> str:
        lines = [f"Dims of {self.program.model_name}"]
        for node in self.program.graph.nodes:
            if node.name in self.of:
                shown = ", ".join(_show(self.axes, c) for c in self.of[node.name])
                lines.append(f"  {node.name}: [{shown}]")
        return "\n".join(lines)


def _show(axes: Axes, value: object) -> str:
    if isinstance(value, Cell):
        return f"d{axes.find(value).serial}={axes.show(value)}"
    assert isinstance(value, tuple)
    return "(" + ", ".join(_show(axes, v) for v in value) + ")"
