"""Every block of the README is run, in order, and those of the pages of docs/ that have any."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.strip().splitlines()]


@pytest.mark.parametrize("page", ["README.md", "docs/knobs.md", "docs/rules.md", "docs/transfer.md"])
def test_python_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # the README imports what it exports
    names: dict[str, object] = {}
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert code
    for text in code:
        exec(compile(text, page, "exec"), names)


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
