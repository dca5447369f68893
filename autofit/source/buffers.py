"""How buffers get their values: known formulas, and else the ops that the constructor of the model ran."""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree

from autofit.deferred import Recipe, Step, View, record
from autofit.source.names import distinct, identifier
from autofit.source.numbers import Formula, listed, number
from autofit.source.ops import Path, Scope, Writer, argument, is_number, literals, name_of
from autofit.source.syntax import assign, call, parse

LISTED = 64
"""Largest number of values that are written one by one."""
PACKED = 2**16
"""Largest number of characters that values are packed into."""
LARGEST = 6
"""Ops in one statement."""
MEMORY = 2**28
"""Parameters up to which a model is built once more with values, where without them its constructor is not seen."""


@dataclass(frozen=True)
class Origin:
    """The ops that give a buffer its values.

    Attributes:
        nodes: them, in order.
        result: the value.
        others: the same ops in the captures of other sizes.
        values: the values in all captures.
    """

    nodes: tuple[fx.Node, ...]
    result: fx.Node
    others: tuple[tuple[fx.Node, ...], ...]
    values: tuple[torch.Tensor, ...]

    @property
    def skeleton(self) -> tuple[Any, ...]:
        """Equal for the same ops with other numbers."""
        at = {n: i for i, n in enumerate(self.nodes)}

        def seen(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return at.get(value, repr(value.meta["val"]))
            return None if is_number(value) else repr(value)

        return tuple((str(n.target), repr(_pytree.tree_map(seen, (n.args, dict(n.kwargs))))) for n in self.nodes)

    def numbers(self) -> Iterator[tuple[int, Path, tuple[Any, ...]]]:
        """Numbers that the ops take: of which op, where, and in all captures."""
        for i, node in enumerate(self.nodes):
            for where, value in literals(node):
                yield i, where, (value, *(argument(o[i], where) for o in self.others))


@dataclass(frozen=True)
class Buffer:
    """What is known of a buffer.

    Attributes:
        value: of the model that is exported.
        text: of its formula, if `by_formula` has one, with names for the sizes.
        origin: what the constructor did, where no formula is known.
    """

    value: torch.Tensor
    text: str | None
    origin: Origin | None

    @property
    def skeleton(self) -> Any:
        """Equal for buffers that are made alike; where that is not known, of equal values."""
        if self.text is not None or self.value.is_meta:
            return self.text
        return hashlib.sha256(_bytes(self.value)).hexdigest() if self.origin is None else self.origin.skeleton


class Buffers:
    """The buffers of a model."""

    def __init__(self, values: Mapping[str, torch.Tensor], models: Sequence[nn.Module]) -> None:
        """What is known of the buffers.

        Args:
            values: by name; those on ``meta`` have none.
            models: of the captures, that of the first first; one that stands twice is built once.
        """
        self.values, self.models = values, models
        self._recipes: dict[str, list[Recipe] | None] = {}
        self._found: dict[str, Buffer] = {}

    def __call__(self, name: str) -> Buffer:
        """A buffer by its full name."""
        if name not in self._found:
            value = self.values[name]
            made = by_formula(value, [ast.Name(f"size_{i}") for i in range(value.dim())])
            text = None if made is None else ast.unparse(made)
            self._found[name] = Buffer(value, text, self._origin(name, value) if made is None else None)
        return self._found[name]

    def _origin(self, name: str, value: torch.Tensor) -> Origin | None:
        """The ops that give a buffer its values bit for bit."""
        for device in ("meta", "cpu"):
            recipes = self._of(device)
            if recipes is None:
                continue
            traces = [_trace(found) if (found := r.steps(name)) is not None else None for r in recipes]
            (nodes, result), *others = (t or ((), None) for t in traces)
            if result is None or not nodes or any(list(map(_brief, o)) != list(map(_brief, nodes)) for o, _ in others):
                continue
            values = [r.draw(name, torch.device("cpu"), 0) for r in recipes]
            if is_equal(values[0], value):
                return Origin(nodes, result, tuple(o for o, _ in others), tuple(values))
        return None

    def _of(self, device: str) -> list[Recipe] | None:
        if device not in self._recipes:
            self._recipes[device] = self._record(device)
        return self._recipes[device]

    def _record(self, device: str) -> list[Recipe] | None:
        first = self.models[0]
        if not hasattr(first, "config"):
            return None
        if device == "cpu" and sum(p.numel() for p in first.parameters()) > MEMORY:
            return None
        found: dict[int, Recipe] = {}
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                for m in self.models:
                    if id(m) not in found:
                        found[id(m)] = record(lambda m=m: type(m)(copy.deepcopy(m.config)), device)  # type: ignore[misc]
        except Exception:  # another library's constructor: the buffer stays unknown, which is said
            return None
        return [found[id(m)] for m in self.models]


def run(made: ast.FunctionDef) -> Callable[..., torch.Tensor]:
    """A function from its syntax tree."""
    scope: dict[str, Any] = {"torch": torch, "F": F}
    module = ast.fix_missing_locations(ast.Module([made], []))
    exec(compile(ast.parse(ast.unparse(module)), "<buffer>", "exec"), scope)
    result: Callable[..., torch.Tensor] = scope[made.name]
    return result


def is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are bit for bit the same, as far as they have values."""
    if a.is_meta or b.is_meta:
        return (a.dtype, a.shape) == (b.dtype, b.shape)
    return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _brief(node: fx.Node) -> str:
    return str(node.target)


def _trace(found: tuple[list[Step], View]) -> tuple[tuple[fx.Node, ...], fx.Node] | None:
    """Recorded ops as nodes; ``None`` where a value is none of theirs, or drawn."""
    steps, target = found
    graph = fx.Graph()
    known: dict[View, fx.Node] = {}

    def node_of(view: View) -> fx.Node:
        if view not in known:
            if view.value is None or view.value.numel() > LISTED:
                raise LookupError
            known[view] = graph.get_attr("constant")
            known[view].meta["val"] = view.value
        return known[view]

    try:
        for step in steps:
            views = [v for v in _pytree.tree_leaves(step.result) if isinstance(v, View)]
            if not isinstance(step.func, torch._ops.OpOverload):
                return None
            same = not step.func._schema.is_mutable and views and all(v in known for v in views)
            if same or (str(step.func) == "aten.copy_.default" and step.args[0] == step.args[1]):
                continue  # what is there already
            if torch.Tag.nondeterministic_seeded in step.func.tags or not isinstance(step.result, View):
                return None
            func, given = step.func, step.args
            if func is torch.ops.aten.fill_.Tensor and given[1].value is not None:
                func, given = torch.ops.aten.fill_.Scalar, (given[0], given[1].value.item())
            args, kwargs = _pytree.tree_map_only(View, node_of, (given, step.kwargs))
            made = graph.call_function(func, args, kwargs)
            made.meta["val"] = torch.empty(step.result.size, dtype=step.result.dtype, device="meta")
            known.setdefault(step.result, made)
        return tuple(n for n in graph.nodes if n.op == "call_function"), node_of(target)
    except LookupError:
        return None


def function(
    origin: Origin, formula: Callable[[int, Path], Formula | str]
) -> tuple[list[ast.stmt], dict[str, tuple[str, type, bool]]]:
    """A function that gives a buffer its values.

    Args:
        origin: what it does.
        formula: of a number, by its op and place; a string is a parameter of that name.

    Returns:
        The body, and by the names of the function's arguments what they are: the name of a number, its type, and
        whether it is a size of the configuration.
    """
    numbering = {n: i for i, n in enumerate(origin.nodes)}
    names: dict[fx.Node, str] = {}
    inner = _inner(origin)
    found = {(i, where): formula(i, where) for i, where, _ in origin.numbers()}
    args: dict[str, tuple[str, type, bool]] = {}
    for (i, where), given in found.items():
        if isinstance(given, str):
            args[given] = given, type(argument(origin.nodes[i], where)), False
    sizes = {s: distinct(identifier(s), args) for f in found.values() if isinstance(f, Formula) for s in f.symbols}
    args |= {name: (size, int, True) for size, name in sizes.items()}

    def literal(node: fx.Node, where: Path, value: Any) -> ast.expr:
        if isinstance(value, bool):
            return ast.Constant(value)
        made = found[numbering[node], where]
        return ast.Name(made) if isinstance(made, str) else made.to_ast(lambda s: ast.Name(sizes[s]))

    def operand(node: fx.Node) -> ast.expr:
        if node.op == "get_attr":
            value = node.meta["val"]
            return call("torch.tensor", [listed(value.tolist())], {"dtype": parse(str(value.dtype))})
        return writer(node) if node in inner else ast.Name(names[node])

    writer = Writer(Scope(operand, literal, lambda _n, _w, dtype: parse(str(dtype)), lambda: None))
    body: list[ast.stmt] = []
    for node in origin.nodes:
        if node in inner:
            continue
        if _writes(node):
            body.append(ast.Expr(writer.in_place(node)))
            continue
        value = writer(node)
        if node is origin.nodes[-1]:
            body.append(ast.Return(value))
        else:
            names[node] = distinct(identifier(name_of(node), "x"), [*names.values(), *args])
            body.append(assign([ast.Name(names[node])], value))
    if not isinstance(body[-1], ast.Return):
        body.append(ast.Return(operand(origin.result)))
    read = {n.id for stmt in body for n in ast.walk(stmt) if isinstance(n, ast.Name)}
    return body, {name: each for name, each in args.items() if name in read}


def _writes(node: fx.Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target._schema.is_mutable


def _inner(origin: Origin) -> set[fx.Node]:
    """Values that are read once, with no op between that writes."""
    found: set[fx.Node] = set()
    sizes = dict.fromkeys(origin.nodes, 1)
    at = {n: i for i, n in enumerate(origin.nodes)}
    writes = [i for i, n in enumerate(origin.nodes) if _writes(n)]
    end: dict[fx.Node, fx.Node] = {}
    for node in reversed(origin.nodes):
        end[node] = node
        reads = [u for u in node.users for i in u.all_input_nodes if i is node]
        if node is origin.result or at[node] in writes or len(reads) != 1:
            continue
        last = end[reads[0]]
        if sizes[last] < LARGEST and not any(at[node] < w < at[last] for w in writes):
            found.add(node)
            end[node] = last
            sizes[last] += 1
    return found


def by_formula(value: torch.Tensor, shape: list[ast.expr]) -> ast.expr | None:
    """An expression for the values of a buffer, checked against them bit for bit; ``None`` where none is known."""
    if value.is_meta:
        return None
    dims: list[ast.expr] = shape or [ast.Tuple([])]
    dtype = {} if value.dtype == torch.float32 else {"dtype": parse(str(value.dtype))}
    if value.numel() and bool((value == value.flatten()[0]).all()):
        first = value.flatten()[0].item()
        if first in (0, 1):
            return call(f"torch.{'zeros' if first == 0 else 'ones'}", dims, dict(dtype))
        return call("torch.full", [ast.Tuple(shape), number(first)], dict(dtype))
    if value.dim() and value.dtype == torch.int64:
        steps = torch.arange(value.shape[-1])
        if torch.equal(value, steps.expand_as(value)):
            plain = call("torch.arange", [shape[-1]])
            return plain if value.dim() == 1 else call(ast.Attribute(plain, "expand"), shape)
    if value.dim() >= 2 and value.dtype == torch.bool and value.shape[-1] == value.shape[-2]:
        n = value.shape[-1]
        if torch.equal(value, torch.ones(n, n, dtype=torch.bool).tril().expand_as(value)):
            return parse("torch.ones(*_s, dtype=torch.bool).tril()", _s=ast.Tuple(shape))
    if value.dim() == 1 and value.dtype == torch.float32 and len(value) > 1:
        n = 2 * len(value)
        guess = float(value[1] / value[0]) ** (-n / 2)
        for theta in {round(guess), float(f"{guess:.3g}"), float(f"{guess:.2g}"), float(f"{guess:.1g}")}:
            if theta > 0 and torch.equal(value, 1.0 / (float(theta) ** (torch.arange(0, n, 2).float() / n))):
                size = ast.BinOp(ast.Constant(2), ast.Mult(), shape[0])
                return parse(
                    "1.0 / _t ** (torch.arange(0, _n, 2).float() / _n)",
                    _t=number(float(theta)),
                    _n=_twice(shape[0], size),
                )
    return None


def by_one(value: torch.Tensor) -> ast.expr | None:
    """A buffer with its values written one by one, if they are few."""
    if value.is_meta or value.numel() > LISTED:
        return None
    dtype = {} if value.dtype == torch.float32 else {"dtype": parse(str(value.dtype))}
    return call("torch.tensor", [listed(value.tolist())], dtype)


def by_bytes(value: torch.Tensor) -> list[ast.stmt] | None:
    """The body of a function that has a buffer's values as packed bytes; ``None`` where these are too many."""
    if value.is_meta:
        return None
    packed = base64.b85encode(zlib.compress(_bytes(value), 9)).decode()
    if len(packed) > PACKED:
        return None
    lines = ast.List([ast.Constant(packed[i : i + 100]) for i in range(0, len(packed), 100)])
    raw = parse("bytearray(zlib.decompress(base64.b85decode(''.join(_lines))))", _lines=lines)
    dtype, shape = parse(str(value.dtype)), ast.Tuple([ast.Constant(n) for n in value.shape])
    made = parse("torch.frombuffer(_raw, dtype=_dtype).reshape(_shape)", _raw=raw, _dtype=dtype, _shape=shape)
    return [ast.Return(made)]


def _bytes(value: torch.Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().flatten()
    made: bytes = flat.view(torch.uint8).numpy().tobytes()
    return made


def _twice(half: ast.expr, size: ast.expr) -> ast.expr:
    """``n`` where a half is ``n // 2``."""
    if isinstance(half, ast.BinOp) and isinstance(half.op, ast.FloorDiv) and ast.unparse(half.right) == "2":
        return half.left
    return size
