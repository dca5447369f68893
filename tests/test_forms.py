"""The forms of TP5 (Tables 3 and 8, and all factors folded) are one training run (Lemma J.1), to float64's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lion_pytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import autofit
from autofit.optim import optimizer_class
from autofit.rules import optimizers


class Net(nn.Module):
    """Lookup, attention with a growing head, a fixed inner width, gains, biases, a readout."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.embed, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        nn.init.constant_(self.norm.bias, 0.1)  # Adafactor moves zeros by a step of its own
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.down, self.up, self.head = nn.Linear(width, 3), nn.Linear(3, width), nn.Linear(width, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids))
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (q @ k.mT * self.scale).softmax(-1) @ v
        x = x + mixed.transpose(1, 2).flatten(2)
        return self.head((x + self.up(torch.tanh(self.down(x)))).tanh())


IDS = torch.arange(21).reshape(3, 7) % 11
# without RAdam: its first five steps are the gradient's mean, before it divides by anything
OPTIMIZERS: dict[str, tuple[type, Mapping[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.9)}),
    "nadam": (torch.optim.NAdam, {}),
    "nadam, decoupled": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    "adamax": (torch.optim.Adamax, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "lion": (lion_pytorch.Lion, {}),
}


def run(
    form: str, optimizer: str, width: int, lr: float, weight_decay: float, eps: float, heads: int = 2, **given: Any
) -> list[float]:
    """Losses of a few steps."""
    torch.manual_seed(0)
    model = Net(width, heads).double()
    mu = autofit.muify(model, IDS, base=Net(8, heads).double(), form=form, **given)
    cls, more = OPTIMIZERS[optimizer]
    epsilon = {"eps": eps} if optimizers()[optimizer_class(cls)[1]].eps else {}
    chosen = mu.optimizer(cls, lr=lr, weight_decay=weight_decay, **epsilon, **more)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten() % 5)
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:.*no width rule is sourced")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=2, deadline=None)
@given(st.data())
def test_one_training_run_in_every_form(optimizer: str, data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([16, 24, 48]))
    lr, decay = data.draw(st.floats(1e-3, 3e-2)), data.draw(st.floats(0, 0.3))
    eps = data.draw(st.sampled_from([1e-8, 1e-3]))
    expected = run("table8", optimizer, width, lr, decay, eps)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-6)
    for form in ("table3", "folded", "table9", "one_lr"):
        assert run(form, optimizer, width, lr, decay, eps) == pytest.approx(expected, rel=1e-9)


KINDS = ("embedding", "hidden", "output", "norm_gain", "norm_bias", "bias")


@pytest.mark.filterwarnings("ignore:.*no width rule is sourced")
@settings(max_examples=10, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    heads=st.sampled_from([1, 2, 4]),
    factors=st.fixed_dictionaries({}, optional={k: st.floats(0.1, 10) for k in KINDS}),
    forms=st.tuples(*[st.sampled_from(["table8", "table3", "folded", "table9", "one_lr"])] * 2),
    eps=st.sampled_from([1e-8, 1e-3]),
)
def test_any_factor_may_stand_in_forward_or_in_values(
    optimizer: str, heads: int, factors: dict[str, float], forms: tuple[str, str], eps: float
) -> None:
    """abc-symmetry (TP5 Lemma J.1) for factors of the user's own, over nets and optimizers, in any two forms."""
    settings = (optimizer, 24, 3e-3, 0.1, eps, heads)
    forward, folded = (autofit.Tunables(**factors, folded=f) for f in (False, True))
    losses = run(forms[0], *settings, tunables=forward)
    assert run(forms[1], *settings, tunables=folded) == pytest.approx(losses, rel=1e-8)


def test_where_the_factors_are() -> None:
    base = Net(8)
    found = {f: autofit.analyze(Net(32), IDS, base=base, form=f).plan for f in ("table8", "table3", "folded")}
    places = {f: {s.kind: str(s.carrier) for s in p.sites if s.multiplier != 1} for f, p in found.items()}
    assert places == {
        "table8": {"attention": "output q", "readout": "input head"},
        "table3": {"attention": "output q", "readout": "weight head.weight"},
        "folded": {"attention": "weight q.weight", "readout": "weight head.weight"},
    }
    assert {p.form for p in found.values()} == set(found)


def test_folded_leaves_forward_alone() -> None:
    model = Net(32)
    mu = autofit.muify(model, IDS, base=Net(8), form="folded")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    plain = Net(32)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(IDS), mu.model(IDS), rtol=0, atol=0)


def test_what_cannot_be_folded_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, width), nn.Linear(width, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids).tanh())

    model = Tied(32)
    for form in ("table3", "folded"):
        with pytest.raises(autofit.LoweringError, match=r"cannot go into a weight.*\n.*\n.*table8"):
            autofit.muify(model, IDS, base=Tied(8), form=form)
    autofit.muify(model, IDS, base=Tied(8))
    with pytest.raises(autofit.PlanError, match="init='keep' forbids"):
        autofit.muify(Net(32), IDS, base=Net(8), form="folded", init="keep")
    with pytest.raises(autofit.PlanError, match="unknown form 'table7'"):
        autofit.analyze(Net(32), IDS, base=Net(8), form="table7")


@pytest.mark.parametrize("added", ["parameter", "recurrent"])
def test_only_what_a_value_is_homogeneous_in_takes_a_factor(added: str) -> None:
    """A bias alone, or the weights of an LSTM, would change more than the scale: the other side takes it."""

    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.lstm = nn.Linear(5, width), nn.LSTM(width, width, batch_first=True)
            self.w, self.b = nn.Parameter(torch.randn(width, width) / width**0.5), nn.Parameter(torch.randn(width))
            self.k, self.head = nn.Linear(width, width), nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            q = x @ self.w + self.b if added == "parameter" else self.lstm(x)[0]
            return self.head((q @ self.k(x).mT * x.shape[-1] ** -0.5).softmax(-1) @ x)

    x, found = torch.randn(2, 6, 5), []
    for form in ("table8", "folded"):
        torch.manual_seed(0)
        model = Attention(32)
        mu = autofit.muify(model, x, base=Attention(8), form=form, unused="freeze")
        assert all(s.carrier.path.startswith("k") for s in mu.plan.sites if s.kind == "attention")
        found.append(model(x))
    torch.testing.assert_close(*found)
