"""Writes in place: the captured program computes what the model computes, each value with one meaning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import autofit
from autofit.capture import capture

X = torch.arange(4 * 6 * 5, dtype=torch.float32).reshape(4, 6, 5) / 7

Function = Callable[[torch.Tensor], object]


def rows(x: torch.Tensor) -> object:
    out = torch.empty(2, *x.shape)
    out[0] = x
    out[1] = 2 * x
    return out.sum(0)


def read_before_and_after(x: torch.Tensor) -> object:
    h = x * 3
    before = h.exp()
    h[:, 0] = 1
    return before, h


def part_cut_before(x: torch.Tensor) -> object:
    h = x + 1
    part = h[:, :3]
    h[:, 1] = x[:, 5]
    return part * 2, h


def part_of_a_part(x: torch.Tensor) -> object:
    h = x + 1
    h[1:3][:, 2:4] *= 5
    return h


def through_a_transpose(x: torch.Tensor) -> object:
    h = x.clone()
    h.permute(2, 0, 1)[1].add_(x.sum())
    h.transpose(0, 1)[2] = 0
    return h


def through_a_new_shape(x: torch.Tensor) -> object:
    h = x * 1
    h.view(24, 5)[::2] += 3
    return h.flatten()


def pieces(x: torch.Tensor) -> object:
    h = x * 1
    one, two = h.split(2, 2)[:2]
    two.mul_(one)
    first, *_ = h.unbind(1)
    first.zero_()
    return h, one, two


def copied_then_changed(x: torch.Tensor) -> object:
    y = x * 2
    h = torch.zeros_like(x)
    h.copy_(y)
    h += 1
    return h, y


def broadcast_into(x: torch.Tensor) -> object:
    h = x * 1
    h[:, 1:3] = x[:, :1]
    return h


def masked(x: torch.Tensor) -> object:
    h = x * 1
    h[h > 9] = 0.5
    h.masked_fill_(h < 1, 2.0)
    return h


def diagonal(x: torch.Tensor) -> object:
    h = x * 1
    h[0, :5].diagonal().fill_(4)
    return h


def again_and_again(x: torch.Tensor) -> object:
    h = x * 1
    for i in range(1, 6):
        h[:, i] = h[:, i - 1] + h[:, i]
    return h, h[:, 2]


@pytest.mark.parametrize(
    "function",
    [
        rows,
        read_before_and_after,
        part_cut_before,
        part_of_a_part,
        through_a_transpose,
        through_a_new_shape,
        pieces,
        copied_then_changed,
        broadcast_into,
        masked,
        diagonal,
        again_and_again,
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_program_computes_what_the_function_does(function: Function, recorded: bool) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if recorded:  # a model without parameters runs nowhere
                self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> object:
            if recorded and float(x.sum()) < 0:  # which export cannot follow
                return x
            return function(x)

    program = capture(Module(), X)
    assert program.recorded == recorded
    assert not [n for n in program.calls() if getattr(n.target, "_opname", "").endswith("_")], "a write is left"
    for node in program.calls():  # captured on no device
        node.kwargs = {k: "cpu" if k == "device" else v for k, v in node.kwargs.items()}
    program.module.recompile()
    given = [torch.ones(1)] if recorded else []
    found = torch.utils._pytree.tree_leaves(program.module(*given, X.clone()))
    for a, b in zip(found, torch.utils._pytree.tree_leaves(function(X.clone())), strict=True):
        torch.testing.assert_close(a, b)


class Written(nn.Module):
    """Two rows written into an empty tensor, one of them behind a hidden layer and a factor that grows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.scale = width**0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.one(x))
        out = torch.empty(len(x), 2, h.shape[-1])
        out[:, 0] = h
        out[:, 1] = self.two(h)
        out /= self.scale
        return self.head(out)


@pytest.mark.parametrize("base", [16, "second"])
def test_a_scale_behind_a_write_is_counted(base: int | str) -> None:
    """Half of the readout's 1/r is there already: sqrt(r) divides what enters."""
    mu = autofit.analyze(Written(64), torch.zeros(7, 10), base=Written(16) if base == "second" else base)
    assert {n: p.role for n, p in mu.plan.parameters.items() if "weight" in n} == {
        "one.weight": "input",
        "two.weight": "hidden",
        "head.weight": "output",
    }
    assert mu.plan.parameters["head.bias"].reason != "never used by forward"
    (site,) = (s for s in mu.plan.sites if s.multiplier != 1)
    assert site.multiplier == pytest.approx(0.5)
