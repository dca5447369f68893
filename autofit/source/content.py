"""A module's ``__init__``: what it holds, made again from the configuration."""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from autofit.errors import ExportError
from autofit.source.buffers import Origin, by_bytes, by_formula, by_one, function, is_equal, run
from autofit.source.calls import components, constructor_arguments, shortest
from autofit.source.classes import CONTAINERS, Class, Classes
from autofit.source.names import distinct, identifier
from autofit.source.numbers import Formula
from autofit.source.ops import Path
from autofit.source.syntax import assign, call, doc, method, parse


def reach(classes: Classes, path: str, start: str = "") -> ast.expr:
    """``self.layers[0].attention`` for a module below another."""
    made: ast.expr = ast.Name("self")
    at = start
    relative = path[len(start) + 1 :] if start else path
    for part in relative.split(".") if relative else ():
        owner, written = classes.modules[at], at in classes.by_path
        at = f"{at}.{part}" if at else part
        made = attribute(made, part) if written else member(made, owner, part)
    return made


def member(owner: ast.expr, module: nn.Module, name: str) -> ast.expr:
    """A module in another: ``self.layers[0]``, ``self.norm``, or by its name where that is none in Python."""
    if isinstance(module, nn.ModuleList | nn.Sequential) and name.isdigit():
        return ast.Subscript(owner, ast.Constant(int(name)))
    if isinstance(module, nn.ModuleDict):
        return ast.Subscript(owner, ast.Constant(name))
    return attribute(owner, name)


def attribute(owner: ast.expr, name: str) -> ast.expr:
    """An attribute by its name, whatever that is."""
    return ast.Attribute(owner, name) if attribute_is_safe(name) else call("getattr", [owner, ast.Constant(name)])


