"""One architecture captured at other sizes, in another mode and another dtype: what its numbers depend on."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from autofit import lowering
from autofit.capture import capture
from autofit.dims import Cell, Dims
from autofit.errors import AutofitError
from autofit.examples import Example
from autofit.growth import Growth
from autofit.program import Program, live, module_path, op_name
from autofit.source.calls import Call, call_tree, components, constructor, simplify
from autofit.source.names import distinct, identifier
from autofit.source.ops import Path, argument
from autofit.source.pairing import pair, pair_partly
from autofit.source.unmap import unmap


@dataclass(frozen=True)
class World:
    """One capture.

    Attributes:
        model: what was captured, without values.
        program: its graph.
        root: its calls.
        changed: sizes that differ from the first world, by symbol.
        at: the node here that a node of the first world is.
        passed: values of the first world that are not here, with what is read in their place.
        skipped: nodes of the first world that are not here.
    """

    model: nn.Module
    program: Program
    root: Call
    changed: Mapping[str, int] = field(default_factory=dict)
    at: dict[fx.Node, fx.Node] = field(default_factory=dict)
    passed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    skipped: set[fx.Node] = field(default_factory=set)

    def number(self, node: fx.Node, where: Path) -> Any:
        """A number that an op of the first world takes, here."""
        return argument(self.at.get(node, node), where)

    def size(self, node: fx.Node, axis: int) -> int | None:
        """The size of a value of the first world, here."""
        value = self.at.get(node, node).meta.get("val")
        return int(value.shape[axis]) if isinstance(value, torch.Tensor) and axis < value.dim() else None

    def shape(self, path: str, name: str, axis: int) -> int | None:
        """The size of a parameter or buffer of a module."""
        module = self._module(path)
        held = {} if module is None else {**module._buffers, **module._parameters}
        tensor = held.get(name)
        return int(tensor.shape[axis]) if isinstance(tensor, torch.Tensor) and axis < tensor.dim() else None

    def setting(self, path: str, key: str, part: int | None = None) -> Any:
        """A number that a module of torch is made with; a part of one that is given by axis."""
        module = self._module(path)
        leaf = None if module is None else constructor(module)
        value = None if leaf is None else leaf.settings.get(key)
        return value[part] if isinstance(value, tuple) and part is not None else value

    def attribute(self, path: str, name: str) -> Any:
        """A number that a module keeps."""
        module = self._module(path)
        value = None if module is None else vars(module).get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def _module(self, path: str) -> nn.Module | None:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None


def dtypes(node: fx.Node, half: World | None) -> tuple[torch.dtype | None, torch.dtype | None]:
    """The dtype of a value of the first world, and what it is there in half precision; ``None`` where it has none."""
    mine = node.meta.get("val")
    theirs = half.at[node].meta.get("val") if half is not None and node in half.at else None
    return getattr(mine, "dtype", None), getattr(theirs, "dtype", None)


@dataclass(frozen=True)
class Imagined(World):
    """The first world with one size changed, as its axes say: for models that cannot be made at another size.

    Attributes:
        dims: axes of the captured program.
        twin: name in that program of a node of the first world.
        sizes: what indivisible axes become, by serial.
        settings: what modules of torch are made with instead, by path and name.
    """

    dims: Dims | None = None
    twin: Mapping[fx.Node, str] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    settings: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def of(self, cell: Cell) -> int:
        """The size of an axis."""
        assert self.dims is not None
        root = self.dims.axes.find(cell)
        if root.kind == "product":
            return math.prod(self.of(p) for p in root.parts)
        if root.kind == "cat":
            return sum(self.of(p) for p in root.parts)
        return self.sizes.get(root.serial, root.size)

    def _cells(self, node: fx.Node) -> tuple[Any, ...]:
        assert self.dims is not None
        return self.dims.of.get(self.twin.get(node, ""), ())

    def number(self, node: fx.Node, where: Path) -> Any:
        value = argument(node, where)
        cell = self._behind(node, where, value) if isinstance(value, int) and value > 1 else None
        return value if cell is None or cell.size != value else self.of(cell)

    def _behind(self, node: fx.Node, where: Path, value: int) -> Cell | None:
        """The axis that a number of an op is the size of."""
        cells, name, last = self._cells(node), op_name(node).removeprefix("aten."), where[-1]
        args: Any = node.args
        if name in SHAPED and isinstance(last, int):
            at = last if len(where) == 3 else 0
            return self._cell(cells[at]) if at < len(cells) else None
        if name == "unflatten" and len(where) == 3:
            at = int(args[1]) % len(cells) + last - (len(args[2]) - 1 if args[1] < 0 else 0)
            return self._cell(cells[at])
        if name in ("split", "split_with_sizes"):
            dim = int(args[2]) if len(args) > 2 else 0
            piece = cells[last if len(where) == 3 else 0]
            return self._cell(piece[dim]) if isinstance(piece, tuple) else None
        if name == "layer_norm" and where[1] == 1:
            given = self._cells(node.all_input_nodes[0])
            return self._cell(given[len(given) - len(args[1]) + last]) if given else None
        return None

    @staticmethod
    def _cell(value: object) -> Cell | None:
        return value if isinstance(value, Cell) else None

    def size(self, node: fx.Node, axis: int) -> int | None:
        cells = self._cells(node)
        if axis < len(cells) and isinstance(cells[axis], Cell):
            return self.of(cells[axis])
        return super().size(node, axis)

    def shape(self, path: str, name: str, axis: int) -> int | None:
        cell = self._parameter_axis(f"{path}.{name}" if path else name, axis)
        return super().shape(path, name, axis) if cell is None else self.of(cell)

    def _parameter_axis(self, name: str, axis: int) -> Cell | None:
        assert self.dims is not None
        parameter = next((p for p in self.dims.program.parameters if name in p.names), None)
        cells = self.dims.of_parameter.get(parameter.name, ()) if parameter else ()
        return cells[axis] if axis < len(cells) else None

    def setting(self, path: str, key: str, part: int | None = None) -> Any:
        value = self.settings.get((path, key), super().setting(path, key, part))
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        for name, axis in sized_by(self._module(path), key, value, part):
            if (cell := self._parameter_axis(f"{path}.{name}" if path else name, axis)) is not None:
                return value * self.of(cell) // cell.size
        return value

    def attribute(self, path: str, name: str) -> Any:
        return None


SHAPED = frozenset(
    "view reshape _unsafe_view expand zeros ones full empty new_zeros new_ones new_full arange randn".split()
)


def sized_by(module: nn.Module | None, key: str, value: int, part: int | None = None) -> list[tuple[str, int]]:
    """Axes of a module's parameters that are as long as a setting says, those of that very size first."""
    leaf = None if module is None else constructor(module)
    if leaf is None or module is None:
        return []
    whole = leaf.settings[key]
    double = 2 * value if part is None else (*whole[:part], 2 * value, *whole[part + 1 :])
    try:
        with torch.device("meta"):
            other = getattr(nn, leaf.name)(**{**leaf.settings, key: double})
    except Exception:
        return []
    mine, theirs = dict(module.named_parameters()), dict(other.named_parameters())
    found = [
        (name, axis)
        for name, p in mine.items()
        for axis in range(p.dim())
        if name in theirs and theirs[name].shape[axis] == 2 * p.shape[axis]
    ]
    return sorted(found, key=lambda at: mine[at[0]].shape[at[1]] != value)


