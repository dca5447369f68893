"""Contents of files: bases in JSON and in YAML, plans, and who judges them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from judging import RAN, check_message, check_plan, finite_plan, require, unchanged
from odd_models import NAMES, NETS, WIDTH, Case
from snapshot import Snapshot
from torch import nn

import autofit
from autofit import api, optim
from autofit.bases import read_base
from autofit.lowering import is_muified
from autofit.plan import Plan

# base files ---------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-2, 300),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -0.0, 1, 16, 1e308, 5e-324, 10**400, -(10**400), 2**63, True, 0.1, 1e-9, 1.5]),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(NAMES)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
DANGEROUS = (
    "!!python/object/apply:builtins.autofit_ran []",
    "!!python/object/apply:os.system ['touch autofit_ran']",
    "!!python/name:os.system",
    "!!python/module:this",
    "!!python/object/new:odd_models.Thing []",
    "a: !!python/tuple [1, 2]",
    "a: &a [*a]",
    "a: &a [1, 2]\nb: *a",
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\n"
    "f: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]\ng: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f, *f]\n"
    "h: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g, *g]\ni: [*h, *h, *h, *h, *h, *h, *h, *h, *h, *h]",
    "<<: {a: [1]}",
    "? [1, 2]\n: [3]",
    "? {a: b}\n: [3]",
    "0.weight: [0x" + "f" * 6000 + ", null]",
    "0.weight: [1:30:45, 2001-01-01]",
    "0.weight: [.inf, .nan]",
    "- a\n- b",
    "--- a\n--- b",
    "%YAML 9.9\n---\na: [1]",
    "\t",
    "",
    "null",
    "'",
    "a: [" * 2000,
    "{" * 3000,
    "[" * 100_000,
    '{"a": ' * 50_000,
    '{"a": 1e999}',
    '{"a": NaN, "b": -Infinity}',
    '{"a": ' + "9" * 5000 + "}",
    '{"a": 1, "a": 2}',
    '{"\\ud800": 3}',
    '{"__class__": 3, "__reduce__": 1}',
    '["builtins.autofit_ran", "json"]',
    "{}",
    "[]",
    "3",
    "\ufeff{}",
    '{"a": 1}garbage',
    "//",
)
"""Texts that a reader may stumble over, or run."""


@st.composite
def base_texts(draw: st.DrawFn, valid: Callable[[Any], Any], dump: Callable[[Any], str]) -> bytes:
    """Contents of a base file: right ones, right ones that were damaged, and anything."""
    kinds = ["right"] * 4 + ["odd values", "damaged", "damaged", "dangerous", "text", "bytes"]
    kind = draw(st.sampled_from(kinds))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "text":
        return draw(st.text(max_size=60)).encode("utf-8", "surrogatepass")
    if kind == "dangerous":
        return draw(st.sampled_from(DANGEROUS)).encode("utf-8", "surrogatepass")
    data = draw(valid(JUNK if kind == "odd values" else NUMBERS if kind == "damaged" else st.integers(1, 64)))
    text = dump(data)
    if kind == "damaged":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 5)) :]
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32"])), "surrogatepass")


def sizes(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Base sizes by dimension."""
    keys = st.one_of(
        st.sampled_from(["0.weight[0]", "2.weight[0]", "residual_branches", "autofit base", "input[1]"]),
        st.text(max_size=4),
        st.sampled_from(NAMES),
    )
    return st.one_of(
        st.fixed_dictionaries(
            dict.fromkeys(known_sizes(), values), optional={"autofit base": st.sampled_from([0, 1, 2, "1"])}
        ),
        st.dictionaries(keys, values, max_size=5),
    )


