"""Find the dimensions that can grow, name them, and give each its base size."""

from __future__ import annotations

import itertools
import math
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

from autofit.align import constants, constants_by_module, first_difference, telling
from autofit.dims import Axes, Cell, Dims
from autofit.errors import BaseError, DimensionError
from autofit.flow import Flow
from autofit.growth import Dimension, Growth
from autofit.program import Program, fold_layers, shape_of
from autofit.values import is_number, shown
from autofit.widths import CLASSES, Widths, divide

MOST = 2.0**40
ADAPTER = "only trained weights have it, beside frozen ones"


@dataclass(frozen=True)
class BaseModel:
    """A second capture to compare with.

    Attributes:
        dims: its axes.
        std: measured standard deviation of each parameter by name; empty on ``meta``.
    """

    dims: Dims
    std: Mapping[str, float]


@dataclass(frozen=True)
class BaseShapes:
    """Base shapes by parameter name, as mup's ``.bsh`` has them; ``None`` marks an axis that does not grow."""

    shapes: Mapping[str, tuple[int | None, ...]]


@dataclass(frozen=True)
class ResolveBase:
    """``Dims -> Growth``.

    Attributes:
        base: base size of the main dimension, a mapping ``{dimension: size}``, or a second model.
        grow: which factor of ``heads x head size`` grows under a numeric base.
        origin: where the base came from, for messages.
        strict: refuse an axis that may be a width or not, where the base does not tell.
        frozen: under ``keep`` and a number, sizes that only trained weights have do not grow: an adapter's.
    """

    base: int | Mapping[str, float] | BaseModel | BaseShapes
    grow: Literal["heads", "head_dim"] = "heads"
    origin: str = ""
    strict: bool = True
    frozen: Literal["keep", "plan"] | None = None

    def __call__(self, dims: Dims) -> Growth:
        """Resolve the base.

        Raises:
            BaseError: the base is invalid or does not fit.
            DimensionError: nothing can grow, or under ``strict`` a dimension is ambiguous.
        """
        widths = Widths(dims, self.grow, keep=self.frozen == "keep")
        dimensions, main, size, clash = widths.find()
        if isinstance(self.base, BaseModel):
            growth = _from_model(dims, dimensions, main, self.base, widths.loose_factors())
        elif isinstance(self.base, BaseShapes):
            growth = _from_shapes(dims, dimensions, main, self.base, self.origin)
        else:
            if self.strict:
                _refuse_ambiguous(dims, dimensions, clash, self.base)
            if isinstance(self.base, Mapping):
                wide = [d for d in (*_inputs(dims), *widths.loose_factors()) if d.label in self.base]
                growth = _from_mapping(dims, [*dimensions, *wide], main, self.base, self.origin or "mapping")
            else:
                own = _adapters(dims, dimensions, main, widths.pretrained)
                fixed = [replace(d, grows=False, reason=ADAPTER) if d.name in own else d for d in dimensions]
                main, size = widths.main(fixed) if main.name in own else (main, size)
                growth = _from_number(dims, fixed, main, size, self.base)
                classes = tuple(_note_classes(d) for d in dimensions if d.reason == CLASSES)
                growth = replace(growth, notes=(*growth.notes, *_note_adapters(own.values()), *classes))
            growth = replace(growth, notes=(*growth.notes, *(_note_end(d) for d in dimensions if d.follows)))
        shown = tuple(d for d in growth.dimensions if d.grows or d.follows or not d.output)
        return replace(growth, dimensions=shown, notes=(*growth.notes, *widths.bound_to_data()))


def _adapters(
    dims: Dims, dimensions: Iterable[Dimension], main: Dimension, pretrained: Set[int]
) -> dict[str, Dimension]:
    """By name the dimensions that no frozen weight has, where trained weights stand beside frozen ones.

    They do where the main width is one of frozen weights, or where both give and contract the same width.
    """
    trained = {p.name for p in dims.program.parameters if p.trainable}
    ends: dict[str, set[int]] = {"in": set(), "out": set()}
    for use in (u for u in dims.uses if u.parameter in trained):
        for cell, kind in use.cells:
            if kind in ends:
                ends[kind] |= {a.serial for a in dims.axes.atoms(cell)}
    beside = (main.cells | ends["in"] & ends["out"]) & pretrained
    if not any(d.grows and d.cells & beside for d in dimensions):
        return {}
    return {d.name: d for d in dimensions if d.grows and not d.cells & pretrained}


