"""``zero_query``: at first all positions count alike, whatever gives the queries."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from torch import nn
from torch.nn import functional as F

import autofit
from autofit.plan import Plan

IDS = torch.arange(24).reshape(2, 12) % 90 + 3


@pytest.mark.parametrize(
    ("family", "name", "rows"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (1, ((0, 64),))),  # fused, held as (in, out)
        ("gpt2", "transformer.h.0.attn.c_attn.bias", (0, ((0, 64),))),
        ("llama", "model.layers.0.self_attn.q_proj.weight", (0, ((0, 64),))),
        ("bert", "bert.encoder.layer.0.attention.self.query.bias", (0, ((0, 64),))),
        (
            "gpt_neox",
            "gpt_neox.layers.0.attention.query_key_value.weight",
            (0, ((0, 16), (48, 64), (96, 112), (144, 160))),
        ),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.q.weight", (0, ((0, 64),))),
    ],
)
def test_queries_are_found(family: str, name: str, rows: tuple[int, tuple[tuple[int, int], ...]]) -> None:
    model = FAMILIES[family].build()
    mu = autofit.muify(model, base=FAMILIES[family].main // 2, zero_query=True)
    assert mu.plan.parameters[name].zeros == rows
    values = model.get_parameter(name).movedim(rows[0], 0)
    mine = torch.zeros(len(values), dtype=torch.bool)
    for start, stop in rows[1]:
        mine[start:stop] = True
    assert not values[mine].any()
    assert name.endswith("bias") or mine.all() or values[~mine].all()
    assert Plan.from_dict(mu.plan.to_dict()) == mu.plan


def test_positions_count_alike() -> None:
    """Of a causal decoder each position then sees the mean of what is before it."""
    model = FAMILIES["gpt2"].build(attn_implementation="eager").eval()
    autofit.muify(model, base=32, zero_query=True)
    for weights in model(IDS, output_attentions=True).attentions:
        expected = torch.ones(12, 12).tril() / torch.arange(1, 13)[:, None]
        torch.testing.assert_close(weights, expected.expand_as(weights))


class Net(nn.Module):
    """Attention by hand, with the keys on the left if wanted, or one weight for both sides."""

    def __init__(self, width: int, turned: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.turned, self.embed, self.head = turned, nn.Embedding(99, width), nn.Linear(width, 7)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        if shared:
            self.k.weight = self.q.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        q, k = self.q(x), self.k(x)
        if self.turned:
            return self.head((k @ q.mT * q.shape[-1] ** -0.5).softmax(-2).mT @ x)
        return self.head((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ x)


@pytest.mark.parametrize("turned", [False, True])
def test_the_softmax_tells_which_side_asks(turned: bool) -> None:
    model = Net(32, turned)
    before = model.k.weight.detach().clone()
    autofit.muify(model, IDS, base=Net(16, turned), zero_query=True)
    assert not model.q.weight.any()
    assert not model.q.bias.any()
    assert torch.equal(model.k.weight, before)


def test_a_shared_weight_is_refused() -> None:
    with pytest.raises(autofit.PlanError, match=r"q\.weight is used elsewhere"):
        autofit.muify(Net(32, shared=True), IDS, base=Net(16, shared=True), zero_query=True)
    with pytest.raises(autofit.PlanError, match="init='keep' forbids"):
        autofit.muify(Net(32), IDS, base=Net(16), zero_query=True, init="keep")


def test_a_model_on_meta_draws_them_as_zeros() -> None:
    model = autofit.deferred_init(lambda: FAMILIES["gpt2"].build())
    mu = autofit.muify(model, base=32, zero_query=True)
    model.to_empty(device="cpu")
    mu.init_(torch.Generator().manual_seed(0))
    weight = model.get_parameter("transformer.h.1.attn.c_attn.weight")
    assert not weight[:, :64].any()
    assert weight[:, 64:].all()


def test_gradients_reach_the_query() -> None:
    torch.manual_seed(0)
    model = Net(32)
    mu = autofit.muify(model, IDS, base=Net(16), zero_query=True)
    optimizer = mu.optimizer("adamw", lr=1e-2)
    F.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten() % 7).backward()
    optimizer.step()
    assert model.q.weight.any()
