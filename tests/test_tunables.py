"""What a user tunes at the base, by kind of parameter and by name, as forward factors or folded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn
from torch.nn.utils import prune

import autofit
from autofit import Knob, Tunables


class Net(nn.Module):
    """Table, positions as a parameter, norm with gain and bias, one attention, a residual branch, a readout."""

    def __init__(self, width: int, tied: bool = False) -> None:
        super().__init__()
        self.width = width
        self.embed, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        self.places = nn.Parameter(torch.randn(7, width))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, 11)
        nn.init.normal_(self.norm.bias)
        nn.init.normal_(self.norm.weight)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.places
        y = self.norm(x)
        mixed = (self.q(y) @ self.k(y).mT * self.width**-0.5).softmax(-1) @ self.v(y)
        return self.head(x + self.o(mixed))


IDS = torch.arange(21).reshape(3, 7) % 11
KINDS = {
    "embed.weight": "embedding",
    "places": "embedding",
    "norm.weight": "norm_gain",
    "norm.bias": "norm_bias",
    "q.weight": "hidden",
    "q.bias": "bias",
    "head.weight": "output",
    "head.bias": "bias",
}


def tuned(net: Net, **given: Any) -> autofit.Analysis:
    """Muified at the base, where tunables are all there is."""
    return autofit.muify(net, IDS, base=Net(16, net.head.weight is net.embed.weight), **given)


def fresh(width: int = 16, tied: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(width, tied)


def test_kinds_come_from_dataflow() -> None:
    plan = autofit.analyze(fresh(32), IDS, base=Net(16)).plan
    assert {n: plan.parameters[n].kind for n in KINDS} == KINDS


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gpt2", {"wte": "embedding", "wpe": "embedding", "ln_1.bias": "norm_bias", "c_attn.bias": "bias"}),
        ("llama", {"embed_tokens": "embedding", "layernorm": "norm_gain", "lm_head": "output"}),
        ("gemma2", {"layernorm": "norm_gain"}),
        ("t5", {"shared": "embedding", "layer_norm": "norm_gain", "wi.weight": "hidden"}),
        (
            "vit",
            {"position_embeddings": "embedding", "projection.weight": "input", "layernorm_before.bias": "norm_bias"},
        ),
    ],
)
def test_kinds_of_stock_models(family: str, expected: dict[str, str]) -> None:
    plan = autofit.analyze(FAMILIES[family].build(), base=32).plan
    for part, kind in expected.items():
        found = {p.kind for n, p in plan.parameters.items() if part in n}
        assert found == {kind}, part


def by_hand(net: Net, factors: dict[str, float], logits: float = 1, branch: float = 1) -> torch.Tensor:
    """What the net gives with factors on its parameters, written out."""
    p = {n: v * factors.get(n, 1.0) for n, v in net.named_parameters(remove_duplicate=False)}
    x = p["embed.weight"][IDS] + p["places"]
    y = nn.functional.layer_norm(x, (net.width,), p["norm.weight"], p["norm.bias"])
    q, k, v = (nn.functional.linear(y, p[f"{n}.weight"], p[f"{n}.bias"]) for n in "qkv")
    mixed = (q @ k.mT * net.width**-0.5 * logits).softmax(-1) @ v
    x = x + branch * nn.functional.linear(mixed, p["o.weight"], p["o.bias"])
    return nn.functional.linear(x, p["head.weight"], p["head.bias"])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_multiplier_by_name(name: str, folded: bool) -> None:
    net = fresh()
    expected = by_hand(net, {name: 3.0})
    before = {n: p.clone() for n, p in net.named_parameters()}
    tuned(net, tunables=Tunables(names={name: 3.0}, folded=folded))
    torch.testing.assert_close(net(IDS), expected)
    assert {n for n, p in net.named_parameters() if not torch.equal(p, before[n])} == ({name} if folded else set())


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_a_multiplier_by_kind(kind: str, folded: bool) -> None:
    net = fresh()
    factors = {
        n: 3.0 for n in dict(net.named_parameters()) if KINDS.get(n, KINDS["q." + n[2:]] if n[1] == "." else "") == kind
    }
    expected = by_hand(net, factors)
    tuned(net, tunables={kind: {"multiplier": 3.0}} if not folded else Tunables(**{kind: 3.0}, folded=True))
    torch.testing.assert_close(net(IDS), expected)


def test_sites() -> None:
    net = fresh()
    expected = by_hand(net, {}, logits=0.5, branch=0.25)
    tuned(net, tunables={"attention_logits": 0.5, "residual_branch": 0.25})
    torch.testing.assert_close(net(IDS), expected)


def test_a_tied_table_is_multiplied_where_it_is_looked_up() -> None:
    net = fresh(tied=True)
    expected = by_hand(net, {"embed.weight": 3.0, "places": 3.0, "head.weight": 0.5})
    tuned(net, tunables={"embedding": 3.0, "output": 0.5})
    torch.testing.assert_close(net(IDS), expected)
    with pytest.raises(autofit.PlanError, match="they are the readout's, too"):
        tuned(fresh(tied=True), tunables=Tunables(embedding=3.0, folded=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_as_forward_factors_or_folded_it_trains_alike(optimizer: str) -> None:
    """Tensor Programs V, Lemma J.1, at another width than the base's."""
    knob = Knob(lr=2.0, init=0.5, multiplier=3.0)
    kinds = dict.fromkeys(("embedding", "hidden", "output", "norm_gain", "norm_bias", "bias"), knob)
    losses = []
    for folded in (False, True):
        net = fresh(48).double()
        mu = autofit.muify(net, IDS, base=Net(16).double(), tunables=Tunables(**kinds, folded=folded))
        more = {"eps": 1e-3} if optimizer == "adamw" else {"momentum": 0.9}
        chosen = mu.optimizer(optimizer, lr=0.003, weight_decay=0.1, **more)
        losses.append([])
        for _ in range(5):
            loss = nn.functional.cross_entropy(net(IDS).flatten(0, 1), IDS.flatten())
            chosen.zero_grad()
            loss.backward()
            chosen.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-3)