def _note_adapters(own: Iterable[Dimension]) -> Iterator[str]:
    """One for each size."""
    sizes: dict[int, list[str]] = {}
    for d in own:
        sizes.setdefault(d.size, []).append(d.name)
    for size, names in sizes.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"{names[0]}{more}: {size} elements that only trained weights have, beside frozen ones, are taken for an "
            "adapter's own size, which does not grow. If it does, say so with a mapping or a base model"
        )


def _from_number(dims: Dims, dimensions: list[Dimension], main: Dimension, size: int, base: float) -> Growth:
    if not is_number(base) or base <= 0:
        raise BaseError(f"base={shown(base)} is not a positive number", todo="pass the base width, e.g. base=256")
    _check_ratio(main.name, size, base)
    ratio = size / base
    if ratio != 1 and not any(d.grows for d in dimensions):
        raise BaseError(
            f"base={base:g}, and nothing grows: {main.name} = {main.size} is {main.reason}",
            todo="pass grow='head_dim' if it is the size of a growing head, or a base model, which tells",
        )
    resolved = tuple(
        replace(d, base=d.size / ratio if ratio != 1 else float(d.size)) if d.grows else d for d in dimensions
    )
    along = main.name if size == main.size else f"{size} elements along {main.name}"
    return Growth(dims, resolved, f"{along} = {base:g}", main.name, number=base)


def _check_ratio(name: str, size: int, base: float) -> None:
    """A size may differ from the base's by what widths differ by, so that powers of it are numbers, too."""
    if not 1 / MOST <= size / base <= MOST:
        raise BaseError(
            f"{name} is {size}, and {base:g} in the base: widths differ by less than a factor of 2^{math.log2(MOST):g}",
            todo="pass the size that it has in the model on which you tune",
        )


def _from_mapping(
    dims: Dims, dimensions: list[Dimension], main: Dimension, base: Mapping[str, float], origin: str
) -> Growth:
    for key, value in base.items():
        if not is_number(value) or value <= 0:
            raise BaseError(f"base size of {shown(key)} is {shown(value)}, not a positive number", where=origin)
    used: set[str] = set()
    sized, missing = [], []
    names = {d.name if d.name in base else d.label for d in dimensions}
    apart = {k: v for k, v in base.items() if k not in names}
    for d in itertools.chain.from_iterable(_named_parts(d, base, apart) for d in dimensions):
        keys = [k for k in dict.fromkeys((d.name, d.label, *d.aliases)) if k in base]
        whole = None if keys or d.grows else _whole(dims, d)
        fields = [k for k, v in dims.program.config.items() if whole and v == whole and k in base]
        if whole and fields:
            used.add(fields[0])
            _check_ratio(fields[0], whole, base[fields[0]])
            size = base[fields[0]] * d.size / whole
            if size != int(size):
                raise BaseError(f"{fields[0]} = {base[fields[0]]:g} does not divide as {whole} does here", where=d.name)
            sized.append(replace(d, base=size))
            continue
        if not keys:
            if d.grows and not d.follows:
                missing.append(d)
            sized.append(d)
            continue
        used.add(keys[0])
        sized.append(replace(d, base=float(base[keys[0]])))
    unknown = [k for k in base if k not in used and not any(k in d.aliases for d in dimensions)]
    for d in sized:
        _check_ratio(d.name, d.size, d.base)
    sized = [_follow(d, sized) if d.follows and d.name not in used else d for d in sized]
    known = ", ".join(f"{d.name} (= {d.size})" for d in dimensions)
    if unknown:
        raise BaseError(
            f"the base names {unknown[0]!r}, but {dims.program.model_name} has no such dimension",
            where=origin,
            todo=f"use these names: {known}",
        )
    if missing:
        raise BaseError(
            f"the base gives no size for {missing[0].name!r}, which can grow ({missing[0].reason})",
            where=origin,
            todo="add it with its size in the base model, or with its own size "
            f"{missing[0].size} if it does not change; all dimensions: {known}",
        )
    return Growth(dims, _settle(sized), origin, main.name)


