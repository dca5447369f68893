"""Values that a user or a file gives: whether they are numbers, and how a message shows them."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Sequence
from typing import Any, TypeGuard

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether this is a finite number that a float can hold; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value for a message: its ``repr``, or the beginning of it, whatever it is and however often it holds itself."""
    try:
        return _SHORT.repr(value)
    except Exception:  # a number of more digits than Python writes, or a class with a trouble of its own
        return f"a {type(value).__name__}"


def words_of(error: BaseException) -> str:
    """What an exception says; nothing where that cannot be had."""
    try:
        return str(error).strip()
    except Exception:
        return ""


def text_of(error: BaseException) -> str:
    """First line of what an exception says, with its class, as long as fits into a message.

    A line that ends with a colon says nothing without the next.
    """
    first, *rest = words_of(error).splitlines() or [""]
    if first.endswith(":") and rest:
        first = f"{first} {rest[0].strip()}"
    return f"{type(error).__name__}: {first[:300]}"


def nearest(name: str, names: Sequence[str]) -> str:
    """What to do about a name that does not exist: the one that was meant, or all there are."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of: {', '.join(names)}"


def fields_of(config: Any) -> dict[Any, Any]:
    """Fields of what a model keeps as its configuration, if it gives any, as those of transformers do."""
    try:
        found = config.to_dict()
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}