def test_values_belong_to_the_base() -> None:
    """What is tuned multiplies what the rules give, at any width."""
    plain = autofit.analyze(fresh(48), IDS, base=Net(16))
    knobs = {"hidden": Knob(lr=2.0, init=0.5), "norm_gain": {"lr": 3.0}, "q.*": {"lr": 5.0}}
    mine = autofit.analyze(fresh(48), IDS, base=Net(16), tunables=knobs)
    rates = [{n: g["lr"] for g in a.param_groups("adam", lr=1.0) for n in g["param_names"]} for a in (plain, mine)]
    factors = {n: rates[1][n] / rates[0][n] for n in rates[0]}
    assert {n: f for n, f in factors.items() if f != 1} == pytest.approx(
        {"q.weight": 10, "k.weight": 2, "v.weight": 2, "o.weight": 2, "norm.weight": 3, "q.bias": 5}
    )
    inits = {n: mine.plan.parameters[n].init_factor / p.init_factor for n, p in plain.plan.parameters.items()}
    assert {n for n, f in inits.items() if f == pytest.approx(0.5)} == {"q.weight", "k.weight", "v.weight", "o.weight"}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks, and hides it
def test_a_parameters_own_factor_survives() -> None:
    net = fresh()
    expected = by_hand(net, {"norm.weight": 3.0, "places": 2.0})
    keys = list(net.state_dict())
    mu = tuned(net, tunables={"norm.weight": 3.0, "places": 2.0})
    assert list(net.state_dict()) == keys
    for made in (
        copy.deepcopy(net),
        torch.compile(net, fullgraph=True, backend="eager"),
        torch.export.export(net, (IDS,), strict=False).module(),
    ):
        torch.testing.assert_close(made(IDS), expected)
    assert not any("weight" in vars(m) or "places" in vars(m) for m in net.modules())
    with pytest.raises(RuntimeError):
        net(torch.zeros(3, 5, dtype=torch.long))  # fails inside forward
    assert "places" not in vars(net)
    nn.utils.parametrizations.weight_norm(net.q)
    prune.identity(net.norm, "weight")
    with pytest.raises(autofit.LoweringError, match="has lost the parameter weight"):
        net(IDS)
    assert mu.plan.parameters["norm.weight"].multiplier == 3.0


def test_what_has_no_place_is_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, width), nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    x = torch.zeros(7, 2, 5)
    with pytest.raises(autofit.PlanError, match=r"no place in forward: rnn.weight_hh_l0(.|\n)*folded=True"):
        autofit.muify(Recurrent(32), x, base=Recurrent(16), tunables={"hidden": 2.0})
    model = Recurrent(32)
    before = model.rnn.weight_hh_l0.detach().clone()
    autofit.muify(model, x, base=Recurrent(32), tunables=Tunables(hidden=2.0, folded=True))
    torch.testing.assert_close(model.rnn.weight_hh_l0.detach(), 2 * before)
    for wrong, message in (
        ({"hiden": 2.0}, "'hiden' is no kind, and no parameter has such a name"),
        ({"hidden": {"multiply": 2.0}}, "hidden has no multiply"),
        ({"hidden": {"lr": float("nan")}}, "lr=nan"),
        ({"attention_logits": -1.0}, "multiplier=-1.0"),
        (3.0, "tunables is a float"),
    ):
        with pytest.raises(autofit.PlanError, match=message):
            autofit.analyze(Recurrent(32), x, base=16, tunables=wrong)  # type: ignore[arg-type]
    with pytest.raises(autofit.PlanError, match="init='keep' forbids"):
        tuned(fresh(), tunables={"hidden": {"init": 2.0}}, init="keep")
