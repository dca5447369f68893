"""A module's forward as statements, with the variables of the original."""

from __future__ import annotations

import ast
import itertools
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from autofit.errors import ExportError
from autofit.program import describe, op_name
from autofit.source.calls import Call, inputs, outputs
from autofit.source.classes import Class, Classes, of_data
from autofit.source.content import attribute, reach
from autofit.source.names import arguments, distinct, identifier, statement
from autofit.source.numbers import Formula, Term, listed
from autofit.source.ops import Path, Scope, Writer, literals, name_of
from autofit.source.syntax import assign, call, doc, method, parse
from autofit.source.worlds import dtypes

RANDOM = frozenset(f"aten.{n}" for n in "dropout bernoulli rand rand_like randn randn_like native_dropout".split())
LARGEST = 12
"""Ops and calls in one statement."""
TODO = "keep muify's model as it is, or spell this line in ops of torch"


@dataclass(eq=False)
class Step:
    """Something that a forward runs: an op, a call, several calls in a loop, or the return.

    Attributes:
        items: what it runs; several are a loop.
        results: values that it makes and that are read after it.
        reads: values that it reads, each as often as it does.
        place: statement of the original.
        names: what the original calls the results.
        carried: what a loop begins with.
        sizes: values whose sizes it needs.
        measures: these, with the axis.
        found: the values with these sizes, by what they are in all captures.
        into: the step that it is an expression in, if it has no statement of its own.
    """

    items: tuple[fx.Node | Call, ...]
    results: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    place: object = None
    names: tuple[str, ...] = ()
    carried: tuple[fx.Node, ...] = ()
    sizes: tuple[fx.Node, ...] = ()
    measures: tuple[tuple[fx.Node, int], ...] = ()
    into: Step | None = None
    found: dict[tuple[Any, ...], tuple[fx.Node, int]] = field(default_factory=dict)


