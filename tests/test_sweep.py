"""A sweep: tune narrow, confirm wide, and go on where it was killed."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from torch import nn

import autofit

GRID = {"lr": [2.0**-k for k in (9, 7, 5, 3)]}


def train(width: int, seed: int, lr: float, scheme: str = "mup") -> float:
    """A small net on a fixed random function."""

    def make(w: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 4))

    torch.manual_seed(seed)
    model = make(width)
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    y = torch.sin(x[:, :4] * 2)
    mu = autofit.muify(model, x[:2], base=make(32), scheme=scheme)
    optimizer = mu.optimizer("adam", lr=lr)
    for _ in range(30):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return nn.functional.mse_loss(model(x), y).item()


def test_the_best_of_the_narrow_model_is_confirmed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sweep.db"
    found = autofit.sweep(train, GRID, widths=(32, 128), seeds=(0, 1), storage=url)
    assert set(found.losses[32]) == {(lr,) for lr in GRID["lr"]}
    assert len(found.losses[128]) in (2, 3)  # the best and its neighbours
    assert found.best["lr"] == min(found.losses[32], key=found.losses[32].__getitem__)[0]
    assert 0 <= found.regret[128] < 0.05
    assert f"lr = {found.best['lr']:g}" in str(found)
    study = optuna.load_study(study_name="sweep, width 32", storage=url)
    assert len(study.trials) == 8


def test_nothing_is_run_twice(tmp_path: Path) -> None:
    url, calls = f"sqlite:///{tmp_path}/sweep.db", []

    def count(width: int, seed: int, lr: float) -> float:
        calls.append((width, seed, lr))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return abs(math.log2(lr) + 6)

    with pytest.raises(KeyboardInterrupt):
        autofit.sweep(count, GRID, widths=(32, 64), seeds=(0, 1), storage=url)
    found = autofit.sweep(count, GRID, widths=(32, 64), seeds=(0, 1), storage=url)
    done = [c for i, c in enumerate(calls) if i != 4]
    assert len(done) == len(set(done)) == 8 + 2 * len(found.losses[64])
    before = len(calls)
    again = autofit.sweep(count, GRID, widths=(32, 64), seeds=(0, 1), storage=url)
    assert len(calls) == before
    assert replace(again, stored=found.stored) == found
    assert (found.stored, again.stored) == (4, before - 1)
    assert f"{before - 1} runs are from the storage" in str(again)


def test_nothing_is_kept_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed train would get the losses of the one before."""
    monkeypatch.chdir(tmp_path)
    for best in (-6, -4):
        found = autofit.sweep(lambda width, seed, lr, best=best: abs(math.log2(lr) - best), GRID, widths=(32, 64))
        assert found.best["lr"] == min(GRID["lr"], key=lambda lr: abs(math.log2(lr) - best))
        assert found.stored == 0
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys, autofit

def train(width, seed, lr):
    if lr > 0.02 and not os.path.exists(sys.argv[2]):
        open(sys.argv[2], "w").close()
        os._exit(9)
    print("ran", lr)
    return lr

print(autofit.sweep(train, {"lr": [0.01, 0.03]}, widths=(32,), storage=sys.argv[1]).best)
"""


def test_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, f"sqlite:///{tmp_path}/s.db", str(tmp_path / "mark")]
    first = subprocess.run(words, capture_output=True, text=True)
    assert (first.returncode, first.stdout) == (9, "ran 0.01\n")
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.stdout == "ran 0.03\n{'lr': 0.01}\n", second.stderr


def test_two_values_edges_and_runs_that_diverge(tmp_path: Path) -> None:
    def loss(width: int, seed: int, lr: float, init: float) -> float:
        return math.nan if lr > 2 else (lr - 1) ** 2 + (init - 3) ** 2

    grid = {"lr": [0.5, 1.0, 4.0], "init": [1.0, 2.0]}
    found = autofit.sweep(loss, grid, widths=(8, 16), storage=f"sqlite:///{tmp_path}/s.db", near=2)
    assert found.best == {"lr": 1.0, "init": 2.0}
    assert found.at_edge == ("init",)
    assert set(found.losses[16]) == {(1.0, 2.0), (0.5, 2.0), (4.0, 2.0), (1.0, 1.0)}
    assert found.losses[16][4.0, 2.0] == math.inf
    assert "try further values" in str(found)


def test_an_empty_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(autofit.AutofitError, match="empty grid"):
        autofit.sweep(train, {"lr": []}, widths=(8,), storage=f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(autofit.AutofitError, match="finite"):
        autofit.sweep(lambda **_: math.nan, {"lr": [1.0]}, widths=(8,), storage=f"sqlite:///{tmp_path}/s.db")
