"""Pieces of Python as syntax trees: nothing of a model is ever pasted into text."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Mapping, Sequence


def parse(text: str, **parts: ast.expr) -> ast.expr:
    """An expression with names in it replaced by expressions."""
    made = Put(parts).visit(ast.parse(text, mode="eval").body)
    assert isinstance(made, ast.expr)
    return made


class Put(ast.NodeTransformer):
    """Replaces names by expressions."""

    def __init__(self, parts: Mapping[str, ast.expr]) -> None:
        self.parts = parts

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name, or the expression for it."""
        return copy.deepcopy(self.parts[node.id]) if node.id in self.parts else node


def call(
    function: ast.expr | str, args: Sequence[ast.expr], keywords: Mapping[str, ast.expr] | None = None
) -> ast.Call:
    """A call; the function by name or as an expression."""
    made = parse(function) if isinstance(function, str) else function
    return ast.Call(made, list(args), [ast.keyword(k, v) for k, v in (keywords or {}).items()])


def assign(targets: Sequence[ast.expr], value: ast.expr) -> ast.stmt:
    """``a = value`` or ``a, b = value``."""
    return ast.Assign([targets[0] if len(targets) == 1 else ast.Tuple(list(targets))], value, lineno=0)


def method(
    name: str, args: Iterable[ast.arg], body: Iterable[ast.stmt], returns: ast.expr | None = None
) -> ast.FunctionDef:
    """``def name(self, args) -> returns``."""
    made = ast.parse("def _(self): pass").body[0]
    assert isinstance(made, ast.FunctionDef)
    made.name, made.returns, made.body = name, returns, list(body)
    made.args.args += args
    return made


def class_(
    name: str, bases: Sequence[ast.expr], body: Iterable[ast.stmt], decorators: Sequence[ast.expr] = ()
) -> ast.ClassDef:
    """``class name(bases)``."""
    made = ast.parse("class _: pass").body[0]
    assert isinstance(made, ast.ClassDef)
    made.name, made.bases, made.body, made.decorator_list = name, list(bases), list(body), list(decorators)
    return made


def doc(text: str) -> ast.stmt:
    """A docstring."""
    return ast.Expr(ast.Constant(text))


class Plain(ast.NodeTransformer):
    """``x ** -0.5`` without brackets, and no ``__init__`` that does nothing."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """A power whose exponent is a negative number."""
        self.generic_visit(node)
        sign = node.right
        if isinstance(node.op, ast.Pow) and isinstance(sign, ast.UnaryOp) and isinstance(sign.op, ast.USub):
            value = getattr(sign.operand, "value", None)
            if isinstance(value, int | float):
                node.right = ast.copy_location(ast.Constant(-value), sign)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """A class whose ``__init__`` only calls the one above."""
        self.generic_visit(node)
        for each in node.body:
            if (
                isinstance(each, ast.FunctionDef)
                and each.name == "__init__"
                and len(each.body) == 1
                and len(node.body) > 1
            ):
                node.body.remove(each)
                break
        return node
