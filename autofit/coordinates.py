"""The coordinate check: train a few steps at several widths, and say whether anything grows that must not.

Slopes of log2 of sizes against log2 of the width, as in Tensor Programs V (arXiv 2203.03466), appendix D.1, but of
what every single parameter gives and learns, too; with a confidence from seeds and widths, a verdict, and a cause.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autofit.api import Analysis, muify
from autofit.capture import capture
from autofit.checking import Check, check, predicted
from autofit.dims import Dims
from autofit.errors import AutofitError
from autofit.examples import Example, normalize
from autofit.flow import Flow
from autofit.optim import optimizer_class
from autofit.page import page
from autofit.passes.infer_dims import InferDims
from autofit.plots import draw
from autofit.propagation import Sizes
from autofit.replay import Key, measure, states, term_sizes
from autofit.rules import optimizers
from autofit.slopes import MUP, TOLERANCE, WITHOUT, Fault, Line, Slopes, fit
from autofit.subject import Subject, groups_of, planned

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class CoordCheck(Slopes):
    """The answer of `coord_check`: its verdict is ``ok``."""

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw sizes of changes over width, with slopes, beside the same without muP.

        Args:
            path: ``.png`` or ``.svg``.

        Raises:
            AutofitError: matplotlib is not installed, or another ending.
        """
        Path(path).write_bytes(draw(self, Path(path).suffix))

    def page(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one HTML page that needs no network.

        Raises:
            AutofitError: matplotlib is not installed.
        """
        Path(path).write_text(page(self), encoding="utf-8")


# runs ------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One model at one width, ready to be trained.

    Attributes:
        model, optimizer: to train.
        example: the call.
        analysis: what muify returned; ``None`` for a model that was edited by hand.
        scheduler: stepped after the optimizer, if the user has one.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    example: Example
    analysis: Analysis | None = None
    scheduler: Any = None


def coord_check(
    make: Callable[[int], Any],
    widths: Sequence[int] = (64, 128, 256, 512),
    base: int | None = None,
    optimizer: str | type = "adam",
    lr: float = 1e-2,
    steps: int = 4,
    seeds: int = 2,
    *,
    data: Any = None,
    loss: Loss | None = None,
    control: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    title: str = "",
    **options: Any,
) -> CoordCheck:
    """Train a few steps at several widths, and judge every module and parameter by its slope over width.

    Args:
        make: gives the model at a width: an untouched module, which is muified here against ``make(base)``; or a pair
            of a module and its optimizer, or a triple with a scheduler, edited by hand; or a pair of a module and its
            example where the input is as wide as the model.
        widths: at least three, the largest several times the smallest.
        base: base width; the smallest if ``None``.
        optimizer: name or class, for untouched modules.
        lr: at the base.
        steps: of training, on one batch.
        seeds: how many.
        data: a batch as one would call the model with, or a function ``step -> batch`` of equal shapes; ``None`` makes
            one up.
        loss: ``loss(output, batch)``; ``None`` takes ``output.loss`` where there is one, else a linear function of all
            outputs, whose gradient does not depend on them.
        control: measure the same without muP, too.
        progress: called with a stage, and how many runs of how many are done.
        settings: further ones of the optimizer.
        title: of the report.
        options: of `muify`.

    Returns:
        The answer; interrupted by Ctrl-C, of the seeds and widths that were done.

    Raises:
        AutofitError: as `muify`; or bad widths, or nothing that can be trained.
    """
    widths = _checked(widths, seeds, steps)
    base = widths[0] if base is None else base
    ways = [MUP, *([WITHOUT] if control else [])]
    todo = [(way, seed, width) for way in ways for seed in range(seeds) for width in widths]
    say = progress or (lambda stage, done, of: None)
    found: dict[str, dict[Key, dict[int, list[float]]]] = {}
    graphs: dict[tuple[str, int], tuple[Dims, Callable[[fx.Node], float]]] = {}
    batch = data if callable(data) else (lambda step: data)
    subjects: dict[str, dict[int, Subject]] = {}
    terms: dict[str, list[Sizes]] = {}
    interrupted, static, by_hand, by_gradient = False, None, False, False
    try:
        for done, (way, seed, width) in enumerate(todo):
            if by_hand and way != ways[0]:
                break  # there is no telling what it was before
            say(f"{way}, width {width}, seed {seed}", done, len(todo))
            torch.manual_seed(seed)
            scheme = {} if way == ways[0] else {"scheme": "sp"}
            run = _prepare(make, width, base, scheme, optimizer, lr, batch(0), settings or {}, options)
            by_hand, by_gradient = run.analysis is None, _by_gradient(run.optimizer)
            if (way, width) not in graphs:
                seen = InferDims()(capture(run.model, run.example))
                graphs[way, width] = seen, _factors(seen)
            dims, factor = graphs[way, width]
            if static is None and way == ways[0] and width == widths[-1]:
                static = _static(run, make, base, lr, seed, run.optimizer)
            if run.analysis is not None and seed == 0:
                subjects.setdefault(way, {})[width] = planned(run.analysis, *groups_of(run.optimizer), lr)
            ends = _trained(run, dims, batch, loss, steps, seed)
            if width == widths[0]:
                terms.setdefault(way, []).append(term_sizes(dims, *ends))
            for key, pair in measure(dims, *ends, factor=factor).items():
                for what, value in zip(("start", "change"), pair, strict=True):
                    found.setdefault(f"{way} {what}", {}).setdefault(key, {}).setdefault(width, []).append(value)
    except KeyboardInterrupt:
        interrupted = True
    lines, plain = (
        _with_predictions(_lines(found, w), subjects.get(w, {}), _pooled(terms.get(w, []))) for w in (MUP, WITHOUT)
    )
    lines, plain = (_with_roles(measured, static) for measured in (lines, plain))
    name = optimizer if isinstance(optimizer, str) else optimizer.__name__
    return CoordCheck(
        lines,
        _faults(lines, by_gradient),
        static,
        plain,
        widths,
        base,
        seeds,
        steps,
        "an optimizer of yours" if by_hand else name,
        None if by_hand else lr,
        interrupted,
        title,
    )


def _checked(widths: Sequence[int], seeds: int, steps: int) -> tuple[int, ...]:
    ordered = tuple(sorted(set(widths)))
    if len(ordered) < 3 or ordered[0] < 1:
        raise AutofitError(f"widths={tuple(widths)!r}: a slope needs at least three different ones")
    if seeds < 1 or steps < 1:
        raise AutofitError(f"seeds={seeds!r}, steps={steps!r}: both must be at least 1")
    return ordered


def _prepare(
    make: Callable[[int], Any],
    width: int,
    base: int,
    scheme: Mapping[str, Any],
    optimizer: str | type,
    lr: float,
    batch: Any,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> _Run:
    """A model at a width, with its optimizer."""
    model, *rest = parts if isinstance(parts := make(width), tuple) else (parts,)
    if not isinstance(model, nn.Module):
        raise AutofitError(f"make({width}) gave a {type(model).__name__}, not a module or a tuple that begins with one")
    if rest and hasattr(rest[0], "param_groups"):
        return _Run(model, rest[0], batch, None, *rest[1:])
    example = rest[0] if rest else batch
    with torch.random.fork_rng():  # what the base draws is not taken from the model
        analysis = muify(model, example, base=lambda: make(base), **{**options, **scheme})
    example = analysis.roles.growth.dims.program.example
    return _Run(model, analysis.optimizer(optimizer, lr=lr, **settings), example, analysis)


def _filled(dims: Dims) -> Example:
    """The captured call, with random tokens where it has none."""
    example = dims.program.example
    sizes = [
        dims.of_parameter[u.parameter][axis].size for u in dims.uses for axis, k in u.kinds.items() if k == "index"
    ]
    generator = torch.Generator().manual_seed(0)

    def tokens(value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point() or value.dtype == torch.bool or bool(value.any()) or not sizes:
            return value
        return torch.randint(0, min(sizes), value.shape, generator=generator).to(value)

    args, kwargs = pytree.tree_map_only(torch.Tensor, tokens, (example.args, example.kwargs))
    return Example(args, kwargs).filled()


def _trained(
    run: _Run, dims: Dims, batch: Callable[[int], Any], loss: Loss | None, steps: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train; give the values of the program's placeholders before and after."""
    model, first = run.model, _filled(dims)
    before = {n: t.detach().clone() for n, t in _tensors(model).items()}
    for step in range(steps):
        given = first if batch(step) is None else normalize(batch(step))
        torch.manual_seed(seed)  # the same noise in every step, so that it makes no difference
        with torch.enable_grad():
            output = model(*given.args, **given.kwargs)
            value = _loss(output, seed) if loss is None else loss(output, batch(step))
        run.optimizer.zero_grad()
        torch.autograd.backward(value)
        run.optimizer.step()
        if run.scheduler is not None:
            run.scheduler.step()
    inputs = tuple(t for t in pytree.tree_leaves((first.args, first.kwargs)) if isinstance(t, torch.Tensor))
    return states(dims.program, before, inputs), states(dims.program, _tensors(model), inputs)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _loss(output: Any, seed: int) -> torch.Tensor:
    """The model's own, or a linear function of all that it gives, whose gradient does not depend on it."""
    own = getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own
    generator = torch.Generator().manual_seed(seed)
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not leaves:
        raise AutofitError("the model gives nothing that has a gradient", todo="pass loss=, or train its parameters")
    return sum((t * torch.randn(t.shape, generator=generator).to(t)).mean() for t in leaves)  # type: ignore[return-value]


def _factors(dims: Dims) -> Callable[[fx.Node], float]:
    """What multiplies the result of an op further on, but for what a product of activations or a readout meets."""
    flow = Flow(dims)
    inside: set[fx.Node] = set()
    for product in dims.products:
        inside |= {*flow.upstream(product.left).nodes, *flow.upstream(product.right).nodes}
    for use in dims.uses:
        if "in" in use.kinds.values() and use.partner is not None:
            inside |= set(flow.upstream(use.partner).nodes)

    def factor(node: fx.Node) -> float:
        return math.prod(f.value for f in flow.downstream(node)[1] if f.node not in inside)

    return factor


# lines and verdict -----------------------------------------------------------------------------------------


def _lines(found: Mapping[str, Mapping[Key, Mapping[int, Sequence[float]]]], way: str) -> tuple[Line, ...]:
    lines = []
    starts, changes = found.get(f"{way} start", {}), found.get(f"{way} change", {})
    for kind, name in starts:
        start, change = starts[kind, name], changes[kind, name]
        before, after = ({w: tuple(v) for w, v in sizes.items()} for sizes in (start, change))
        lines.append(Line(kind, name, before, after, fit(start), fit(change)))
    return tuple(lines)


def _pooled(sizes: Sequence[Sizes]) -> Sizes:
    """Root mean squares over seeds."""
    return {
        key: tuple(math.sqrt(sum(found[key][i] ** 2 for found in sizes) / len(sizes)) for i in range(3))  # type: ignore[misc]
        for key in (sizes[0] if sizes else ())
        if all(key in found for found in sizes)
    }


def _with_predictions(lines: tuple[Line, ...], subjects: Mapping[int, Subject], terms: Sizes) -> tuple[Line, ...]:
    """Lines with the slopes that exponents of width give, from sizes that were measured at the smallest width."""
    growths = {width: predicted(subject, terms) for width, subject in subjects.items()}

    def slope(key: Key, which: int) -> float | None:
        found = {width: growth[key][which] for width, growth in growths.items() if key in growth}
        known = len(found) > 1 and all(map(math.isfinite, found.values()))
        line = fit({width: (math.exp(g),) for width, g in found.items()}) if known else None
        return None if line is None else line.value

    return tuple(replace(ln, predicted=(slope((ln.kind, ln.name), 0), slope((ln.kind, ln.name), 1))) for ln in lines)


def _with_roles(lines: Iterable[Line], static: Check | None) -> tuple[Line, ...]:
    """Lines with the roles and exponents that the static check knows."""
    rows = static.rows if static else ()
    known: dict[str, dict[str, Any]] = {r.use: {"role": r.role, "limit": r.step} for r in rows}
    return tuple(replace(ln, **known.get(ln.name, {})) if ln.kind == "parameter" else ln for ln in lines)


STARTS = {"output": (-1.0, 0.0), "bottleneck": (-0.5, 0.0), "vector": (-0.5, 0.0), "fixed": (-1.0, 0.0)}
"""Slopes that muP allows at the start, by role; 0 for all others."""


def _faults(lines: Iterable[Line], by_gradient: bool) -> tuple[Fault, ...]:
    """Slopes that muP does not have, worst first, those of parameters before what they do to modules.

    Args:
        lines: what was measured.
        by_gradient: updates are proportional to gradients, those of inner bottlenecks then begin at r^-1/2 (rules 7).
    """
    found = []
    for ln in lines:
        wrong: dict[str, float] = {}
        if lost := [w for w, sizes in ln.change.items() if not all(map(math.isfinite, sizes))]:
            found.append(Fault(ln, "change", math.inf, f"no numbers at width {', '.join(map(str, lost))}: it diverges"))
        if ln.change_slope is not None and ln.kind == "parameter" and ln.role != "fixed":
            low = -0.5 if by_gradient and ln.role == "bottleneck" else 0.0
            low, high = low + min(ln.finite, 0.0), max(ln.finite, 0.0)
            wrong["change"] = ln.change_slope.beyond(low - TOLERANCE, high + TOLERANCE)
        elif ln.change_slope is not None:  # may fade where what feeds it does not learn yet
            wrong["change"] = max(ln.change_slope.beyond(-math.inf, TOLERANCE), 0.0)
        if ln.start_slope is not None:
            low, high = STARTS.get(ln.role, (0.0, 0.0)) if ln.kind == "parameter" else (-math.inf, 0.0)
            wrong["start"] = ln.start_slope.beyond(low - TOLERANCE, high + TOLERANCE)
        found += [Fault(ln, what, by, "") for what, by in wrong.items() if by]
    found.sort(key=lambda f: (f.line.kind != "parameter", -abs(f.excess)))
    return tuple(f if f.cause else replace(f, cause=_cause(f, found)) for f in found)


def _cause(fault: Fault, faults: Iterable[Fault]) -> str:
    """What usually gives such a slope."""
    line = fault.line
    if line.kind == "module":
        inside = [f.line.name for f in faults if f.line.kind == "parameter" and f.line.name.startswith(f"{line.name}.")]
        return f"by {inside[0]}" if inside else "by what comes before it, or a factor in forward"
    if line.kind == "logits":
        return "the scale of attention, which is 1/d where the head size d grows; or what gives its two sides"
    start, change = (s.value if s else 0.0 for s in (line.start_slope, line.change_slope))
    faster = (change if fault.what == "change" else start) > 0
    sum_of = 0.5 if line.role == "output" else 0.0  # random terms at the start, aligned ones later
    if min(abs(start), abs(change)) > TOLERANCE and abs(change - start - sum_of) < TOLERANCE:
        missing = "the readout's 1/r is missing" if line.role == "output" else "a factor on what it gives grows"
        twice = "the readout's 1/r is there twice" if line.role == "output" else "a factor on what it gives shrinks"
        return missing if faster else twice
    if fault.what == "start":
        return "its initial values do not shrink with what it sums" if faster else "its initial values shrink too much"
    if line.role == "output":
        return "its lr grows, or 1/r is missing" if faster else "its lr is divided by r beside the readout's 1/r"
    if line.role in ("hidden", "bottleneck"):
        faded = "its lr is divided by r too often, or its gradients shrink below eps"
        return "its lr is not divided by r, a scheduler overwrote it, or its gradients grow" if faster else faded
    faded = "its lr is divided by r, as only that of hidden weights should be, or its gradients shrink below eps"
    return "its lr grows, or its gradients do" if faster else faded


def _by_gradient(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's updates are proportional to gradients."""
    return optimizers()[optimizer_class(groups_of(optimizer)[0])[1]].power == 1


def _static(
    run: _Run, make: Callable[[int], Any], base: int, lr: float, seed: int, optimizer: torch.optim.Optimizer
) -> Check | None:
    """The static check on the widest model, before it is trained."""
    if run.analysis is not None:
        return check(run.analysis, param_groups=optimizer, lr=lr)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        narrow, other, *_ = make(base)
    rates = {g["lr"] for g in other.param_groups}
    return check(
        run.model, run.example, base=narrow, param_groups=optimizer, lr=rates.pop() if len(rates) == 1 else None
    )
