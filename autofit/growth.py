"""Which dimensions grow, and from what base size."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod, sqrt

from autofit.dims import Cell, Dims
from autofit.program import fold_layers


@dataclass(frozen=True)
class Dimension:
    """One dimension that can grow, as a person would name it.

    Attributes:
        name: unique readable name: a config field where exactly one has this value, else ``label``.
        label: module path of the first parameter that has it, layer indices folded to ``*``.
        aliases: every config field with this value.
        size: number of elements in this model.
        base: number of elements in the base model; may be a fraction for a numeric base.
        grows: whether plans treat it as a width.
        reason: why it grows or stays fixed.
        cells: serials of the cells that are this dimension.
        output: whether it may be a fixed number of outputs: nothing contracts it.
        follows: name of the dimension whose ratio it takes where the base does not name it, else empty.
        paths: where its cells come from: ``(module path, cell)``, for bases in which they differ.
    """

    name: str
    label: str
    aliases: tuple[str, ...]
    size: int
    base: float
    grows: bool
    reason: str
    cells: frozenset[int]
    follows: str = ""
    output: bool = False
    paths: tuple[tuple[str, int], ...] = ()

    @property
    def ratio(self) -> float:
        """Width multiplier ``size / base``, dimensionless."""
        return self.size / self.base


@dataclass(frozen=True)
class Growth:
    """Dimensions with base sizes.

    Attributes:
        dims: the axes.
        dimensions: all dimensions that can grow.
        base_kind: where the base came from, in words.
        main: name of the dimension that a numeric base speaks of.
        constants: scalar constants of both captures by (node, argument) where a second model was aligned,
            as (this model, base model).
        base_std: measured init of the base model by parameter name, if one was given with values.
        notes: remarks for the report.
        number: the base, where it is one number for all that grows.
        deeper: whether a second model was aligned that has fewer layers, so that its constants may differ by depth.
    """

    dims: Dims
    dimensions: tuple[Dimension, ...]
    base_kind: str
    main: str | None
    constants: dict[tuple[str, str], tuple[float, float]] | None = None
    base_std: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    number: float | None = None
    deeper: bool = False
    _by_cell: dict[int, Dimension] = field(default_factory=dict, repr=False, compare=False)
    _grows: dict[int, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def dimension(self, cell: Cell) -> Dimension | None:
        """The dimension of an indivisible cell, or ``None`` if it is fixed for good."""
        if not self._by_cell:
            self._by_cell.update({c: d for d in self.dimensions for c in d.cells})
        return self._by_cell.get(self.dims.axes.find(cell).serial)

    def base_size(self, cell: Cell) -> float:
        """Size of an axis in the base model: products multiply, concatenations add."""
        axes = self.dims.axes
        root = axes.find(cell)
        if root.kind == "product":
            return prod(self.base_size(p) for p in root.parts)
        if root.kind == "cat":
            return sum(self.base_size(p) for p in root.parts)
        known = self.dimension(root)
        return known.base if known else root.size

    def ratio(self, cell: Cell) -> float:
        """Growth of an axis, dimensionless."""
        base = self.base_size(cell)
        return 1.0 if base == cell.size else cell.size / base

    def grows(self, cell: Cell) -> bool:
        """Whether any part of an axis is a width."""
        root = self.dims.axes.find(cell).serial
        if root not in self._grows:
            atoms = self.dims.axes.atoms(cell)
            self._grows[root] = any((d := self.dimension(a)) is not None and d.grows for a in atoms)
        return self._grows[root]

    def std_at_base(self, name: str) -> float | None:
        """Initial std of a parameter in the base; where all layers' copies are drawn alike, theirs together."""
        return self._folded_std.get(fold_layers(name), (self.base_std or {}).get(name))

    @cached_property
    def _folded_std(self) -> dict[str, float]:
        copies: dict[str, list[float]] = {}
        for name, std in (self.base_std or {}).items():
            copies.setdefault(fold_layers(name), []).append(std)
        alike = {name: found for name, found in copies.items() if max(found) <= 1.1 * min(found)}
        return {name: sqrt(sum(std**2 for std in found) / len(found)) for name, found in alike.items()}

    def __str__(self) -> str:
        lines = [f"Growth of {self.dims.program.model_name}, base: {self.base_kind}"]
        for d in self.dimensions:
            lines.append(f"  {d.name}: {d.size} / {d.base:g} {'grows' if d.grows else 'fixed'}: {d.reason}")
        return "\n".join(lines)
