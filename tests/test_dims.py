"""The algebra of axes: refinement, part-by-part unification, and equal answers for equivalent spellings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import autofit
from autofit.capture import capture
from autofit.dims import Axes, AxisConflictError, Cell
from autofit.passes.infer_dims import InferDims


def cell(axes: Axes, size: int) -> Cell:
    return axes.new(size, "test", "axis")


def test_a_product_is_unified_factor_by_factor() -> None:
    axes = Axes()
    a, b = cell(axes, 24), cell(axes, 24)
    left, right = [cell(axes, n) for n in (2, 12)], [cell(axes, n) for n in (6, 4)]
    axes.join(a, left)
    axes.join(b, right)
    axes.unify(a, b)
    assert [f.size for f in axes.factors(a)] == [2, 3, 4]
    assert axes.find(right[1]) is list(axes.factors(left[1]))[1]


def test_a_concatenation_is_cut_where_the_other_side_is() -> None:
    axes = Axes()
    fused, split = cell(axes, 768), cell(axes, 768)
    axes.concatenate(fused, [cell(axes, 256) for _ in range(3)])
    axes.concatenate(split, [cell(axes, 256), cell(axes, 512)])
    axes.unify(fused, split)
    assert [s.size for s in axes.segments(split)] == [256, 256, 256]


def test_fused_projection_of_heads() -> None:
    """``768 = cat(256, 256, 256)``, each ``4 x 64``, against ``3 x 256``: the segments are one dimension."""
    axes = Axes()
    whole, stacked = cell(axes, 768), cell(axes, 768)
    parts = [cell(axes, 256) for _ in range(3)]
    axes.concatenate(whole, parts)
    axes.join(parts[0], [cell(axes, 4), cell(axes, 64)])
    axes.join(stacked, [cell(axes, 3), cell(axes, 256)])
    axes.unify(whole, stacked)
    assert [f.size for f in axes.factors(parts[2])] == [4, 64]


def test_different_sizes_conflict() -> None:
    axes = Axes()
    with pytest.raises(AxisConflictError):
        axes.unify(cell(axes, 4), cell(axes, 5))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=5), st.data())
def test_any_two_factorizations_refine_to_the_same_sizes(primes: list[int], data: st.DataObject) -> None:
    """However a run of factors is bracketed, unifying two bracketings keeps every product."""
    axes = Axes()
    total = 1
    for p in primes:
        total *= p

    def bracketed() -> Cell:
        whole = cell(axes, total)
        parts, at = [], 0
        while at < len(primes):
            take = data.draw(st.integers(1, len(primes) - at))
            size = 1
            for p in primes[at : at + take]:
                size *= p
            parts.append(cell(axes, size))
            at += take
        axes.join(whole, parts)
        return whole

    a, b = bracketed(), bracketed()
    axes.unify(a, b)
    sizes = [f.size for f in axes.factors(a)]
    product = 1
    for s in sizes:
        product *= s
    assert product == total
    assert sizes == [f.size for f in axes.factors(b)]


class Spelled(nn.Module):
    """One linear map, from 12 to 20, spelled in a given way."""

    def __init__(
        self,
        spelling: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        transposed: bool,
        sizes: tuple[int, int] = (12, 20),
    ) -> None:
        super().__init__()
        self.inp = nn.Linear(5, sizes[0])
        self.weight = nn.Parameter(torch.randn(sizes if transposed else sizes[::-1]))
        self.out = nn.Linear(sizes[1], 3)
        self.spelling = spelling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.spelling(torch.relu(self.inp(x)), self.weight)))


EQUIVALENT: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bool]] = {
    "linear": (nn.functional.linear, False),
    "matmul": (lambda x, w: x @ w, True),
    "matmul of a transpose": (lambda x, w: x @ w.T, False),
    "mm": (lambda x, w: torch.mm(x, w), True),
    "einsum": (lambda x, w: torch.einsum("bi,oi->bo", x, w), False),
    "einsum reversed": (lambda x, w: torch.einsum("io,...i->...o", w, x), True),
    "weight first": (lambda x, w: (w @ x.T).T, False),
    "addmm": (lambda x, w: torch.addmm(torch.zeros(w.shape[1]), x, w), True),
    "bmm": (lambda x, w: torch.bmm(x[None], w[None])[0], True),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=([1], [1])), False),
    "product and sum": (lambda x, w: (x[:, None, :] * w[None]).sum(-1), False),
    "1x1 convolution": (lambda x, w: nn.functional.conv1d(x[..., None], w[..., None])[..., 0], False),
    "scaled weight": (lambda x, w: nn.functional.linear(x, w * 2.0), False),
    "in two halves": (lambda x, w: torch.cat([nn.functional.linear(x, h) for h in w.chunk(2)], -1), False),
    "flattened": (lambda x, w: x @ w.reshape(-1).view(x.shape[1], -1), True),
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_every_spelling_of_a_linear_map_gives_one_answer(name: str) -> None:
    x = torch.zeros(7, 5)
    narrow = Spelled(*EQUIVALENT[name], sizes=(3, 10))
    found = autofit.analyze(Spelled(*EQUIVALENT[name]), x, base=narrow).plan.parameters["weight"]
    assert (found.role, found.r_in, found.r_out) == ("hidden", 4.0, 2.0)


@pytest.mark.parametrize("width", [32, 64])
def test_exponents_are_the_same_at_every_width(width: int) -> None:
    model = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    plan = autofit.analyze(model, torch.zeros(7, 5), base=16).plan
    assert [p.role for p in plan.parameters.values()] == ["input", "vector", "hidden", "vector", "output", "fixed"]


def test_why_is_a_path_of_constraints() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 32), nn.Linear(5, 32), nn.Linear(32, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(y + self.b(x))

    dims = InferDims()(capture(Residual(), torch.zeros(7, 5)))
    path = dims.why(dims.of_parameter["a.weight"][0], dims.of_parameter["b.weight"][0])
    assert [node for _, node, _ in path] == ["linear", "add", "add", "linear_1"]
    assert dims.why(dims.of_parameter["a.weight"][0], dims.of_parameter["a.weight"][1]) == []
