"""Which modules are one class: equal programs, with the numbers in which they differ as constructor arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from autofit.growth import Growth
from autofit.program import op_name
from autofit.source.buffers import Buffer, Buffers
from autofit.source.calls import CONSTANT, SIZES, Call, Leaf, components, constructor, inputs, outputs
from autofit.source.names import distinct, identifier, is_name
from autofit.source.numbers import Formula, Solver, Vector, constant
from autofit.source.ops import CREATING, Path, argument, is_number, literals, name_of
from autofit.source.worlds import Worlds, dtypes

Place = tuple[Any, ...]
"""Where a number is in a class: of an op, of a shape, of an argument of an inner module."""
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(eq=False)
class Class:
    """Modules with one program.

    Attributes:
        name: in the source.
        paths: of the modules, the first stands for all.
        calls: of the first, one for each different program.
        arguments: constructor arguments by name, with what each module gives.
        place: name of the argument that stands at a place, where modules differ there.
        attributes: numbers that forward reads, kept by ``__init__``; a factor of muP by its name.
        configured: whether it is made with the configuration.
        is_root: whether it is that of the model, which keeps its configuration.
    """

    name: str
    paths: list[str]
    calls: list[Call]
    arguments: dict[str, dict[str, Formula]] = field(default_factory=dict)
    place: dict[Place, str] = field(default_factory=dict)
    attributes: dict[str, Formula | str] = field(default_factory=dict)
    configured: bool = False
    is_root: bool = False


class Classes:
    """All classes of a program, innermost first."""

    def __init__(
        self,
        worlds: Worlds,
        root: Call,
        state: dict[fx.Node, tuple[str, ...]],
        solver: Solver,
        growth: Growth,
        places: Mapping[fx.Node, fx.Node],
        buffers: Buffers,
    ) -> None:
        self.worlds, self.root, self.state, self.solver, self.growth = worlds, root, state, solver, growth
        self.every = (worlds.first, *worlds.sizes)
        self.modules = dict(worlds.first.model.named_modules(remove_duplicate=False))
        self.by_path: dict[str, Class] = {}
        self.calls: dict[str, list[Call]] = {}
        self.unsolved: dict[str, str] = {}
        self.places, self.buffers = places, buffers
        self._skeletons: dict[int, Any] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.taken = {"Config", "build", "Model"}
        self.order = {n: i for i, n in enumerate(worlds.first.program.graph.nodes)}
        self.loops: set[tuple[str, int, int]] = set()
        self.deep: set[str] = set()
        self.loaded: list[str] = []
        self.packed: list[str] = []
        own = self.worlds.first.model
        self.config = distinct("config", {*own._modules, *own._parameters, *own._buffers})
        self.all: list[Class] = []
        placeholders = {n.name: n for n in worlds.first.program.graph.nodes if n.op == "placeholder"}
        given = [placeholders[n] for n in worlds.first.program.inputs if n in placeholders]
        self.data = [n for n in given if isinstance(n.meta.get("val"), torch.Tensor)]
        self._bring_sizes((root,))
        for call in root.calls():
            self.calls.setdefault(call.path, []).append(call)
        self.leaves = {p for p, calls in self.calls.items() if all(c.leaf is not None for c in calls)}
        for call in root.calls():
            if call.path not in self.leaves:
                call.leaf = None
        mine = [p for p in self.calls if p not in self.leaves and not self.is_chain(p)]
        groups: dict[Any, list[str]] = {}
        for depth in sorted({p.count(".") + (p != "") for p in mine}, reverse=True):
            groups = {}
            for path in mine:
                if path.count(".") + (path != "") == depth:
                    groups.setdefault(self._skeleton(path), []).append(path)
            for paths in groups.values():
                self._add(paths)

    def _bring_sizes(self, around: tuple[Call, ...]) -> None:
        """Where a call needs a size of the data that none of its values has, it reads one of those around it.

        It does so, too, where it makes a value on the device of others and has none.
        """
        call = around[-1]
        module = self.modules[call.path]
        held = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
        here = list(self.data if len(around) == 1 else inputs(call, self.state))
        for item in call.items:
            if isinstance(item, Call):
                if item.leaf is None:
                    self._bring_sizes((*around, item))
                here += outputs(item)
                continue
            wanted = self._follows(item)
            known = any(wanted == dtypes(n, self.worlds.half) for n in here) if wanted else here
            if not known and not held and name_of(item) in CREATING:
                source = next(
                    (n for n in self._before(around, item) if wanted in (None, dtypes(n, self.worlds.half))), None
                )
                if source is not None:
                    item.meta[SIZES] = (source,)
                    here.append(source)
            for where, _ in literals(item):
                formula = self.of_literal(item, where)
                if not of_data(formula) or self.axis_of(self.vector(formula), here):
                    continue
                for name in (s for s in formula.symbols if s.startswith("data")):
                    if self.axis_of(self.solver.symbols[name], here) is None:
                        source = self._around(self.solver.symbols[name], around, item)
                        if source is not None:
                            item.meta[SIZES] = (*item.meta.get(SIZES, ()), source)
                            here.append(source)
            here.append(item)

    def _follows(self, node: fx.Node) -> tuple[torch.dtype | None, torch.dtype | None] | None:
        """The dtypes of what an op makes, where it is told one that follows the model's."""
        given = [v for v in (*node.args, *node.kwargs.values()) if isinstance(v, torch.dtype)]
        mine, theirs = dtypes(node, self.worlds.half)
        return (mine, theirs) if given and theirs is not None and mine != theirs else None

    def _around(self, vector: Vector, around: tuple[Call, ...], node: fx.Node) -> fx.Node | None:
        """A value in the scope of an outer call that has a size."""
        found = self.axis_of(vector, self._before(around, node))
        return found[0] if found is not None else None

    def _before(self, around: tuple[Call, ...], node: fx.Node) -> Iterator[fx.Node]:
        """Values in the scopes of outer calls that are there before a node, the innermost scope first."""
        for outer in reversed(around[:-1]):
            own = list(self.data if outer is self.root else inputs(outer, self.state))
            for item in outer.items:
                own += outputs(item) if isinstance(item, Call) else [item]
            yield from (n for n in own if self.order[n] < self.order[node])

    # what a class is

    def _add(self, paths: list[str]) -> None:
        name = distinct(identifier(type(self.modules[paths[0]]).__name__, "Module"), self.taken)
        self.taken.add(name)
        made = Class(name, paths, self._programs(paths[0]))
        numbers = [dict(self._numbers(path)) for path in paths]
        by_values: dict[tuple[Formula, ...], str] = {}
        own = self.modules[paths[0]]
        taken = {"config", *own._modules, *own._parameters, *own._buffers}
        for place in numbers[0]:
            values = tuple(n[place] for n in numbers)
            if len(set(values)) == 1:
                continue
            if values not in by_values:
                wish = self._attribute(paths, values) or _hint(place)
                by_values[values] = distinct(wish, {*taken, *made.arguments})
                made.arguments[by_values[values]] = dict(zip(paths, values, strict=True))
            made.place[place] = by_values[values]
        self.all.append(made)
        for path in paths:
            self.by_path[path] = made

    def _attribute(self, paths: list[str], values: tuple[Formula, ...]) -> str | None:
        """An attribute of the original that has these numbers."""
        for name, value in vars(self.modules[paths[0]]).items():
            if is_number(value) and is_name(name) and not name.startswith("_"):
                vectors = [self._attribute_vector(p, name) for p in paths]
                if all(v is not None and self.solver(v) == f for v, f in zip(vectors, values, strict=True)):
                    return name
        return None

    def _attribute_vector(self, path: str, name: str) -> Vector | None:
        """An attribute in all captures."""
        found = tuple(w.attribute(path, name) for w in self.every)
        return None if found[0] is None else found

    def attribute_for(self, of: Class, formula: Formula) -> str:
        """The attribute of a class that holds a number, named as the original names it where it has one."""
        for name, known in of.attributes.items():
            if known == formula:
                return name
        own = self._attribute(of.paths, (formula,) * len(of.paths))
        single = formula.symbols[0] if len(formula.symbols) == 1 and formula.terms[0].factor == 1 else "size"
        taken = {*of.attributes, *of.arguments, *dir(nn.Module), *self.modules[of.paths[0]]._modules}
        name = distinct(own or identifier(single), taken)
        of.attributes[name] = formula
        return name

    def _programs(self, path: str) -> list[Call]:
        """One call of a module for each of its different programs."""
        found: dict[Any, Call] = {}
        for call in self.calls[path]:
            found.setdefault(self._call_skeleton(call), call)
        return list(found.values())

    def method(self, call: Call) -> str:
        """Name of the method that a call is of."""
        programs = self.by_path[call.path].calls
        wanted = self._call_skeleton(call)
        at = next(i for i, c in enumerate(programs) if self._call_skeleton(c) == wanted)
        return "forward" if at == 0 else f"forward_{at + 1}"

    def is_chain(self, path: str) -> bool:
        """Whether a module is an ``nn.Sequential`` that only runs its modules one after the other."""
        if type(self.modules[path]) is not nn.Sequential or path not in self.calls or path == "":
            return False
        for call in self.calls[path]:
            previous: fx.Node | None = None
            if not call.items or len(inputs(call, self.state)) != 1 or len(outputs(call)) != 1:
                return False
            for item in call.items:
                if not isinstance(item, Call):
                    return False
                given, made = inputs(item, self.state), outputs(item)
                if len(given) != 1 or len(made) != 1 or (previous is not None and given[0] is not previous):
                    return False
                previous = made[0]
        return True

    # programs as data

    def _skeleton(self, path: str) -> Any:
        module = self.modules[path]
        programs = tuple(dict.fromkeys(self._call_skeleton(c) for c in self.calls[path]))
        return type(module).__qualname__, programs, tuple(self._content(path, module))

    def _content(self, path: str, module: nn.Module) -> Iterator[Any]:
        """What a module holds, without numbers."""
        for name, p in module._parameters.items():
            yield ("parameter", name, None if p is None else (p.dim(), p.requires_grad))
        for name, b in module._buffers.items():
            if b is not None:
                kept = name not in module._non_persistent_buffers_set
                known = self.buffer(path, name)
                yield ("buffer", name, b.dim(), str(b.dtype), kept, known and known.skeleton)
        for name, child in module._modules.items():
            if child is not None:
                inner = f"{path}.{name}" if path else name
                yield (name, self._kind(inner, child))

    def _kind(self, path: str, module: nn.Module) -> Any:
        if path in self.by_path:
            return "class", self.by_path[path].name
        leaf = None if path in self.calls and path not in self.leaves else constructor(module)
        if leaf is not None:
            return "leaf", leaf.name, tuple((k, tuple(components(v)) or v) for k, v in leaf.settings.items())
        return type(module).__name__, tuple(self._content(path, module))

    def _call_skeleton(self, call: Call) -> Any:
        """A call's ops without numbers; what it calls has its class already."""
        if id(call) not in self._skeletons:
            self._skeletons[id(call)] = self._ops(call)
        return self._skeletons[id(call)]

    def _ops(self, call: Call) -> Any:
        numbering: dict[fx.Node, Any] = {n: ("in", i) for i, n in enumerate(inputs(call, self.state))}
        steps: list[Any] = []
        for item in call.items:
            if isinstance(item, Call):
                given = tuple(numbering.get(n, "?") for n in inputs(item, self.state))
                relative = item.path[len(call.path) + 1 :] if call.path else item.path
                steps.append(("call", relative, given, self._program_of(item)))
                results = outputs(item)
            else:
                steps.append(
                    (op_name(item), getattr(item.target, "_overloadname", ""), self._shape(item, call, numbering))
                )
                results = [item]
            if self.only_in_training(item, call):
                ev = self.worlds.evaluation
                instead = (ev.passed.get(n) for n in results) if ev is not None else ()
                steps.append(("training", *(n and numbering.get(n, self.local_name(n, call.path)) for n in instead)))
            for i, n in enumerate(results):
                numbering[n] = (len(steps), i)
        made = tuple(numbering[n] for n in outputs(call) if n in numbering)
        return len(inputs(call, self.state)), tuple(steps), made, self.passes(call)

    def passes(self, call: Call) -> int | None:
        """Which of its inputs a call passes on as it is in eval mode."""
        ev, made, given = self.worlds.evaluation, outputs(call), inputs(call, self.state)
        source = ev.passed.get(made[0]) if ev is not None and len(made) == 1 else None
        return given.index(source) if source in given else None

    def only_in_training(self, item: fx.Node | Call, call: Call) -> bool:
        """Whether eval mode leaves out something that a call runs, but not the call as a whole."""
        ev = self.worlds.evaluation
        if ev is None or not ev.skipped or all(n in ev.skipped for n in call.nodes()):
            return False
        if isinstance(item, Call):
            itself = item.path in self.by_path and self.passes(item) is not None
            return not itself and all(n in ev.skipped for n in item.nodes())
        return item in ev.skipped

    def _program_of(self, call: Call) -> Any:
        if call.path in self.by_path:
            return self.by_path[call.path].name, self.method(call)
        return "torch"

    def _shape(self, node: fx.Node, call: Call, numbering: dict[fx.Node, Any]) -> Any:
        """Arguments of an op, without numbers."""

        def seen(value: Any, where: Path) -> Any:
            if isinstance(value, fx.Node):
                return numbering[value] if value in numbering else self.local_name(value, call.path)
            if isinstance(value, list | tuple):
                return tuple(seen(v, (*where, i)) for i, v in enumerate(value))
            if isinstance(value, dict):
                return tuple((k, seen(v, (*where, k))) for k, v in value.items())
            return self._measured(node, where, numbering) if is_number(value) else repr(value)

        given = seen(node.args, ("args",)), seen(dict(node.kwargs), ("kwargs",))
        return *given, node.meta.get("multiplier"), node.meta.get("scaled_by")

    def _measured(self, node: fx.Node, where: Path, numbering: dict[fx.Node, Any]) -> Any:
        """A number; where it is a size of the data, with the values that have it."""
        formula = self.of_literal(node, where)
        if not of_data(formula):
            return "number"
        direct = self.axis_of(self.vector(formula), numbering)
        if direct is not None:
            return numbering[direct[0]], direct[1]
        terms = []
        for term in formula.terms:
            sources = [
                self.axis_of(self.solver.symbols[s], numbering) if s.startswith("data") else None
                for s, _ in term.powers
            ]
            terms.append(
                (term.factor, *((numbering[f[0]], f[1]) if f else s for f, s in zip(sources, term.powers, strict=True)))
            )
        return tuple(terms)

    def vector(self, formula: Formula) -> Vector:
        """A number in all captures, from its formula."""
        symbols = self.solver.symbols
        counts = range(len(self.every))
        return tuple(round(formula({n: float(symbols[n][i] or 0) for n in formula.symbols})) for i in counts)

    def axis_of(self, vector: Vector, known: Iterable[fx.Node]) -> tuple[fx.Node, int] | None:
        """The first of these values that has this size in all captures, and its axis."""
        for node in known:
            value = node.meta.get("val")
            for axis in range(value.dim()) if isinstance(value, torch.Tensor) else ():
                if self.of_size(node, axis) == vector:
                    return node, axis
        return None

    def local_name(self, node: fx.Node, path: str) -> str | None:
        """Name of a parameter or buffer below a module."""
        prefix = f"{path}." if path else ""
        if CONSTANT in self.state.get(node, ()):
            return node.name
        return next((n[len(prefix) :] for n in self.state.get(node, ()) if n.startswith(prefix)), None)

    # numbers

    def _numbers(self, path: str) -> Iterator[tuple[Place, Formula]]:
        """Every number of a module's own program and content."""
        for i, call in enumerate(self._programs(path)):
            for j, item in enumerate(call.items):
                if isinstance(item, fx.Node):
                    for where, _ in literals(item):
                        formula = self.of_literal(item, where)
                        if not of_data(formula):
                            yield ("op", i, j, op_name(item).split(".")[-1], where), formula
        yield from self._held(path, self.modules[path], ())

    def _held(self, path: str, module: nn.Module, above: tuple[str, ...]) -> Iterator[tuple[Place, Formula]]:
        for name, p in module._parameters.items():
            if p is not None:
                for axis in range(p.dim()):
                    yield ("shape", above, name, axis), self.of_shape(path, name, axis)
        for name, b in module._buffers.items():
            known = None if b is None else self.buffer(path, name)
            if b is None or known is None:
                continue
            if known.origin is not None:
                for i, where, vector in known.origin.numbers():
                    yield ("made", above, name, i, where), self.solved(vector, f"{path}.{name}")
                continue
            for axis in range(b.dim()):
                formula = self.of_shape(path, name, axis)
                if known.text is None:  # its values are written as they are
                    self.unsolved.update(dict.fromkeys(formula.symbols, f"{path}.{name}"))
                yield ("shape", above, name, axis), formula
        for name, child in module._modules.items():
            if child is None:
                continue
            inner = f"{path}.{name}" if path else name
            if inner in self.by_path:
                for argument, values in self.by_path[inner].arguments.items():
                    yield ("argument", (*above, name), argument), values[inner]
            elif (leaf := self.leaf(inner)) is not None:
                for key, value in leaf.settings.items():
                    for part in components(value):
                        yield ("setting", (*above, name), key, part), self.of_setting(inner, key, part)
            else:
                yield from self._held(inner, child, (*above, name))

    def buffer(self, path: str, name: str) -> Buffer | None:
        """A buffer that the source has: one of a checkpoint, or one that forward reads."""
        full = f"{path}.{name}" if path else name
        kept = name not in self.modules[path]._non_persistent_buffers_set
        read = any(full in names for node, names in self.state.items() if node.users)
        return self.buffers(full) if kept or read else None

    def leaf(self, path: str) -> Leaf | None:
        """A module of torch that is used as one."""
        return None if path in self.calls and path not in self.leaves else constructor(self.modules[path])

    def of_literal(self, node: fx.Node, where: Path) -> Formula:
        """The formula of a number in an op."""
        mine = argument(node, where)
        vector = [w.number(node, where) for w in self.every]
        formula = self.solved(tuple(vector), f"{node.name}: {mine}")
        ev = self.worlds.evaluation
        if ev is not None and node in ev.at:
            other = argument(ev.at[node], where)
            other = _default(ev.at[node], where) if other is None else other
            if other != mine and is_number(other):
                return replace(formula, in_eval=other)
        return formula

    def of_shape(self, path: str, name: str, axis: int) -> Formula:
        """The formula of a parameter's or buffer's size."""

        return self.solved(tuple(w.shape(path, name, axis) for w in self.every), f"{path}.{name}[{axis}]")

    def shapes(self, name: str, axis: int) -> Vector:
        """The size of a parameter in all captures."""
        owner, _, own = name.rpartition(".")
        return tuple(w.shape(owner, own, axis) for w in self.every)

    def of_setting(self, path: str, key: str, part: int | None) -> Formula:
        """The formula of a number that a module of torch is made with."""
        return self.solved(tuple(w.setting(path, key, part) for w in self.every), f"{path}.{key}")

    def of_size(self, node: fx.Node, axis: int) -> Vector:
        """A size of a value in all captures."""
        return tuple(w.size(node, axis) for w in self.every)

    def solved(self, vector: Vector, what: str) -> Formula:
        """The formula of a number; where none is found, the sizes that it varies with are noted."""
        found = self.solver(vector)
        if found is None:
            assert vector[0] is not None
            for world, value in zip(self.worlds.sizes, vector[1:], strict=True):
                if value != vector[0]:
                    self.unsolved.update(dict.fromkeys(world.changed, what))
            return constant(vector[0])
        return found


def of_data(formula: Formula) -> bool:
    """Whether a number depends on sizes of the data."""
    return any(s.startswith("data") for s in formula.symbols)


def _default(node: fx.Node, where: Path) -> Any:
    """What an op takes where a number is not given."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or len(where) != 2:
        return None
    named = [a for i, a in enumerate(schema.arguments) if where[1] in (i, a.name)]
    return named[0].default_value if named else None


def _hint(place: Place) -> str:
    """A name for a constructor argument."""
    if place[0] in ("setting", "argument"):
        return identifier(str(place[2]))
    if place[0] == "made":
        return identifier(f"{place[2]}_{place[4][-1]}" if isinstance(place[4][-1], str) else f"{place[2]}_value")
    if place[0] == "shape":
        return identifier(f"{place[2]}_size" if place[3] == 0 else f"{place[2]}_size_{place[3]}")
    last = place[4][-1]
    return identifier(str(last) if isinstance(last, str) else str(place[3]))
