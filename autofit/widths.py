"""Tell the axes that can be wider or narrower from those that are fixed, and name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from math import prod

from torch import fx

from autofit.dims import Cell, Dims
from autofit.errors import DimensionError
from autofit.flow import reaching_output
from autofit.growth import Dimension
from autofit.program import describe, fold_layers, op_name

TELLING = 16
"""Sizes below are equal too often by chance to say anything."""
CLASSES = "normalized by a softmax, as classes are"
HARD = frozenset({"data", "index", "taps", "stacked", "gates"})


class Widths:
    """What the uses of a program's axes say about which of them are widths.

    Attributes:
        kinds: what the program does with a cell.
        given: cells of axes that weights give: outputs of contractions, tables, gains.
        heads: cells that batch a contraction, of two activations or of one with a weight.
        batched: of these, cells that batch a contraction of two activations.
        summed: cells that such a contraction sums over.
        positions: of these, cells of axes that are data in part: learned tokens beside those of the input.
    """

    def __init__(self, dims: Dims, grow: str, keep: bool = False) -> None:
        self.dims, self.axes, self.grow = dims, dims.axes, grow
        self.pretrained = pretrained(dims) if keep else frozenset()
        self.kinds: dict[int, set[str]] = {}
        self.first: dict[tuple[int, str], str] = {}
        for fact in dims.evidence:
            for atom in self.axes.atoms(fact.cell):
                self.kinds.setdefault(atom.serial, set()).add(fact.kind)
                self.first.setdefault((atom.serial, fact.kind), fact.node)
        self.heads: set[int] = {s for s, kinds in self.kinds.items() if "stack" in kinds and "groups" not in kinds}
        self.summed: set[int] = set()
        self.given = {
            a.serial
            for use in dims.uses
            for cell, kind in use.cells
            if kind in ("out", "elementwise")
            for a in self.axes.atoms(cell)
        }
        self.batched = {a.serial for p in dims.products for c in p.batch for a in self.axes.atoms(c)}
        self.heads |= self.batched
        for product in dims.products:
            self.summed |= {a.serial for pair in product.contracted for a in self.axes.atoms(pair[0])}
        joined = (self.axes.find(c) for product in dims.products for pair in product.contracted for c in pair)
        parts = ([a.serial for a in self.axes.atoms(root)] for root in joined if root.kind == "cat")
        self.positions = {s for own in parts if any("data" in self.kinds.get(s, ()) for s in own) for s in own}

    def find(self) -> tuple[list[Dimension], Dimension, int, dict[str, str]]:
        """All dimensions with base equal to size; the main one; the size of the axis it leads; see `open_ends`.

        Raises:
            DimensionError: nothing can grow.
        """
        dimensions = self.dimensions()
        if not dimensions:
            raise DimensionError(
                f"no dimension of {self.dims.program.model_name} can grow: every axis is data, vocabulary, output or "
                "taps",
                todo="check that the example reaches the layers with parameters",
            )
        dimensions = self._single_heads(dimensions)
        ends, clash = self.open_ends(dimensions, self.main(dimensions)[0])
        main, size = self.main(dimensions + ends)
        return dimensions + ends, main, size, clash

    def growable(self, atom: Cell) -> bool:
        """Whether an indivisible cell may have another size in a smaller model of the same kind."""
        kinds = self.kinds.get(atom.serial, set())
        if atom.fixed or kinds & HARD or atom.serial not in self.given or atom.serial in self.positions:
            return False
        if "weight" in kinds or atom.serial in self.batched:
            return True
        return "activations" in kinds and not kinds & {"stack", "output"}

    def products(self) -> list[tuple[tuple[Cell, ...], ...]]:
        """All factorizations with more than one growable factor, each once; a factor is its growable atoms."""
        found: dict[tuple[tuple[int, ...], ...], tuple[tuple[Cell, ...], ...]] = {}
        for cell in self.axes.cells:
            if cell.parent is cell and cell.kind == "product":
                factors = [tuple(a for a in self.axes.atoms(f) if self.growable(a)) for f in self.axes.factors(cell)]
                kept = tuple(f for f in factors if f)
                if len(kept) > 1:
                    found[tuple(tuple(a.serial for a in f) for f in kept)] = kept
        for use in self.dims.uses:  # axes that one op contracts together are one sum, those it gives one width
            for end in ("in", "out"):
                axes = [tuple(a for a in self.axes.atoms(c) if self.growable(a)) for c, k in use.cells if k == end]
                kept = tuple(f for f in axes if f)
                if len(kept) > 1 and "bilinear" not in op_name(use.node):
                    found[tuple(tuple(a.serial for a in f) for f in kept)] = kept
        return list(found.values())

    def followers(self) -> dict[int, str]:
        """Growable cells that keep their size under a numeric base, with the reason.

        Of the factors of one axis exactly one grows, or the axis would grow with the square.
        """
        products = self.products()
        count = Counter(a.serial for p in products for f in p for a in f)
        reasons: dict[int, str] = {}
        for cell in self._atoms():
            kinds = self.kinds.get(cell.serial, set())
            if self.growable(cell) and "weight" not in kinds and self.grow == "heads":
                reasons[cell.serial] = "summed only between activations (head size)"
            elif self.growable(cell) and "shares" in kinds and "sizes" not in kinds:
                reasons[cell.serial] = CLASSES
        for factors in products:
            free = [f for f in factors if not all(a.serial in reasons for a in f)]
            if len(free) < 2:
                continue
            lead = self._lead(free, count)
            shown = " x ".join(str(sum(a.size for a in f)) for f in factors)
            for factor in free:
                if factor is not lead:
                    reasons |= {a.serial: f"the other factor of {shown} grows" for a in factor}
        for factors in products:
            if all(a.serial in reasons for f in factors for a in f):
                alone = [f for f in factors if not _grows_beside(f, products, reasons)]
                for a in self._lead(alone, count) if alone else ():
                    reasons.pop(a.serial, None)
        return reasons

    def _lead(self, factors: list[tuple[Cell, ...]], count: Counter[int]) -> tuple[Cell, ...]:
        groups = [
            f
            for f in factors
            if any("groups" in self.kinds.get(a.serial, ()) for a in f) and not any(a.serial in self.heads for a in f)
        ]
        if 0 < len(groups) < len(factors):  # of a grouped convolution: their number is the architecture's
            factors = [f for f in factors if f not in groups]
        heads = [f for f in factors if any(a.serial in self.heads for a in f)]
        others = [f for f in factors if f not in heads]
        if heads and others:
            factors = heads if self.grow == "heads" else others
        elif self.grow == "head_dim":
            summed = [f for f in factors if any(a.serial in self.summed for a in f)]
            factors = summed or factors
        made = [f for f in factors if all("copies" not in self.kinds.get(a.serial, ()) for a in f)]
        return max(made or factors, key=lambda f: (count[f[0].serial], -f[0].serial))

    def _atoms(self) -> Iterable[Cell]:
        return (c for c in self.axes.cells if c.parent is c and c.kind == "atom")

    def dimensions(self) -> list[Dimension]:
        """Growable dimensions, named, with base equal to size."""
        followers = self.followers()
        labels: dict[int, tuple[tuple[int, int], str]] = {}  # rank (lower is better), exact path
        kinds = {(u.parameter, axis): kind for u in self.dims.uses for axis, kind in u.kinds.items()}
        ranks = {"out": 0, "elementwise": 1}
        for parameter in self.dims.program.parameters:
            path = parameter.name.rpartition(".")[0] or parameter.name
            for axis, cell in enumerate(self.dims.of_parameter.get(parameter.name, ())):
                produced = ranks.get(kinds.get((parameter.name, axis), ""), 2)
                atoms = [a for a in self.axes.atoms(cell) if a.size > 1]
                for at, atom in enumerate(atoms):
                    best = labels.get(atom.serial)
                    if self.growable(atom) and (best is None or (len(atoms), produced) < best[0]):
                        labels[atom.serial] = ((len(atoms), produced), self._label(path, atom, atoms, at))
        for atom in self._atoms():
            if self.growable(atom) and atom.serial not in labels and atom.size > 1:
                labels[atom.serial] = ((0, 0), f"{atom.owner}[{atom.axis}]")
        groups: dict[tuple[str, int, bool], list[Cell]] = {}
        for serial, (_, exact) in labels.items():
            cell = self.axes.cells[serial]
            groups.setdefault((fold_layers(exact), cell.size, serial in followers), []).append(cell)
        rows = {a.size for a in self._atoms() if "index" in self.kinds.get(a.serial, ())}
        same = Counter(folded for folded, _, _ in groups)
        together = Counter(exact for _, exact in labels.values())
        seen: Counter[str] = Counter()
        found = []
        for (label, size, follows), members in groups.items():
            exact = labels[members[0].serial][1]
            if same[label] > 1 and together[exact] == 1:
                label = exact
            elif same[label] > 1:
                seen[label] += 1
                label = f"{label}[{seen[label] - 1}]"
            serials = frozenset(c.serial for c in members)
            aliases = tuple(k for k, v in self.dims.program.config.items() if v == size)
            if self.pretrained and not serials & self.pretrained:
                aliases = ()  # a rank that is as large as the number of heads is none
            reason = followers.get(members[0].serial) or self._why_grows(members[0])
            told = len(aliases) == 1 and size not in rows  # else the field may be that number of rows
            name = aliases[0] if told and not follows else label
            paths = tuple((labels[c.serial][1], c.serial) for c in members)
            found.append(Dimension(name, label, aliases, size, float(size), not follows, reason, serials, paths=paths))
        return _unique_names(found)

    def _single_heads(self, dimensions: list[Dimension]) -> list[Dimension]:
        """Whole axes that are summed only between activations follow the width they equal, as `open_ends` do.

        A head size is kept because the number of heads beside it grows; beside a single head nothing does.
        """
        leaders, _ = self._whole_axes(dimensions)
        shared = {a.serial for factors in self.products() for f in factors for a in f}
        alone: dict[int, str] = {}
        for root in (self.axes.find(c) for u in self.dims.uses for c, kind in u.cells if kind == "out"):
            cells = {a.serial for a in self.axes.atoms(root) if self.growable(a)} - shared
            cells = {s for s in cells if "weight" not in self.kinds.get(s, ())}
            if root.kind != "cat" and len(cells) == 1 and root.size in leaders:
                alone[cells.pop()] = leaders[root.size]
        return [
            replace(d, grows=True, follows=leader, reason=f"{d.reason}, as wide as {leader}")
            if not d.grows and d.cells <= alone.keys() and (leader := alone[min(d.cells)])
            else d
            for d in dimensions
        ]

    def open_ends(self, dimensions: list[Dimension], main: Dimension) -> tuple[list[Dimension], dict[str, str]]:
        """Axes that a weight gives and nothing contracts, or contracts and no weight gives: they follow the width
        they equal, and are fixed where they equal none.

        The dataflow cannot tell the pooled features of a backbone from a readout that happens to have as many
        outputs as the model is wide, nor a table of sines as wide as the model from one of a fixed size; only the
        size speaks. Where a fixed axis has that size too, nothing does.

        Returns:
            The dimensions, and by name of those that are ambiguous the parameter axis that contradicts.
        """
        leaders, fixed = self._whole_axes([*dimensions, main])
        taken = {n for d in dimensions for n in (d.name, d.label)}
        found: dict[str, tuple[Dimension, int]] = {}
        for name, axis, atoms, size in self._loose_ends(leaders):
            leader = leaders.get(size, "")
            label = name.rpartition(".")[0] or name
            end, reason = self._end(atoms[0])
            label += end if end == "[in]" or label in taken else ""
            label = f"{name}[{axis}]" if label in found else label
            reason += f", as wide as {leader}" if leader else ""
            one = max(a.size for a in atoms)
            members = frozenset(a.serial for a in atoms)
            output = "output" in self.kinds.get(atoms[0].serial, ())
            grows = bool(leader)
            found[label] = Dimension(label, label, (), one, float(one), grows, reason, members, leader, output), size
        clash = {label: fixed[size] for label, (end, size) in found.items() if end.follows and size in fixed}
        return [end for end, _ in found.values()], clash

    def _loose_ends(self, widths: Container[int]) -> Iterator[tuple[str, int, list[Cell], int]]:
        """Parameter, axis, loose cells of one size, and how wide these are, each cell once.

        The first factor of a product stands for the whole, unless only another is as wide as a width; what is not to
        follow any width is given as 0 wide.
        """
        known: set[int] = set()
        for name, cells in self.dims.of_parameter.items():
            for axis, cell in enumerate(cells):
                root = self.axes.find(cell)
                atoms = [a for a in self.axes.atoms(cell) if a.size > 1 and (root.kind == "atom" or not a.fixed)]
                loose = [a for a in atoms if self._is_loose(a)]
                if len(loose) < len(atoms):
                    continue
                if root.kind == "product":
                    own = root.size not in widths and any(a.size in widths for a in loose)
                    ends = [([a], a.size if own else root.size * (a is loose[0])) for a in loose]
                else:
                    mine = {a.serial for a in atoms}  # numbers that stand beside features are no part of their width
                    parts = (p for p in self.axes.segments(cell) if mine & {a.serial for a in self.axes.atoms(p)})
                    ends = [(atoms, sum(p.size for p in parts))]
                for members, size in ends:
                    if len({a.size for a in members}) == 1 and members[0].serial not in known:
                        known |= {a.serial for a in members}
                        yield name, axis, members, size

    def _variable_size(self, cell: Cell, atom: Cell, variable: set[int]) -> int:
        """How wide the part of an axis is that an indivisible cell is in, without the data in it.

        What the program stacks, as sines and cosines, is part of a width.
        """
        root = self.axes.find(cell)
        if root.kind == "cat":
            part = next(p for p in root.parts if any(a is atom for a in self.axes.atoms(p)))
            return self._variable_size(part, atom, variable)
        if root.kind == "atom":
            return root.size

        def counts(factor: Cell) -> bool:
            atoms = [a.serial for a in self.axes.atoms(factor)]
            return any(s in variable or "stacked" in self.kinds.get(s, ()) for s in atoms)

        return prod(f.size for f in self.axes.factors(root) if counts(f))

    def _whole_axes(self, dimensions: Iterable[Dimension]) -> tuple[dict[int, str], dict[int, str]]:
        """By size: growing dimensions that weights contract as a whole axis, and parameters that contract or look
        up a fixed one."""
        by_cell = {c: d for d in dimensions if d.grows for c in d.cells}
        leaders: dict[int, str] = {}
        fixed: dict[int, str] = {}
        for use in self.dims.uses:
            for cell, kind in use.cells:
                root = self.axes.find(cell)
                if kind == "in" and root.serial in by_cell and root.size >= TELLING:
                    leaders[root.size] = by_cell[root.serial].name
                elif kind in ("in", "index") and root.fixed:
                    fixed[root.size] = use.parameter
        return leaders, fixed

    def loose_factors(self) -> list[Dimension]:
        """Factors that nothing contracts, beside others that say what grows: dimensions only where a base says so."""
        found: dict[str, Dimension] = {}
        for name, cells in self.dims.of_parameter.items():
            parts = ((axis, part) for axis, cell in enumerate(cells) for part in self.axes.segments(cell))
            for axis, part in parts:
                atoms = [a for a in self.axes.atoms(part) if a.size > 1]
                for at, atom in enumerate(atoms):
                    if self._is_loose(atom) and not all(self._is_loose(a) for a in atoms):
                        label, one = f"{name}[{axis}].part{at}", float(atom.size)
                        reason, only = "contracted by nothing", frozenset({atom.serial})
                        found[label] = Dimension(label, label, (), atom.size, one, True, reason, only)
        return list({min(d.cells): d for d in reversed(found.values())}.values())

    def _is_loose(self, atom: Cell) -> bool:
        hard = atom.fixed or self.kinds.get(atom.serial, set()) & (HARD | {"stack"})
        return not hard and atom.serial not in self.positions and not self.growable(atom)

    def _end(self, atom: Cell) -> tuple[str, str]:
        """Which end of a weight an axis hangs at, and why."""
        kinds = self.kinds.get(atom.serial, set())
        if atom.serial not in self.given:
            return "[in]", "given by no weight"
        return "[out]", "summed only between activations, and an output" if "activations" in kinds else (
            "contracted by nothing"
        )

    def bound_to_data(self) -> list[str]:
        """Axes that weights give and contract, but that the program makes one with an axis of the input."""
        for use in self.dims.uses:
            for cell, kind in use.cells:
                for atom in self.axes.atoms(cell) if kind == "out" else ():
                    kinds = self.kinds.get(atom.serial, set())
                    if atom.size > 1 and {"data", "weight"} <= kinds and not kinds & HARD - {"data"}:
                        return [
                            f"{use.parameter} gives {atom.size} elements that are one dimension with the input's, so "
                            "they are data and do not grow. If the input is as wide as the model, capture the model "
                            "together with the layer that makes its input"
                        ]
        return []

    def _label(self, path: str, atom: Cell, atoms: list[Cell], at: int) -> str:
        suffix = ""
        if len(atoms) > 1:
            if atom.serial in self.heads:
                outer = len({a.serial for a in atoms[:at] if a.serial in self.heads} - {atom.serial})
                suffix = f".heads{outer or ''}"
            elif atom.serial in self.summed or any(a.serial in self.heads for a in atoms):
                suffix = ".head_dim"
            else:
                suffix = f".part{at}"
            share = sum(a.serial == atom.serial for a in atoms)
            suffix += f"/{share}" if share > 1 else ""
        return path + suffix

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {n.name: n for n in self.dims.program.graph.nodes}

    def _why_grows(self, atom: Cell) -> str:
        for kind, text in (
            ("weight", "contracted with a weight"),
            ("activations", "summed between activations"),
        ):
            node = self.first.get((atom.serial, kind))
            if node:
                return f"{text} in {describe(self._nodes[node])}"
        return "part of a contracted axis"

    def main(self, dimensions: list[Dimension]) -> tuple[Dimension, int]:
        """The growing dimension that the last readout contracts, else the one most often contracted.

        The size is that of the whole contracted axis: heads x head size is one width, while what can never
        grow (pixels of a flattened image) is left out.
        """
        by_cell = {c: d for d in dimensions for c in d.cells if d.grows}
        variable = {c for d in dimensions for c in d.cells}
        known: dict[int, bool] = {}

        def grows(cell: Cell) -> bool:
            root = self.axes.find(cell).serial
            if root not in known:
                known[root] = any(a.serial in by_cell for a in self.axes.atoms(cell))
            return known[root]

        reaches = reaching_output(self.dims, grows)
        best: tuple[Dimension, int] | None = None
        count: Counter[tuple[str, int]] = Counter()
        for use in self.dims.uses:
            grown = [
                (by_cell[a.serial], self._variable_size(c, a, variable))
                for c, k in use.cells
                if k == "in"
                for a in self.axes.atoms(c)
                if a.serial in by_cell
            ]
            out_grows = any(a.serial in by_cell for c, k in use.cells if k == "out" for a in self.axes.atoms(c))
            for d, size in grown:
                count[d.name, size] += 1
            if grown and not out_grows and use.node.name in reaches:
                best = grown[0]
        if best:
            return best
        if not count:
            first = next((d for d in dimensions if d.grows), dimensions[0])
            return first, first.size
        (name, size), _ = count.most_common(1)[0]
        return next(d for d in dimensions if d.name == name), size


def _grows_beside(
    factor: tuple[Cell, ...], products: Iterable[tuple[tuple[Cell, ...], ...]], reasons: Mapping[int, str]
) -> bool:
    """Whether another axis has this factor beside one that grows."""
    mine = {a.serial for a in factor}
    return any(
        any(mine & {a.serial for a in f} for f in factors)
        and any(a.serial not in reasons and a.serial not in mine for f in factors for a in f)
        for factors in products
    )


def divide(d: Dimension, base: Mapping[int, float]) -> list[Dimension]:
    """A dimension by the base sizes of its cells: the most frequent keeps its name, others take module paths."""
    sizes = Counter(base[c] for c in d.cells)
    usual = max(sizes, key=lambda size: (sizes[size], size))
    folded: dict[str, set[float]] = {}
    for path, cell in d.paths:
        folded.setdefault(fold_layers(path), set()).add(base[cell])
    parts: dict[str, list[int]] = {}
    for path, cell in d.paths:
        if base[cell] != usual:
            parts.setdefault(fold_layers(path) if len(folded[fold_layers(path)]) == 1 else path, []).append(cell)
    others = [
        replace(d, name=label, label=label, aliases=(), base=base[cells[0]], cells=frozenset(cells), paths=())
        for label, cells in parts.items()
    ]
    apart = frozenset(c for cells in parts.values() for c in cells)
    return [replace(d, base=usual, cells=d.cells - apart), *others]


def pretrained(dims: Dims) -> frozenset[int]:
    """Cells of frozen weights, but for mere tables of positions; what is in buffers, as if quantised, is frozen."""
    trained = {p.name for p in dims.program.parameters if p.trainable}
    frozen = {u.parameter for u in dims.uses if "in" in u.kinds.values()} - trained
    cells = [c for name in frozen for c in dims.of_parameter.get(name, ())]
    cells += [fact.cell for fact in dims.evidence if fact.kind == "held"]
    return frozenset(a.serial for c in cells for a in dims.axes.atoms(c))


def _unique_names(found: list[Dimension]) -> list[Dimension]:
    """One dimension per name: config fields that several labels share join them, or give way to labels."""
    merged: dict[tuple[str, int, bool], Dimension] = {}
    for d in found:
        key = (d.name, d.size, d.grows)
        if key in merged:
            first = merged[key]
            merged[key] = replace(first, cells=first.cells | d.cells, paths=first.paths + d.paths)
        else:
            merged[key] = d
    names = Counter(d.name for d in merged.values())
    return [d if names[d.name] == 1 else replace(d, name=d.label) for d in merged.values()]
