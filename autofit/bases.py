"""Write base files, and read them: our JSON and mup's ``.bsh``. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autofit.errors import AutofitError, BaseError
from autofit.values import is_number, shown

LIMIT = 64 * 1024 * 1024
VERSION = 1
KEY = "autofit base"
"""Key of a later version among the dimensions of a base file: no dimension has a space in its name."""


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
    text = read_text(path, "base", BaseError)
    if path.suffix == ".bsh":
        return _shapes(path, _yaml(path, text))
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BaseError(f"the base file is not JSON: {error}", where=str(path)) from None
    if not isinstance(data, dict) or not data:
        raise BaseError("the base file is not a mapping {dimension: size}", where=str(path))
    sizes = without_version(data, str(path))
    for key, value in sizes.items():
        if not is_number(value):
            raise BaseError(f"base size of {shown(key)} is {shown(value)}, not a number", where=str(path))
    return LoadedBase("sizes", sizes=sizes)


def read_text(path: Path, what: str, error: type[AutofitError]) -> str:
    """Contents of a data file.

    Args:
        path: of it.
        what: it holds, for messages.
        error: to raise.

    Raises:
        AutofitError: the file is missing, too large, no regular file, or not text.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or device may never end
            raise error(f"the {what} is not a regular file", where=shown(str(path)))
        if found.st_size > LIMIT:
            raise error(f"the {what} file is larger than 64 MiB", where=str(path))
        return path.read_text(encoding="utf-8")
    except OSError as failure:
        raise error(f"the {what} file cannot be read: {failure.strerror}", where=shown(str(path))) from None
    except UnicodeDecodeError:
        raise error(f"the {what} file is not text", where=str(path)) from None
    except ValueError as failure:  # a path that no system takes
        raise error(f"the {what} file cannot be read: {failure}", where=shown(str(path))) from None


def write_base(path: Path, sizes: Mapping[str, float]) -> None:
    """Write base sizes by dimension, as a mapping and nothing else: the first version of the format says no version."""
    path.write_text(json.dumps(dict(sizes), indent=2) + "\n")


def without_version(data: Mapping[str, float], where: str | None = None) -> dict[str, float]:
    """Base sizes without the version that a file has among them; one that has none is of the first version.

    Args:
        data: what was read, or given.
        where: it came from.

    Raises:
        BaseError: another version.
    """
    sizes = dict(data)
    version = sizes.pop(KEY, VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BaseError(f"the base has the version {shown(version)}, which no autofit wrote", where=where)
    if version > VERSION:
        raise BaseError(
            f"the base was written by a newer autofit: its version is {shown(version)}, this one reads {VERSION}",
            where=where,
            todo="update autofit, or save the base again with this version",
        )
    return sizes


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
            raise BaseError(f"base shape of {shown(name)} is {shown(shape)}", where=str(path))
        shapes[str(name)] = tuple(shape)
    return LoadedBase("shapes", shapes=shapes)
