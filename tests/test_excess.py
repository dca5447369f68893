"""Factors that depend on width: those that no rule takes are refused or said, those of a norm belong to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autofit

Step = Callable[["Net", torch.Tensor], torch.Tensor]
EXAMPLE = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A first layer, a step that the test gives, and a readout."""

    def __init__(self, width: int, step: Step) -> None:
        super().__init__()
        self.width, self.step = width, step
        self.first, self.mid, self.head = nn.Linear(7, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.raw, self.seed = nn.Parameter(torch.randn(width, width)), nn.Parameter(torch.randn(width))
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.step(self, torch.tanh(self.first(x)) * self.gain))


def pooled(net: Net, h: torch.Tensor) -> torch.Tensor:
    shares = ((net.mid(h) @ net.seed) * net.width**-0.5).softmax(-1)
    return (shares[..., None] * h).sum(1)


HIDDEN: dict[str, tuple[Step, str]] = {
    "equalized learning rate": (lambda net, h: torch.tanh(F.linear(h, net.raw * net.width**-0.5)), "aten.tanh"),
    "scaled layer": (lambda net, h: torch.tanh(net.mid(h) * net.width**-0.5), "aten.tanh"),
    "gate by the root": (lambda net, h: h * torch.sigmoid(net.mid(h) / math.sqrt(net.width)), "aten.sigmoid"),
    "gate by the width": (lambda net, h: h * torch.sigmoid(net.mid(h) / net.width), "aten.sigmoid"),
    "pooling by a learned query": (pooled, "aten.softmax"),
    "branch": (lambda net, h: h + torch.relu(net.mid(h) * net.width**-0.5), "aten.add"),
    "in front of a readout, behind a relu": (lambda net, h: torch.relu(net.mid(h) * net.width**-0.5), "aten.linear"),
    "input": (lambda net, h: torch.tanh(net.mid(h * net.width**-0.5)), "aten.linear"),  # beside a bias
}


def planned(step: Step, base: object = "model", width: int = 64, **options: object) -> autofit.Analysis:
    other = Net(16, step) if base == "model" else base
    return autofit.analyze(Net(width, step), EXAMPLE, base=other, unused="freeze", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HIDDEN)
def test_a_factor_that_no_rule_takes_is_refused(name: str) -> None:
    step, at = HIDDEN[name]
    with pytest.raises(autofit.PlanError, match="a scale factor that no rule takes depends on width") as refused:
        planned(step)
    assert at in refused.value.what
    assert "in the base" in refused.value.what
    assert "test_excess.py" in (refused.value.where or "")
    assert "take the factor out" in (refused.value.todo or "")


@pytest.mark.parametrize("name", HIDDEN)
def test_without_strict_it_is_said_and_checked(name: str) -> None:
    found = planned(HIDDEN[name][0], strict=False)
    assert any("a scale factor that no rule takes" in note for note in found.plan.notes)
    answer = autofit.check(found)
    assert not answer.ok
    assert any("a scale factor that no rule takes" in f.message for f in answer.findings)


@pytest.mark.parametrize("name", sorted(HIDDEN.keys() - {"gate by the width"}))  # by 48, a number like others
def test_one_model_tells_by_a_value_that_nothing_else_has(name: str) -> None:
    with pytest.raises(autofit.PlanError, match=r"it looks like 48\^-?0\.5") as refused:
        planned(HIDDEN[name][0], base=16, width=48)
    assert "pass a base model, which tells" in (refused.value.todo or "")


def test_a_value_that_stands_for_other_things_too_is_a_note() -> None:
    found = planned(lambda net, h: torch.tanh(net.mid(h) * 0.125), base=16)
    assert any(
        "0.125, it looks like 64^-0.5" in note and "A base model would tell" in note for note in found.plan.notes
    )
    assert not any(
        "no rule takes" in note for note in planned(lambda net, h: torch.tanh(net.mid(h) * 0.125)).plan.notes
    )


