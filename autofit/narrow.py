"""The small model to tune on: which fields of a configuration are widths, and what they are at another width."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autofit.api import analyze
from autofit.autoclass import auto_class
from autofit.configurations import nested
from autofit.deferred import on_meta
from autofit.errors import AutofitError, BaseError
from autofit.examples import candidate_examples
from autofit.growth import Growth
from autofit.program import LAYER_INDEX
from autofit.report import Broken
from autofit.values import nearest

Fields = dict[str, Any]


@dataclass(frozen=True)
class Proxy:
    """A narrow model of the same kind, and how it was made.

    Attributes:
        model: with initial values of its own, untouched; ``base=`` for the large one.
        changed: by field of the configuration or argument of the factory, value in the target and here.
        parameters: number of them, in the target and here.
        flops: of one forward pass over the example, in the target and here, as torch counts them; ``None`` where the
            model's ops depend on values.
        fresh: builds the same model again, with other initial values.
    """

    model: nn.Module = field(repr=False)
    changed: Mapping[str, tuple[Any, Any]]
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    fresh: Callable[[], nn.Module] = field(repr=False)

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False)
        table.add_column("", overflow="fold")
        for column in ("target", "proxy"):
            table.add_column(column, justify="right", overflow="fold")
        for name, pair in self.changed.items():
            table.add_row(Broken(name), *map(_shown, pair))
        table.add_row("parameters", *(f"{n:,}" for n in self.parameters))
        if self.flops:
            table.add_row("FLOPs of a forward pass", *(f"{n:,}" for n in self.flops))
        console = Console(file=io.StringIO(), width=80, color_system=None, markup=False, highlight=False)
        console.print(f"Proxy of {type(self.model).__name__}; all other fields are the target's")
        console.print(table)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())


def _shown(value: Any) -> str:
    return f"[{len(value)} entries]" if isinstance(value, list) and len(value) > 4 else str(value)


def proxy(
    source: Any,
    example_inputs: Any = None,
    *,
    width: int,
    depth: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Proxy:
    """Build the narrow model to tune on, so that ``muify(target, base=proxy.model)`` is well-formed.

    Which fields are widths is read off the target's graph: those that have the size of a dimension that grows with the
    main width, or of a number of heads. They shrink by one ratio, and so head sizes stay; everything else is the
    target's. The result is analyzed as the target's base before it is returned.

    Args:
        source: a transformers configuration, a model that has one, or a factory with keyword arguments.
        example_inputs: as of `muify`.
        width: of the proxy, in elements of the dimension that the readout contracts.
        depth: of the proxy, in layers; ``None`` is the target's.
        arguments: of the factory for the target; ``None`` are its defaults.

    Returns:
        The model, what was changed, parameters and FLOPs of both.

    Raises:
        BaseError: not narrower, a field that would be no whole number, or no choice of fields gives a model of the
            target's kind.
        AutofitError: the target cannot be analyzed.
    """
    build, fields = _source(source, arguments)
    target = on_meta(lambda: build(fields))
    found = analyze(target, example_inputs, base=width, frozen="plan", unused="freeze")
    growth = found.roles.growth
    main = next(d for d in growth.dimensions if d.name == growth.main)
    if width >= main.size and not (width == main.size and depth is not None):
        raise BaseError(
            f"width={width}, and {main.name} of the target is {main.size}",
            todo=f"give a width below {main.size}, or make the target wider",
        )
    ratio = main.size / width
    changes = _widths(build, fields, growth, ratio)
    if depth is not None:
        changes |= _depth(build, fields | changes, target, depth)
    model = build({**fields, **changes})
    _check(target, model, example_inputs, growth)
    kept = {name: (fields[name], value) for name, value in changes.items() if fields[name] != value}
    large, little = (sum(p.numel() for p in m.parameters()) for m in (target, model))
    flops = [
        _flops(m, next(iter(candidate_examples(m))).kwargs if example_inputs is None else example_inputs)
        for m in (target, model)
    ]
    counted = (flops[0], flops[1]) if flops[0] is not None and flops[1] is not None else None
    return Proxy(model, kept, (large, little), counted, lambda: build({**fields, **changes}))


def family(
    source: Any,
    example_inputs: Any = None,
    *,
    widths: Iterable[int],
    depth: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Callable[[int], Any]:
    """What builds the same kind of model at several widths, for `autofit.coord_check`: proxies of one target.

    Args:
        source, example_inputs, arguments: as of `proxy`.
        widths: none above the target's.
        depth: of all of them, in layers; ``None`` is the target's.

    Returns:
        A function of the width, of a module, or of a module and its example where there is one; every call draws
        initial values anew.

    Raises:
        BaseError: as `proxy`.
    """
    made = {
        width: proxy(source, example_inputs, width=width, depth=depth, arguments=arguments)
        for width in sorted(set(widths))
    }

    def build(width: int) -> Any:
        if width not in made:
            raise BaseError(f"this family has the widths {', '.join(map(str, made))}, and not {width}")
        model = made[width].fresh()
        return model if example_inputs is None else (model, example_inputs)

    return build


def _source(source: Any, arguments: Mapping[str, Any] | None) -> tuple[Callable[[Fields], nn.Module], Fields]:
    """What builds a model from fields, and the target's fields."""
    cls = type(source) if isinstance(source, nn.Module) else None
    config: Any = getattr(source, "config", None) if cls else source
    if hasattr(config, "to_dict") and hasattr(config, "model_type"):
        if arguments is not None:
            raise BaseError("arguments are a factory's, and this is a configuration", todo="change the configuration")
        make = cls or auto_class(config).from_config

        def from_config(fields: Fields) -> nn.Module:
            made: nn.Module = make(type(config).from_dict(nested(config.to_dict(), fields)))
            return made

        return from_config, dict(_flat(config.to_dict()))
    if cls or not callable(source):
        raise BaseError(
            f"a {type(source).__name__} tells no way to build it at another width",
            todo="pass a transformers configuration, or a factory with keyword arguments",
        )
    known = inspect.signature(source).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in () if free else (n for n in arguments or {} if n not in known):
        raise BaseError(f"the factory has no argument {name!r}", todo=nearest(name, list(known)))
    fields = {n: p.default for n, p in known.items() if p.default is not inspect.Parameter.empty} | dict(
        arguments or {}
    )
    missing = [n for n, p in known.items() if n not in fields and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing:
        raise BaseError(
            f"the factory needs {', '.join(missing)}", todo="pass the target's arguments=, as {'width': 4096}"
        )

    def from_factory(fields: Fields) -> nn.Module:
        made = source(**fields)
        return made[0] if isinstance(made, tuple) else made  # type: ignore[no-any-return]

    return from_factory, fields


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _widths(build: Callable[[Fields], nn.Module], fields: Fields, growth: Growth, ratio: float) -> Fields:
    """Fields that are widths, at the proxy's width: those by which all parameters have the planned shapes."""
    expected = {
        p.name: tuple(growth.base_size(c) for c in growth.dims.of_parameter[p.name])
        for p in growth.dims.program.parameters
        if p.name in growth.dims.of_parameter
    }
    sizes = {d.size for d in growth.dimensions if d.grows}
    whole = {n: v for n, v in fields.items() if _is_count(v) or _is_list(v)}
    chosen = {n for n, v in whole.items() if _is_list(v) or v in sizes}
    chosen -= {n for n in chosen if _is_list(whole[n]) and not set(whole[n]) & sizes}
    last: Exception | None = None
    while True:
        best: tuple[int, frozenset[str]] | None = None
        for changed in (chosen, *(chosen ^ {n} for n in sorted(whole))):
            try:
                wrong = _mismatches(build, fields | _scaled(whole, changed, ratio), expected)
            except (ArithmeticError, AutofitError, AssertionError, RuntimeError, TypeError, ValueError) as error:
                last = last or error
                continue
            if best is None or wrong < best[0]:
                best = wrong, frozenset(changed)
            if best[0] == 0:
                break
        if best is None or (best[1] == frozenset(chosen) and best[0] > 0):
            _refuse(whole, chosen, ratio, best, last)
        assert best is not None
        if best[0] == 0:
            return _scaled(whole, set(best[1]), ratio)
        chosen = set(best[1])


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_count, value))