def attribute_is_safe(name: str) -> bool:
    """Whether a name can be written behind a dot, and means the attribute there."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


class Content:
    """Writes one ``__init__``."""

    def __init__(self, classes: Classes, of: Class, stacks: dict[str, str]) -> None:
        self.classes, self.of, self.stacks = classes, of, stacks
        self.path = of.paths[0]
        self.uses_config = False

    def write(self) -> ast.FunctionDef:
        """The method; forward's own numbers have to be known."""
        body = [*self._held(ast.Name("self"), self.path, self.classes.modules[self.path], ())]
        if self.path == "":
            body += self._ties()
        head: list[ast.stmt] = [ast.Expr(parse("super().__init__()"))]
        read = {a for p, a in self.of.place.items() if p[0] == "op"}
        head += [ast.parse(f"self.{a} = {a}").body[0] for a in self.of.arguments if a in read]
        for name, formula in self.of.attributes.items():
            value = parse(f"config.{formula}") if isinstance(formula, str) else formula.to_ast(self._symbol)
            self.uses_config |= isinstance(formula, str)
            head.append(assign([ast.Attribute(ast.Name("self"), name)], value))
        self.of.configured |= self.uses_config or self.of.is_root
        if self.of.is_root:
            head.insert(1, ast.parse(f"self.{self.classes.config} = config").body[0])
        args = [ast.arg("config", ast.Name("Config"))] if self.of.configured else []
        for name, values in self.of.arguments.items():
            args.append(ast.arg(name, ast.Name("int" if next(iter(values.values())).whole else "float")))
        return method("__init__", args, [*head, *body], ast.Constant(None))

    def _ties(self) -> Iterator[ast.stmt]:
        """Parameters under several names."""
        for p in self.classes.worlds.first.program.parameters:
            for name in p.names[1:]:
                owner, _, own = name.rpartition(".")
                target, source = reach(self.classes, owner), reach(self.classes, p.names[0].rpartition(".")[0])
                value = attribute(source, p.names[0].rpartition(".")[2])
                yield self._assign(target, own, value, "register_parameter")

    def formula(self, place: tuple[Any, ...], formula: Formula) -> ast.expr:
        """A number of this class: an argument where modules differ, else a formula in the configuration."""
        if place in self.of.place:
            return ast.Name(self.of.place[place])
        return formula.to_ast(self._symbol)

    def _symbol(self, name: str) -> ast.expr:
        if name.startswith("data"):
            raise ExportError("a size of the data is built into a parameter")
        self.uses_config = True
        return parse(f"config.{identifier(name)}")

    def _held(self, owner: ast.expr, path: str, module: nn.Module, above: tuple[str, ...]) -> Iterator[ast.stmt]:
        for name, p in module._parameters.items():
            if p is None:
                yield self._register(owner, "register_parameter", name, ast.Constant(None))
                continue
            shape = [
                self.formula(("shape", above, name, a), self.classes.of_shape(path, name, a)) for a in range(p.dim())
            ]
            value = call("nn.Parameter", [call("torch.empty", shape if shape else [ast.Tuple([])])])
            if not p.requires_grad:
                value.keywords.append(ast.keyword("requires_grad", ast.Constant(False)))
            yield self._assign(owner, name, value, "register_parameter")
        for name, b in module._buffers.items():
            if b is not None and self.classes.buffer(path, name) is not None:
                content = self._buffer(path, name, above)
                made = call(ast.Attribute(owner, "register_buffer"), [ast.Constant(name), content])
                if name in module._non_persistent_buffers_set:
                    made.keywords.append(ast.keyword("persistent", ast.Constant(False)))
                yield ast.Expr(made)
        for name, child in module._modules.items():
            if child is not None:
                yield from self._child(owner, f"{path}.{name}" if path else name, name, child, above)

    def _child(
        self, owner: ast.expr, path: str, name: str, child: nn.Module, above: tuple[str, ...]
    ) -> Iterator[ast.stmt]:
        made = self._made(path, child, (*above, name))
        if made is not None:
            if self._needed(path, child):
                yield self._assign(owner, name, made, "add_module")
            return
        if not self._needed(path, child):
            return
        numbered = isinstance(child, nn.ModuleDict) or all(n.isdigit() for n in child._modules)
        if isinstance(child, CONTAINERS) and numbered and path not in self.classes.calls:
            yield from self._partly(owner, path, name, child, above)
            return
        yield self._assign(owner, name, parse("nn.Module()"), "add_module")
        inner = ast.Attribute(owner, name) if attribute_is_safe(name) else call("getattr", [owner, ast.Constant(name)])
        yield from self._held(inner, path, child, (*above, name))

    def _needed(self, path: str, module: nn.Module) -> bool:
        """Whether forward calls a module or one in it, or these hold anything."""
        called = any(p == path or p.startswith(f"{path}.") for p in self.classes.calls)
        return called or any(True for _ in module.parameters()) or any(True for _ in module.buffers())

    def _partly(
        self, owner: ast.expr, path: str, name: str, container: nn.Module, above: tuple[str, ...]
    ) -> Iterator[ast.stmt]:
        """A list of modules of which forward runs some: the others hold what they held."""
        inner = {n: m for n, m in container._modules.items() if m is not None}
        parts = {n: self._made(f"{path}.{n}", m, (*above, name, n)) for n, m in inner.items()}
        filled = [part or parse("nn.Module()") for part in parts.values()]
        keyed = isinstance(container, nn.ModuleDict)
        content = ast.Dict([ast.Constant(n) for n in parts], filled) if keyed else ast.List(filled)
        kind = "nn.ModuleDict" if keyed else "nn.ModuleList"
        yield self._assign(owner, name, call(kind, [content]), "add_module")
        for n, part in parts.items():
            if part is None:
                place = member(attribute(owner, name), container, n)
                yield from self._held(place, f"{path}.{n}", inner[n], (*above, name, n))

    def _made(self, path: str, module: nn.Module, above: tuple[str, ...]) -> ast.expr | None:
        """A module as an expression, if one makes it."""
        known = self.classes.by_path.get(path)
        if known is not None:
            args: list[ast.expr] = [ast.Name("config")] if known.configured else []
            self.uses_config |= known.configured
            for argument, values in known.arguments.items():
                args.append(self.formula(("argument", above, argument), values[path]))
            return call(known.name, args)
        leaf = self.classes.leaf(path)
        if leaf is not None:
            given: dict[str, ast.expr] = {}
            for key, value in leaf.settings.items():
                places = [("setting", above, key, part) for part in components(value)]
                told = shortest(value) if leaf.brief else value
                if told == leaf.defaults.get(key, _REQUIRED) and not any(p in self.of.place for p in places):
                    continue
                each = [self.formula(p, self.classes.of_setting(path, key, p[-1])) for p in places]
                same = len({*map(ast.unparse, each)}) == 1 and (leaf.brief or not isinstance(value, tuple))
                if each:
                    given[key] = each[0] if same else ast.Tuple(each)
                else:
                    given[key] = ast.parse(repr(value), mode="eval").body
            return _call_of(type(module), given)
        if isinstance(module, CONTAINERS):
            parts = {n: self._made(f"{path}.{n}", m, (*above, n)) for n, m in module._modules.items() if m is not None}
            if any(p is None for p in parts.values()):
                return None
            if isinstance(module, nn.ModuleDict):
                return call("nn.ModuleDict", [ast.Dict([ast.Constant(n) for n in parts], list(parts.values()))])  # type: ignore[arg-type]
            listed = self._list(path, [p for p in parts.values() if p is not None])
            if type(module) is nn.ModuleList:
                return call("nn.ModuleList", [listed])
            if type(module) is nn.Sequential and list(parts) == [str(i) for i in range(len(parts))]:
                return call("nn.Sequential", listed.elts if isinstance(listed, ast.List) else [ast.Starred(listed)])
        return None

    def _list(self, path: str, parts: list[ast.expr]) -> ast.expr:
        """Equal modules as a comprehension, as long as the configuration says."""
        texts = [ast.unparse(p) for p in parts]
        runs: list[tuple[int, int]] = []
        for i, text in enumerate(texts):
            if runs and texts[runs[-1][0]] == text:
                runs[-1] = runs[-1][0], i + 1
            else:
                runs.append((i, i + 1))
        longest = max(runs, key=lambda r: r[1] - r[0], default=(0, 0))
        if longest[1] - longest[0] < 2:
            return ast.List(parts)
        field = self.stacks.get(path)
        made: list[ast.expr] = []
        for a, b in runs:
            if b - a == 1:
                made.append(parts[a])
                continue
            count: ast.expr = ast.Constant(b - a)
            looped = (path, a, b) in self.classes.loops or self.classes.is_chain(path)
            if (a, b) == longest and field is not None and looped:
                self.classes.deep.add(field)
                rest = len(parts) - (b - a)
                count = self._symbol(field)
                count = ast.BinOp(count, ast.Sub(), ast.Constant(rest)) if rest else count
            body = ast.comprehension(ast.Name("_"), call("range", [count]), [], 0)
            made.append(ast.ListComp(parts[a], [body]))
        if len(made) == 1:
            return made[0]
        return ast.List([ast.Starred(m) if isinstance(m, ast.ListComp) else m for m in made])

    def _assign(self, owner: ast.expr, name: str, value: ast.expr, register: str) -> ast.stmt:
        if attribute_is_safe(name) and not hasattr(nn.Module, name):
            return assign([ast.Attribute(owner, name)], value)
        return self._register(owner, register, name, value)

    def _register(self, owner: ast.expr, register: str, name: str, value: ast.expr) -> ast.stmt:
        return ast.Expr(call(ast.Attribute(owner, register), [ast.Constant(name), value]))

    def _buffer(self, path: str, name: str, above: tuple[str, ...]) -> ast.expr:
        """What gives a buffer its values: a formula, a function of this file, or the values themselves."""
        full = f"{path}.{name}" if path else name
        mine = self.classes.buffers(full)
        if mine.origin is not None:
            return self._function(path, name, above)
        shape = [
            self.formula(("shape", above, name, a), self.classes.of_shape(path, name, a))
            for a in range(mine.value.dim())
        ]
        formula = by_formula(mine.value, shape)
        if formula is not None:
            return formula
        inner = path[len(self.path) :]
        others = (self.classes.buffers(f"{p}{inner}.{name}".lstrip(".")).value for p in self.of.paths[1:])
        if all(is_equal(v, mine.value) for v in others):
            if (one := by_one(mine.value)) is not None:
                return one
            if (body := by_bytes(mine.value)) is not None:
                self.classes.packed.append(full)
                return call(self._own_function(name, body, {}).name, [])
        if name not in self.classes.modules[path]._non_persistent_buffers_set:
            self.classes.loaded.append(full)
            return call("torch.full", [ast.Tuple(shape), parse("float('nan')")])
        raise ExportError(f"how the buffer {full} comes about is not known")

    def _function(self, path: str, name: str, above: tuple[str, ...]) -> ast.expr:
        """A call of a function of this file that does what the original's constructor did."""
        classes = self.classes
        full = f"{path}.{name}" if path else name
        origin = classes.buffers(full).origin
        assert origin is not None
        numbers = {(i, where): values for i, where, values in origin.numbers()}

        def formula(i: int, where: Path) -> Formula | str:
            given = self.of.place.get(("made", above, name, i, where))
            return given or classes.solved(numbers[i, where], full)

        body, args = function(origin, formula)
        own = self._own_function(name, body, {a: kind for a, (_, kind, _) in args.items()})
        self._check(own, origin, args, path, name)
        given = [self._symbol(n) if is_size else ast.Name(n) for n, _, is_size in args.values()]
        return call(own.name, given)

    def _own_function(self, name: str, body: list[ast.stmt], args: Mapping[str, type]) -> ast.FunctionDef:
        """A function of the file that makes a buffer; one for all that are made alike."""
        classes = self.classes
        made = ast.parse("def _() -> torch.Tensor: pass").body[0]
        assert isinstance(made, ast.FunctionDef)
        made.body = [doc(f"Values of the buffer {identifier(name)}."), *body]
        made.args.args = [ast.arg(a, ast.Name(kind.__name__)) for a, kind in args.items()]
        key = ast.dump(made)
        if key not in classes.functions:
            made.name = distinct(f"make_{identifier(name)}", classes.taken)
            classes.taken.add(made.name)
            classes.functions[key] = made
        return classes.functions[key]

    def _check(
        self, own: ast.FunctionDef, origin: Origin, args: Mapping[str, tuple[str, type, bool]], path: str, name: str
    ) -> None:
        """Run a function for every module of this class, at all sizes."""
        classes, inner = self.classes, path[len(self.path) :]
        made = run(own)
        for other in self.of.paths:
            full = f"{other}{inner}.{name}".lstrip(".")
            wanted = classes.buffers(full).origin
            assert wanted is not None
            for i, value in enumerate(wanted.values):
                sizes = {s: float(v[i] or 0) for s, v in classes.solver.symbols.items()}
                given = [
                    int(sizes[n]) if is_size else self.of.arguments[n][other](sizes) for n, _, is_size in args.values()
                ]
                if not is_equal(made(*given), value):
                    raise ExportError(f"how the buffer {full} comes about is not known")


_REQUIRED = object()


def _call_of(cls: type[nn.Module], settings: dict[str, ast.expr]) -> ast.expr:
    """A module of torch: its first arguments by position."""
    positional: list[ast.expr] = []
    for name, parameter in constructor_arguments(cls).items():
        if name not in settings or (parameter.default is not parameter.empty and positional):
            break
        positional.append(settings.pop(name))
    return call(f"nn.{cls.__name__}", positional, settings)