def test_nothing_differs_at_the_base() -> None:
    step = HIDDEN["scaled layer"][0]
    assert not any("no rule" in n for n in planned(step, Net(64, step)).plan.notes)


def test_a_scheme_that_changes_nothing_refuses_nothing() -> None:
    assert not any("no rule" in n for n in planned(HIDDEN["scaled layer"][0], scheme="sp").plan.notes)


def joint(net: Net, h: torch.Tensor) -> torch.Tensor:
    """One factor on queries, keys and values: the logits count it, the values are left with it."""
    scaled = net.mid(h) * net.width**-0.25
    return torch.tanh((scaled @ scaled.mT).softmax(-1) @ scaled)


def test_what_attention_counts_is_not_what_its_values_have() -> None:
    with pytest.raises(autofit.PlanError, match=r"it matters in .*aten\.tanh"):
        planned(joint)


class Tokens(nn.Module):
    """Embeddings and learned positions, of which the sum is scaled, or the first alone."""

    def __init__(self, width: int, both: bool) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(31, width), nn.Parameter(torch.randn(9, width))
        self.mid, self.head, self.scale, self.both = nn.Linear(width, width), nn.Linear(width, 5), width**0.5, both

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.table(ids)
        h = (h + self.positions) * self.scale if self.both else h * self.scale + self.positions
        return self.head(torch.tanh(self.mid(h)))


def test_what_an_embedding_counts_is_not_what_it_is_added_to_has() -> None:
    ids = torch.zeros(2, 9, dtype=torch.long)
    (site,) = (s for s in autofit.analyze(Tokens(64, False), ids, base=Tokens(16, False)).plan.sites if s.present)
    assert (site.kind, site.multiplier) == ("embedding", 0.5)
    with pytest.raises(autofit.PlanError, match=r"it matters in .*aten\.add"):
        autofit.analyze(Tokens(64, True), ids, base=Tokens(16, True))


def by_norm(net: Net, h: torch.Tensor) -> torch.Tensor:
    return h / h.norm(dim=-1, keepdim=True)


def by_sum(net: Net, h: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt((h * h).sum(-1, keepdim=True) + 1e-6)


UNITS: dict[str, Step] = {
    "normalize, times the root, times a gain": lambda n, h: F.normalize(h, dim=-1) * h.shape[-1] ** 0.5 * n.gain,
    "by its norm": lambda n, h: by_norm(n, h) * math.sqrt(n.width),
    "by a sum of squares": lambda n, h: by_sum(n, h) * math.sqrt(n.width),
    "the root first": lambda n, h: math.sqrt(n.width) * h / h.norm(dim=-1, keepdim=True),
    "by the norm of unit elements": lambda n, h: h / (h.norm(dim=-1, keepdim=True) / math.sqrt(n.width)),
    "by a mean of squares": lambda n, h: h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-6),
    "by a sum of squares over the width": lambda n, h: h * torch.rsqrt((h * h).sum(-1, keepdim=True) / n.width),
    "rms_norm": lambda n, h: F.rms_norm(h, (n.width,)),
    "shares times their number": lambda n, h: h.softmax(-1) * n.width,
    "a factor that a norm undoes": lambda n, h: F.layer_norm(h * n.width**-0.5, (n.width,)),
    "a mean by a sum": lambda n, h: h - h.sum(-1, keepdim=True) / n.width,
    "a factor and its inverse": lambda n, h: torch.tanh(torch.relu(h * n.width**-0.5) * n.width**0.5),
}


@pytest.mark.parametrize("base", ["model", 16])
@pytest.mark.parametrize("name", UNITS)
def test_equal_functions_get_equal_readouts(name: str, base: object) -> None:
    found = planned(lambda net, h: UNITS[name](net, torch.tanh(net.mid(h))), base)
    (site,) = found.plan.sites
    assert (site.kind, site.present, site.multiplier) == ("readout", 0.0, 0.25)
    assert not any("no rule" in n for n in found.plan.notes)
    assert autofit.check(found).ok, str(autofit.check(found))


