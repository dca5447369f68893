"""The transfer benchmark's machinery: what rows say, and runs on Ray's workers, of which one is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import transfer

BENCHMARKS = Path(transfer.__file__).parent

ON_RAY = """
import os, sys
from pathlib import Path
from bytes_task import run

folder = Path(sys.argv[1])


def train(width, seed):
    mark = folder / f"begun-{width}-{seed}"
    first = not mark.exists()
    mark.touch()
    if first and (width, seed) == (2, 1):
        os.kill(os.getpid(), 9)
    return {"width": width, "seed": seed, "loss": width + seed, "process": os.getpid()}


run(train, ("width", "seed"), [(w, s) for w in (1, 2, 3) for s in (0, 1)], folder / "rows.jsonl", 2, "local")
"""


def test_a_killed_worker_of_ray_is_replaced_and_rows_are_kept(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"width": 1, "seed": 0, "loss": 7, "process": 0}) + "\n")
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n" + ON_RAY)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted((r["width"], r["seed"]) for r in rows) == [(w, s) for w in (1, 2, 3) for s in (0, 1)]
    assert next(r for r in rows if (r["width"], r["seed"]) == (1, 0))["loss"] == 7  # was there already
    assert len({r["process"] for r in rows} - {0}) >= 2


def test_what_rows_say() -> None:
    losses = {64: {-9: 3.0, -8: 2.5, -7: 2.6}, 256: {-9: 2.2, -8: 2.4, -7: 2.9}}
    rows = [
        {"width": w, "log2_lr": e, "seed": s, "loss": loss + s / 10}
        for w, at in losses.items()
        for e, loss in at.items()
        for s in (0, 1)
    ]
    found = transfer.answer(rows)
    assert (found.best, found.shift, found.by_seed) == ({64: -8, 256: -9}, -1, {64: (-8, -8), 256: (-9, -9)})
    assert found.regret == pytest.approx(0.2)
    assert found.wider_worse == (-7,)


@pytest.mark.parametrize("setting", transfer.SETTINGS)
def test_every_setting_has_models_that_train(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s = transfer.SETTINGS[setting]
    small = transfer.Setting(**{**vars(s), "steps": 2})
    monkeypatch.setitem(transfer.SETTINGS, setting, small)
    for way in small.ways:
        row = transfer.train(setting, way, small.widths[0], small.exponents[1], 0)
        assert 2 < row["loss"] < 8
        assert {*transfer.KEYS, "loss", "data", "torch"} == {*row}
