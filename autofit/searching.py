"""Tune on the narrow model, confirm on the next ones: a sweep whose runs are kept by Optuna."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from rich.table import Table
from rich.text import Text

from autofit.errors import AutofitError
from autofit.report import printed

Point = tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        names: of what was tuned.
        losses: mean over seeds by width and values; of the narrowest width all, of others those near the best.
        best: values that are best at the narrowest width.
        regret: by further width: what these values lose there against the best that was tried.
        at_edge: names of values whose best is the first or last that was tried.
        stored: how many of its runs were in the storage before; nothing tells whether ``train`` was the same then.
    """

    names: tuple[str, ...]
    losses: Mapping[int, Mapping[Point, float]]
    best: Mapping[str, float]
    regret: Mapping[int, float]
    at_edge: tuple[str, ...]
    stored: int = 0

    def __str__(self) -> str:
        shown = Table(box=None, pad_edge=False)
        for name in (*self.names, *(f"width {w}" for w in self.losses)):
            shown.add_column(name, justify="right")
        lowest = {w: min(losses, key=losses.__getitem__) for w, losses in self.losses.items()}
        for point in sorted({p for losses in self.losses.values() for p in losses}):
            cells = [
                f"{losses[point]:.4f}{' *' if point == lowest[w] else '  '}" if point in losses else ""
                for w, losses in self.losses.items()
            ]
            shown.add_row(*(f"{v:g}" for v in point), *cells)
        best = ", ".join(f"{n} = {v:g}" for n, v in self.best.items())
        lines = [Text(f"best at width {min(self.losses)}: {best}")]
        lines += [Text(f"at width {w} it loses {r:.4f} against the best tried there") for w, r in self.regret.items()]
        lines += [Text(f"the best {n} is at the end of what was tried: try further values") for n in self.at_edge]
        lines += [Text(f"{self.stored} runs are from the storage, whatever train was then")] * bool(self.stored)
        return printed([shown, *lines])


def sweep(
    train: Callable[..., float],
    grid: Mapping[str, Sequence[float]],
    *,
    widths: Sequence[int],
    seeds: Sequence[int] = (0,),
    storage: Any = None,
    name: str = "sweep",
    near: int = 1,
    progress: Callable[[int, Mapping[str, float], float], None] | None = None,
) -> Sweep:
    """Try a grid at the narrowest width, then what is best and its neighbours at the others.

    Every run is a trial of an Optuna study, ``name`` at its width, with the seed among its parameters. Whatever a
    storage has already is not run again, so that a sweep that was killed goes on where it was, several processes or
    machines share one storage, and Optuna's own tools show it. What is tuned is not part of that: another model or
    ``train`` wants another name.

    Args:
        train: ``train(width=..., seed=..., **values)`` makes a model at a width, muifies it, trains it, and gives its
            loss; one that is not finite counts as infinitely bad.
        grid: values by name, ascending.
        widths: the first is tuned on, the others confirm.
        seeds: of each run.
        storage: an Optuna storage or its URL, as ``"sqlite:///sweep.db"``: any database that SQLAlchemy knows.
            ``None`` keeps nothing.
        name: of the studies.
        near: how many steps of the grid around the best are tried at further widths, one value at a time.
        progress: called with width, values and loss after each run.

    Returns:
        Losses, the best values, and the regret at each further width.

    Raises:
        AutofitError: Optuna is not installed, an empty grid, or nothing finite at the narrowest width.
    """
    try:
        import optuna
    except ImportError:
        raise AutofitError("a sweep needs Optuna", todo="pip install 'autofit[sweep]'") from None
    names = tuple(grid)
    axes = [sorted(float(v) for v in grid[n]) for n in names]
    if not names or not all(axes) or not widths or not seeds:
        raise AutofitError("an empty grid, or no widths or seeds", todo="give at least one value of each")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    losses: dict[int, dict[Point, float]] = {}
    stored = 0
    narrowest, *wider = widths
    points: list[Point] = list(itertools.product(*axes))
    for width in (narrowest, *wider):
        study = optuna.create_study(storage=storage, study_name=f"{name}, width {width}", load_if_exists=True)
        runs = [(p, s) for p in points for s in seeds]
        stored += len(_trials(study, names, (optuna.trial.TrialState.COMPLETE,)).keys() & set(runs))
        found = _run(study, train, names, width, runs, progress)
        losses[width] = {p: mean(found[p, s] for s in seeds) for p in points}
        if width == narrowest:
            best = min(points, key=losses[width].__getitem__)
            if not math.isfinite(losses[width][best]):
                raise AutofitError(f"no run of width {width} ended with a finite loss")
            points = list(_around(best, axes, near))
    edges = (n for n, v, axis in zip(names, best, axes, strict=True) if len(axis) > 1 and v in (axis[0], axis[-1]))
    regret = {w: losses[w][best] - min(losses[w].values()) for w in wider}
    return Sweep(names, losses, dict(zip(names, best, strict=True)), regret, tuple(edges), stored)


def _around(best: Point, axes: Sequence[Sequence[float]], near: int) -> Iterator[Point]:
    """A point of a grid, and others that differ in one value by some steps."""
    yield best
    for i, axis in enumerate(axes):
        at = axis.index(best[i])
        for other in axis[max(0, at - near) : at + near + 1]:
            if other != best[i]:
                yield (*best[:i], other, *best[i + 1 :])


def _run(
    study: Any,
    train: Callable[..., float],
    names: tuple[str, ...],
    width: int,
    runs: Sequence[tuple[Point, int]],
    progress: Callable[[int, Mapping[str, float], float], None] | None,
) -> dict[tuple[Point, int], float]:
    """Losses of runs, from the study where it has them."""
    import optuna

    states = optuna.trial.TrialState
    space: dict[str, Any] = {n: optuna.distributions.FloatDistribution(-1e300, 1e300) for n in names}
    space["seed"] = optuna.distributions.IntDistribution(0, 2**31 - 1)
    for taken in (states.RUNNING, None):  # what another process runs, or a killed one ran, comes last
        for point, seed in runs:
            begun = _trials(study, names, (states.COMPLETE,) if taken is None else (states.COMPLETE, taken))
            if (point, seed) in begun:
                continue
            study.enqueue_trial({**dict(zip(names, point, strict=True)), "seed": seed})
            trial = study.ask(space)
            own = {n: trial.params[n] for n in names}  # another process may have queued one that comes first
            try:
                loss = float(train(width=width, seed=trial.params["seed"], **own))
            except BaseException:
                study.tell(trial, state=states.FAIL)
                raise
            study.tell(trial, loss if math.isfinite(loss) else math.inf)
            if progress is not None:
                progress(width, own, loss)
    return _trials(study, names, (states.COMPLETE,))


def _trials(study: Any, names: tuple[str, ...], states: tuple[Any, ...]) -> dict[tuple[Point, int], float]:
    """Losses by values and seed, of trials in these states that have all of them."""
    found = study.get_trials(deepcopy=False, states=states)
    return {
        (tuple(t.params[n] for n in names), t.params["seed"]): t.value for t in found if {*names, "seed"} <= {*t.params}
    }
