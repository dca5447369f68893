"""The coordinate check: verdict, causes, pictures, and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from families import FAMILIES
from torch import nn

import autofit
from autofit.slopes import fit, student

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from faults import FAULTS, RIGHT, Fault, by_training, seen
from handmade import Options

WIDTHS = (32, 64, 128)


def llama(width: int) -> nn.Module:
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": 16}
    heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 32}
    return FAMILIES["llama"].build(vocab_size=61, initializer_range=width**-0.5, **sizes, **heads)


@pytest.fixture(scope="module")
def answer() -> autofit.CoordCheck:
    return autofit.coord_check(llama, WIDTHS, lr=1e-4, steps=1, title="Llama <tiny>")


def test_llama_is_right_and_without_mup_is_not(answer: autofit.CoordCheck) -> None:
    assert answer.ok, str(answer)
    assert {"lm_head", "model.norm"} <= set(answer.slopes)
    control = {ln.name: ln.change_slope for ln in answer.control if ln.kind == "parameter"}
    hidden = [n for n, s in control.items() if s is not None and "proj" in n and s.value > 0.5]
    assert len(hidden) >= 12  # of 14
    assert answer.worst is not None


def test_predicted_slopes_are_those_that_are_measured(answer: autofit.CoordCheck) -> None:
    compared = 0
    for ln in (*answer.lines, *answer.control):
        for slope, predicted in zip((ln.start_slope, ln.change_slope), ln.predicted, strict=True):
            if ln.kind == "module" and slope is not None and predicted is not None:
                compared += 1
                assert abs(slope.value - predicted) <= 0.3, f"{ln.name}: {slope}, predicted {predicted:.2f}"
    assert compared > 90


@pytest.mark.parametrize("options", [RIGHT[0], RIGHT[-1]], ids=str)
def test_by_hand_and_right(options: dict[str, Any]) -> None:
    found = by_training(Options(**options), seeds=2)
    assert found.ok, str(found)


@pytest.mark.parametrize(
    "name",
    ["readout multiplier missing", "readout's backward scaled by r", "schedule that overwrites the groups"],
)
def test_what_the_static_check_cannot_see_is_measured(name: str) -> None:
    fault: Fault = next(f for f in FAULTS if f.name == name)
    found = by_training(Options(**fault.options, fault=name), seeds=2)
    assert not found.ok
    assert seen(fault, found), str(found)


def test_the_cause_is_named() -> None:
    found = by_training(Options(fault="readout multiplier missing"), seeds=2)
    first = found.faults[0]
    assert (first.line.name, first.what, first.cause) == ("head.weight", "change", "the readout's 1/r is missing")
    assert next(f for f in found.faults if f.line.name == "head").cause == "by head.weight"
    lines = str(found).splitlines()
    assert lines[0].startswith("wrong: ")
    assert max(map(len, lines)) <= 80


def test_plot_and_page(answer: autofit.CoordCheck, tmp_path: Path) -> None:
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = tmp_path / f"slopes{ending}"
        answer.plot(path)
        assert path.read_bytes().startswith(start)
    answer.page(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.index('role="status">right:') < text.index("<svg") < text.index("<table")
    assert "Llama &lt;tiny&gt;" in text
    assert "<tiny>" not in text
    loaded = re.findall(r'(?:src|href)="([^"#]+)', text)
    assert not [address for address in loaded if not address.startswith("#")]
    with pytest.raises(autofit.AutofitError, match="a plot is"):
        answer.plot(tmp_path / "slopes.gif")


def test_ctrl_c_leaves_what_was_measured() -> None:
    def progress(stage: str, done: int, of: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    found = autofit.coord_check(llama, WIDTHS, lr=3e-3, seeds=2, control=False, progress=progress)
    assert found.interrupted
    assert not found.ok  # half of the runs prove nothing
    assert str(found).startswith("no answer: interrupted")
    assert {len(v) for ln in found.lines for v in ln.start.values()} == {1, 2}


def test_what_diverges_or_does_not_move_is_not_called_right() -> None:
    def net(width: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        made = nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2))
        return made, torch.optim.SGD(made.parameters(), lr=lr)

    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    square = {"data": data, "loss": lambda output, batch: output.square().mean(), "seeds": 1}
    found = autofit.coord_check(lambda width: net(width, 1e12), WIDTHS, **square)
    assert not found.ok
    assert any("it diverges" in f.cause for f in found.faults)
    found = autofit.coord_check(lambda width: net(width, 1e-300), WIDTHS, **square)
    assert not found.ok
    assert str(found).startswith("no answer: nothing was measured that changed")


def test_data_and_loss_of_the_user() -> None:
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    seen: list[int] = []

    def loss(output: Any, batch: Any) -> torch.Tensor:
        seen.append(batch["input_ids"].shape[1])
        return nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    found = autofit.coord_check(llama, WIDTHS, lr=3e-3, seeds=1, control=False, data={"input_ids": ids}, loss=loss)
    assert found.ok, str(found)
    assert set(seen) == {9}


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(autofit.AutofitError, match="three different"):
        autofit.coord_check(llama, (32, 64))
    with pytest.raises(autofit.AutofitError, match="at least 1"):
        autofit.coord_check(llama, WIDTHS, seeds=0)
    with pytest.raises(autofit.AutofitError, match="gave a dict"):
        autofit.coord_check(lambda width: {}, WIDTHS)


def test_slopes_and_their_intervals_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4, 3, generator=generator)
    points = {2**k: tuple((2.0 ** (0.5 * k) * (1 + noise[k - 5])).tolist()) for k in (5, 6, 7, 8)}
    found = fit(points)
    xs = [float(k) for k in (5, 6, 7, 8) for _ in range(3)]
    ys = [float(torch.tensor(v).log2()) for sizes in points.values() for v in sizes]
    wanted = scipy.stats.linregress(xs, ys)
    assert found is not None
    assert found.value == pytest.approx(wanted.slope, abs=1e-6)
    assert found.error == pytest.approx(scipy.stats.t.ppf(0.975, 10) * wanted.stderr, rel=1e-3)
    for free in range(1, 40):
        assert student(free) == pytest.approx(scipy.stats.t.ppf(0.975, free), rel=0.02)


FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.r = width / 64

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))) / self.r)


def make(width=256):
    return Net(width), torch.randn(8, 5)


def edited(width, scaled=True):
    net = Net(width)
    net.b.weight.data.normal_(std=width**-0.5), net.c.weight.data.normal_(std=0.1)
    hidden = [{"params": [net.b.weight], "lr": 1e-3 / (net.r if scaled else 1)}]
    rest = [p for n, p in net.named_parameters() if n != "b.weight"]
    return net, torch.optim.Adam([*hidden, {"params": rest}], lr=1e-3)
"""


