"""What is wrong with the answer to a case, whatever was asked: shared by all kinds of `fuzz`."""

from __future__ import annotations

import builtins
import contextlib
import json
import math
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

from snapshot import Snapshot

import autofit
from autofit.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
SCREEN = 40
"""Lines that a message may have."""
RAN: list[str] = []
"""What code out of a data file or a name would leave here."""
builtins.autofit_ran = lambda: RAN.append("ran")  # type: ignore[attr-defined]


class Wrong(AssertionError):
    """A case that came out as it must not.

    Args:
        what: in one line; cases that come out alike have one.
    """


class Hang(BaseException):
    """A case took longer than it may."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block after a time; in the main thread only."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def unexpected(error: BaseException) -> Wrong:
    """A finding about an exception that is not the library's own, named after where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/autofit/" in f.filename or "/passes/" in f.filename or f.filename.endswith("/cli.py")]
    at = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "outside"
    try:
        text = str(error).strip().splitlines()
    except Exception:
        text = []
    return Wrong(f"{type(error).__name__} from {at}: {text[0][:160] if text else ''}")


def require(holds: bool, what: str) -> None:
    """Raise a finding unless it holds."""
    if not holds:
        raise Wrong(what)


def check_message(error: autofit.AutofitError) -> None:
    """A refusal says something, on one screen."""
    require(bool(error.what.strip()), f"{type(error).__name__} says nothing")
    lines = str(error).splitlines()
    require(len(lines) <= SCREEN and len(str(error)) <= 80 * SCREEN, f"{type(error).__name__} fills the screen")


def finite_plan(plan: Plan) -> bool:
    """Whether everything that is multiplied by is a finite positive number."""
    of_parameters = [(p.r_in, p.r_out, p.fold, p.multiplier, p.lr, p.depth) for p in plan.parameters.values()]
    numbers = [*(n for row in of_parameters for n in row), *(s.multiplier for s in plan.sites)]
    return all(math.isfinite(n) and n > 0 for n in numbers) and all(
        math.isfinite(p.init_factor) and p.init_factor >= 0 for p in plan.parameters.values()
    )


def check_plan(plan: Plan) -> None:
    """A plan prints, and comes back from JSON as it was."""
    text = json.dumps(plan.to_dict())
    try:
        again = Plan.from_dict(json.loads(text))
    except autofit.PlanError as error:
        raise Wrong(f"a plan of its own is refused: {error}") from error
    require(json.dumps(again.to_dict()) == text, "a plan does not come back from JSON as it was")
    str(plan)


def unchanged(snapshot: Snapshot) -> None:
    """Raise a finding about the first thing that is not as it was."""
    for difference in snapshot.differences():
        raise Wrong(f"not as it was: {difference}"[:200])
