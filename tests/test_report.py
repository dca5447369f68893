"""Reports and explanations: golden text at 80 columns, complete JSON, exit codes."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from inline_snapshot import snapshot
from rich.console import RenderableType
from torch import nn

import autofit
from autofit.plan import Plan
from autofit.report import Broken, _table, fold_names, printed, render

MODEL = """
import torch
from torch import nn

def make(width=64, broken=False):
    if broken:
        return nn.Linear(3, 2)
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(10, 64), nn.Linear(64, 3)

    def forward(self, x):
        h = self.one(x)
        return self.two(h * 2 if h.sum() > 0 else h)

def with_example(width=64, features=10):
    return make(width), torch.zeros(7, features)

def branching(device="cpu"):
    return Branching().to(device), torch.zeros(7, 10, device=device)
"""

BESIDE = """
def make():
    return nn.Sequential(nn.Linear(10, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
"""


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autofit.cli", *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "net.py").write_text("from sizes import WIDTH\nfrom torch import nn\n" + BESIDE)
    (tmp_path / "deep" / "sizes.py").write_text("WIDTH = 512\n")
    return tmp_path


def test_report_of_a_small_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    found = autofit.analyze(model, torch.zeros(7, 10), base=16)
    assert render(found.plan, found.roles, width=80) == snapshot("""\
Sequential: 5,059 parameters in 6 tensors, scheme mup, base 2 = 16
captured by torch.export: 5 ops

Dimensions that can grow
dimension  size  base  ratio
0            64    16     x4  grows
2 (main)     64    16     x4  grows
Parameters
parameter  role    in  out  init     lr
0.weight   input   x1   x4    x1     x1
2.weight   hidden  x4   x4    x1  x0.25
4.weight   output  x4   x1    x2     x1
0.bias     vector  x1   x4    x1     x1
2.bias     vector  x1   x4    x2     x1
4.bias     fixed   x1   x1    x2     x1
in, out: growth of contracted and surviving axes; init, lr: factors (Adam)
Scale sites
site     scale  times   new  where and why
readout      1  x0.25  0.25  4
                             sums over 2, on the input of 4
AdamW groups: factors on your lr, weight decay and eps
group     lr  wd    eps  tensors
    0     x1  x1  x0.25        4
    1  x0.25  x4  x0.25        1
    2     x1  x1     x1        1\
""")


def test_layers_are_folded() -> None:
    names = [f"h.{i}.{w}" for i in (0, 1, 2, 5) for w in ("a", "b")] + ["top"]
    assert fold_names(names) == ["h.{0..2,5}.a", "h.{0..2,5}.b", "top"]


def test_names_break_at_dots() -> None:
    name = "model.layers.{0..3}.self_attn.k_proj.weight (main)"
    assert list(Broken(name).lines(60)) == [name]
    assert list(Broken(name).lines(36)) == ["model.layers.{0..3}.self_attn.", "k_proj.weight (main)"]
    assert list(Broken(name).lines(12)) == ["model.", "layers.", "{0..3}.", "self_attn.", "k_proj.", "weight", "(main)"]
    assert list(Broken("a\nscore 0.25 on model.head").lines(12)) == ["a", "score 0.25", "on", "model.head"]
    shown = printed([_table_of("some.module.of_a_model.weight")], width=24).splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["some.module.", "of_a_model.", "weight"]


def _table_of(name: str) -> RenderableType:
    table = _table("parameter", "size", right=("size",))
    table.add_row(Broken(name), "12345678")
    return table


def test_a_model_that_is_its_own_base_is_called_that() -> None:
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    said = "all ratios are 1, so width changes nothing: the base has "
    for base, what in ((64, "2 = 64, its size here"), (copy.deepcopy(net), "the sizes of this model")):
        assert said + what in " ".join(str(autofit.analyze(net, torch.zeros(7, 10), base=base)).split())
    assert said not in str(autofit.analyze(net, torch.zeros(7, 10), base=16))


@pytest.mark.parametrize("name", ["gpt2", "t5", "mixtral", "resnet"])
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    model = FAMILIES[name].build()
    found = autofit.analyze(model, base=16)
    text = render(found.plan, found.roles, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "readout" in text


def test_the_plan_survives_json() -> None:
    for name in ("gpt2", "phi3"):
        plan = autofit.analyze(FAMILIES[name].build(), base=16, grow="head_dim").plan
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("change", [{"version": 99}, {"format": "x"}, {"parameters": [{}]}, {"sites": 3}])
def test_plans_that_cannot_be_read(change: dict[str, Any]) -> None:
    data = autofit.analyze(FAMILIES["gpt2"].build(), base=16).plan.to_dict()
    with pytest.raises(autofit.PlanError):
        Plan.from_dict(data | change)


def test_json_is_complete(folder: Path) -> None:
    result = run("report", "net.py:make", "--base", "16", "--json", cwd=folder)
    data = json.loads(result.stdout)
    assert (data["format"], data["version"]) == ("autofit report", 1)
    assert [p["role"] for p in data["plan"]["parameters"]][::2] == ["input", "hidden", "output"]
    assert {"dimensions", "ties", "front_end", "unruled_ops", "main_dimension"} <= data.keys()
    assert data["plan"]["sites"][0]["multiplier"] == 0.25


def test_explain_gives_source_lines() -> None:
    from autofit.report import explain

    found = autofit.analyze(FAMILIES["gpt2"].build(), base=32)
    text = explain(found.plan, found.roles, "transformer.h.0.attn.c_attn.weight")
    assert "hidden" in text
    assert "modeling_gpt2.py" in text
    assert "self.c_attn(hidden_states)" in text
    tied = explain(found.plan, found.roles, "lm_head.weight")
    assert "tied: transformer.wte.weight = lm_head.weight" in tied
    width = explain(found.plan, found.roles, "n_embd")
    assert "x2, grows" in width
    assert "transformer.h.{0..1}.mlp.c_fc.weight[0]" in width
    with pytest.raises(autofit.TargetError, match="neither a parameter nor a dimension"):
        explain(found.plan, found.roles, "nope")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("report", "net.py:make", "--base", "16"), 0, "output"),
        (("report", "net.py:make", "--set", "width=128"), 0, "128"),
        (("report", "net.py:make", "--base", "net.py:make", "--set", "width=128"), 0, "x2"),
        (("report", "net.py:make", "--base-set", "width=16"), 0, "x4"),
        (("report", "net.py:with_example", "--base", "16"), 0, "output"),
        (("report", "net.py:with_example", "--set", "features=11"), 1, "module 0 (Linear)"),
        (("report", "net.py:branching"), 0, "running it once"),
        (("report", "net.py:branching", "--set", "device=meta"), 1, "decides its control flow from tensor values"),
        (("explain", "net.py:make", "2.weight"), 0, "hidden"),
        (("report", "net.py:make", "--set", "broken=true"), 1, "can grow"),
        (("report", "net.py:make", "--base", "0"), 1, "not a positive number"),
        (("explain", "net.py:make", "nope"), 2, "neither a parameter"),
        (("report", "nope"), 2, "is no target"),
        (("report", "net.py:nope"), 2, "no function or class"),
        (("report", "gone.py:make"), 2, "no file"),
        (("report", "net.py:make", "--set", "depth=3"), 2, "unexpected keyword"),
        (("report", "hf:nope"), 2, "no configuration"),
        (("report", "hf:gpt2", "--set", "n_layr=2"), 2, "did you mean n_layer?"),
        (("report", "hf:gpt2", "--set", "n_layer=1", "--base-set", "n_embed=256"), 2, "did you mean n_embd?"),
        (("report", "hf:gpt2", "--set", "n_layer=two"), 2, "expected int"),
        (("report", "deep/net.py:make"), 0, "output"),
        (("report", "timm:nope"), 2, "timm:"),  # not installed here, or no such model
        (("report", "net.py:make", "--bogus"), 2, "--bogus"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_exit_codes(folder: Path, words: tuple[str, ...], code: int, text: str) -> None:
    result = run(*words, cwd=folder)
    assert result.returncode == code, result.stderr
    assert text in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    said = result.stderr.replace(str(folder), ".")  # whose length is not ours
    assert code == 2 or len(said) <= 8 * 80, "torch's own logs are not for the user"


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, autofit, autofit.cli; assert 'torch' not in sys.modules; autofit.muify; sys.modules['torch']"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frozen_parameters_are_in_no_group() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net[2].requires_grad_(False)
    mu = autofit.muify(net, torch.zeros(2, 3), base=4, frozen="keep")
    groups = mu.param_groups("adamw", lr=1e-3)
    table = str(mu).partition("AdamW groups")[2].partition("Notes")[0]
    counts = [int(re.findall(r"\d+", line)[-1]) for line in table.splitlines() if " x1 " in line or " x0.5 " in line]
    assert sum(counts) == sum(len(g["params"]) for g in groups) == 4