class Forward:
    """Writes one method."""

    def __init__(
        self,
        classes: Classes,
        of: Class,
        program: Call,
        index: int,
        wanted: list[fx.Node] | None = None,
    ) -> None:
        """For one method.

        Args:
            classes: all classes.
            of: the class.
            program: a call of the method.
            index: its number among the class's.
            wanted: values that it returns; those that are read outside if ``None``.
        """
        self.classes, self.of, self.program, self.index = classes, of, program, index
        self.state = classes.state
        self.inputs = inputs(program, self.state) if wanted is None else classes.data
        self.returned = outputs(program) if wanted is None else wanted
        self.bound: dict[str, fx.Node] = {}
        self.writer = Writer(Scope(self.operand, self.literal, self.dtype, self.device))
        self.steps = self._steps()
        self.segments = self._only_in_training()
        self.forced: dict[fx.Node, str] = {}
        self.measured: dict[tuple[Any, ...], tuple[fx.Node, int]] = {}
        self._find_sizes()
        self.names = self._argument_names()
        self.wish = dict(zip(self.inputs, self.names, strict=True))
        self._name_results()
        self._inline()
        self.inner = {s.results[0]: s for s in self.steps if s.into is not None}
        self.last_use: dict[fx.Node, int] = {}
        places = {id(s): i for i, s in enumerate(self.steps)}
        for step in self.steps:
            for n in (*step.reads, *step.sizes):
                self.last_use[n] = max(self.last_use.get(n, -1), places[id(self._end(step))])
        self.at = 0
        self.writing = self.steps[-1]
        self.unpacked = self._unpacked()

    def write(self, name: str) -> ast.FunctionDef:
        """The method."""
        self.bound |= dict(zip(self.names, self.inputs, strict=True))
        body: list[ast.stmt] = []
        passed = self.classes.passes(self.program) if self.program.path else None
        if passed is not None:
            done = ast.Return(ast.Name(self.names[passed]))
            body.append(ast.If(parse("not self.training"), [done], []))
        for segment, part in itertools.groupby(enumerate(self.steps), lambda item: self.segments.get(id(item[1]))):
            own = body if segment is None else list[ast.stmt]()
            steps = list(part)
            if segment is not None:
                self.at = steps[0][0]
                body += self._instead([s for _, s in steps])
            for self.at, step in steps:
                if step.into is None:
                    own += self._statements(step)
            if segment is not None:
                body.append(ast.If(parse("self.training"), own, []))
        said = [doc(f"Ops without a name in torch's Python: {', '.join(raw)}.")] if (raw := self._raw_ops()) else []
        return method(name, map(ast.arg, self.names), [*said, *self._sizes_first(), *body])

    def _raw_ops(self) -> list[str]:
        return sorted({str(n.target) for n in self.writer.raw})

    def _only_in_training(self) -> dict[int, int]:
        """Steps that eval mode leaves out, by the number of their run; only where what others read instead is known."""
        found: dict[int, int] = {}
        ev = self.classes.worlds.evaluation
        if ev is None:
            return found
        runs = itertools.groupby(
            self.steps,
            lambda s: bool(s.items) and all(self.classes.only_in_training(i, self.program) for i in s.items),
        )
        for number, (skipped, steps) in enumerate(runs):
            run = list(steps) if skipped else []
            if all(n in ev.passed for n in self._read_outside(run)):
                found |= dict.fromkeys(map(id, run), number)
        return found

    def _read_outside(self, run: list[Step]) -> list[fx.Node]:
        """Results of some steps that others read."""
        inside = set(map(id, run))
        read = {n for s in self.steps if id(s) not in inside for n in (*s.reads, *s.sizes)}
        return [n for s in run for n in s.results if n in read]

    def _instead(self, run: list[Step]) -> Iterator[ast.stmt]:
        """Before what is done in training only: the values that are read in its place."""
        ev = self.classes.worlds.evaluation
        assert ev is not None
        places = {id(s): i for i, s in enumerate(self.steps)}
        for made in self._read_outside(run):
            value = self.operand(ev.passed[made])
            at = next(places[id(s)] for s in run if made in s.results)
            name = value.id if isinstance(value, ast.Name) else ""
            if not name or self.last_use.get(ev.passed[made], -1) > at or name in self.forced.values():
                name = distinct(identifier(self.wish.get(made, name_of(made))), [*self._busy(), *self.forced.values()])
                yield assign([ast.Name(name)], value)
            self.forced[made] = name

    def _argument_names(self) -> list[str]:
        own = arguments(self.classes.modules[self.program.path])
        names: list[str] = []
        for i, node in enumerate(self.inputs):
            wish = own[0] if i == 0 and own and node.op != "placeholder" else self._wish(node)
            names.append(distinct(identifier(wish), names))
        return names

    def _sizes_first(self) -> Iterator[ast.stmt]:
        """``batch, length = x.shape[:2]`` for sizes that are read more than once."""
        for node, axes in self.unpacked.items():
            name = self.names[self.inputs.index(node)]
            last = max(axes)
            targets: list[ast.expr] = [ast.Name(axes.get(i, "_")) for i in range(last + 1)]
            shape: ast.expr = ast.Attribute(ast.Name(name), "shape")
            if len(targets) == 1:
                yield assign(targets, ast.Subscript(shape, ast.Constant(last)))
                continue
            if last + 1 < node.meta["val"].dim():
                shape = ast.Subscript(shape, ast.Slice(None, ast.Constant(last + 1)))
            yield assign(targets, shape)

    def _wish(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            names = self.state.get(node)
            if names:
                return names[0].rpartition(".")[2]
            known = dict(zip(self.classes.data, self.classes.worlds.inputs, strict=True))
            return known[node] if node in known else str(node.target)
        depth = len(node.meta.get("nn_module_stack") or {}) - 1
        for d in range(min(depth, self.program.depth - 1), -1, -1):
            found = statement(node, d)
            if found and len(found.targets) == 1 and found.targets[0] != "_":
                return found.targets[0]
        return name_of(node)

    # what there is to write

    def _steps(self) -> list[Step]:
        made: list[Step] = []
        items = self.program.items
        skipped: set[fx.Node] = set()
        at = 0
        while at < len(items):
            item = items[at]
            conditional = self.classes.only_in_training(item, self.program)
            run = self._loop(at) if isinstance(item, Call) and not conditional else 1
            if run > 1:
                made.append(self._loop_step(items[at : at + run]))  # type: ignore[arg-type]
            elif isinstance(item, Call):
                made.append(self._call_step(item))
            elif item not in skipped:
                step = self._node_step(item, skipped)
                if step is not None:
                    made.append(step)
            at += run
        made.append(Step((), (), tuple(self.returned), "return"))
        return made

    def _node_step(self, node: fx.Node, skipped: set[fx.Node]) -> Step | None:
        reads = tuple(_reads(node))
        found = statement(node, self.program.depth)
        values = node.meta.get("val")
        users = list(node.users)
        results: tuple[fx.Node, ...] = (node,)
        if isinstance(values, tuple | list) and users and all(u.target is operator.getitem for u in users):
            numbers = [u.args[1] for u in users]
            if len(users) > 1 and len(set(map(str, numbers))) == len(numbers):
                by_number = {u.args[1]: u for u in users}
                results = tuple(by_number.get(i, node) for i in range(len(values)))
                skipped |= set(users)
        return Step((node,), results, reads, found.place if found else None, found.targets if found else ())

    def _call_step(self, item: Call) -> Step:
        first = next(item.nodes())
        found = statement(first, self.program.depth)
        reads = tuple(inputs(item, self.state))
        return Step(
            (item,), tuple(outputs(item)), reads, found.place if found else None, found.targets if found else ()
        )

    def _loop(self, at: int) -> int:
        """How many calls from here on are a loop over a list of modules, each on what the one before it gave."""
        items = self.program.items
        first = items[at]
        assert isinstance(first, Call)
        owner, _, number = first.path.rpartition(".")
        if not number.isdigit() or owner in self.classes.by_path:
            return 1
        run = 1
        while at + run < len(items):
            item, before = items[at + run], items[at + run - 1]
            if not isinstance(item, Call) or not isinstance(before, Call):
                break
            if item.path != f"{owner}.{int(number) + run}" or not self._alike(first, item):
                break
            if not self._carries(before, item, first if run > 1 else None):
                break
            run += 1
        if run > 1 and not self._closed(items[at : at + run]):  # type: ignore[arg-type]
            return 1
        return run

    def _alike(self, a: Call, b: Call) -> bool:
        known = self.classes.by_path
        if a.path in known and known[a.path] is known.get(b.path):
            return self.classes.method(a) == self.classes.method(b)
        return a.path not in known and b.path not in known and a.leaf is not None and b.leaf is not None

    def _carries(self, before: Call, item: Call, first: Call | None) -> bool:
        """Whether a call reads what the one before it gave, and else what that one read, at the same places."""
        old, new, made = inputs(before, self.state), inputs(item, self.state), outputs(before)
        if len(old) != len(new) or not made:
            return False
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a is not b]
        return bool(changed) and all(b in made for _, b in changed)

    def _closed(self, run: list[Call]) -> bool:
        """Whether only the last call's values are read after a loop, and places are carried alike all along."""
        inside = {n for c in run for n in c.nodes()}
        patterns = set()
        for before, item in itertools.pairwise(run):
            made = outputs(before)
            old, new = inputs(before, self.state), inputs(item, self.state)
            patterns.add(tuple(made.index(b) if a is not b else None for a, b in zip(old, new, strict=True)))
            if any(u not in inside for n in made for u in n.users):
                return False
        return len(patterns) == 1 and len({len(outputs(c)) for c in run}) == 1

    def _loop_step(self, run: list[Call]) -> Step:
        step = self._call_step(run[0])
        old, new, made = inputs(run[0], self.state), inputs(run[1], self.state), outputs(run[0])
        carried = tuple(a for a, b in zip(old, new, strict=True) if a is not b)
        order = [made.index(b) for a, b in zip(old, new, strict=True) if a is not b]
        last = outputs(run[-1])
        names = step.names if len(step.names) == len(last) else ()
        result = Step(tuple(run), tuple(last[i] for i in order), step.reads, None, names, carried)
        result.place = ("loop", run[0].path)
        return result

    def _find_sizes(self) -> None:
        """For every size of the data that an op is told, a value that has it: an argument, or what is made before."""
        known = list(self.inputs)
        for step in self.steps:
            for item in step.items:
                if isinstance(item, fx.Node):
                    for where, _ in literals(item):
                        formula = self.classes.of_literal(item, where)
                        if of_data(formula):
                            self._find_size(step, formula, known)
            known += [n for n in step.results if n.op != "placeholder"]

    def _find_size(self, step: Step, formula: Formula, known: list[fx.Node]) -> None:
        symbols = self.classes.solver.symbols
        wanted = [self.classes.vector(formula), *(symbols[s] for s in formula.symbols if s.startswith("data"))]
        for i, vector in enumerate(wanted):
            found = self.measured.get(vector) or self.classes.axis_of(vector, known)
            if found is not None:
                self.measured[vector] = found
                step.found[vector] = found
                step.sizes = (*step.sizes, found[0])
                step.measures = (*step.measures, found)
                if i == 0:
                    return

    def _unpacked(self) -> dict[fx.Node, dict[int, str]]:
        """Names for sizes of arguments that are read more than once."""
        counts = Counter(m for s in self.steps for m in s.measures if m[0] in self.inputs)
        found: dict[fx.Node, dict[int, str]] = {}
        taken = {*self.names, *(n for s in self.steps for n in s.names)}
        for (node, axis), count in counts.items():
            if count > 1:
                rank = node.meta["val"].dim()
                wish = (
                    ["batch", "length", "size"][min(axis, 2)]
                    if rank < 4
                    else ["batch", "channels", "height", "width"][min(axis, 3)]
                )
                name = distinct(wish, taken)
                taken.add(name)
                found.setdefault(node, {})[axis] = name
        return found

    def _name_results(self) -> None:
        """What the original calls the values that a statement of it makes, and others read."""
        places: dict[object, list[Step]] = {}
        for step in self.steps:
            if step.place is not None and step.names:
                places.setdefault(step.place, []).append(step)
        readers: dict[fx.Node, set[object]] = {}
        for step in self.steps:
            for n in step.reads:
                readers.setdefault(n, set()).add(step.place)
        for place, steps in places.items():
            made = [r for s in steps for r in s.results if readers.get(r, set()) - {place}]
            names = steps[0].names
            if len(made) == len(names):
                self.wish |= dict(zip(made, names, strict=True))
            elif len(names) == 1:
                self.wish |= dict.fromkeys(made, names[0])
            elif len(made) == 1:
                self.wish[made[0]] = names[0]

    # which values get a name

    def _inline(self) -> None:
        """Values that are read once, in the same statement of the original, stay inside it."""
        readers: dict[fx.Node, list[Step]] = {}
        for step in self.steps:
            for n in (*step.reads, *step.sizes):
                readers.setdefault(n, []).append(step)
        sizes = {id(s): 1 for s in self.steps}
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            if len(step.results) != 1 or len(step.items) != 1:
                continue
            reader = readers.get(step.results[0], [])
            if len(reader) != 1 or len(reader[0].items) > 1:
                continue
            target = reader[0]
            if self.segments.get(id(step)) != self.segments.get(id(target)):
                continue
            at = self.steps.index(target)
            between = self.steps[i + 1 : at]
            if any(self._end(b) is not self._end(target) for b in between):
                continue
            if self._together(step, target) and sizes[id(self._end(target))] < LARGEST:
                step.into = target
                sizes[id(self._end(target))] += 1

    def _live(self, step: Step) -> Iterator[fx.Node]:
        """Values that are read both before a step's own is made and after that."""
        at = self.steps.index(step)
        for n in dict.fromkeys(n for s in self.steps[at + 1 :] for n in (*s.reads, *s.sizes)):
            if n in self.inputs or any(n in s.results for s in self.steps[:at]):
                yield n

    def _end(self, step: Step) -> Step:
        while step.into is not None:
            step = step.into
        return step

    def _together(self, step: Step, target: Step) -> bool:
        if target.place == "return" or (step.place is not None and step.place == target.place):
            return True
        if self.wish.get(step.results[0]) in {self.wish.get(n) for n in self._live(step)}:
            return True  # the original's name is still needed for another value
        item = step.items[0]
        return isinstance(item, fx.Node) and (op_name(item) in SMALL or bool(item.meta.get("multiplier")))

    # statements

    def _statements(self, step: Step) -> Iterator[ast.stmt]:
        if step.place == "return":
            values = [self.operand(n) for n in self.returned]
            yield ast.Return(values[0] if len(values) == 1 else ast.Tuple(values))
        elif len(step.items) > 1:
            yield from self._loop_statements(step)
        else:
            value = self._expression(step)
            names = self._bind(step)
            if not names:
                yield ast.Expr(value)
                return
            targets: list[ast.expr] = [ast.Name(n) for n in names]
            yield assign(targets, value)

    def _bind(self, step: Step) -> list[str]:
        """Names for the results of a step; a name whose value is not read any more is taken again."""
        item = step.items[0]
        made: list[str] = []
        for node in step.results:
            if node in step.items and len(step.results) > 1:
                made.append("_")
                continue
            wish = self.wish.get(node, "_")
            if wish == "_":
                wish = (
                    item.path.rpartition(".")[2] if isinstance(item, Call) else NAMES.get(name_of(item), name_of(item))
                )
                wish = f"{wish}_output" if isinstance(item, Call) and not wish.isdigit() else wish
            name = identifier(wish, "x")
            name = self.forced.get(node) or distinct(name, [*self._busy(), *self.forced.values(), *made])
            made.append(name)
        for name, node in zip(made, step.results, strict=True):
            if name != "_":
                self.bound[name] = node
        return made

    def _busy(self) -> list[str]:
        """Names whose values are read later, and those of sizes."""
        sizes = [n for axes in self.unpacked.values() for n in axes.values()]
        return [*sizes, *(n for n, v in self.bound.items() if self.last_use.get(v, -1) > self.at)]

    def _loop_statements(self, step: Step) -> Iterator[ast.stmt]:
        run = step.items
        first = run[0]
        assert isinstance(first, Call)
        start = [self.operand(n) for n in step.carried]
        invariant = {id(n) for n in step.carried}
        arguments_ = list(inputs(first, self.state))
        fixed = {n: self.operand(n) for n in arguments_ if id(n) not in invariant}
        names = self._bind(step)
        for name, value in zip(names, start, strict=True):
            if not (isinstance(value, ast.Name) and value.id == name):
                yield assign([ast.Name(name)], value)
        by_node = dict(zip(step.carried, names, strict=True))
        args = [ast.Name(by_node[n]) if n in by_node else fixed[n] for n in arguments_]
        owner, _, number = first.path.rpartition(".")
        container = self._module(owner)
        total = len(self.classes.modules[owner]._modules)
        begin, end = int(number), int(number) + len(run)
        self.classes.loops.add((owner, begin, end))
        if (begin, end) != (0, total):
            lower = ast.Constant(begin) if begin else None
            upper = ast.Constant(end) if end != total else None
            container = ast.Subscript(container, ast.Slice(lower, upper))
        variable = distinct(_singular(owner.rpartition(".")[2]), self.bound)
        called: ast.expr = ast.Name(variable)
        known = self.classes.by_path.get(first.path)
        if known is not None and (method := self.classes.method(first)) != "forward":
            called = ast.Attribute(called, method)
        made = outputs(run[-1])  # type: ignore[arg-type]
        targets: list[ast.expr] = [
            ast.Name(names[step.results.index(n)]) if n in step.results else ast.Name("_") for n in made
        ]
        body = assign(targets, call(called, args))
        yield ast.For(ast.Name(variable), container, [body], [], lineno=0)

    # expressions

    def _expression(self, step: Step) -> ast.expr:
        outer, self.writing = self.writing, step
        try:
            return self._written(step)
        finally:
            self.writing = outer

    def _written(self, step: Step) -> ast.expr:
        item = step.items[0]
        if isinstance(item, Call):
            return self._call(item, step)
        if (multiplier := item.meta.get("multiplier")) is not None:
            value = self.operand(item.args[0])  # type: ignore[arg-type]
            return ast.BinOp(value, ast.Mult(), self._multiplier(multiplier))
        try:
            made = self.writer(item)
        except ExportError as error:
            raise error if error.where else ExportError(error.what, where=describe(item), todo=TODO) from None
        if (scaled := item.meta.get("scaled_by")) is not None:
            assert isinstance(made, ast.Call)
            self._scale(item, made, scaled)
        return made

    def _multiplier(self, name: str) -> ast.expr:
        """A factor of muP, which ``__init__`` takes from the configuration."""
        self.of.attributes[name] = name
        return parse(f"self.{name}")

    def _scale(self, node: fx.Node, made: ast.Call, multiplier: str) -> None:
        given = next((k for k in made.keywords if k.arg in ("scale", "alpha")), None)
        factor = self._multiplier(multiplier)
        if given is not None:
            given.value = ast.BinOp(given.value, ast.Mult(), factor)
        elif "scaled_dot" in op_name(node):
            query: Any = node.args[0]
            size = ast.BinOp(
                ast.Subscript(ast.Attribute(self.operand(query), "shape"), parse("-1")), ast.Pow(), parse("-0.5")
            )
            made.keywords.append(ast.keyword("scale", ast.BinOp(size, ast.Mult(), factor)))
        else:
            made.keywords.append(ast.keyword("alpha", factor))

    def _call(self, item: Call, step: Step) -> ast.expr:
        args = [self.operand(n) for n in inputs(item, self.state)]
        target = self._module(item.path)
        known = self.classes.by_path.get(item.path)
        if known is not None:
            which = self.classes.method(item)
            return call(target if which == "forward" else ast.Attribute(target, which), args)
        made: ast.expr = call(target, args)
        module = self.classes.modules[item.path]
        if isinstance(module, torch.nn.RNNBase):
            step.results = (step.results[0],) if step.results else ()
            made = ast.Subscript(made, ast.Constant(0))
        return made

    def _module(self, path: str) -> ast.expr:
        return reach(self.classes, path, self.program.path)

    def operand(self, node: fx.Node) -> ast.expr:
        """A value: its name, its expression where it is inside this statement, or the parameter."""
        if node in self.inner:
            return self._expression(self.inner[node])
        local = self.classes.local_name(node, self.program.path)
        tensor = self.classes.worlds.first.program.tensors.get(node.name)
        if tensor is not None and tensor.numel() <= 64:
            keywords = {"dtype": parse(str(tensor.dtype)), "device": self.device()}
            return call("torch.tensor", [listed(tensor.tolist())], keywords)
        if local is not None and tensor is None and not any(v is node for v in self.bound.values()):
            owner, _, name = local.rpartition(".")
            path = ".".join(p for p in (self.program.path, owner) if p)
            return attribute(self._module(path), name)
        for name, value in reversed(self.bound.items()):
            if value is node:
                return ast.Name(name)
        raise ExportError(f"the value of {node.name} is not known here")

    def literal(self, node: fx.Node, where: Path, value: Any) -> ast.expr:
        """A number or truth value of an op."""
        if isinstance(value, bool):
            return self._flag(node, where, value)
        place = ("op", self.index, self.program.items.index(node), op_name(node).split(".")[-1], where)
        if place in self.of.place:
            return parse(f"self.{self.of.place[place]}")
        formula = self.classes.of_literal(node, where)
        if isinstance(value, float) and value in (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max):
            end = "min" if value < 0 else "max"
            return parse(f"torch.finfo(_x).{end}", _x=self.dtype(node, where, torch.float32))
        return self.formula(formula)

    def formula(self, formula: Formula) -> ast.expr:
        """A formula in sizes of values in scope and of the configuration."""
        if of_data(formula):
            direct = self._size(self.classes.vector(formula))
            if direct is not None:
                return direct
        if formula.symbols and not of_data(formula) and formula.in_eval is None:
            return ast.Attribute(ast.Name("self"), self.classes.attribute_for(self.of, formula))
        return formula.to_ast(self.symbol)

    def symbol(self, name: str) -> ast.expr:
        """A size by its symbol."""
        if not name.startswith("data"):
            one = Formula((Term(Fraction(1), ((name, Fraction(1)),)),), True)
            return ast.Attribute(ast.Name("self"), self.classes.attribute_for(self.of, one))
        found = self._size(self.classes.solver.symbols[name])
        if found is None:
            raise ExportError(
                f"the size {self.classes.worlds.symbols[name]} of the data is needed where no value has it"
            )
        return found

    def _size(self, vector: tuple[Any, ...]) -> ast.expr | None:
        """The axis of a value in scope that has this size in all captures."""
        if vector not in self.writing.found:
            return None
        node, axis = self.writing.found[vector]
        if axis in self.unpacked.get(node, {}):
            return ast.Name(self.unpacked[node][axis])
        return ast.Subscript(ast.Attribute(self.operand(node), "shape"), ast.Constant(axis))

    def _flag(self, node: fx.Node, where: Path, value: bool) -> ast.expr:
        ev = self.classes.worlds.evaluation
        if ev is not None and node in ev.at:
            other: Any = ev.at[node].args if where[0] == "args" else ev.at[node].kwargs
            for key in where[1:]:
                other = other[key]
            if value and other is False:
                return parse("self.training")
        return ast.Constant(value)

    def dtype(self, node: fx.Node, where: Path, value: torch.dtype) -> ast.expr:
        """A dtype: as it is, or that of a value in scope where it follows the model's."""
        half = self.classes.worlds.half
        if half is None or node not in half.at or not value.is_floating_point:
            return parse(str(value))
        other: Any = half.at[node].args if where[0] == "args" else half.at[node].kwargs
        for key in where[1:]:
            other = other[key]
        if other == value or not isinstance(other, torch.dtype):
            return parse(str(value))
        for name, bound in self.bound.items():
            if dtypes(bound, half) == (value, other):
                return ast.Attribute(ast.Name(name), "dtype")
        return ast.Attribute(self._some_state(), "dtype")

    def device(self) -> ast.expr:
        """A device that tensors here are on."""
        for name, node in self.bound.items():
            if isinstance(node.meta.get("val"), torch.Tensor):
                return ast.Attribute(ast.Name(name), "device")
        return ast.Attribute(self._some_state(), "device")

    def _some_state(self) -> ast.expr:
        own = self.classes.modules[self.program.path]
        return parse("next(self.parameters())" if any(True for _ in own.parameters()) else "next(self.buffers())")


NAMES = {
    "scaled_dot_product_attention": "attended",
    "getitem": "part",
    "linear": "projected",
    "view": "x",
    "reshape": "x",
}
SMALL = frozenset(f"aten.{n}" for n in "unsqueeze arange".split())


def _reads(node: fx.Node) -> Iterator[fx.Node]:
    """Values that an op reads, each as often as it does."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n))
    return iter(found)


def _singular(name: str) -> str:
    name = identifier(name, "block")
    if name.endswith("ies"):
        return name[:-3] + "y"
    return name[:-1] if name.endswith("s") and len(name) > 2 else "block" if len(name) < 3 else f"each_{name}"
