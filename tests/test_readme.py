"""Every block of the README, of CONTRIBUTING.md and of all pages of docs/ is run, in order, and prints what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from autofit import rules
from autofit.passes.ops import RULES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
from update import blocks, run  # type: ignore[import-not-found]  # noqa: E402

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for b in blocks(TEXT) if b.language == "bash" for line in b.text.strip().splitlines()]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"sphinx-build -W -n -q -b html docs docs/_build": "test_docs.py"}
"""Commands that another test runs."""


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Rules that a page adds are for that page."""
    with patch.dict(RULES), patch.dict(rules._MEASURED):
        yield
    rules.table.cache_clear()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in PAGES if blocks(p.read_text())])
def test_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a page prints something else: python docs/update.py PAGE."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # the README imports what it exports
    text = (ROOT / page).read_text()
    if page == "README.md":  # its commands are run one by one
        text = re.sub(r"^```bash\n.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)
    for block, printed in run(text, Path(page).stem):
        assert block.output in (None, printed)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("autofit ")])
def test_commands_run(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    result = subprocess.run(
        [sys.executable, "-m", "autofit.cli", *words[1:]],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    if "--json" not in words and words[1] == "report":
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_check_runs_the_two_commands_at_the_top() -> None:
    """What is neither an autofit command nor a test run is the install line, and CI calls it literally."""
    rest = [c for c in COMMANDS if not c.startswith("autofit ")]
    script = (ROOT / ".ci" / "run").read_text()
    assert rest == ['pip install -e ".[dev]" -c constraints.txt && autofit report hf:gpt2', "pytest"]
    assert rest[0] in script
    assert script.rstrip().endswith("pytest")


def test_nothing_on_a_page_is_left_out() -> None:
    """Blocks are programs, commands, changes, or text; commands of others are run by CI or another test."""
    script = (ROOT / ".ci" / "run").read_text()
    for page in PAGES:
        for block in blocks(page.read_text()):
            assert block.language in ("python", "bash", "diff"), (page, block)
            if block.language == "bash":
                lines = block.text.replace("\\\n", " ").splitlines()
                assert all(c.startswith("autofit ") or c in script or c in ELSEWHERE for c in lines), (page, block)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
