"""Configurations of transformers with fields by name: these accept any name, and here a name must be one of theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from autofit.errors import TargetError
from autofit.values import nearest


def configured(make: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """A configuration with these fields; those of a part have dotted names, as ``text_config.hidden_size``.

    Args:
        make: gives the configuration with the fields that are its keyword arguments.
        given: the fields.

    Raises:
        TargetError: the configuration has no such field.
    """
    plain = make()
    parts = {name.partition(".")[0] for name in given if "." in name}
    made = make(**nested({part: _own(getattr(plain, part, None)) for part in parts}, given))
    _require_known(made, plain, nested({}, given))
    return made


def nested(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the fields of these dotted names."""
    made = copy.deepcopy(dict(config))
    for name, value in fields.items():
        *path, last = name.split(".")
        part = made
        for key in path:
            part = part.setdefault(key, {})
        part[last] = value
    return made


def _own(part: Any) -> dict[str, Any]:
    """What was given to a part: what it has by its class follows from the rest, as a head's size from the width."""
    if not hasattr(part, "to_dict"):
        return part if isinstance(part, dict) else {}
    usual = type(part)().to_dict()
    return {k: v for k, v in part.to_dict().items() if k == "model_type" or v != usual.get(k)}


def _require_known(made: Any, plain: Any, fields: Mapping[str, Any], prefix: str = "") -> None:
    """A name that nothing reads becomes an attribute that the configuration without it has not."""
    for name, value in fields.items():
        if name in vars(made) and not hasattr(plain, name):
            known = sorted({n for n in vars(plain) if not n.startswith("_")} | set(made.attribute_map))
            raise TargetError(
                f"{type(made).__name__} has no field {name!r}",
                todo=nearest(prefix + name, [prefix + n for n in known]),
            )
        part: Any = getattr(made, name, None)
        if isinstance(value, Mapping) and hasattr(part, "to_dict"):
            before = getattr(plain, name, None)
            usual = before if type(before) is type(part) else type(part)()
            _require_known(part, usual, value, f"{prefix}{name}.")
