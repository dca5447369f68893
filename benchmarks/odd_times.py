"""Interrupts in any line, and several threads at once, and who judges them."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from judging import ROOT, Wrong, finite_plan, require, unexpected
from odd_models import Case
from snapshot import Snapshot, changed, process
from torch import nn

import autofit
from autofit import api
from autofit.lowering import is_muified

# interrupts ---------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Case] = {
    "mlp": Case("mlp", ("with gradients",)),
    "tied decoder": Case("decoder", ("partly in eval mode",)),
    "queries at zero": Case("untied", options={"zero_query": True, "zero_readout": True}),
    "factors on parameters": Case(
        "untied", options={"scheme": "mup+completep", "tunables": {"norm_gain": 2.0}, "depth_ratio": 2.0}
    ),
    "second model": Case("untied", base="narrow"),
    "run once": Case("branching", ("counts its calls",)),
    "freezes": Case("mlp", ("a parameter without elements",), options={"unused": "freeze"}),
    "transformer layer": Case("multihead"),
    "equal blocks": Case("stack"),
    "on meta": Case("mlp", ("on meta",)),
    "unit scaling": Case("untied", options={"scheme": "u-mup"}),
}
HERE = (str(ROOT / "autofit"), str(ROOT / "passes"))


class Interrupt:
    """A trace function that counts lines of the library, and raises KeyboardInterrupt in one.

    Args:
        line: file and number, ``None`` to only count.
        nth: which time that line is reached.
    """

    def __init__(self, line: tuple[str, int] | None = None, nth: int = 1) -> None:
        self.line, self.nth = line, nth
        self.seen: Counter[tuple[str, int]] = Counter()
        self.raised = False

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        """Trace what is the library's own."""
        return self.step if frame.f_code.co_filename.startswith(HERE) else None

    def step(self, frame: Any, event: str, arg: Any) -> Any:
        """One line."""
        if event == "line":
            at = frame.f_code.co_filename, frame.f_lineno
            self.seen[at] += 1
            if at == self.line and self.seen[at] == self.nth:
                sys.settrace(None)
                self.raised = True
                raise KeyboardInterrupt
        return self.step


def traced(case: Case, interrupt: Interrupt) -> tuple[Snapshot, api.Analysis | None, BaseException | None]:
    """Run `muify` under a trace function: the state before, the answer, and what was raised."""
    model, example = case.build()
    arguments = case.arguments()
    snapshot = Snapshot(model)
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        return snapshot, autofit.muify(model, example, **arguments), None
    except BaseException as error:
        return snapshot, None, error
    finally:
        sys.settrace(before)


_LINES: dict[str, list[tuple[tuple[str, int], int]]] = {}


def lines(name: str) -> list[tuple[tuple[str, int], int]]:
    """Lines of the library that `muify` reaches in a scenario, and how often."""
    if name not in _LINES:
        counter = Interrupt()
        traced(SCENARIOS[name], counter)  # what is made once, as tables of rules, is made here
        counter = Interrupt()
        _, _, error = traced(SCENARIOS[name], counter)
        require(error is None, f"the scenario {name} fails: {error}")
        _LINES[name] = sorted(counter.seen.items())
    return _LINES[name]


@st.composite
def interrupts(draw: st.DrawFn) -> tuple[str, int, int]:
    """A scenario, the number of a line in `lines`, and which time it is reached."""
    name = draw(st.sampled_from(list(SCENARIOS)))
    at = draw(st.integers(0, len(lines(name)) - 1))
    times = lines(name)[at][1]
    return name, at, draw(st.one_of(st.sampled_from([1, times]), st.integers(1, times)))


def judge_interrupt(case: tuple[str, int, int]) -> str:
    """Interrupted anywhere, `muify` leaves the model as it was; or it was done, and all of it is rewritten."""
    name, at, nth = case
    line, _ = lines(name)[at]
    interrupt = Interrupt(line, nth)
    snapshot, mu, error = traced(SCENARIOS[name], interrupt)
    where = f"{Path(line[0]).name}:{line[1]}"
    if error is not None:
        other = f"interrupted at {where}, {type(error).__name__} in place of KeyboardInterrupt"
        require(isinstance(error, KeyboardInterrupt), other)
        if is_muified(snapshot.model) and where.startswith("cleanup.py"):  # it was done, and lets other threads in
            require(_state(snapshot.model) == _state(_done(name)), f"interrupted at {where}, half rewritten")
            return "right"
        for difference in snapshot.differences():
            raise Wrong(f"interrupted at {where}, not as it was: {difference}"[:200])
        return "interrupted"
    assert mu is not None
    require(finite_plan(mu.plan), f"interrupted at {where}, a plan that is none")
    for difference in changed(snapshot.process):
        raise Wrong(f"interrupted at {where}, not as it was: {difference}"[:200])
    return "right"


def _done(name: str) -> nn.Module:
    """The model of a scenario, rewritten."""
    case = SCENARIOS[name]
    return autofit.muify(*case.build(), **case.arguments()).model


def _state(model: nn.Module) -> list[Any]:
    """Values, hooks and which parameters have a gradient."""
    held = [(n, p.requires_grad, None if p.is_meta else p.tolist()) for n, p in model.named_parameters()]
    hooks = [(n, [*m._forward_pre_hooks.values(), *m._forward_hooks.values()]) for n, m in model.named_modules()]
    return [held, hooks]


# threads ------------------------------------------------------------------------------------------------

_ALONE: dict[str, str] = {}


def _muified(name: str) -> str:
    """The plan of a scenario, as text."""
    model, example = SCENARIOS[name].build()
    return json.dumps(autofit.muify(model, example, **SCENARIOS[name].arguments()).plan.to_dict())


def judge_threads(names: tuple[str, ...]) -> str:
    """Models that are muified at the same time get the plans that they get one after another."""
    for name in names:
        if name not in _ALONE:
            _ALONE[name] = _muified(name)
    models = [SCENARIOS[name].build() for name in names]  # drawn here: threads share the random numbers
    was = process()
    found: dict[int, Any] = {}
    start = threading.Barrier(len(names))

    def work(i: int) -> None:
        start.wait()
        try:
            model, example = models[i]
            found[i] = json.dumps(autofit.muify(model, example, **SCENARIOS[names[i]].arguments()).plan.to_dict())
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(names))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was = process()
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        require(not any(t.is_alive() for t in threads), "threads hang")
        for difference in changed(was):
            raise Wrong(f"threads, not as it was: {difference}"[:200])
    for i, name in enumerate(names):
        if isinstance(found[i], BaseException):
            raise unexpected(found[i]) from found[i]
        require(found[i] == _ALONE[name], f"threads: {name} got another plan than alone")
    return "right"
