"""Scheme u-mup against the ``unit-scaling`` package: hand-written models there, untouched ones here.

Golden values are made by tests/golden/make_unit_scaling.py. What differs, and why:

- Gradients there have a scale of their own by op, which the plan knows as G, and the root of the number of samples,
  which no plan can know: it goes into SGD's learning rate and Adam's eps.
- Weight decay there is wd at any lr, here lr * wd, as in torch.
- Residual streams there are normalized at each sum, here not: only norms read them, which do not see it but for their
  eps (1e-12 here).
- Biases there are under the factor of their weight, fan_in^-1/2, so that they learn less in a wider model; here they
  are added after it (rules 10). The models go without.
- Constants of activations and of attention's results there do not depend on width; the models there go without them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autofit

GOLDEN = json.loads((Path(__file__).parent / "golden" / "unit_scaling.json").read_text())
HEAD = 4


class Perceptron(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 16, bias=False), nn.Linear(16, 24, bias=False)
        self.head = nn.Linear(24, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Block(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        q, k, v = (f(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.between(x))))


class Decoder(nn.Module):
    """Pre-LN."""

    def __init__(self, width: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(11, width), nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 11, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


MODELS = {"perceptron": Perceptron, "decoder": Decoder}


def prepared(name: str) -> tuple[nn.Module, autofit.Analysis, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """An untouched model in u-muP, with the golden start, data and values."""
    golden = GOLDEN[name]
    x, y = (torch.tensor(golden[k], dtype=torch.float64 if name == "perceptron" and k == "x" else None) for k in "xy")
    torch.manual_seed(0)
    model = MODELS[name]().double()
    mu = autofit.muify(model, x, base=2, scheme="u-mup")
    model.load_state_dict({n: torch.tensor(v, dtype=torch.float64) for n, v in golden["start"].items()})
    return model, mu, x, y, golden


def loss_of(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy."""
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients(name: str) -> None:
    model, mu, x, y, golden = prepared(name)
    out = model(x)
    assert out.flatten().tolist() == pytest.approx(golden["runs"]["sgd"][0], rel=1e-5, abs=1e-9)
    loss_of(out, y).backward()
    for n, p in model.named_parameters():
        unit = p.grad * mu.plan.parameters[n].gradient / math.sqrt(y.numel())
        expected = torch.tensor(golden["gradients"][n], dtype=torch.float64)
        torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-9, msg=n)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", MODELS)
def test_training_steps(name: str, optimizer: str) -> None:
    model, mu, x, y, golden = prepared(name)
    settings = dict(golden["settings"][optimizer])
    samples = math.sqrt(y.numel())
    if optimizer == "sgd":
        settings["lr"] /= samples
    else:
        settings["eps"] *= samples
    settings["weight_decay"] /= settings["lr"]
    chosen = mu.optimizer(optimizer, **settings)
    for expected in golden["runs"][optimizer]:
        out = model(x)
        assert out.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)
        chosen.zero_grad()
        loss_of(out, y).backward()
        chosen.step()


def test_values_start_at_unit_scale() -> None:
    """Weights and tables do; gains and biases are left as they are."""

    class Net(nn.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(nn.Linear(5, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, width))
            self.append(nn.Linear(width, 3))

    for made, base, x in (
        (Decoder(64), Decoder(16), torch.zeros(2, 5, dtype=torch.long)),
        (Net(64), Net(16), torch.zeros(2, 5)),
    ):
        before = {n: p.detach().clone() for n, p in made.named_parameters()}
        autofit.muify(made, x, base=base, scheme="u-mup")
        for name, p in made.named_parameters():
            assert torch.equal(p, before[name]) if p.ndim == 1 else p.std().item() == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("scale", [None, 1.0, 0.25])
def test_whatever_scale_attention_has(scale: float | None) -> None:
    """One over the head size in all; any other constant is the user's, and stays."""

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(7, width), nn.Linear(7, width), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.scaled_dot_product_attention(self.q(x), self.k(x), x, scale=scale))

    plan = autofit.analyze(Net(64), torch.zeros(2, 5, 7), base=Net(16), scheme="u-mup").plan
    (site,) = (s for s in plan.sites if s.kind == "attention")
    assert site.scale * site.multiplier == pytest.approx({None: 1 / 64, 1.0: 1 / 64, 0.25: 0.25 / 64}[scale])
