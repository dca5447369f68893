"""What is released: source archive, wheel, and what a clean environment has after installing it."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import autofit

ROOT = Path(__file__).parent.parent
NOT_IN_A_CHECKOUT = (".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
PROBE = """
import importlib.util, json, sys
import autofit, autofit.cli, autofit.passes, autofit.passes.ops, autofit.source.write
from autofit.rules import optimizers, table
assert "torch" in sys.modules
import torch
model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
found = autofit.muify(model, torch.zeros(5, 10), base=16)
print(json.dumps({
    "homes": [m.__file__ for m in (autofit, autofit.cli, autofit.passes, autofit.passes.ops)],
    "leaked": [n for n in ("cli", "passes", "tests", "benchmarks") if importlib.util.find_spec(n)],
    "schemes": [table(s).scheme for s in ("mup", "mup+completep", "mup+depth", "u-mup", "sp", "ntk")],
    "optimizers": len(optimizers()),
    "role": found.plan.parameters["2.weight"].role,
}))
"""


def run(*words: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a checkout, and the wheel that is built of this archive."""
    place = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, place / "checkout", symlinks=True, ignore=shutil.ignore_patterns(*NOT_IN_A_CHECKOUT))
    hook = f"from setuptools.build_meta import build_sdist; build_sdist({str(place)!r})"
    run(sys.executable, "-c", hook, cwd=place / "checkout")
    (archive,) = place.glob("autofit-*.tar.gz")
    wheel = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place, archive)
    run(sys.executable, "-m", "pip", *wheel, cwd=place)
    return archive, next(place.glob("autofit-*.whl"))


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and, behind it, the dependencies of this one; no checkout on its path."""
    place = tmp_path_factory.mktemp("clean")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[1], cwd=place)
    (own,) = place.glob("lib/python*/site-packages")
    behind = [p for p in site.getsitepackages() if p != str(own)]
    (own / "dependencies.pth").write_text("\n".join(behind))  # the .pth files in there are not read: no checkout
    return place


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert autofit.__version__ == project["version"]


def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert {n.partition("/")[0] for n in names} == {"autofit", f"autofit-{autofit.__version__}.dist-info"}
    own = {n for n in names if n.startswith("autofit/")}
    here = [p for p in (ROOT / "autofit").rglob("*") if p.suffix in (".py", ".toml", ".typed")]
    here += [p for link in ("passes",) for p in (ROOT / "autofit" / link).rglob("*.py")]  # rglob follows no links
    assert own == {p.relative_to(ROOT).as_posix() for p in here}
    with tarfile.open(built[0]) as archive:
        there = {n.partition("/")[2] for n in archive.getnames()}
    assert own | {"pyproject.toml", "README.md"} <= there


def test_links_are_links() -> None:
    """A copy in the place of a link would stand still while the original changes."""
    for name in ("cli.py", "passes"):
        link = ROOT / "autofit" / name
        assert link.is_symlink(), f"{link} is no link"
        assert link.resolve() == (ROOT / name).resolve()


def test_a_clean_environment_has_one_whole_package(installed: Path, tmp_path: Path) -> None:
    found = json.loads(run(installed / "bin" / "python", "-c", PROBE, cwd=tmp_path))
    (own,) = installed.glob("lib/python*/site-packages")
    assert all(Path(home).is_relative_to(own / "autofit") for home in found["homes"])
    assert found["leaked"] == []
    assert found["schemes"] == ["mup", "mup+completep", "mup+depth", "u-mup", "sp", "ntk"]
    assert found["optimizers"] > 10
    assert found["role"] == "output"
    assert (own / "autofit" / "py.typed").is_file()


def test_the_command_of_a_clean_environment(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "autofit"
    assert run(command, "--version", cwd=tmp_path).strip() == autofit.__version__
    assert "report" in run(command, "--help", cwd=tmp_path)
    (tmp_path / "nets.py").write_text(
        "import torch\n\n\ndef net(width=64):\n    nn = torch.nn\n"
        "    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 3)), torch.zeros(5, 10)\n"
    )
    assert "output" in run(command, "report", "nets.py:net", "--base", "16", cwd=tmp_path)
    assert "adamw" in run(command, "rules", "--optimizer", "adamw", cwd=tmp_path).lower()
