"""Every cell of the table of rules matters: with a wrong one, something that is measured comes out wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_forms import IDS, OPTIMIZERS, Net, run
from test_optimizers import ALL, measured

import autofit
from autofit import rules
from autofit.exponents import AXES
from autofit.monomial import Monomial
from autofit.rules import table

SCHEME, LISTED = rules._read("mup"), rules._read("optimizers")
FAMILIES = {"adam": "adamw", "sgd": "sgd", "adafactor": "adafactor", "orthogonal": "shampoo"}
AT_INIT = {"input": 0, "hidden": 0, "output": -0.5, "bottleneck": 0, "bottleneck as output": -0.5, "vector": 0}
"""Exponent of what a parameter gives at first: sums of random signs (Tensor Programs V, section 3)."""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any], dict[str, Any]], None]]:
    """Puts other data into the place of the files."""

    def write(scheme: dict[str, Any], optimizers: dict[str, Any]) -> None:
        monkeypatch.setattr(rules, "_read", {"mup": scheme, "optimizers": optimizers}.__getitem__)
        rules._listed.cache_clear()
        table.cache_clear()

    yield write
    monkeypatch.undo()
    rules._listed.cache_clear()
    table.cache_clear()


def other(text: str, role: str) -> str:
    """A cell that is wrong by the root of a ratio."""
    return str(Monomial.parse(text) * Monomial.parse(f"{AXES[role][0]}^1/2"))


def at_init(role: str, r: float) -> float:
    """RMS of what a parameter gives, of random weights, where its first ratio is r."""
    rule, ratios = table("mup").rules[role], {"r_in": 1.0, "r_out": 1.0} | dict.fromkeys(AXES[role], r)
    torch.manual_seed(0)
    into, out = int(64 * ratios["r_in"]), int(256 * ratios["r_out"])
    weight = torch.randn(out, into) / 8 * rule.init(ratios)
    given = weight[:, 0] * 8 if role == "vector" else torch.randn(256, into) @ weight.T
    return rule.multiplier(ratios) * given.square().mean().sqrt().item()


def wrong(role: str) -> bool:
    """Whether updates of this role, at any time, or what it gives at first, grow or shrink with width."""
    slope = (torch.tensor(at_init(role, 16.0)).log() - torch.tensor(at_init(role, 1.0)).log()) / torch.tensor(
        16.0
    ).log()
    if abs(slope - AT_INIT[role]) > 0.1:
        return True
    eps = {"eps": 1.0} if not role.startswith("bottleneck") else {}
    runs: list[dict[str, Any]] = [{"name": name} for name in FAMILIES.values()]
    runs += [{"name": "adamw", **eps}] if eps else []
    found = (measured(run.pop("name"), widths=(128, 256), **run)[role].exponents.values() for run in runs)
    return any(abs(e) > 0.1 for exponents in found for e in exponents)


@pytest.mark.parametrize("role", AXES)
def test_the_table_is_right(role: str) -> None:
    assert not wrong(role)


CELLS = [
    (role, column, family)
    for role in AXES
    for column, families in (("multiplier", [""]), ("init", [""]), ("lr", FAMILIES), ("eps", ["adam"]))
    for family in families
    if not (column == "eps" and role.startswith("bottleneck"))
]


@pytest.mark.parametrize(("role", "column", "family"), CELLS)
def test_a_wrong_cell_is_seen(written: Any, role: str, column: str, family: str) -> None:
    """But for eps of bottlenecks: their gradient has another exponent at first than in training."""
    scheme = copy.deepcopy(SCHEME)
    row = scheme["roles"][role]
    if family:
        row[column][family] = other(row[column][family], role)
    else:
        row[column] = other(row[column], role)
    written(scheme, LISTED)
    assert wrong(role)


PAPER = {
    "table3": {"output": ("1", "1/r_in", "1/r_in", "1/r_in")},
    "folded": {"output": ("1", "1/r_in", "1/r_in", "1/r_in")},
    "table9": {
        "input": ("r_out^1/2", "r_out^-1/2", "r_out^-1/2", "1"),
        "vector": ("r_out^1/2", "r_out^-1/2", "r_out^-1/2", "1"),
        "output": ("r_in^-1/2", "r_in^-1/2", "r_in^-1/2", "1"),
    },
    "one_lr": {
        "hidden": ("1/r_in", "r_in^1/2", "1", "r_in*r_out"),
        "bottleneck": ("1/r_in", "r_in^1/2", "1", "r_in"),
        "bottleneck as output": ("1/r_in", "1", "1", "r_in"),
    },
}
"""By form and parameter: multiplier, init std, lr of Adam and of SGD (TP5 Tables 3 and 9, relative to the base)."""


def forms_are_right() -> bool:
    """As in the paper; that all train alike is in test_forms.py, whatever the factor."""
    for form, rows in PAPER.items():
        adam, sgd = (table("mup", name, form).rules for name in ("adam", "sgd"))
        for role, expected in rows.items():
            found = adam[role].multiplier, adam[role].init, adam[role].lr, sgd[role].lr
            if tuple(map(str, found)) != expected:
                return False
    return True


@pytest.mark.parametrize(("form", "role"), [(f, role) for f, data in SCHEME["forms"].items() for role in data["theta"]])
def test_a_wrong_factor_of_a_form_is_seen(written: Any, form: str, role: str) -> None:
    assert forms_are_right()
    scheme = copy.deepcopy(SCHEME)
    theta = scheme["forms"][form]["theta"]
    theta[role] = other(theta[role], role)
    written(scheme, LISTED)
    assert not forms_are_right()


def test_a_wrong_scale_of_attention_is_seen(written: Any) -> None:
    """Queries that equal their keys: each logit is a sum of as many squares as the head is large."""

    def logit(width: int) -> float:
        sites = autofit.analyze(Net(width), IDS, base=Net(8)).plan.sites
        (site,) = (s for s in sites if s.kind == "attention")
        return site.size * site.scale * site.multiplier

    assert logit(64) == pytest.approx(logit(8))
    scheme = copy.deepcopy(SCHEME)
    scheme["sites"]["attention"]["total"] = "r^-1/2"
    written(scheme, LISTED)
    assert logit(64) != pytest.approx(logit(8))


@pytest.mark.filterwarnings("ignore:.*no width rule is sourced")
@pytest.mark.parametrize(
    ("name", "column"),
    [
        (n, c)
        for n, entry in LISTED["optimizers"].items()
        for c in ("power", "decay", "eps", "family")
        if (n in OPTIMIZERS and (entry["eps"] or c != "eps")) or (c == "family" and n in ALL)
    ],
)
def test_a_wrong_entry_of_an_optimizer_is_seen(written: Any, name: str, column: str) -> None:
    """Forms part: a run with multipliers is another than with none. RAdam, which has no such run, is Adam's family."""
    listed = copy.deepcopy(LISTED)
    entry = listed["optimizers"][name]
    family = listed["families"][entry["family"]]
    if column == "power":
        family["power"] += 1
    elif column == "decay":
        entry["decay"] = {"with lr": "gradient", "gradient": "with lr"}[entry["decay"]]
    elif column == "eps":
        entry["eps"] = False
    else:
        entry |= {"family": "adam" if entry["family"] == "sgd" else "sgd", "eps": False}
        written(SCHEME, listed)
        found = measured(name, widths=(128, 256))
        assert max(abs(e) for part in found.values() for e in part.exponents.values()) > 0.4
        return
    settings: tuple[Any, ...] = (name, 32, 0.01, 0.2, 1e-3)
    expected = run("table8", *settings)
    assert run("folded", *settings) == pytest.approx(expected, rel=1e-9)
    written(SCHEME, listed)
    if column == "eps":
        with pytest.raises(autofit.OptimizerError, match="no setting 'eps'"):
            autofit.analyze(Net(32), IDS, base=Net(8)).param_groups(name, lr=0.1, eps=1e-3)
    elif (name, column) == ("sgd", "decay"):
        assert run("folded", *settings) == pytest.approx(expected, rel=1e-9)  # L2 and decay are one for plain SGD
    else:
        assert run("folded", *settings) != pytest.approx(expected, rel=1e-9)