@dataclass(frozen=True)
class Worlds:
    """All captures of one architecture.

    Attributes:
        first: the model as it is, in training mode.
        sizes: one size is another in each.
        evaluation: in eval mode, if it runs the same ops.
        half: in bfloat16, if it runs the same ops.
        symbols: sizes by name, in the first world; those of data begin with ``data``.
        stacks: by configuration field, the paths of containers whose length it is.
        notes: what could not be seen.
        inputs: tensors of the example, by the names of forward's arguments.
    """

    first: World
    sizes: tuple[World, ...]
    evaluation: World | None
    half: World | None
    symbols: Mapping[str, int]
    stacks: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    inputs: Mapping[str, Any]


def without(worlds: Worlds, built_in: Mapping[str, str]) -> Worlds:
    """The captures without those of sizes that cannot be changed, with a note for each."""
    notes = [
        f"{name} is built in ({worlds.symbols[name]}): how {what} follows from it is not known"
        for name, what in built_in.items()
    ]
    return replace(
        worlds,
        sizes=tuple(w for w in worlds.sizes if not w.changed.keys() & built_in.keys()),
        symbols={n: v for n, v in worlds.symbols.items() if n not in built_in},
        notes=(*worlds.notes, *notes),
    )


def hollow(model: nn.Module, values: bool = False) -> nn.Module:
    """A copy without multipliers, and without ``values`` on whose tensors no memory is spent."""
    memo: dict[int, Any] = {}
    for tensor in [] if values else [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device=None if tensor.device.type == "cpu" else "meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    again = copy.deepcopy(model, memo)
    lowering.uninstall(again)
    return again


def see(model: nn.Module, growth: Growth) -> Worlds:
    """Capture a model and its variants.

    Args:
        model: any module; it is not touched.
        growth: its axes, which tell what sizes of the example are free, and which of the model are one.

    Raises:
        AutofitError: the model itself cannot be captured on ``meta``.
    """
    first = first_world(model, growth)
    plain, example = first.model, growth.dims.program.example
    dims, twin = growth.dims, twins(first, growth.dims.program)
    notes = ["forward looks at values: the source is the path that this example takes"] * first.program.recorded
    worlds: list[World] = []
    symbols: dict[str, int] = {}
    for i, (size, changed, other) in enumerate(_resized(example, first.program, dims)):
        found = (variant(plain, first, {f"data{i}": new}, each) for each, new in zip(other, changed, strict=True))
        several = list(islice((w for w in found if w is not None), 2))
        worlds += several
        if several:
            symbols[f"data{i}"] = size
        else:
            notes.append(f"the size {size} of the input is built in: with another one the model runs other ops")
    stacks: dict[str, tuple[str, ...]] = {}
    lengths, traits = _lengths(plain), _traits(model)
    for name, value, options in _fields(model, first):
        failed = 0
        for new in options:
            other_model = rebuilt(model, name, new, first.program.recorded) if failed < 2 else None
            if other_model is None or _traits(other_model) == traits:
                continue
            longer = {path for path, n in _lengths(other_model).items() if lengths.get(path, n) != n}
            if longer:
                stacks[name] = tuple(sorted(longer))
                break
            world = variant(other_model.train(), first, {name: new})
            if world is not None:
                if _differs(first, world):
                    symbols[name] = value
                    worlds.append(world)
                break
            failed += 1
    if not stacks and not any(not s.startswith("data") for s in symbols):
        for name, size, world in _imagined(first, growth, twin):
            symbols[name] = size
            worlds.append(world)
    evaluation = variant(copy.deepcopy(plain).eval(), first, {}, partly=True)
    half = variant(_to_half(plain), first, {}, _to_half_example(example), partly=True)
    if evaluation is None:
        notes.append("in eval mode the model runs other ops: the source is that of training mode")
    inputs = named_inputs(model, first.program, example.args, example.kwargs)
    return Worlds(first, tuple(worlds), evaluation, half, symbols, stacks, tuple(notes), inputs)


def first_world(model: nn.Module, growth: Growth) -> World:
    """The capture of a model as it is, in training mode.

    Raises:
        AutofitError: it cannot be captured without values.
    """
    program = growth.dims.program
    return _capture(hollow(model, values=program.recorded).train(), program.example, program)


def named_inputs(model: nn.Module, program: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that a call passes, by the names under which the captured program has them.

    Those are forward's own; a tensor inside of a container has its place there behind them.
    """
    tensors = [v for v in _pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    given = [nodes[n] for n in program.inputs if n in nodes and isinstance(nodes[n].meta.get("val"), torch.Tensor)]
    if not program.recorded:
        return {str(n.target): v for n, v in zip(given, tensors, strict=True)}
    bound = inspect.signature(model.forward).bind_partial(*args).arguments
    found: list[str] = []
    for key, value in {**bound, **kwargs}.items():
        for path, leaf in _pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor):
                found.append("_".join([key, *(identifier(_pytree.keystr((k,))) for k in path)]))
    return dict(zip(found, tensors, strict=True))


def _capture(model: nn.Module, example: Example, like: Program | None = None) -> World:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = capture(model, example, like=like)
    unmap(program.graph)
    simplify(program.graph, {*program.buffers, *program.tensors})
    return World(model, program, call_tree(program.graph))


def variant(
    model: nn.Module, first: World, changed: Mapping[str, int], example: Example | None = None, partly: bool = False
) -> World | None:
    """Another capture, if it runs the same ops in the same modules.

    ``partly``: if most of its modules do, and others may leave something out.
    """
    try:
        other = _capture(model, first.program.example if example is None else example, first.program)
    except AutofitError:
        return None
    mine = [n for n in first.program.graph.nodes if n.op == "placeholder"]
    theirs = [n for n in other.program.graph.nodes if n.op == "placeholder"]
    if len(mine) != len(theirs):
        return None
    found = (pair_partly if partly else pair)(first.root, other.root, zip(mine, theirs, strict=True))
    if found is None or len(found.pairs) <= len(list(first.root.nodes())) // 2:
        return None
    return World(other.model, other.program, other.root, dict(changed), found.pairs, found.passed, found.skipped)


def _resized(example: Example, program: Program, dims: Dims) -> Iterator[tuple[int, list[int], list[Example]]]:
    """Examples in which one size of the data is another: the size, what it becomes, and the examples.

    Of two that run, the second shows whether what was found by the first holds.
    """
    values, spec = _pytree.tree_flatten((example.args, example.kwargs))
    tensors = [i for i, v in enumerate(values) if isinstance(v, torch.Tensor)]
    nodes = [n for n in program.inputs if dims.of.get(n)]
    if len(nodes) != len(tensors):
        return
    groups: dict[int, list[tuple[int, int]]] = {}
    for i, name in zip(tensors, nodes, strict=True):
        for axis, cell in enumerate(dims.of[name]):
            if isinstance(cell, Cell) and values[i].shape[axis] > 1:
                groups.setdefault(dims.axes.find(cell).serial, []).append((i, axis))
    for members in groups.values():
        size = values[members[0][0]].shape[members[0][1]]
        options = [size + 4, 2 * size, 2 * size + 3]
        yield size, options, [_with_size(values, spec, members, new) for new in options]


def _with_size(values: list[Any], spec: Any, members: list[tuple[int, int]], new: int) -> Example:
    changed = list(values)
    for i, axis in members:
        shape = list(changed[i].shape)
        shape[axis] = new
        changed[i] = torch.zeros(shape, dtype=values[i].dtype, device=values[i].device)
    args, kwargs = _pytree.tree_unflatten(changed, spec)
    return Example(args, kwargs)


def twins(first: World, program: Program) -> dict[fx.Node, str]:
    """Names in another capture of the same model: nodes of one module and op, in their order."""
    found: dict[fx.Node, str] = {}
    theirs: dict[tuple[str, str], list[fx.Node]] = {}
    alive = live(program.graph)
    for n in (n for n in program.calls() if n in alive):
        theirs.setdefault((module_path(n), op_name(n)), []).append(n)
    mine: dict[tuple[str, str], list[fx.Node]] = {}
    for n in first.program.calls():
        mine.setdefault((module_path(n), op_name(n)), []).append(n)
    for key, nodes in mine.items():
        if len(nodes) == len(theirs.get(key, ())):
            found.update(zip(nodes, (n.name for n in theirs[key]), strict=True))
    names = {n.name for n in program.graph.nodes if n.op == "placeholder"}
    return found | {n: n.name for n in first.program.graph.nodes if n.op == "placeholder" and n.name in names}


def _imagined(first: World, growth: Growth, twin: Mapping[fx.Node, str]) -> Iterator[tuple[str, int, World]]:
    """Widths, tables and outputs of a model without a configuration, each changed alone."""
    dims, named = growth.dims, dict[frozenset[int], tuple[str, int]]()
    for d in growth.dimensions:
        if d.grows:
            named[d.cells] = f"{identifier(_last_word(d.name))}_width", d.size
    for p in dims.program.parameters:
        uses = list(dims.uses_of(p))
        for axis, cell in enumerate(dims.of_parameter.get(p.name, ())):
            root = dims.axes.find(cell)
            kinds = {u.kinds.get(axis) for u in uses}
            plain = root.kind == "atom" and root.size > 1 and growth.dimension(root) is None
            if plain and kinds <= {"index", "out"} and kinds and not any(root.serial in c for c in named):
                owner = p.name.split(".")[-2] if "." in p.name else "model"
                named[frozenset({root.serial})] = (
                    f"{identifier(owner)}_{'size' if 'index' in kinds else 'outputs'}",
                    root.size,
                )
    taken: set[str] = set()
    for cells, (wish, size) in named.items():
        name = distinct(wish, taken)
        taken.add(name)
        sizes = dict.fromkeys(cells, 2 * size)
        at = {n: n for n in first.program.graph.nodes}
        changed = {name: 2 * size}
        world = Imagined(first.model, first.program, first.root, changed, at, dims=dims, twin=twin, sizes=sizes)
        yield name, size, world
    for path, module in first.model.named_modules():
        if isinstance(module, nn.RNNBase):
            name = distinct(f"{identifier(_last_word(path))}_layers", taken)
            taken.add(name)
            at, other = {n: n for n in first.program.graph.nodes}, {(path, "num_layers"): module.num_layers + 1}
            changed = {name: module.num_layers + 1}
            world = Imagined(first.model, first.program, first.root, changed, at, dims=dims, twin=twin, settings=other)
            yield name, module.num_layers, world


def _last_word(path: str) -> str:
    """The last part of a path that is no number."""
    return next((p for p in reversed(path.split(".")) if not p.isdigit()), "layer")


def _fields(model: nn.Module, first: World) -> Iterator[tuple[str, int, list[int]]]:
    """Integers of a configuration that occur in the program, with other values to try."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return
    seen = {s for p in first.model.parameters() for s in p.shape} | set(_lengths(first.model).values())
    for node in first.program.calls():
        seen |= {v for v in _pytree.tree_leaves((node.args, node.kwargs)) if isinstance(v, int)}
        values = node.meta.get("val")
        seen |= {s for v in _pytree.tree_leaves(values) if isinstance(v, torch.Tensor) for s in v.shape}
    for name, value in config.to_dict().items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and value in seen:
            yield (
                name,
                value,
                [2 * value, *([value // 2] if value % 2 == 0 else []), value + 1, 3 * value],
            )


def rebuilt(model: nn.Module, name: str, value: float, values: bool) -> nn.Module | None:
    """The model that its class makes from its configuration with one other number; with ``values`` if it is to run."""
    config = copy.deepcopy(model.config)
    try:
        setattr(config, name, value)
        with warnings.catch_warnings(), torch.device("cpu" if values else "meta"), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            made = type(model)(config)
        if values:
            return made
        like = next(model.parameters(), None)
        return made if like is None or like.device.type != "cpu" else made.to_empty(device="cpu")
    except Exception:
        return None


def _traits(model: nn.Module) -> Any:
    """What a number of the configuration may change in a model: shapes, and the numbers that modules keep."""
    shapes = {n: tuple(t.shape) for n, t in (*model.named_parameters(), *model.named_buffers())}
    kept = {p: {k: v for k, v in vars(m).items() if components(v)} for p, m in model.named_modules()}
    return shapes, kept


def _lengths(model: nn.Module) -> dict[str, int]:
    """Number of modules in every list of modules."""
    return {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 0
    }


def _differs(first: World, other: World) -> bool:
    """Whether any number of the program is another."""
    shapes = {n: p.shape for n, p in first.model.named_parameters()}
    if any(p.shape != shapes.get(n) for n, p in other.model.named_parameters()):
        return True
    return any(_numbers(a) != _numbers(b) for a, b in other.at.items() if a.op == "call_function")


def _numbers(node: fx.Node) -> list[Any]:
    return [v for v in _pytree.tree_leaves((node.args, node.kwargs)) if isinstance(v, int | float)]


def _to_half(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(torch.bfloat16)


def _to_half_example(example: Example) -> Example:
    args, kwargs = _pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, (example.args, example.kwargs)
    )
    return Example(args, kwargs)
