"""ATen ops as a person writes them: operators, tensor methods, ``F.`` and ``torch.`` functions."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from autofit.errors import ExportError
from autofit.program import op_name
from autofit.source.syntax import call, parse

Path = tuple[Any, ...]
"""Where an argument is: ``("args", 1, 0)`` or ``("kwargs", "scale")``."""


BINARY: dict[str, type[ast.operator]] = {
    "add": ast.Add,
    "sub": ast.Sub,
    "mul": ast.Mult,
    "div": ast.Div,
    "true_divide": ast.Div,
    "matmul": ast.MatMult,
    "floor_divide": ast.FloorDiv,
    "remainder": ast.Mod,
    "bitwise_and": ast.BitAnd,
    "bitwise_or": ast.BitOr,
    "bitwise_xor": ast.BitXor,
    "__and__": ast.BitAnd,
    "__or__": ast.BitOr,
    "__xor__": ast.BitXor,
}
COMPARE: dict[str, type[ast.cmpop]] = {
    "eq": ast.Eq,
    "ne": ast.NotEq,
    "lt": ast.Lt,
    "le": ast.LtE,
    "gt": ast.Gt,
    "ge": ast.GtE,
}
SWAPPED = {"embedding": ("indices", "weight")}
"""Ops whose function in ``F`` has its operands in another order."""
CREATING = frozenset(
    "arange zeros ones full empty eye linspace logspace scalar_tensor randn rand randint tril_indices triu_indices "
    "hann_window".split()
)
FUNCTIONS = frozenset("addmm baddbmm addbmm addmv bmm mm where outer cross isin meshgrid".split())
"""Ops that read better as functions than as methods."""
SIZED = frozenset("view reshape expand permute repeat".split())
"""Methods that take a list of numbers as arguments."""
FAMILIES = frozenset({"linalg", "fft", "special"})
"""Modules of torch whose functions have their name before them as ops."""
SKIPPED = frozenset({"layout", "pin_memory", "device", "cudnn_enable", "cudnn_enabled", "implicit", "non_blocking"})
UNSAFE = {
    "_unsafe_view": "reshape",
    "_softmax": "softmax",
    "split_with_sizes": "split",
    "_to_copy": "to",
    "_upsample_bilinear2d_aa": "upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa": "upsample_bicubic2d_aa",
    "_upsample_nearest_exact1d": "upsample_nearest_exact1d",
    "_upsample_nearest_exact2d": "upsample_nearest_exact2d",
}


@dataclass
class Scope:
    """What an op's source needs to know of where it stands.

    Attributes:
        operand: expression of a value.
        literal: expression of a number, given its node and place.
        dtype: expression of a dtype, given the node and the argument's name.
        device: expression of a device that tensors here are on; ``None`` where it is that by default.
    """

    operand: Callable[[fx.Node], ast.expr]
    literal: Callable[[fx.Node, Path, Any], ast.expr]
    dtype: Callable[[fx.Node, Path, torch.dtype], ast.expr]
    device: Callable[[], ast.expr | None]


def name_of(node: fx.Node) -> str:
    """Name of an op as it is called in Python."""
    name = op_name(node).removeprefix("aten.")
    return UNSAFE.get(name, name)


def argument(node: fx.Node, where: Path) -> Any:
    """An argument of an op by its place, ``None`` where it is not given."""
    value: Any = node.args if where[0] == "args" else node.kwargs
    for key in where[1:]:
        try:
            value = value[key]
        except (IndexError, KeyError, TypeError):
            return None
    return value


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def literals(node: fx.Node) -> Iterator[tuple[Path, Any]]:
    """Numbers that an op takes, with their places."""

    def walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if isinstance(value, list | tuple):
            for i, v in enumerate(value):
                yield from walk(v, (*path, i))
        elif is_number(value):
            yield path, value

    for i, a in enumerate(node.args):
        yield from walk(a, ("args", i))
    for k, a in node.kwargs.items():
        yield from walk(a, ("kwargs", k))


def overload_is(node: fx.Node, *names: str) -> bool:
    """Whether an op's overload has one of these names."""
    return getattr(node.target, "_overloadname", "") in names