def _named_parts(d: Dimension, base: Mapping[str, float], others: Mapping[str, float]) -> list[Dimension]:
    """A dimension of which the base names some paths apart from the rest, by keys that no dimension has."""
    own = next((k for k in (d.name, d.label, *d.aliases) if k in base), None)
    apart = {
        cell: float(others[key])
        for path, cell in d.paths
        for key in (path, fold_layers(path))
        if own is not None and key in others
    }
    if not apart or own is None:
        return [d]
    return divide(d, {c: apart.get(c, float(base[own])) for c in d.cells})


def _whole(dims: Dims, part: Dimension) -> int | None:
    """Size of the axis that equal parts make up, as the rotated halves of a head make up the head."""
    for cell in dims.axes.cells:
        if cell.parent is cell and cell.kind == "cat" and {a.serial for a in dims.axes.atoms(cell)} <= part.cells:
            return cell.size
    return None


def _follow(end: Dimension, sized: Iterable[Dimension]) -> Dimension:
    """The ratio of the dimension that an open end follows."""
    leader = next(d for d in sized if d.name == end.follows)
    return replace(end, base=end.size / leader.ratio if leader.ratio != 1 else float(end.size))


def _note_end(end: Dimension) -> str:
    return (
        f"{end.name}: {end.size} elements are {end.reason}, and taken to grow like it. If their number is fixed, "
        "say so with a mapping or a base model"
    )


def _note_classes(d: Dimension) -> str:
    return (
        f"{d.name}: {d.size} elements are {d.reason}, and taken not to grow. If they are a width, say so with a "
        "mapping or a base model"
    )


def _refuse_ambiguous(
    dims: Dims, dimensions: Iterable[Dimension], clash: Mapping[str, str], base: float | Mapping[str, float]
) -> None:
    for d in dimensions:
        if d.name in clash and not (isinstance(base, Mapping) and d.name in base):
            raise DimensionError(
                f"ambiguous dimension: {d.size} elements of {d.label} are {d.reason}: they may grow like it, or be "
                f"fixed like an axis of {clash[d.name]}, which has that size too",
                where=dims.program.model_name,
                todo="pass a base model, which tells, or a mapping with the base size of each dimension; "
                f"{d.name!r} is its name there. Or give the model another width than {d.size}",
            )