def _scaled(whole: Fields, changed: set[str], ratio: float) -> Fields:
    """These fields over the ratio.

    Raises:
        ArithmeticError: one is no whole number then.
    """
    found: Fields = {}
    for name, value in whole.items():
        if name not in changed:
            continue
        many = [v / ratio for v in (value if _is_list(value) else [value])]
        if any(v != int(v) for v in many):
            raise ArithmeticError(f"{name} = {value} would be {many[0] if len(many) == 1 else many}")
        found[name] = type(value)(map(int, many)) if _is_list(value) else int(many[0])
    return found


def _mismatches(build: Callable[[Fields], nn.Module], fields: Fields, expected: Mapping[str, tuple[float, ...]]) -> int:
    """Number of axes of parameters that are not as planned."""
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in build(fields).named_parameters()}
    if not expected.keys() <= shapes.keys():
        raise ValueError("other parameters")
    return sum(a != b for n, shape in expected.items() for a, b in zip(shapes[n], shape, strict=False))


def _refuse(
    whole: Fields, chosen: set[str], ratio: float, best: tuple[int, frozenset[str]] | None, last: Exception | None
) -> None:
    try:
        _scaled(whole, chosen, ratio)
    except ArithmeticError as error:
        raise BaseError(
            f"no proxy of this width: {error}", todo="choose a width by whose ratio every width and head count divides"
        ) from None
    why = f"{best[0]} axes of parameters would not be as planned" if best else str(last)
    raise BaseError(
        f"no choice of fields makes the model {ratio:g} times as narrow: {why} with {', '.join(sorted(chosen))}",
        todo="build the narrow model yourself, and pass it as base=",
    )


