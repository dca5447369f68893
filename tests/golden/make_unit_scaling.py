"""Golden values of the ``unit-scaling`` package, in an environment of its own:

    python -m venv other && . other/bin/activate
    pip install torch==2.13.0 einops numpy docstring-parser tabulate && pip install --no-deps unit-scaling==0.3.5
    python tests/golden/make_unit_scaling.py

The models are written by hand with that package's modules. What it has besides u-muP, constants of activations and of
attention's results, is left out: these are plain torch. Written is ``unit_scaling.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import unit_scaling as uu
import unit_scaling.functional as U
from torch import nn
from torch.nn import functional as F
from unit_scaling.core.functional import transformer_residual_scaling_rule

HEAD, WIDTH, VOCABULARY, LAYERS = 4, 8, 11, 3


class Perceptron(nn.Module):
    """Three layers; without biases, which that package has under the weight's factor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = uu.Linear(5, 16), uu.Linear(16, 24)
        self.head = uu.LinearReadout(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Block(nn.Module):
    """Attention and a feed-forward branch."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.before, self.between = (uu.LayerNorm(WIDTH, eps=1e-12, elementwise_affine=True) for _ in range(2))
        self.q, self.k, self.v, self.o = (uu.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = uu.Linear(WIDTH, 4 * WIDTH), uu.Linear(4 * WIDTH, WIDTH)
        rule = transformer_residual_scaling_rule()
        self.taus = [rule(2 * index + i, 2 * LAYERS) for i in (0, 1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, x = U.residual_split(x, self.taus[0])
        y = self.before(y)
        q, k, v = (f(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / HEAD).transpose(1, 2).flatten(2)
        x = U.residual_add(self.o(mixed), x, self.taus[0])
        y, x = U.residual_split(x, self.taus[1])
        return U.residual_add(self.down(torch.relu(self.up(self.between(y)))), x, self.taus[1])


class Decoder(nn.Module):
    """Three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = uu.Embedding(VOCABULARY, WIDTH)
        self.blocks = uu.DepthModuleList([Block(i) for i in range(LAYERS)])
        self.norm = uu.LayerNorm(WIDTH, eps=1e-12, elementwise_affine=True)
        self.head = uu.LinearReadout(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def run(model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """Outputs before each of three steps and after them."""
    found = []
    for _ in range(3):
        out = model(x)
        found.append(out.flatten().tolist())
        optimizer.zero_grad()
        F.cross_entropy(out.flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    return [*found, model(x).flatten().tolist()]


OPTIMIZERS = {
    "adamw": (uu.optim.AdamW, {"lr": 0.1, "weight_decay": 0.01, "eps": 1e-3}),
    "sgd": (uu.optim.SGD, {"lr": 2.0, "weight_decay": 0.01, "momentum": 0.9}),
}


def values(make: type[nn.Module], x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Everything that a test compares."""
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for p in model.parameters():  # biases and gains, too, so that they count
            p += 0.1 * torch.randn_like(p)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
    runs = {}
    gradients = {n: p.grad.tolist() for n, p in model.named_parameters()}
    for name, (cls, settings) in OPTIMIZERS.items():
        model.load_state_dict(start)
        runs[name] = run(model, x, y, cls(model.parameters(), **settings))
    settings = {name: s for name, (_, s) in OPTIMIZERS.items()}
    return {
        "start": {n: p.tolist() for n, p in start.items()},
        "x": x.tolist(),
        "y": y.tolist(),
        "gradients": gradients,
        "settings": settings,
        "runs": runs,
    }


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (4, 9), generator=generator)
    data = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    golden = {
        "perceptron": values(Perceptron, data, torch.arange(8) % 3),
        "decoder": values(Decoder, ids[:, :-1], ids[:, 1:]),
    }
    Path(__file__).with_name("unit_scaling.json").write_text(json.dumps(golden) + "\n")
