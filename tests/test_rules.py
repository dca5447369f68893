"""The table of rules: what the papers print, and what it prints."""

from __future__ import annotations

import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autofit.cli import app
from autofit.monomial import SYMBOLS, Monomial
from autofit.rules import optimizers, table

DOC = Path(__file__).parent.parent / "docs" / "rules.md"
POWERS = st.fractions(-2, 2, max_denominator=4)
MONOMIALS = st.dictionaries(st.sampled_from(list(SYMBOLS)), POWERS).map(
    lambda d: Monomial(tuple((n, d[n]) for n in SYMBOLS if d.get(n)))
)


@given(MONOMIALS)
def test_a_monomial_reads_what_it_writes(m: Monomial) -> None:
    assert Monomial.parse(str(m)) == m
    assert m(dict.fromkeys(SYMBOLS, 1.0)) == 1.0


@given(MONOMIALS, MONOMIALS, st.sampled_from([-2, -1, 2, Fraction(1, 2)]))
def test_a_monomial_is_the_number_that_it_stands_for(a: Monomial, b: Monomial, k: Fraction) -> None:
    at = {name: 1.5 + i for i, name in enumerate(SYMBOLS)}
    assert (a * b)(at) == pytest.approx(a(at) * b(at))
    assert (a / b)(at) == pytest.approx(a(at) / b(at))
    assert (a**k)(at) == pytest.approx(a(at) ** float(k))


@pytest.mark.parametrize("text", ["", "r_in^", "2", "/r_in", "r_in r_out", "width", "r_in^1/2/", "1//r_in"])
def test_what_is_no_monomial_is_refused(text: str) -> None:
    if text:
        with pytest.raises(ValueError, match="no product of powers"):
            Monomial.parse(text)


# Tensor Programs V, Tables 3, 8 and 9, for hidden weights with one width on both sides: exponents of the width in
# multiplier, init std, lr of SGD and lr of Adam.
PAPER = {
    "table3": {"input": (0, 0, 1, 0), "hidden": (0, -0.5, 0, -1), "output": (0, -1, -1, -1), "vector": (0, 0, 1, 0)},
    "table8": {"input": (0, 0, 1, 0), "hidden": (0, -0.5, 0, -1), "output": (-1, 0, 1, 0), "vector": (0, 0, 1, 0)},
    "table9": {
        "input": (0.5, -0.5, 0, -0.5),
        "hidden": (0, -0.5, 0, -1),
        "output": (-0.5, -0.5, 0, -0.5),
        "vector": (0.5, -0.5, 0, -0.5),
    },
}


@pytest.mark.parametrize("form", PAPER)
def test_the_tables_of_the_paper(form: str) -> None:
    sgd, adam = table("mup", "sgd", form).rules, table("mup", "adam", form).rules
    for role, expected in PAPER[form].items():
        cells = (adam[role].multiplier, adam[role].init, sgd[role].lr, adam[role].lr)
        assert tuple(sum(float(p) for _, p in c.powers) for c in cells) == expected, role


def test_every_cell_has_a_source() -> None:
    for name in optimizers():
        for rule in table("mup", name).rules.values():
            assert all(rule.source(column) for column, _ in rule.cells())


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    app(["rules", *words], result_action="return_value")
    return capsys.readouterr().out


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["--optimizer", "adamw"], ["--optimizer", "sgd", "--form", "table9"]):
        text = printed(capsys, *words)
        assert max(map(len, text.splitlines())) <= 80
        assert "r_in^-1/2" in text


def test_json_has_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    (data,) = json.loads(printed(capsys, "--json", "--optimizer", "adamw"))
    assert data["rules"]["hidden"]["lr"] == {"factor": "1/r_in", "source": "TP5 Table 8"}
    for role, rule in table("mup", "adamw").rules.items():
        assert {c: str(v) for c, v in rule.cells()} == {c: d["factor"] for c, d in data["rules"][role].items()}


def test_the_document_is_what_the_command_prints() -> None:
    """If it is not: python docs/update.py."""
    specification = importlib.util.spec_from_file_location("update", DOC.parent / "update.py")
    assert specification is not None
    assert specification.loader is not None
    update = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(update)
    assert DOC in update.PAGES
    assert len(update.PLACE.findall(DOC.read_text())) == 6
    assert update.updated(DOC.read_text()) == DOC.read_text()