def shapes(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Base shapes by parameter: those of a narrower model, of no model, and of some parameters."""
    shape = st.lists(st.one_of(st.none(), values), max_size=3)
    narrow = st.integers(1, 64).map(lambda n: {k: [n if s == WIDTH else s for s in v] for k, v in SHAPES.items()})
    whole = {n: st.lists(st.one_of(st.none(), values), min_size=k, max_size=k) for n, k in AXES.items()}
    some = st.dictionaries(st.sampled_from(list(AXES)), st.one_of(shape, values), max_size=6)
    return st.sampled_from([narrow, narrow, st.fixed_dictionaries(whole), some]).flatmap(lambda chosen: chosen)


SHAPES = {name: list(p.shape) for name, p in NETS["mlp"]()[0].named_parameters()}
AXES = {name: len(shape) for name, shape in SHAPES.items()}
"""Shapes, and numbers of axes, of the parameters of `subject`."""


class Subject:
    """An MLP that was captured once, so that a base alone is what a case costs."""

    def __init__(self) -> None:
        self.model, self.example = NETS["mlp"]()
        self.program = api.capture(self.model, self.example)

    def analyze(self, **options: Any) -> api.Analysis:
        """`autofit.analyze` of it."""
        with mock.patch.object(api, "capture", return_value=self.program):
            return autofit.analyze(self.model, self.example, **options)


_SUBJECT: list[Subject] = []


def subject() -> Subject:
    """The one of this process."""
    if not _SUBJECT:
        _SUBJECT.append(Subject())
    return _SUBJECT[0]


def known_sizes() -> list[str]:
    """Names of the dimensions of `subject`."""
    return list(subject().analyze(base=16).base())


def judge_base(contents: bytes, suffix: str) -> str:
    """A base file is read and fits, or is refused; nothing in it is run."""
    RAN.clear()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"base{suffix}"
        path.write_bytes(contents)
        try:
            read_base(path)
            found = subject().analyze(base=path)
        except autofit.AutofitError as error:
            check_message(error)
            outcome = "refused"
        else:
            outcome = "right"
            require(all(math.isfinite(d.ratio) and d.ratio > 0 for d in found.roles.growth.dimensions), "ratio")
            require(finite_plan(found.plan), "a plan of numbers that are not finite")
            check_plan(found.plan)
        require(not RAN and sorted(os.listdir(folder)) == [path.name], "code of a base file was run")
    return outcome


# plans --------------------------------------------------------------------------------------------------


_PLANS: dict[str, tuple[nn.Module, str]] = {}
PLANS: dict[str, Case] = {
    "mlp": Case("mlp"),
    "tied": Case("decoder", options={"scheme": "mup+completep", "depth_ratio": 2.0}),
    "tuned": Case("untied", options={"tunables": {"embedding": 3.0}, "form": "table9", "zero_query": True}),
}


def _plan(name: str) -> tuple[nn.Module, str]:
    """A model, and its plan as JSON."""
    if name not in _PLANS:
        model, example = PLANS[name].build()
        plan = autofit.analyze(model, example, **PLANS[name].arguments()).plan
        _PLANS[name] = model, json.dumps(plan.to_dict())
    return _PLANS[name]


@st.composite
def changed_plans(draw: st.DrawFn) -> tuple[str, Any]:
    """A plan as data, with changes anywhere in it."""
    name = draw(st.sampled_from(list(PLANS)))
    data = json.loads(_plan(name)[1])
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        data = _change(draw, data)
    return name, data


def _change(draw: st.DrawFn, whole: Any) -> Any:
    """One change: on the way down from the whole, at any level."""
    at, steps = whole, 0
    while isinstance(at, dict | list) and at:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw(st.sampled_from(keys))
        steps += 1
        if not isinstance(at[key], dict | list) or draw(st.integers(0, 3)) == 0:
            number = isinstance(at[key], int | float)
            what = draw(st.sampled_from(["put", "put", "remove", "add", "double"] + ["nudge"] * 6 * number))
            if what == "remove":
                del at[key]
            elif what == "add" and isinstance(at, dict):
                at[draw(st.one_of(st.text(max_size=4), st.sampled_from(NAMES)))] = draw(JUNK)
            elif what == "double" and isinstance(at, list):
                at.append(at[key])
            elif what == "nudge":
                at[key] = draw(st.sampled_from([-1, 0, 2, 1e300, at[key] * 2, float("nan")]))
            else:
                at[key] = draw(JUNK)
            return whole
        at = at[key]
    return draw(JUNK)


def judge_plan(case: tuple[str, Any]) -> str:
    """A changed plan is refused, or is one from which groups can be made."""
    name, data = case
    model, text = _plan(name)
    try:
        plan = Plan.from_dict(data)
    except autofit.AutofitError as error:
        check_message(error)
        require(json.dumps(data) != text, f"a plan of its own is refused: {error}")
        return "refused"
    check_plan(plan)
    part, _ = PLANS[name].build()
    snapshot = Snapshot(part)
    try:
        groups = autofit.apply(plan, part).param_groups("adamw", lr=0.1)
        require(all(math.isfinite(g["lr"]) and g["lr"] >= 0 for g in groups), "a learning rate that is none")
    except autofit.AutofitError as error:
        check_message(error)
        if not is_muified(part):
            unchanged(snapshot)
    for optimizer in ("adamw", "sgd"):
        with contextlib.suppress(autofit.AutofitError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = optim.param_groups(model, plan, optimizer, lr=0.1)
            require(all(math.isfinite(g["lr"]) and g["lr"] >= 0 for g in groups), "a learning rate that is none")
    return "right"