def test_the_command_says_it_by_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(FACTORY)
    common = ["--widths", "64,128,256", "--seeds", "2"]
    right = run("check", f"{file}:make", *common, "--no-control", "--page", str(tmp_path / "page.html"))
    assert (right.returncode, right.stdout.partition(":")[0]) == (0, "right"), right.stderr
    assert (tmp_path / "page.html").exists()
    wrong = run("check", f"{file}:edited", *common, "--set", "scaled=false", "--json")
    assert wrong.returncode == 1, wrong.stderr
    found = json.loads(wrong.stdout)
    assert found["ok"] is False
    assert found["faults"][0]["line"]["name"] in ("b.weight", "b")
    usage = run("check", f"{file}:make", "--widths", "64,x")
    assert (usage.returncode, "whole numbers" in usage.stderr) == (2, True)


AUDIO = """
import torch
from layers import Net

def make(d=128):
    return Net(d), torch.randn(2, 1, 2000)
"""
LAYERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(1, d, 400, stride=20), nn.Conv1d(d, d, 3), nn.Linear(d, 5)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean(-1))
"""


def test_a_factory_without_a_width_has_its_example_at_every_width(tmp_path: Path) -> None:
    """One that could not be inferred, of a model that lies beside the factory."""
    (tmp_path / "layers.py").write_text(LAYERS)
    (tmp_path / "net.py").write_text(AUDIO)
    quick = ("--steps", "1", "--seeds", "1", "--no-control", "--json")
    found = run("check", f"{tmp_path / 'net.py'}:make", "--widths", "16,32,64", *quick)
    assert found.stdout.startswith("{"), found.stderr
    wide = run("check", f"{tmp_path / 'net.py'}:make", "--widths", "64,128,256", *quick)
    assert (wide.returncode, "width=128, and b of the target is 128" in wide.stderr) == (1, True), wide.stderr
    assert "give a width below 128" in wide.stderr


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "autofit.cli", *words], capture_output=True, text=True)
