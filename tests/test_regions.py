"""Programs with graphs of their own inside (higher-order ops), and contractions of many operands."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._higher_order_ops import scan, while_loop
from torch.nn.attention.flex_attention import flex_attention

import autofit


class Branching(nn.Module):
    """`torch.cond`: either of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, width), nn.Linear(width, 3)
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = torch.cond(x.sum() > 0, lambda h: self.one(h).relu(), lambda h: self.other(h).tanh(), (h,))
        return self.last(h)


class Looping(nn.Module):
    """`while_loop`: one layer four times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = torch.zeros((), dtype=torch.long), self.first(x)
        _, h = while_loop(lambda i, h: i < 4, lambda i, h: (i + 1, self.again(h).tanh()), start)
        return self.last(h)


class Scanning(nn.Module):
    """`scan`: a recurrence along the second axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def step(h: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = (self.again(h) + x).tanh()
            return h, h.clone()

        xs = self.first(x).transpose(0, 1)
        return self.last(scan(step, torch.zeros_like(xs[0]), xs)[1])


class Flexible(nn.Module):
    """`flex_attention` with two heads, whose size grows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, width), nn.Linear(width, 3)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        heads = (layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = flex_attention(*heads, score_mod=lambda score, b, h, q, k: score + (q - k))
        return self.last(mixed.transpose(1, 2).flatten(2))


class LowRank(nn.Module):
    """One einsum of three operands: down to a fixed rank and up again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, width), nn.Linear(width, 3)
        self.down, self.up = nn.Parameter(torch.randn(width, 5) * 0.1), nn.Parameter(torch.randn(5, width) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.einsum("...d,dr,re->...e", self.first(x), self.down, self.up))


CASES = {
    Branching: {"one.weight": "hidden", "other.weight": "hidden"},
    Looping: {"again.weight": "hidden"},
    Scanning: {"again.weight": "hidden"},
    Flexible: {"q.weight": "hidden", "k.weight": "hidden", "v.weight": "hidden"},
    LowRank: {"down": "bottleneck", "up": "input"},
}
X = torch.zeros(5, 7, 10)


@pytest.mark.parametrize("cls", CASES, ids=lambda c: c.__name__)
def test_roles_inside_regions(cls: type[nn.Module]) -> None:
    found = autofit.analyze(cls(64), X, base=cls(32))
    rules = {p.name: p.rule for p in found.plan.parameters.values()}
    assert rules["first.weight"] == "input"
    assert rules["last.weight"] == "output"
    assert {n: rules[n] for n in CASES[cls]} == CASES[cls]
    saved = autofit.analyze(cls(64), X, base=found.base())
    assert {p.name: (p.rule, p.r_in, p.r_out) for p in saved.plan.parameters.values()} == {
        p.name: (p.rule, p.r_in, p.r_out) for p in found.plan.parameters.values()
    }


@pytest.mark.parametrize("cls", CASES, ids=lambda c: c.__name__)
def test_multipliers_act(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cls(64)
    x = torch.randn(X.shape)
    with torch.no_grad():
        before = model(x) - model.last.bias
        mu = autofit.muify(model, x, base=cls(32), init="keep")
        after = model(x) - model.last.bias
    multipliers = {s.kind: s.multiplier for s in mu.plan.sites}
    assert multipliers["readout"] == 0.5
    if cls is Flexible:
        assert multipliers["attention"] == pytest.approx(0.5**0.5)
        assert not torch.allclose(after, before / 2, atol=1e-4)  # the weights of attention changed, too
    else:
        torch.testing.assert_close(after, before / 2)


class Gated(nn.Module):
    """A convolution whose kernel slides along the channels, as in efficient channel attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 7)
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        gate = self.slide(h.mean((2, 3))[:, None]).sigmoid()
        return self.last((h * gate.transpose(1, 2)[..., None]).mean((2, 3)))


def test_a_kernel_may_slide_along_channels() -> None:
    x = torch.zeros(5, 3, 11, 13)
    for base in (32, Gated(32)):
        found = autofit.analyze(Gated(64), x, base=base)
        assert {p.name: p.role for p in found.plan.parameters.values() if "weight" in p.name} == {
            "first.weight": "input",
            "slide.weight": "fixed",
            "last.weight": "output",
        }


class Copying(nn.Module):
    """A depthwise convolution with two outputs per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3), nn.Linear(2 * width, 7)
        self.depthwise = nn.Conv2d(width, 2 * width, 3, groups=width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.depthwise(self.first(x)).mean((2, 3)))


def test_depthwise_with_two_outputs_per_channel() -> None:
    x = torch.zeros(5, 3, 11, 13)
    for base in (32, Copying(32)):
        found = autofit.analyze(Copying(64), x, base=base)
        assert {p.name: (p.role, p.r_out) for p in found.plan.parameters.values() if "weight" in p.name} == {
            "first.weight": ("input", 2),
            "depthwise.weight": ("vector", 2),
            "last.weight": ("output", 1),
        }
