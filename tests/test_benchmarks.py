"""The benchmark of peers: a quick run of it, mup's edits, and the page, which is what the rows say."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import peers
from peers_page import FAMILIES, Figure, Rows, written

ROOT = Path(__file__).parent.parent
WRITTEN = ROOT / "docs" / "benchmarks.jsonl"
ROWS = [json.loads(line) for line in WRITTEN.read_text().splitlines()]


def test_a_quick_run_without_peers(tmp_path: Path) -> None:
    command = [sys.executable, peers.__file__, "run", "--quick", "--models", "gpt2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "benchmarks.jsonl").read_text().splitlines()]
    assert [r for r in rows if "error" in r] == []
    r = Rows(rows)
    assert (r.one("ready", case="untouched")["groups"], r.one("ready", case="autofit")["groups"]) == (1, 2)
    fates = {row["case"]: list(row["found"].values()) for row in rows if row["what"] == "survival"}
    assert fates == {"untouched": ["", "", ""], "autofit": ["", "", ""]}
    for what in ("step", "compiled step", "updating"):
        assert 0.1 < r.ratio(what, "gpt2", "autofit").median < 10
    assert 0.1 < r.analysis("gpt2").median < 10
    page = (tmp_path / "benchmarks.md").read_text()
    assert page == written(rows)
    assert "A quick run" in page
    assert "`mup` was not measured: no interpreter was given." in page


def test_the_page_is_what_the_rows_say() -> None:
    """If it is not: python benchmarks/peers.py write."""
    assert (ROOT / "docs" / "benchmarks.md").read_text() == written(ROWS)
    assert not Rows(ROWS).run["quick"]


@pytest.mark.parametrize("model", FAMILIES)
def test_mups_edits_fit_the_files_of_transformers(model: str, tmp_path: Path) -> None:
    """And are as many as the page says."""
    there = Path("transformers", "models", model, f"modeling_{model}.py")
    (tmp_path / there).parent.mkdir(parents=True)
    before = (Path(transformers.__file__).parents[1] / there).read_text()
    (tmp_path / there).write_text(before)
    subprocess.run(["git", "apply", str(peers.READY / f"mup_{model}.patch")], cwd=tmp_path, check=True)
    after = (tmp_path / there).read_text()
    difference = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    assert peers.edits()["mup"][model] == peers.changed(list(difference))
    assert Rows(ROWS).run["edits"] == peers.edits()


def test_a_peer_that_cannot_be_installed_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PACKAGES", ("mup==0.0.7",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found, absent = peers.interpreters(tmp_path / "peers", {"mup": None, "unit-scaling": sys.executable})
    assert "mup" not in found
    assert absent["mup"].startswith("not installed: ERROR")
    assert found["unit-scaling"].python == sys.executable


def test_a_process_that_dies_or_fails_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    environment = {"LOGS": str(tmp_path), "PATH": "/usr/bin:/bin"}
    p = peers.Process.start("mup", "gpt2", "quick", peers.Interpreter(str(broken)), environment)
    assert p.told() == {"error": "the process ended with 3"}
    assert peers.in_turn([p], "step", 2) == {"mup": []}
    assert peers.series("computing", p, [])["error"] == "the process ended with 3"
    p.end()
    gone = peers.Process.start("mup", "gpt2", "quick", peers.Interpreter(str(broken)), environment)
    gone.popen.wait()
    assert gone.ask("step") == {"error": "the process ended with 3"}
    gone.end()


def test_a_goal_is_met_by_the_median_and_missed_by_the_interval() -> None:
    figure = Figure.of([0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 5.0])
    assert (figure.median, figure.low, figure.high) == (1.2, 0.9, 5.0)
    wide = Figure.of(range(1, 31))
    assert (wide.low, wide.high) == (10, 21)  # a binomial of 30 is below 10 in 2.1%, below 11 in 4.9%
    assert [figure.against(goal) for goal in (1.2, 1.0, 0.8)] == ["met", "not told from it", "**not met**"]