class Writer:
    """The source of single ops."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.raw: list[fx.Node] = []

    def __call__(self, node: fx.Node) -> ast.expr:
        """An expression that computes a node.

        Raises:
            ExportError: an op of another package.
        """
        if node.target is operator.getitem:
            return ast.Subscript(self._value(node, ("args", 0), node.args[0]), ast.Constant(int(str(node.args[1]))))
        special = getattr(self, f"_{name_of(node).replace('.', '_')}", None)
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target.namespace not in ("aten", "prims"):
                return self._foreign(node)
            given = self._given(node)
            if special is not None:
                made = special(node, given)
                if made is not None:
                    assert isinstance(made, ast.expr)
                    return made
            return self._general(node, given)
        if callable(node.target) and getattr(node.target, "__module__", "") in ("_operator", "math"):
            args = [self._value(node, ("args", i), a) for i, a in enumerate(node.args)]
            name = getattr(node.target, "__name__", "")
            if name in BINARY and len(args) == 2:
                return ast.BinOp(args[0], BINARY[name](), args[1])
        raise ExportError(f"{op_name(node)} is not an op of torch alone")

    def in_place(self, node: fx.Node) -> ast.expr:
        """An expression that writes a value into another: ``x.add_(1)``."""
        assert isinstance(node.target, torch._ops.OpOverload)
        name = node.target._schema.name.removeprefix("aten::")
        given = self._given(node)
        if not hasattr(torch.Tensor, name) or "self" not in given:
            return self._raw(node)
        args = self._expressions(node, given)
        order = [a.name for a in node.target._schema.arguments if a.name not in SKIPPED]
        positional, keywords = _apart(order[1:], args, node.target._schema)
        return call(ast.Attribute(args["self"], name), positional, keywords)

    def _value(self, node: fx.Node, path: Path, value: Any) -> ast.expr:
        if isinstance(value, fx.Node):
            return self.scope.operand(value)
        if isinstance(value, list | tuple):
            return ast.List([self._value(node, (*path, i), v) for i, v in enumerate(value)])
        if isinstance(value, torch.dtype):
            return self.scope.dtype(node, path, value)
        if isinstance(value, torch.memory_format):
            return parse(str(value))
        if isinstance(value, torch.device):
            return self.scope.device() or ast.Constant(None)
        if isinstance(value, int | float | bool):
            return self.scope.literal(node, path, value)
        if value is None or isinstance(value, str):
            return ast.Constant(value)
        raise ExportError(f"{op_name(node)} takes a {type(value).__name__}")

    def _given(self, node: fx.Node) -> dict[str, tuple[Path, Any]]:
        """Arguments by name, without those that are as by default."""
        found: dict[str, tuple[Path, Any]] = {}
        for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if i < len(node.args):
                path, value = ("args", i), node.args[i]
            elif argument.name in node.kwargs:
                path, value = ("kwargs", argument.name), node.kwargs[argument.name]
            else:
                continue
            default = argument.default_value
            if argument.has_default_value() and type(value) is type(default) and value == default:
                continue
            if argument.name not in SKIPPED:
                found[argument.name] = path, value
        return found

    def _expressions(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> dict[str, ast.expr]:
        return {k: self._value(node, path, value) for k, (path, value) in given.items()}

    def _general(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        name, schema = name_of(node), node.target._schema  # type: ignore[union-attr]
        args = self._expressions(node, given)
        if name in BINARY and "alpha" not in args and "rounding_mode" not in args and len(args) == 2:
            left, right = args.values()
            return ast.BinOp(left, BINARY[name](), right)
        if name in COMPARE and len(args) == 2:
            left, right = args.values()
            return ast.Compare(left, [COMPARE[name]()], [right])
        order = [a.name for a in schema.arguments if a.name not in SKIPPED]
        if name in CREATING:
            positional, keywords = _apart(order, args, schema)
            if name in ("zeros", "ones", "empty", "randn", "rand") and isinstance(positional[0], ast.List):
                positional = positional[0].elts or [ast.Tuple([])]
            device = self.scope.device()
            return call(f"torch.{name}", positional, keywords if device is None else {**keywords, "device": device})
        first = schema.arguments[0]
        method = name not in FUNCTIONS and first.name in ("self", "input") and "self" in args
        if hasattr(torch.Tensor, name) and method:
            positional, keywords = _apart(order[1:], args, schema)
            if name in SIZED and len(positional) == 1 and isinstance(positional[0], ast.List):
                positional = positional[0].elts or [ast.Tuple([])]
            if not callable(getattr(torch.Tensor, name)):
                return ast.Attribute(args["self"], name)
            return call(ast.Attribute(args["self"], name), _plain_dims(name, positional), keywords)
        for prefix, functions in (("F", F), ("torch", torch)):
            if hasattr(functions, name) and _takes(getattr(functions, name), order, args):
                positional, keywords = _apart(order, args, schema)
                if isinstance(positional[0], ast.List) and _takes_any(getattr(functions, name)):
                    positional = positional[0].elts + positional[1:]
                return call(f"{prefix}.{name}", positional, keywords)
        family, _, rest = name.partition("_")
        if family in FAMILIES and hasattr(getattr(torch, family), rest):
            return call(f"torch.{family}.{rest}", *_apart(order, args, schema))
        return self._raw(node)

    def _raw(self, node: fx.Node) -> ast.expr:
        self.raw.append(node)
        args = [self._value(node, ("args", i), a) for i, a in enumerate(node.args)]
        keywords = {
            k: self._value(node, ("kwargs", k), v) for k, v in node.kwargs.items() if k not in ("layout", "pin_memory")
        }
        return call(f"torch.ops.{node.target}", args, keywords)

    def _foreign(self, node: fx.Node) -> ast.expr:
        args = [self._value(node, ("args", i), a) for i, a in enumerate(node.args)]
        if op_name(node) == "transformers.grouped_mm_fallback":
            return call("F.grouped_mm", args[:2], {"offs": args[2]})
        raise ExportError(f"{op_name(node)} is an op of another package")

    # ops whose Python is not their schema

    def _add(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr | None:
        args = self._expressions(node, given)
        if "alpha" not in args or name_of(node) == "rsub":
            return None
        scaled = ast.BinOp(args["alpha"], ast.Mult(), args["other"])
        return ast.BinOp(args["self"], BINARY[name_of(node)](), scaled)

    _sub = _add

    def _rsub(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr | None:
        args = self._expressions(node, given)
        return None if "alpha" in args else ast.BinOp(args["other"], ast.Sub(), args["self"])

    def _pow(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr | None:
        args = self._expressions(node, given)
        return ast.BinOp(args["self"], ast.Pow(), args["exponent"]) if overload_is(node, "Scalar") else None

    def _neg(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return ast.UnaryOp(ast.USub(), self._value(node, *given["self"]))

    def _bitwise_not(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return ast.UnaryOp(ast.Invert(), self._value(node, *given["self"]))

    def _to(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr | None:
        args = self._expressions(node, given)
        if overload_is(node, "other"):
            return call(ast.Attribute(args["self"], "to"), [ast.Attribute(args["other"], "dtype")])
        return call(ast.Attribute(args["self"], "to"), [args["dtype"]]) if "dtype" in args else args["self"]

    def _type_as(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        return call(ast.Attribute(args["self"], "type_as"), [args["other"]])

    def _clone(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr | None:
        if "memory_format" not in given:
            return None
        return call(ast.Attribute(self._value(node, *given["self"]), "contiguous"), [])

    def _slice(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        end = given.get("end", (None, None))[1]
        upper = None if end is None or (isinstance(end, int) and end >= 2**62) else args["end"]
        start = given.get("start", (None, 0))[1]
        lower = args["start"] if start not in (None, 0) else None
        return self._cut(node, args["self"], ast.Slice(lower, upper, args.get("step")))

    def _select(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        return self._cut(node, args["self"], args["index"])

    def _cut(self, node: fx.Node, value: ast.expr, at: ast.expr) -> ast.expr:
        dim = node.args[1] if len(node.args) > 1 else 0
        source: Any = node.args[0]
        rank = source.meta["val"].dim()
        assert isinstance(dim, int)
        if dim == -1 and rank > 1:
            places: list[ast.expr] = [ast.Constant(...), at]
        else:
            places = [*(ast.Slice() for _ in range(dim % rank)), at]
        return ast.Subscript(value, places[0] if len(places) == 1 else ast.Tuple(places))

    def _index(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        indices: Any = given["indices"][1]
        places = [self.scope.operand(i) if isinstance(i, fx.Node) else ast.Slice() for i in indices]
        at = places[0] if len(places) == 1 else ast.Tuple(places)
        return ast.Subscript(self._value(node, *given["self"]), at)

    def _index_put(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        indices: Any = given["indices"][1]
        if any(i is None for i in indices):
            return self._raw(node)
        places = ast.Tuple([self.scope.operand(i) for i in indices])
        more = {"accumulate": args["accumulate"]} if "accumulate" in args else {}
        return call(ast.Attribute(args["self"], "index_put"), [places, args["values"]], more)

    def _embedding(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, {k: v for k, v in given.items() if k in ("weight", "indices", "padding_idx")})
        more = {"padding_idx": args["padding_idx"]} if "padding_idx" in args else {}
        return call("F.embedding", [args["indices"], args["weight"]], more)

    def _dropout(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = [self._value(node, ("args", i), a) for i, a in enumerate(node.args)]
        return call("F.dropout", args[:2], {"training": args[2]})

    def _batch_norm(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        x, weight, bias, mean, var, training, momentum, eps, *_ = (
            self._value(node, ("args", i), a) for i, a in enumerate(node.args)
        )
        return call("F.batch_norm", [x, mean, var, weight, bias, training, momentum, eps])

    def _scaled_dot_product_attention(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        names = ("query", "key", "value")
        more = {k: v for k, v in args.items() if k not in names}
        return call("F.scaled_dot_product_attention", [args[n] for n in names], more)

    def _einsum(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        operands: Any = given["tensors"][1]
        equation = ast.Constant(given["equation"][1])
        return call("torch.einsum", [equation, *(self.scope.operand(o) for o in operands)])

    def _softmax(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        more = {"dtype": args["dtype"]} if "dtype" in args else {}
        return call(ast.Attribute(args["self"], "softmax"), [args["dim"]], more)

    def _pad(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        return call("F.pad", [args["self"], args["pad"]], {k: v for k, v in args.items() if k in ("mode", "value")})

    def _constant_pad_nd(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        return call("F.pad", [args["self"], args["pad"]], {k: v for k, v in args.items() if k == "value"})

    def _lift_fresh_copy(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return self._value(node, *given["self"])

    def _numpy_T(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return ast.Attribute(self._value(node, *given["self"]), "T" if name_of(node) == "numpy_T" else "mT")

    _mT = _numpy_T

    def _uniform(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        own, name = args["self"], name_of(node).removesuffix("_functional")
        fresh = own if len(node.all_input_nodes[0].users) == 1 else call(ast.Attribute(own, "clone"), [])
        numbers = [a for a in node.target._schema.arguments[1:] if a.name != "generator"]  # type: ignore[union-attr]
        return call(
            ast.Attribute(fresh, f"{name}_"), [args.get(a.name, ast.Constant(a.default_value)) for a in numbers]
        )

    _normal_functional = _exponential = _uniform

    def _alias(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return self._value(node, *given["self"])

    def _upsample(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        if not overload_is(node, "vec"):
            return self._raw(node)
        name = name_of(node).removeprefix("upsample_")
        args = self._expressions(node, given)
        sized = given.get("output_size", (None, None))[1] is not None
        more = {"size": args["output_size"]} if sized else {"scale_factor": args["scale_factors"]}
        kind = name.removesuffix("_aa").rstrip("123d").replace("_", "-")
        more["mode"] = ast.Constant(kind)
        if "align_corners" in args and given["align_corners"][1]:
            more["align_corners"] = args["align_corners"]
        if name.endswith("_aa"):
            more["antialias"] = ast.Constant(True)
        return call("F.interpolate", [args["input"]], more)

    _upsample_bicubic2d = _upsample_bilinear2d = _upsample_nearest2d = _upsample_linear1d = _upsample
    _upsample_nearest1d = _upsample_trilinear3d = _upsample_nearest3d = _upsample
    _upsample_bilinear2d_aa = _upsample_bicubic2d_aa = _upsample_nearest_exact1d = _upsample_nearest_exact2d = _upsample

    def _im2col(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        args = self._expressions(node, given)
        return call("F.fold" if name_of(node) == "col2im" else "F.unfold", list(args.values()))

    _col2im = _im2col

    def _nonzero_numpy(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return call(ast.Attribute(self._value(node, *given["self"]), "nonzero"), [], {"as_tuple": ast.Constant(True)})

    def _log_sigmoid(self, node: fx.Node, given: dict[str, tuple[Path, Any]]) -> ast.expr:
        return call("F.logsigmoid", [self._value(node, *given["self"])])


def _apart(order: list[str], args: dict[str, ast.expr], schema: Any) -> tuple[list[ast.expr], dict[str, ast.expr]]:
    """Positional arguments up to the first that is left out, and the rest by name."""
    positional: list[ast.expr] = []
    only = {a.name for a in schema.arguments if a.kwarg_only}
    for at, name in enumerate(order):
        flag = name in args and isinstance(args[name], ast.Constant) and isinstance(args[name].value, bool)  # type: ignore[attr-defined]
        if name not in args or name in only or (flag and positional):
            return positional, {n: args[n] for n in order[at:] if n in args}
        positional.append(args[name])
    return positional, {}


def _takes(function: Callable[..., Any], order: list[str], args: dict[str, ast.expr]) -> bool:
    """Whether a function of Python takes these arguments of an op in the op's order; one of C++ does."""
    parameters = _parameters(function)
    if parameters is None or _takes_any(function):
        return True
    names = ["self" if p.name == "input" else p.name for p in parameters]
    wanted = ["self" if name == "input" else name for name in order]
    last = max((i for i, name in enumerate(order) if name in args), default=-1)
    return names[: last + 1] == wanted[: last + 1]


def _takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function takes tensors one by one: ``f(*tensors)``."""
    parameters = _parameters(function)
    return parameters is not None and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values()) or None
    except (TypeError, ValueError):
        return None


def _plain_dims(name: str, args: list[ast.expr]) -> list[ast.expr]:
    """``mean([-1])`` as ``mean(-1)``."""
    if name in ("mean", "sum", "var", "std", "amax", "amin", "norm") and args and isinstance(args[0], ast.List):
        return [args[0].elts[0] if len(args[0].elts) == 1 else ast.Tuple(args[0].elts), *args[1:]]
    return args
