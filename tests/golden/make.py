"""Make ``mup.json`` with the ``mup`` package, in an environment of its own.

    python -m venv mup-env
    mup-env/bin/pip install torch==2.13.0 pandas seaborn pyyaml tqdm
    mup-env/bin/pip install --no-deps mup==1.0.0
    mup-env/bin/python tests/golden/make.py

Every model is edited by hand as mup's README asks: readouts become ``MuReadout`` (or ``MuSharedReadout``),
attention is scaled by ``sqrt(base head size) / head size``, base shapes are set from a base and a delta model.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import mup
import torch
from models import (
    BASE,
    CASES,
    LR,
    MODELS,
    SEED,
    TARGET,
    WEIGHT_DECAY,
    WIDTHS,
    Case,
    Golden,
    Tied,
    Transformer,
    loss,
)
from torch import nn


def edited(golden: Golden, width: int) -> nn.Module:
    """The model with mup's edits, and the same initial values as the plain one."""
    torch.manual_seed(SEED)
    model = golden.make(width)
    for path in golden.readouts:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        old = getattr(owner, name)
        if isinstance(model, Tied):
            new = mup.MuSharedReadout(model.embed.weight, bias=False)
        else:
            new = mup.MuReadout(old.in_features, old.out_features, bias=old.bias is not None)
            new.weight, new.bias = old.weight, old.bias
        setattr(owner, name, new)
    if isinstance(model, Transformer):
        size, base = width // model.heads, golden.make(BASE)
        model.scale = (BASE // base.heads) ** 0.5 / size
    return model


OPTIMIZERS = {"sgd": mup.MuSGD, "adam": mup.MuAdam, "adamw": mup.MuAdamW}


def ready(golden: Golden, width: int = TARGET) -> nn.Module:
    """At a width, base shapes set and parameters rescaled."""
    model = edited(golden, width)
    return mup.set_base_shapes(model, edited(golden, BASE), delta=edited(golden, 2 * BASE))


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    """A setting of each parameter's group."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: g[key] for g in optimizer.param_groups for p in g["params"]}


def invariants(golden: Golden) -> dict[str, Any]:
    """What the abc-symmetry leaves alone, by parameter."""
    model = ready(golden)
    multiplier = {
        f"{path}.weight": 1 / model.get_submodule(path).width_mult()
        for path in golden.readouts
        if not isinstance(model, Tied)
    }
    keywords = {"lr": LR, "weight_decay": WEIGHT_DECAY}
    adam, sgd = mup.MuAdamW(model.parameters(), **keywords), mup.MuSGD(model.parameters(), **keywords)
    adam_lr, adam_wd = by_name(model, adam, "lr"), by_name(model, adam, "weight_decay")
    sgd_lr, sgd_wd = by_name(model, sgd, "lr"), by_name(model, sgd, "weight_decay")
    found: dict[str, Any] = {}
    for name, p in model.named_parameters():
        a = multiplier.get(name, 1.0)
        found[name] = {
            "multiplier x std": a * p.detach().double().std(correction=0).item(),
            "multiplier x adam lr": a * adam_lr[name],
            "multiplier^2 x sgd lr": a**2 * sgd_lr[name],
            "adam lr x wd": adam_lr[name] * adam_wd[name],
            "sgd lr x wd": sgd_lr[name] * sgd_wd[name],
        }
    return found


def behaviour(golden: Golden) -> dict[str, Any]:
    """Outputs at init, and losses over three steps of each optimizer, in float64."""
    start = ready(golden)
    found: dict[str, Any] = {}
    for name in ("adam", "adamw", "sgd"):
        model = copy.deepcopy(start)
        for p, q in zip(model.parameters(), start.parameters(), strict=True):
            p.infshape = q.infshape
        model = model.double()
        decay = 0.0 if name == "adam" else WEIGHT_DECAY
        rule = OPTIMIZERS[name](model.parameters(), lr=LR, weight_decay=decay)
        x = golden.example.double() if golden.example.is_floating_point() else golden.example
        losses = []
        for _ in range(3):
            output = model(x)
            found.setdefault("output", output.detach().flatten()[:40].tolist())
            value = loss(output)
            rule.zero_grad()
            value.backward()
            rule.step()
            losses.append(value.item())
        found[name] = losses
    return found


def groups(model: nn.Module, case: Case) -> list[dict[str, Any]]:
    """What mup makes of one case: settings and names of the parameters of every group that is not empty."""
    given = case.groups(model) if case.grouped else model.parameters()
    optimizer = OPTIMIZERS[case.rule](given, lr=LR, **case.settings)
    names = {id(p): n for n, p in model.named_parameters()}
    keys = [k for k in ("lr", "weight_decay", "momentum", "eps") if k in optimizer.defaults]
    return [
        {**{k: g[k] for k in keys}, "names": " ".join(names[id(p)] for p in g["params"])}
        for g in optimizer.param_groups
        if g["params"]
    ]


def at_widths(golden: Golden) -> dict[str, Any]:
    """Groups of all cases, by width."""
    models = {w: ready(golden, w) for w in WIDTHS}
    return {str(w): {n: groups(m, case) for n, case in CASES.items()} for w, m in models.items()}


if __name__ == "__main__":
    result = {
        n: {"parameters": invariants(g), "behaviour": behaviour(g), "groups": at_widths(g)} for n, g in MODELS.items()
    }
    file = Path(__file__).with_name("mup.json")
    file.write_text(json.dumps({"torch": torch.__version__, "mup": "1.0.0", "models": result}, indent=1) + "\n")
    print(f"{file}: {len(result)} models")