@pytest.mark.parametrize("base", ["model", 16])
@pytest.mark.parametrize("step", [by_norm, by_sum])
def test_unit_vectors_are_small_elements(step: Step, base: object) -> None:
    """A sum over d elements of size d^-1/2 lacks r^-1/2 of r^-1."""
    found = planned(step, base)
    (site,) = found.plan.sites
    assert (site.present, site.multiplier) == (-0.5, 0.5)
    assert autofit.check(found).ok


def test_a_factor_on_a_readouts_weight_is_counted() -> None:
    class Equalized(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(torch.tanh(self.first(x)), self.head.weight * self.width**-0.5)

    step = HIDDEN["branch"][0]
    found = autofit.analyze(Equalized(64, step), EXAMPLE, base=Equalized(16, step), unused="freeze")
    (site,) = found.plan.sites
    assert (site.present, site.multiplier) == (-0.5, 0.5)


def test_a_scale_of_attention_that_follows_what_does_not_grow_is_refused() -> None:
    """Heads of one size: the logits must stay as they are, and 1/sqrt(width) makes them smaller."""

    class Heads(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.first(x))
            q = self.mid(h).unflatten(-1, (-1, 8)).transpose(1, 2)
            scores = q @ q.mT * self.width**-0.5
            return self.head((scores.softmax(-1) @ q).transpose(1, 2).flatten(2))

    step = HIDDEN["branch"][0]
    with pytest.raises(autofit.PlanError, match=r"it matters in .*aten\.softmax"):
        autofit.analyze(Heads(64, step), EXAMPLE, base=Heads(16, step), unused="freeze")


@pytest.mark.parametrize("fused", [True, False])
def test_one_value_may_be_queries_keys_and_values(fused: bool) -> None:
    def step(net: Net, h: torch.Tensor) -> torch.Tensor:
        q = net.mid(h).unflatten(-1, (-1, 8)).transpose(1, 2)
        given = F.scaled_dot_product_attention(q, q, q) if fused else (q @ q.mT * 8**-0.5).softmax(-1) @ q
        return given.transpose(1, 2).flatten(2)

    found = planned(step)
    assert [s.multiplier for s in found.plan.sites] == [1.0, 0.25]
    assert autofit.check(found).ok


@pytest.mark.parametrize("name", ["scaled layer", "gate by the root", "pooling by a learned query"])
def test_a_model_edited_by_hand_is_told(name: str) -> None:
    """Without any correction, the layer gives, or learns, less or more as it gets wider: not +0.00."""
    torch.manual_seed(0)
    model, small = (Net(width, HIDDEN[name][0]) for width in (256, 64))
    groups = [{"params": [p], "lr": 1e-3 if p.ndim < 2 or p.shape[1] < 64 else 1e-3 / 4} for p in model.parameters()]
    found = autofit.check(model, EXAMPLE, base=small, param_groups=groups, lr=1e-3)
    weight = "seed" if name.startswith("pooling") else "mid.weight"
    assert {f.what for f in found.findings if f.name == weight} & {"init", "lr", "multiplier"}, str(found)
    row = next(r for r in found.rows if r.name == weight)
    assert max(abs(row.start or 0.0), abs(row.step or 0.0)) > 0.4


def test_what_differs_by_chance_is_said_and_not_refused() -> None:
    """A number that is another one in every run differs between two captures, and is no power of a width."""
    runs = itertools.count()

    class Drawn(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](torch.tanh(self[0](x) * (1.1 + 0.37 * next(runs))))

    found = autofit.analyze(
        Drawn(nn.Linear(5, 64), nn.Linear(64, 3)),
        torch.randn(4, 5),
        base=Drawn(nn.Linear(5, 16), nn.Linear(16, 3)),
    )
    assert any("a scale factor that no rule takes" in note for note in found.plan.notes)
