"""Arguments of `muify` and `param_groups`, words on the command line, and who judges them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
import yaml
from hypothesis import strategies as st
from judging import SCREEN, check_message, check_plan, finite_plan, require, unchanged, unexpected
from odd_files import AXES, JUNK, NUMBERS, known_sizes, subject
from odd_models import NAMES, Thing
from snapshot import Snapshot
from torch import nn

import autofit
from autofit import cli

# options ------------------------------------------------------------------------------------------------

OBJECTS = st.sampled_from(
    [
        Thing(),
        Thing,
        object,
        torch.zeros(2),
        torch.tensor(16),
        torch.tensor([16.0]),
        numpy.int64(16),
        numpy.float64(16),
        numpy.zeros(2),
        nn.ReLU(),
        nn.ReLU,
        print,
        b"bytes",
        Path("no/such/base.json"),
        Path("."),
        "a\0b",
        "/dev/null",
        "/dev/zero",
        1j,
        range(3),
        {},
        {1: 2},
        {"0.weight[0]": "x"},
        {(1, 2): 3},
        frozenset({1}),
        "x" * 5000,
        torch.optim.AdamW,
        torch.optim.LBFGS,
        torch.optim.Optimizer,
    ]
)
ODD = st.one_of(OBJECTS, JUNK)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "base": st.one_of(st.sampled_from([8, 16, 32, 64.0]), NUMBERS),
    "scheme": st.sampled_from(["mup", "mup+completep", "mup+depth", "u-mup", "u-mup+plain-embedding", "sp", "ntk"]),
    "form": st.sampled_from([None, "table8", "table3", "folded", "table9", "one_lr"]),
    "init": st.sampled_from(["auto", "keep"]),
    "strict": st.booleans(),
    "bottleneck": st.sampled_from(["hidden", "output"]),
    "grow": st.sampled_from(["heads", "head_dim"]),
    "zero_readout": st.booleans(),
    "zero_query": st.booleans(),
    "frozen": st.sampled_from([None, "keep", "plan"]),
    "unused": st.sampled_from([None, "freeze"]),
    "depth_ratio": st.one_of(st.none(), NUMBERS),
    "tunables": st.one_of(
        st.none(),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["embedding", "hidden", "names", "attention_logits", "*", "0.*", "folded"]), st.text()
            ),
            st.one_of(NUMBERS, st.dictionaries(st.sampled_from(["lr", "init", "multiplier", "x"]), NUMBERS), JUNK),
            max_size=3,
        ),
    ),
}
GROUPS: dict[str, st.SearchStrategy[Any]] = {
    "optimizer": st.sampled_from(["adam", "adamw", "sgd", "muon", "lion", "adafactor", torch.optim.AdamW, "no such"]),
    "lr": NUMBERS,
    "weight_decay": st.one_of(st.none(), NUMBERS),
    "eps": st.one_of(st.none(), NUMBERS),
    "scale_eps": st.booleans(),
    "decoupled_weight_decay": st.booleans(),
    "beside": st.one_of(st.none(), st.dictionaries(st.sampled_from(["lr", "eps", "betas", "x"]), NUMBERS)),
    "groups": st.one_of(st.none(), st.lists(st.dictionaries(st.sampled_from(["params", "lr"]), JUNK), max_size=2)),
    "per_parameter": st.one_of(st.none(), st.sampled_from([lambda n, p: {"lr": 0}, lambda n, p: 3, lambda n: None])),
    "momentum": NUMBERS,
}


@st.composite
def odd_options(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `muify`, and of `param_groups`: mostly right, one or two of any kind."""
    call = draw(
        st.fixed_dictionaries({}, optional=dict(draw(st.sampled_from([list(OPTIONS.items())[i::4] for i in range(4)]))))
    )
    call = {"base": 16} | call
    groups = {"optimizer": "adamw", "lr": 0.1} | draw(st.fixed_dictionaries({}, optional=GROUPS))
    for target in draw(st.sampled_from([[], [call], [groups], [call, groups]])):
        target[draw(st.sampled_from(sorted(OPTIONS if target is call else GROUPS)))] = draw(ODD)
    return call, groups


