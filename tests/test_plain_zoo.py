"""Models written the way people write them: growth as their builders know it, identity, one forward after rewriting."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import autofit
from autofit.examples import normalize

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from plain_models import MODELS

SPOKEN_FOR = {
    "point_net": "coordinates between two weights are fixed, which one model cannot show",
    "perceiver": "the number of Fourier bands is fixed, which one model cannot show",
    "clip": "the shared width of image and text meets only in a product and is an output",
    "hypernetwork": "generated weights meet only in a product",
    "graph_attention": "heads that only a product with a weight shows",
    "two_tower": "the shared width of both towers meets only in a product and is an output",
}
REFUSED = {
    "capsule": "no module boundary can carry",
    "dlrm": "no module boundary can carry",
    "projection_gan": "a weight is scaled by what a contraction of weights gives",
}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - SPOKEN_FOR.keys() - REFUSED.keys()))
def test_growth_is_what_the_builder_makes(name: str) -> None:
    """The builder doubles every hidden width; so must a number that halves the main one."""
    torch.manual_seed(0)
    model, example = MODELS[name](64)
    half, _ = MODELS[name](32)
    growth = autofit.analyze(model, example, base=32, frozen="keep").roles.growth
    (ratio,) = (d.ratio for d in growth.dimensions if d.name == growth.main)
    _check_growth(autofit.analyze(model, example, base=16 * ratio, frozen="keep"), half)


def _check_growth(mu: autofit.Analysis, half: nn.Module) -> None:
    smaller = dict(half.named_parameters())
    for name, parameter in mu.model.named_parameters():
        plan = mu.plan.parameters[name]
        assert plan.r_in * plan.r_out == pytest.approx(parameter.numel() / smaller[name].numel()), plan


@pytest.mark.parametrize("name", sorted(SPOKEN_FOR))
def test_what_one_model_cannot_show_a_second_does(name: str) -> None:
    model, example = MODELS[name](64)
    half, _ = MODELS[name](32)
    _check_growth(autofit.analyze(model, example, base=half), half)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refusals_name_a_line(name: str) -> None:
    model, example = MODELS[name](64)
    with pytest.raises(autofit.AutofitError, match=rf"{REFUSED[name]}(.|\n)*plain_models\.py:\d+"):
        autofit.analyze(model, example, base=32)


@pytest.mark.parametrize("name", ["nano_gpt", "mixture_of_experts", "unet", "early_exit", "seq2seq", "mamba"])
def test_identity_and_a_forward_after_rewriting(name: str) -> None:
    torch.manual_seed(0)
    model, example = MODELS[name](64)
    model.eval()
    inputs = normalize(example)

    def run() -> list[torch.Tensor]:
        torch.manual_seed(1)
        with torch.no_grad():
            return [t.clone() for t in pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))]

    before = run()
    sizes = {d.name: d.size for d in autofit.analyze(model, example, base=32).roles.growth.dimensions}
    autofit.muify(model, example, base=sizes)
    assert all(torch.equal(a, b) for a, b in zip(before, run(), strict=True))
    model, example = MODELS[name](64)
    autofit.muify(model, example, base=MODELS[name](32)[0])
    assert [t.shape for t in run()] == [t.shape for t in before]
