"""The documents as a site, what is generated in them, and the changes and numbers that they show."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from test_readme import ELSEWHERE, ROOT

import autofit

DOCS, GOLDEN = ROOT / "docs", json.loads((ROOT / "tests" / "golden" / "from_mup.json").read_text())
from pictures import PICTURES, passes  # type: ignore[import-not-found]  # noqa: E402
from update import blocks, updated  # type: ignore[import-not-found]  # noqa: E402

PAGES = {p.stem for p in DOCS.glob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command in CONTRIBUTING.md, in which a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    (command,) = (c for c in ELSEWHERE if c.startswith("sphinx-build"))
    assert command in (ROOT / "CONTRIBUTING.md").read_text()
    words = [str(out / "html") if w == "docs/_build" else w for w in shlex.split(command)]
    assert "-W" in words
    result = subprocess.run(
        [sys.executable, "-m", "sphinx.cmd.build", *words[1:], "-d", str(out / "trees"), "--keep-going"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return out / "html"


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    built = {p.stem for p in site.glob("*.html")}
    assert built >= PAGES
    for page in PAGES:
        text = (site / f"{page}.html").read_text()
        assert not re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="https?:[^"]*"', text), page


def test_every_public_name_is_in_the_api(site: Path) -> None:
    text = (site / "api.html").read_text()
    missing = [name for name in autofit.__all__ if f'id="autofit.{name}"' not in text]
    assert not missing


def test_the_map_for_language_models_has_every_page_and_says_what_the_index_says(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    linked = set(re.findall(r"\]\((\w[\w-]*)\.html\)", text))
    assert linked == PAGES - {"index"}
    assert all((site / "_sources" / f"{page}.md.txt").is_file() for page in linked)
    summary = re.search(r"((?:^> .*\n)+)", text, re.MULTILINE)
    assert summary is not None
    said = " ".join(line[2:] for line in summary[1].splitlines())
    assert said == (DOCS / "index.md").read_text().split("\n\n")[1].replace("\n", " ")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_what_is(name: str) -> None:
    """If one does not: python docs/update.py. Of rich's, the words count: shapes are its own affair."""

    def words(svg: str) -> list[str]:
        return [html.unescape(t).replace("\xa0", " ").rstrip() for t in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]

    committed = (DOCS / name).read_text()
    assert words(PICTURES[name]()) == words(committed)
    assert "http" not in committed.replace("http://www.w3.org/2000/svg", "")


def test_the_pipeline_has_every_pass() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (modules,) = (c["modules"] for c in contracts if c["type"] == "independence")
    assert {p.name for p in passes()} == {m.rpartition(".")[2].title().replace("_", "") for m in modules}
    drawn = (DOCS / "pipeline.svg").read_text()
    assert all(f">{p.name}</text>" in drawn for p in passes())


def test_the_table_of_modules_is_that_of_the_package() -> None:
    """If it is not: python docs/update.py docs/architecture.md."""
    page = (DOCS / "architecture.md").read_text()
    assert "| `errors` |" in page
    assert updated(page) == page


def test_changes_that_contributing_shows_are_needed_for_what_stands_below_them(tmp_path: Path) -> None:
    """Taken out of a copy, each makes the block below it fail, for the reason that is told; in place, it passes."""
    found = blocks((ROOT / "CONTRIBUTING.md").read_text())
    pairs = [(change, found[i + 1].text) for i, change in enumerate(found) if change.language == "diff"]
    for name in ("autofit", "passes"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", tmp_path)
    for change, _ in pairs:
        added = [line for line in change.text.splitlines() if line.startswith("+") and not line.startswith("+++")]
        assert len(added) <= 14
        assert not any(line.startswith("-") and not line.startswith("---") for line in change.text.splitlines())
        subprocess.run(["git", "apply", "-R", "--recount", "-"], cwd=tmp_path, input=change.text, text=True, check=True)
    program = "import torch\nfrom torch import nn\nimport autofit\n"
    for _, text in pairs:
        attempt = "".join(f"    {line}" for line in text.splitlines(keepends=True))
        program += f"try:\n{attempt}except autofit.AutofitError as error:\n    print(error.what)\n"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.splitlines() == [
        "no rule for aten.bilinear, and a growing dimension passes through it",
        "no muP rule is known for the optimizer 'Lion'",
        "unknown scheme 'u-mup+plain-embedding'",
    ], result.stderr


def test_mups_side_of_the_change_gave_the_same() -> None:
    """``golden/make_from_mup.py`` ran it with the package."""
    page = (DOCS / "from-mup.md").read_text()
    change, shapes, *_ = blocks(page)
    assert change.output == f"{GOLDEN['losses']}\n"
    written = re.search(r'"""\\\n(.*?)"""', shapes.text, re.DOTALL)
    assert written is not None
    assert yaml.safe_load(written[1]) == yaml.safe_load(GOLDEN["base shapes"])


def test_what_is_said_of_mup() -> None:
    """Constant draws are not rescaled, or the wrong way; its models are right by both checks, but for eps."""
    spread = GOLDEN["std of constant draws"]
    assert (round(spread["hidden"], 2), round(spread["head"], 2)) == (0.02, 0.04)
    assert GOLDEN["static check"] == {"ok": True, "findings": ["eps"]}
    assert GOLDEN["coordinate check"]
    assert GOLDEN["muify"] == ["already mup: nothing to add to forward and initial values"]