def judge_options(case: tuple[dict[str, Any], dict[str, Any]]) -> str:
    """Arguments are taken or refused."""
    call, settings = case
    one = subject()
    snapshot = Snapshot(one.model)
    outcome = "refused"
    try:
        found = one.analyze(**call)
        require(finite_plan(found.plan), "a plan of numbers that are not finite")
        check_plan(found.plan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = found.param_groups(**settings)
        require(all(math.isfinite(g["lr"]) and g["lr"] >= 0 for g in groups), "a learning rate that is none")
        outcome = "right"
    except autofit.AutofitError as error:
        check_message(error)
    unchanged(snapshot)
    return outcome


# the command line ---------------------------------------------------------------------------------------

FACTORIES = '''
import sys
import torch
from torch import nn


def net(width=32, depth=1):
    """Runs."""
    body = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), *body, nn.Linear(width, 3)), torch.zeros(7, 6)


def without_example(width=32):
    return net(width)[0]


def bare():
    class Odd(nn.Module):
        def forward(self, a, b):
            return a + b

    return Odd()


def raises(width=32):
    raise RuntimeError("the factory's own trouble\\n" * 200)


def divides(width=32):
    return 1 // 0


def exits(width=32):
    sys.exit("out")


def none():
    return None


def example_of_nothing():
    return net()[0], None


def broken(width=32):
    class Broken(nn.Linear):
        def forward(self, x):
            raise ValueError("in forward")

    return Broken(6, width), torch.zeros(7, 6)


number = 3
'''
TARGETS = (
    "nets.py:net",
    "nets.py:net",
    "nets.py:net",
    "nets.py:without_example",
    "nets.py:bare",
    "nets.py:raises",
    "nets.py:divides",
    "nets.py:exits",
    "nets.py:none",
    "nets.py:example_of_nothing",
    "nets.py:broken",
    "nets.py:number",
    "nets.py:no_such",
    "nets.py:",
    "nets:net",
    "syntax.py:net",
    "raising.py:net",
    "exiting.py:net",
    "binary.py:net",
    "folder.py:net",
    "missing.py:net",
    "no.such.package:net",
    "json:loads",
    "builtins:int",
    ":",
    "",
    "x",
    "hf:",
    "hf:no-such-type",
    "hf:config.json",
    "hf:broken.json",
    "hf:list.json",
    "hf:typeless.json",
    "hf:missing.json",
    "hf:../../etc",
    "timm:no_such_model",
    "timm:",
    "a:b:c",
    "nets.py:net:x",
    "..:net",
    ".nets:net",
    "nets..x:net",
)
SETTINGS = (
    "width=64",
    "width=0",
    "width=-1",
    "width=many",
    "width=1e3",
    "width=null",
    "width=[1]",
    "depth=2",
    "nothing=1",
    "=",
    "=1",
    "x",
    "width=",
    "width",
    "class=1",
    "hidden_size=32",
    "num_attention_heads=3",
    "vocab_size=-1",
    "n_head=0",
)
FLAGS: dict[str, tuple[str, ...]] = {
    "--base": ("16", "32", "0", "-1", "1e3", "1.5", "nan", "base.json", "broken.json", "nets.py:net", "9" * 400,
               "", ".", "²", "nets.py:no_such", "/dev/zero", "x:y", "base.bsh"),
    "--set": SETTINGS,
    "--base-set": SETTINGS,
    "--scheme": ("mup", "sp", "u-mup", "mup+completep", "nope", "", "../mup", "optimizers"),
    "--form": ("table3", "folded", "nope", ""),
    "--depth-ratio": ("2", "0", "-1", "nan", "inf", "x", "1e400"),
    "--grow": ("heads", "head_dim", "both"),
    "--frozen": ("keep", "plan", "x"),
    "--unused": ("freeze", "x"),
    "--no-strict": (),
    "--json": (),
    "--optimizer": ("adam", "muon", "nope", ""),
    "--markdown": (),
    "--width": ("16", "0", "-3", "x", "7", "1000000000000"),
    "--depth": ("1", "0", "x", "-1"),
    "--widths": ("8,16,32", "8", "", ",", "8,8,8", "x", "-8,16,32", "0,1,2"),
    "--steps": ("1", "0", "-1", "x"),
    "--seeds": ("1", "0", "x"),
    "--lr": ("0.01", "nan", "-1", "1e300", "x"),
    "--no-control": (),
    "-o": ("out.py", "no/such/out.py", ".", "", "out\n.py"),
    "--diff": (),
    "--stages": (),
    "--plot": ("plot.svg", "plot.xyz", "no/such/plot.png"),
    "--page": ("page.html", ".", "no/such/page.html"),
    "--version": (),
    "--help": (),
    "--no-such-flag": (),
    "--": (),
}  # fmt: skip
OF_COMMAND: dict[str, tuple[str, ...]] = {
    "report": ("--base", "--set", "--base-set", "--scheme", "--form", "--depth-ratio", "--grow", "--frozen", "--json"),
    "explain": ("--base", "--set", "--base-set", "--scheme", "--no-strict"),
    "export": ("--base", "--set", "-o", "--diff", "--stages", "--form"),
    "check": ("--widths", "--base", "--depth", "--optimizer", "--lr", "--steps", "--set", "--plot", "--page", "--json"),
    "proxy": ("--width", "--depth", "--set"),
    "rules": ("--scheme", "--optimizer", "--form", "--json", "--markdown"),
}


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, ...]:
    """Words after ``autofit``."""
    command = draw(
        st.sampled_from([*OF_COMMAND, *OF_COMMAND, "report", "rules", "", "no-such-command", "--help", "-h"])
    )
    words = [command]
    if command in ("report", "explain", "export", "check", "proxy"):
        target = (
            st.one_of(st.sampled_from(TARGETS), st.text(max_size=8)) if draw(st.booleans()) else st.just(TARGETS[0])
        )
        words.append(draw(target))
    if command == "explain":
        words.append(draw(st.sampled_from(["0.weight", "2.bias", "0.weight[0]", "nothing", "", "[bold]", *NAMES])))
    if command == "check":  # small, so that a right one is quick
        words += ["--steps", "1", "--seeds", "1", "--no-control"]
        words += ["--widths", "8,16,32"] if draw(st.booleans()) else []
    own = OF_COMMAND.get(command, ())
    flags = draw(st.lists(st.sampled_from([*own, *own, *own, *FLAGS]), max_size=3))
    for flag in flags:
        words.append(flag)
        if FLAGS[flag] and draw(st.integers(0, 9)):
            words.append(
                draw(st.one_of(st.sampled_from(FLAGS[flag]), st.sampled_from(FLAGS[flag]), st.text(max_size=6)))
            )
    if draw(st.integers(0, 7)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(st.text(max_size=8)))
    return tuple(w.replace("\0", "").encode("utf-8", "replace").decode() for w in words)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with factories and files that a command may name, as the current one."""
    files = {
        "nets.py": FACTORIES,
        "syntax.py": "def net(:\n",
        "raising.py": "raise RuntimeError('on import')\n",
        "exiting.py": "import sys\nsys.exit(7)\n",
        "binary.py": "\0\1\2",
        "config.json": json.dumps({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 11}),
        "broken.json": '{"model_type": ',
        "list.json": "[1, 2]",
        "typeless.json": '{"n_embd": 16}',
        "base.json": json.dumps(dict.fromkeys(known_sizes(), 16)),
        "base.bsh": yaml.safe_dump({n: [None] * k for n, k in AXES.items()}),
    }
    before, path, modules = os.getcwd(), list(sys.path), set(sys.modules)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        (Path(folder) / "folder.py").mkdir()
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if getattr(sys.modules[name], "__file__", "") and folder in str(sys.modules[name].__file__):
                    del sys.modules[name]


def judge_command(words: tuple[str, ...]) -> str:
    """A command exits with 0, 1 or 2; what it refuses it says on one screen, and not by a traceback."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        workplace(),
        mock.patch.object(sys, "argv", ["autofit", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            cli.main()
        except SystemExit as leave:
            code = 0 if leave.code is None else leave.code  # type: ignore[assignment]
        except KeyboardInterrupt as error:
            raise unexpected(error) from error
    said = out.getvalue() + err.getvalue()
    require(code in (0, 1, 2) and not isinstance(code, bool), f"exit code {code!r}")
    require("Traceback (most recent call last)" not in said, "a traceback")
    require("defect of autofit" not in said, next((line for line in said.splitlines() if "defect" in line), ""))
    if code != 0:
        require(bool(said.strip()), f"exit code {code} without a word")
        require(len(err.getvalue().splitlines()) <= SCREEN, "a message longer than a screen")
    return {0: "right", 1: "refused", 2: "usage"}[code]