def _settle(sized: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """A dimension of equal size in base and model is fixed, unless the model *is* the base."""
    sized = list(sized)
    if all(d.base == d.size for d in sized):
        return tuple(sized)
    return tuple(
        replace(d, grows=d.base != d.size, reason=d.reason if d.base != d.size else "same size in the base")
        for d in sized
    )


def _from_model(
    dims: Dims, dimensions: list[Dimension], main: Dimension, base: BaseModel, loose: Iterable[Dimension]
) -> Growth:
    mine = {p.name: p for p in dims.program.parameters}
    theirs = {p.name: p for p in base.dims.program.parameters}
    if mine.keys() != theirs.keys():
        return _from_other_depth(dims, dimensions, main, base)
    for name, p in mine.items():
        if len(p.shape) != len(theirs[name].shape):
            raise BaseError(
                f"the base does not match: {name} has shape {tuple(theirs[name].shape)} there, {tuple(p.shape)} here",
                todo="use the same architecture, only narrower",
            )
    difference = first_difference(dims.program, base.dims.program)
    notes: tuple[str, ...] = ()
    sizes: list[tuple[Cell, int, str]] = [
        (cell, size, name)
        for name in mine
        for cell, size in zip(dims.of_parameter.get(name, ()), theirs[name].shape, strict=False)
    ]
    measured = None
    if difference is None:
        pairs = list(zip(telling(dims.program), telling(base.dims.program), strict=True))
        # data may take other sizes in each model where these depend on values, or where autofit chose them
        free = any(p.recorded or p.inferred for p in (dims.program, base.dims.program))
        for node, other in pairs:
            value = node.meta.get("val")
            if dims.origin.get(node.name) == "data" and shape_of(value):
                cells = [c for c in dims.of[node.name] if isinstance(c, Cell)]
                sizes += [
                    (c, s, node.name)
                    for c, s in zip(cells, shape_of(other.meta.get("val")), strict=False)
                    if not (free and dims.axes.find(c).fixed)
                ]
        measured = constants(pairs, Flow(dims), Flow(base.dims))
    else:
        notes = (f"base and model run different ops ({difference}): constants are judged from one model alone",)
    changed = {dims.axes.find(c).serial for c, size, _ in sizes if size != c.size}
    others = [*_wide_inputs(dims, base.dims), *(d for d in loose if d.cells & changed)]
    solved, assumed = _solve(dims, [*dimensions, *others], sizes)
    _refuse_other_outputs(solved, main)
    return Growth(dims, _settle(solved), "second model", main.name, measured, dict(base.std) or None, notes + assumed)


def _inputs(dims: Dims) -> list[Dimension]:
    """Axes of inputs that weights contract: widths only where a base says so."""
    contracted = {a.serial for e in dims.evidence if e.kind == "weight" for a in dims.axes.atoms(e.cell)}
    found = []
    for name in dims.program.inputs:
        for axis, cell in enumerate(c for c in dims.of[name] if isinstance(c, Cell)):
            atom = dims.axes.find(cell)
            if atom.kind == "atom" and atom.serial in contracted:
                label, only = f"{name}[{axis}]", frozenset({atom.serial})
                reason = "an input that is as wide as the base says"
                found.append(Dimension(label, label, (), atom.size, float(atom.size), True, reason, only))
    return found


def _wide_inputs(dims: Dims, base: Dims) -> list[Dimension]:
    """Inputs that have another size in the example which the base model brought."""
    nodes = {n.name: n for n in base.program.graph.nodes}
    theirs = {
        f"{name}[{axis}]": size
        for name, other in zip(dims.program.inputs, base.program.inputs, strict=False)
        for axis, size in enumerate(shape_of(nodes[other].meta.get("val")))
    }
    return [d for d in _inputs(dims) if theirs.get(d.label, d.size) != d.size]


def _from_shapes(dims: Dims, dimensions: list[Dimension], main: Dimension, base: BaseShapes, origin: str) -> Growth:
    sizes: list[tuple[Cell, int, str]] = []
    for p in dims.program.parameters:
        name = next((n for n in p.names if n in base.shapes), None)
        if name is None or len(base.shapes[name]) != len(p.shape):
            found = "is missing" if name is None else f"has {len(base.shapes[name])} axes"
            raise BaseError(f"{p.name} {found} in the base shapes", where=origin)
        cells = dims.of_parameter.get(p.name, ())
        sizes += [(c, s or c.size, p.name) for c, s in zip(cells, base.shapes[name], strict=False)]
    solved, assumed = _solve(dims, dimensions, sizes)
    _refuse_other_outputs(solved, main)
    return Growth(dims, _settle(solved), origin, main.name, notes=assumed)


def _solve(
    dims: Dims, dimensions: list[Dimension], sizes: list[tuple[Cell, int, str]]
) -> tuple[list[Dimension], tuple[str, ...]]:
    """Base size of every dimension from base sizes of whole axes; notes on what these do not tell.

    Of a product of which the base tells no factor, as of heads x head size, those keep their size that keep it
    under a number.

    Raises:
        BaseError: an axis has another size in the base, and is fixed; or a product cannot be told apart.
    """
    notes: dict[str, str] = {}
    axes, of_cell = dims.axes, {c: d for d in dimensions for c in d.cells}
    known: dict[int, tuple[int, str]] = {}

    def settle(atom: Cell, size: float, where: str) -> bool:
        if size != int(size) or size < min(atom.size, 1):
            raise BaseError(f"{where} cannot be divided in the base as it is here", where=axes.show(atom))
        before = known.get(atom.serial)
        if before is None:
            known[atom.serial] = (int(size), where)
            return True
        if before[0] != size:
            _disagree(dims, atom, before, (int(size), where))
        return False

    pending = [(axes.find(c), s, w) for c, s, w in sizes if c.size and s]  # an empty axis says nothing
    pending.sort(key=lambda found: found[0].kind != "atom")  # what is seen undivided, first
    while pending:
        left, progress = [], False
        for root, size, where in pending:
            if root.kind == "atom":
                progress |= settle(root, size, where)
                continue
            unknown, ratio = _unknown(axes, root, size, known, of_cell)
            if len(unknown) == 1:
                progress |= settle(unknown[0], ratio * unknown[0].size, where)
                continue
            parts = [p for p in (axes.factors(root) if root.kind == "product" else axes.segments(root)) if p.size]
            total: float = size
            open_parts = []
            for p in parts:
                value = _known_size(axes, p, known, of_cell)
                if value is None:
                    open_parts.append(p)
                else:
                    total = total / value if root.kind == "product" else total - value
            if not open_parts:
                if where in dims.of_parameter and total != (root.kind == "product"):
                    raise BaseError(
                        f"{where}: an axis of {axes.show(root)} is {size} in the base, where its parts do not make "
                        "that",
                        todo="check that the base is the same architecture; if it is, please report this model",
                    )
                continue
            same = {axes.find(u).serial for u in open_parts}
            if len(same) == 1 and root.kind == "cat":
                pending_cell, share = axes.find(open_parts[0]), total / len(open_parts)
            elif len(open_parts) == 1:
                pending_cell, share = axes.find(open_parts[0]), total
            else:
                left.append((root, size, where))
                continue
            progress = True
            if pending_cell.kind == "atom":
                settle(pending_cell, share, where)
            else:
                left.append((pending_cell, int(share), where))
        pending = left
        if not progress:
            for root, size, where in left:
                unknown, ratio = _unknown(axes, root, size, known, of_cell)
                names = list(dict.fromkeys(of_cell[a.serial].name for a in unknown))
                if len(names) > 1:
                    apart = f"the base does not tell {names[0]} apart from {names[1]}"
                    notes[names[0]] = f"{apart}, which it is joined with: taken to grow alike"
                for atom in unknown:
                    progress |= settle(atom, ratio * atom.size, where)
        if not progress and left:
            kept = _kept_factors(axes, left, known, of_cell)
            for cell, where in kept:
                settle(cell, cell.size, where)
                name = of_cell[cell.serial].name
                notes[name] = (
                    f"the base does not tell {name} apart from what it is multiplied with: taken to be the same"
                )
            if not kept:
                break
    for root, size, where in pending:
        if size != root.size:
            raise BaseError(
                f"{where}: an axis of {axes.show(root)} is {size} in the base, which does not tell its parts apart",
                todo="pass a base model that runs the same ops, or a mapping with the base size of each dimension",
            )
    owned = {a.serial for cells in dims.of_parameter.values() for c in cells for a in axes.atoms(c)}
    for serial, (size, where) in known.items():
        cell = axes.cells[serial]
        if size != cell.size and serial not in of_cell and cell.size > 1:
            kinds = sorted({e.kind for e in dims.evidence if axes.find(e.cell) is axes.find(cell)} - {"copies"})
            if not kinds and serial not in owned:
                continue  # made by broadcasting and read by nothing that matters: repeated for heads that grow
            raise BaseError(
                f"{where}: an axis of {cell.size} is {size} in the base, but it is fixed by its use"
                f" ({', '.join(kinds) or 'never contracted'})",
                todo="base and model must agree in data, vocabulary, classes and experts",
            )
    sized = {c: float(size) for c, (size, _) in known.items()}
    resolved = []
    for d in dimensions:
        found = {c: sized[c] for c in d.cells if c in sized}
        usual = next(iter(Counter(found.values()).most_common(1)), (d.base, 0))[0]
        resolved += divide(d, {c: found.get(c, usual) for c in d.cells})
    return resolved, tuple(notes.values())


def _unknown(
    axes: Axes, root: Cell, size: int, known: dict[int, tuple[int, str]], of_cell: Mapping[int, Dimension]
) -> tuple[list[Cell], float]:
    """Cells of an axis whose base size is not known, and their common ratio to it, if the axis is linear in that."""
    unknown = {a.serial: a for a in axes.atoms(root) if a.serial in of_cell and a.serial not in known}
    none, one, two = (
        _known_size(axes, root, ChainMap({s: (x * a.size, "") for s, a in unknown.items()}, known), of_cell) or 0
        for x in range(3)
    )
    if not unknown or two - one != one - none or one == none:
        return [], 0
    return list(unknown.values()), (size - none) / (one - none)


def _kept_factors(
    axes: Axes, pending: Iterable[tuple[Cell, int, str]], known: Mapping[int, object], of_cell: Mapping[int, Dimension]
) -> list[tuple[Cell, str]]:
    """Factors that keep their size under a number, of the unsolved product that has the fewest such.

    The rest follows from these: of key-value heads x head size, and these x queries for each, the head size.
    """
    found = [
        [
            (atom, where)
            for atom in axes.atoms(root)
            if atom.serial in of_cell and atom.serial not in known and not of_cell[atom.serial].grows
        ]
        for root, _, where in pending
        if root.kind == "product"
    ]
    return min(filter(None, found), key=len, default=[])


def _refuse_other_outputs(solved: Iterable[Dimension], main: Dimension) -> None:
    """Outputs that grow exactly as the main width are features; other changes are another number of classes."""
    solved = list(solved)
    ratio = next((d.ratio for d in solved if d.name == main.name), main.ratio)
    for d in solved:
        if d.output and d.base != d.size and d.ratio != ratio:
            raise BaseError(
                f"{d.label}: an axis of {d.size} is {d.base:g} in the base, but it is an output ({d.reason})",
                todo="base and model must agree in data, vocabulary, classes and experts",
            )


def _known_size(
    axes: Axes, cell: Cell, known: Mapping[int, tuple[int, str]], of_cell: Mapping[int, Dimension]
) -> float | None:
    root = axes.find(cell)
    if root.kind == "atom":
        if root.serial in known:
            return known[root.serial][0]
        return root.size if root.serial not in of_cell else None
    parts = [_known_size(axes, p, known, of_cell) for p in root.parts]
    if any(p is None for p in parts):
        return None
    return math.prod(parts) if root.kind == "product" else sum(parts)  # type: ignore[arg-type]


def _disagree(dims: Dims, atom: Cell, before: tuple[int, str], now: tuple[int, str]) -> None:
    raise BaseError(
        f"static and differential inference disagree: the program makes {before[1]} and {now[1]} one "
        f"dimension of {atom.size}, but in the base they are {before[0]} and {now[0]}",
        todo="check that the base is the same architecture; if it is, please report this model",
    )


def _from_other_depth(dims: Dims, dimensions: list[Dimension], main: Dimension, base: BaseModel) -> Growth:
    def folded(program: Program) -> set[str]:
        return {fold_layers(p.name) for p in program.parameters}

    only_here, only_there = (
        folded(dims.program) - folded(base.dims.program),
        folded(base.dims.program) - folded(dims.program),
    )
    if only_here or only_there:
        missing = sorted(only_here or only_there)[0]
        raise BaseError(
            f"the base is another architecture: {missing} exists only in the {'model' if only_here else 'base'}",
            where=first_difference(dims.program, base.dims.program),
            todo="use the same model class, only narrower",
        )
    if len(base.dims.program.parameters) > len(dims.program.parameters):
        raise BaseError(
            f"the base is deeper than the model ({len(base.dims.program.parameters)} parameters against "
            f"{len(dims.program.parameters)})",
            where=first_difference(dims.program, base.dims.program),
            todo="use a base of the same depth or less",
        )
    exact = {p.name: {tuple(p.shape)} for p in base.dims.program.parameters}
    alike: dict[str, set[tuple[int, ...]]] = {}
    for p in base.dims.program.parameters:
        alike.setdefault(fold_layers(p.name), set()).add(tuple(p.shape))
    sizes: list[tuple[Cell, int, str]] = []
    for p in dims.program.parameters:
        shapes = exact.get(p.name) or alike[fold_layers(p.name)]
        if len(shapes) == 1:  # of a layer that the base lacks: what all of its layers have
            sizes += [(c, s, p.name) for c, s in zip(dims.of_parameter.get(p.name, ()), *shapes, strict=False)]
    sized, assumed = _solve(dims, dimensions, sizes)
    measured, apart = constants_by_module(dims, base.dims)
    notes = tuple(
        f"the base has fewer layers, and other ops in {path or 'the model itself'}: constants there are judged from "
        "one model alone"
        for path in apart[:1]
    )
    origin = "second model of other depth"
    std, said = dict(base.std) or None, notes + assumed
    return Growth(dims, _settle(sized), origin, main.name, measured, std, said, deeper=True)
