"""RMS(dW x) of every parameter of an untouched decoder, under the optimizers' real classes, over widths.

The same on the probe of `autofit.measure_optimizer`, whose units are copies of a few as in the limit, is in
test_optimizers.py. Here values are drawn, and widths finite: means over the parameters of a kind are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from coordinates import slope
from torch import nn
from torch.nn import functional as F

import autofit
from autofit.optim import optimizer_class

VOCABULARY, HEAD, CONTEXT, BASE = 61, 16, 16, 128


class Block(nn.Module):
    """Attention with one head of keys and values, and feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, HEAD, bias=False), nn.Linear(width, HEAD, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        q, k, v = (f(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k.expand(q.shape), v.expand(q.shape), is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(torch.tanh(self.up(self.between(x))))


class Decoder(nn.Module):
    """Two blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


IDS = torch.randint(VOCABULARY, (8, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
BOTTLENECKS = ("k.weight", "v.weight")


def kind(name: str, plan: autofit.Plan) -> str:
    """Bottlenecks apart from what has growing dimensions on either side."""
    return "bottleneck" if name.endswith(BOTTLENECKS) else plan.parameters[name].role


def effects(width: int, name: str, scaled: bool, seed: int, lr: float, settings: dict[str, Any]) -> dict[str, float]:
    """By kind, mean of log2 RMS of what the last of four steps changes in what a parameter gives."""
    torch.manual_seed(seed)
    model = Decoder(width)
    mu = autofit.muify(model, IDS[:, :-1], base=Decoder(BASE))
    if scaled:
        optimizer = mu.optimizer(name, lr=lr, **settings)
    else:
        groups = mu.param_groups(name, lr=lr, **settings)
        mine = [p for g in groups if g.get(f"use_{name}", True) for p in g["params"]]
        optimizer = optimizer_class(name)[0](mine, lr=lr, **{k: v for k, v in settings.items() if k != "beside"})
    given: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, out, path=path: given.__setitem__(path, args[0].detach()))
    for _ in range(4):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        loss = F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: dict[str, list[float]] = {}
    for n, p in model.named_parameters():
        change, path = p.detach() - before[n], n.rpartition(".")[0]
        change = given[path] @ change.T if path in given and p.ndim == 2 else change
        if change.any():
            found.setdefault(kind(n, mu.plan), []).append(math.log2(change.square().mean().sqrt().item()))
    return {k: sum(v) / len(v) for k, v in found.items()}


def exponents(
    name: str, scaled: bool, lr: float, settings: dict[str, Any], widths: Sequence[int] = (128, 256, 512)
) -> dict[str, float]:
    """By kind, mean of two seeds."""
    runs = [[effects(w, name, scaled, seed, lr, settings) for seed in (0, 1)] for w in widths]
    x = [math.log2(w) for w in widths]
    return {k: slope(x, [sum(r[k] for r in run) / len(run) for run in runs]) for k in runs[0][0]}


CASES = {
    "adamw": (1e-4, {}, "hidden", 0.8),
    "lion": (1e-4, {}, "hidden", 0.8),
    "sgd": (1e-2, {}, "input", -0.8),
    "adafactor": (1e-3, {}, "hidden", 0.4),
    "muon": (1e-3, {"beside": {"lr": 1e-4}}, "bottleneck", 0.35),
}
"""Learning rate and settings, and a kind with the exponent that one learning rate for all gives it, or more."""


@pytest.mark.parametrize("name", CASES)
def test_updates_of_a_decoder(name: str) -> None:
    """SGD's bottlenecks apart: their gradient starts at r^-1/2, and has no exponent once it trains (rules 7)."""
    lr, settings, worst, control = CASES[name]
    found = exponents(name, True, lr, settings)
    if name == "sgd":
        assert found.pop("bottleneck") == pytest.approx(-0.5, abs=0.15)
    assert max(map(abs, found.values())) <= 0.12, found
    plain = exponents(name, False, lr, settings)[worst]
    assert plain / control >= 1, plain


def shares(width: int, scale_eps: bool, seed: int) -> dict[str, float]:
    """By kind, mean of log2 RMS of Adam's fourth update over the learning rate, under an eps as large as gradients."""
    torch.manual_seed(seed)
    model = Decoder(width)
    mu = autofit.muify(model, IDS[:, :-1], base=Decoder(64))
    optimizer = mu.optimizer("adam", lr=1e-4, eps=1e-3, scale_eps=scale_eps)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    for _ in range(4):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        loss = F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: dict[str, list[float]] = {}
    for n, p in model.named_parameters():
        update = (p.detach() - before[n]) / rates[n]
        found.setdefault(kind(n, mu.plan), []).append(math.log2(update.square().mean().sqrt().item()))
    return {k: sum(v) / len(v) for k, v in found.items()}


def eps_exponents(scale_eps: bool, widths: Sequence[int] = (64, 128, 256, 512)) -> dict[str, float]:
    """By kind, mean of two seeds."""
    runs = [[shares(w, scale_eps, seed) for seed in (0, 1)] for w in widths]
    x = [math.log2(w) for w in widths]
    return {k: slope(x, [sum(r[k] for r in run) / len(run) for run in runs]) for k in runs[0][0]}


def test_epsilon_keeps_its_share_in_every_group() -> None:
    """Left alone, as the mup package leaves it, updates shrink with width in every group."""
    found = eps_exponents(True)
    assert set(found) == {"input", "hidden", "output", "vector", "bottleneck"}
    assert max(map(abs, found.values())) <= 0.1, found
    alone = eps_exponents(False)
    assert alone["input"] <= -0.6
    assert alone["hidden"] <= -0.6
    assert alone["vector"] <= -0.4
