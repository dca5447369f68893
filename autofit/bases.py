"""Read base files: our JSON and mup's ``.bsh``. Nothing in a file is ever executed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autofit.errors import BaseError

LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True)
class LoadedBase:
    """Contents of a base file.

    Attributes:
        kind: ``sizes`` (by dimension) or ``shapes`` (by parameter).
        sizes: base size by dimension name.
        shapes: base shape by parameter name; ``None`` marks an axis that does not grow.
    """

    kind: Literal["sizes", "shapes"]
    sizes: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)


def read_base(path: Path) -> LoadedBase:
    """Read a base file by its contents.

    Raises:
        BaseError: the file is missing, too large, malformed or holds anything but sizes.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise BaseError("the base file is larger than 64 MiB", where=str(path))
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BaseError(f"the base file cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise BaseError("the base file is not text", where=str(path)) from None
    if path.suffix == ".bsh":
        return _shapes(path, _yaml(path, text))
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BaseError(f"the base file is not JSON: {error}", where=str(path)) from None
    if not isinstance(data, dict) or not data:
        raise BaseError("the base file is not a mapping {dimension: size}", where=str(path))
    for key, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BaseError(f"base size of {key!r} is {value!r}, not a number", where=str(path))
    return LoadedBase("sizes", sizes=data)


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise BaseError("reading mup's .bsh needs PyYAML", where=str(path), todo="pip install 'autofit[bsh]'") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).split("\n")[0]
        raise BaseError(f"the .bsh file is not safe YAML: {line}", where=str(path)) from None


def _shapes(path: Path, data: Any) -> LoadedBase:
    if not isinstance(data, dict) or not data:
        raise BaseError("the .bsh file is not a mapping {parameter: shape}", where=str(path))
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name, shape in data.items():
        valid = isinstance(shape, list) and all(
            s is None or (isinstance(s, int) and not isinstance(s, bool) and s > 0) for s in shape
        )
        if not valid:
            raise BaseError(f"base shape of {name!r} is {shape!r}", where=str(path))
        shapes[str(name)] = tuple(shape)
    return LoadedBase("shapes", shapes=shapes)