def _depth(build: Callable[[Fields], nn.Module], fields: Fields, target: nn.Module, depth: int) -> Fields:
    """The field that is the number of layers, and lists of as many entries."""

    def folded(model: nn.Module) -> set[str]:
        return {LAYER_INDEX.sub("*", n) for n, _ in model.named_parameters()}

    names, count = folded(target), sum(1 for _ in target.parameters())
    stacks = {len(m) for m in target.modules() if isinstance(m, nn.ModuleList | nn.Sequential)}
    found = []
    for name, value in fields.items():
        if value not in stacks or not _is_count(value) or depth >= value:
            continue
        lists = {n: list(v)[:depth] for n, v in fields.items() if isinstance(v, list | tuple) and len(v) == value}
        changes = {name: depth, **lists}
        try:
            with torch.device("meta"):
                made = build(fields | changes)
        except Exception:  # whatever a model raises whose fields do not fit
            continue
        if folded(made) == names and sum(1 for _ in made.parameters()) < count:
            found.append(changes)
    if not found:
        raise BaseError(
            f"depth={depth}: no field makes the model of the same kind with fewer layers",
            todo="leave out depth=, or build the model yourself and pass it as base=",
        )
    return {name: value for changes in found for name, value in changes.items()}


def _check(target: nn.Module, model: nn.Module, example: Any, growth: Growth) -> None:
    """The target with the proxy for its base has the widths that were planned.

    Raises:
        BaseError: it has others.
    """
    found = analyze(target, example, base=model, frozen="plan", unused="freeze").roles.growth
    parameters = growth.dims.program.parameters
    for p in parameters:
        for cells in zip(*(g.dims.of_parameter.get(p.name, ()) for g in (growth, found)), strict=False):
            planned, made = (
                [(a.size, g.base_size(a)) for a in g.dims.axes.atoms(c)]
                for g, c in zip((growth, found), cells, strict=True)
            )
            if planned != made:
                raise BaseError(
                    f"the proxy is no base for the target: {p.name} has axes of (target, proxy) sizes {made}, and "
                    f"{planned} were planned",
                    todo="build the narrow model yourself, and pass it as base=",
                )


def _flops(model: nn.Module, example: Any) -> int | None:
    """Of a forward pass on ``meta``, which computes nothing; ``None`` where that is impossible, as values decide."""
    for dtype in (None, torch.bfloat16):  # some ops take that one only
        on_meta = copy.deepcopy(model).to("meta", dtype).eval()

        def moved(value: Any, dtype: torch.dtype | None = dtype) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value.to("meta", dtype if value.is_floating_point() else None)

        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                if isinstance(example, Mapping):
                    on_meta(**{k: moved(v) for k, v in example.items()})
                else:
                    on_meta(*map(moved, example if isinstance(example, tuple | list) else (example,)))
        except (RuntimeError, NotImplementedError):
            continue
        return int(counter.get_total_flops())
    return None
