"""Names for modules, variables and classes: those of the original where they can be had, and always safe to write."""

from __future__ import annotations

import ast
import builtins
import inspect
import keyword
import linecache
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import fx

RESERVED = frozenset({"torch", "nn", "F", "self", "math", "dataclass", "dataclasses", "config", *dir(builtins)})
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ')


def identifier(text: str, default: str = "x") -> str:
    """A Python name like this text: ASCII letters, digits and underscores, no keyword and no builtin.

    >>> identifier('x"); import os; ("'), identifier("class"), identifier("2d"), identifier("größe")
    ('x_import_os', 'class_', 'x2d', 'gr_e')
    """
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") if not is_name(text) else text
    name = name.lstrip("_") if name.startswith("__") else name  # a class would mangle it
    if not name or name in RESERVED:
        return default
    if name[0].isdigit():
        name = f"x{name}"
    return f"{name}_" if keyword.iskeyword(name) or keyword.issoftkeyword(name) else name


def is_name(text: str) -> bool:
    """Whether a text can stand as an attribute as it is."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def distinct(name: str, taken: Iterable[str]) -> str:
    """This name, or with a number behind it."""
    taken = set(taken)
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(2, len(taken) + 99) if f"{name}_{i}" not in taken)


@dataclass(frozen=True)
class Statement:
    """Where the original computed something.

    Attributes:
        place: file and line of the statement; the same for all that one statement computes.
        targets: variables that it assigns, in order; empty for a return.
    """

    place: tuple[str, int]
    targets: tuple[str, ...]


def statement(node: fx.Node, depth: int) -> Statement | None:
    """The statement of the module at this depth, the root's being 0, that ran a node; ``None`` if unknown."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    stack = node.meta.get("nn_module_stack") or {}
    if depth >= len(frames) or len(frames) != len(stack):
        return None
    file, line = frames[depth]
    return _statements(file).get(int(line))


@cache
def _statements(file: str) -> dict[int, Statement]:
    """The innermost statement around every line of a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    found: dict[int, Statement] = {}
    for node in ast.walk(tree):  # outer ones first
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            made = Statement((file, node.lineno), _targets(node))
            last = node.end_lineno or node.lineno
            if hasattr(node, "body"):  # of a compound statement, only its head
                last = node.body[0].lineno - 1
            for line in range(node.lineno, last + 1):
                found[line] = made
    return found


def _targets(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, ast.Assign):
        target: Any = node.targets[0]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        target = node.target
    else:
        return ()
    each = target.elts if isinstance(target, ast.Tuple) else [target]
    return tuple(e.id if isinstance(e, ast.Name) else e.attr if isinstance(e, ast.Attribute) else "_" for e in each)


def arguments(module: Any) -> tuple[str, ...]:
    """Names of what a module's forward takes, in order."""
    try:
        parameters = inspect.signature(type(module).forward).parameters
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(n for n, p in parameters.items() if p.kind in kinds)[1:]
