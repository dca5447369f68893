"""Groups: values by hand from TP5 Table 8, the user's own groups, schedulers, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import autofit

X = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))


def make(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 3)]
    return nn.Sequential(*layers)


def settings(groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    return {n: g[key] for g in groups for n in g["param_names"]}


@pytest.fixture
def mu() -> autofit.Analysis:
    """r = 4 in both growing dimensions."""
    return autofit.muify(make(), X, base=make(16))


def test_adamw_table(mu: autofit.Analysis) -> None:
    groups = mu.param_groups("adamw", lr=0.1, weight_decay=0.2, eps=1e-8)
    lr, wd, eps = (settings(groups, k) for k in ("lr", "weight_decay", "eps"))
    assert lr == pytest.approx({n: 0.025 if n == "2.weight" else 0.1 for n in lr})
    assert wd["2.weight"] == pytest.approx(0.8)  # lr * wd is kept
    assert wd["4.weight"] == pytest.approx(0.2)
    assert eps == pytest.approx({n: 1e-8 if n == "4.bias" else 2.5e-9 for n in lr})


def test_sgd_table(mu: autofit.Analysis) -> None:
    groups = mu.param_groups("sgd", lr=0.1, weight_decay=0.2)
    lr, wd = settings(groups, "lr"), settings(groups, "weight_decay")
    expected = {"0.weight": 0.4, "0.bias": 0.4, "2.weight": 0.1, "2.bias": 0.4, "4.weight": 0.4, "4.bias": 0.1}
    assert lr == pytest.approx(expected)
    assert all(lr[n] * wd[n] == pytest.approx(0.02) for n in lr)
    assert all("eps" not in g for g in groups)


def test_one_group_per_distinct_setting_in_parameter_order(mu: autofit.Analysis) -> None:
    groups = mu.param_groups(torch.optim.AdamW, lr=0.1)
    assert [g["param_names"] for g in groups] == [
        ["0.weight", "0.bias", "2.bias", "4.weight"],
        ["2.weight"],
        ["4.bias"],
    ]
    assert len({(g["lr"], g["weight_decay"], g["eps"]) for g in groups}) == len(groups)


def test_eps_switch_for_the_packages_behaviour(mu: autofit.Analysis) -> None:
    assert {g["eps"] for g in mu.param_groups("adam", lr=0.1, eps=1e-6, scale_eps=False)} == {1e-6}


def test_own_groups_are_split_not_overwritten(mu: autofit.Analysis) -> None:
    model = mu.model
    own = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1, "lr": 0.5},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0, "betas": (0.5, 0.6)},
    ]
    groups = mu.param_groups("adamw", lr=0.1, groups=own)
    lr, wd = settings(groups, "lr"), settings(groups, "weight_decay")
    assert (lr["0.weight"], lr["2.weight"], lr["2.bias"]) == pytest.approx((0.5, 0.125, 0.1))
    assert (wd["0.weight"], wd["2.weight"], wd["2.bias"]) == pytest.approx((0.1, 0.4, 0.0))
    assert {g["betas"] for g in groups if "betas" in g} == {(0.5, 0.6)}
    torch.optim.AdamW(groups)


def test_exceptions_by_parameter(mu: autofit.Analysis) -> None:
    def exception(name: str, p: nn.Parameter) -> dict[str, float] | None:
        return {"weight_decay": 0.0} if p.ndim < 2 else {"lr": 1.0} if name == "4.weight" else None

    groups = mu.param_groups("adamw", lr=0.1, weight_decay=0.3, per_parameter=exception)
    assert settings(groups, "weight_decay")["0.bias"] == 0.0
    assert settings(groups, "lr")["4.weight"] == 1.0


@pytest.mark.parametrize("fault", ["missing", "twice", "stranger"])
def test_groups_that_do_not_fit(mu: autofit.Analysis, fault: str) -> None:
    ps = list(mu.model.parameters())
    own: dict[str, list[dict[str, Any]]] = {
        "missing": [{"params": ps[1:]}],
        "twice": [{"params": ps}, {"params": ps[:1]}],
        "stranger": [{"params": [*ps, nn.Parameter(torch.zeros(2))]}],
    }
    message = {"missing": "0.weight is in none", "twice": "in more than one", "stranger": "no trainable parameter"}
    with pytest.raises(autofit.OptimizerError, match=message[fault]):
        mu.param_groups("adam", lr=0.1, groups=own[fault])


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0, "fast", None, True])
def test_learning_rates_that_are_none(mu: autofit.Analysis, lr: Any) -> None:
    with pytest.raises(autofit.OptimizerError, match="lr"):
        mu.param_groups("adam", lr=lr)


@pytest.mark.parametrize("optimizer", ["soap", torch.optim.LBFGS, object, 3])
def test_unknown_optimizers_are_refused(mu: autofit.Analysis, optimizer: Any) -> None:
    with pytest.raises(autofit.OptimizerError, match="no muP rule is known"):
        mu.param_groups(optimizer, lr=0.1)


def test_an_instance_is_no_class(mu: autofit.Analysis) -> None:
    with pytest.raises(autofit.OptimizerError) as refusal:
        mu.optimizer(torch.optim.AdamW(make().parameters()), lr=0.1)  # type: ignore[arg-type]
    assert str(refusal.value) == "optimizer= is an instance of AdamW\n  to do: pass the class, or its name: AdamW"


def test_a_subclass_with_a_step_of_its_own_is_another_optimizer(mu: autofit.Analysis) -> None:
    class Plain(torch.optim.AdamW):
        """Steps as AdamW does; torch wraps the step of a class when the first object is made."""

    class Own(Plain):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.grad)

    assert type(mu.optimizer(Plain, lr=0.1)) is Plain
    assert type(mu.optimizer(Plain, lr=0.1)) is Plain
    for cls in (Own, type("Below", (Own,), {})):
        with pytest.raises(autofit.OptimizerError, match=r"a step of its own(.|\n)*AdamW(.|\n)*measure_optimizer"):
            mu.param_groups(cls, lr=0.1)


def test_frozen_parameters_are_in_no_group() -> None:
    model = make()
    model[0].requires_grad_(False)
    mu = autofit.muify(model, X, base=make(16))
    assert "0.weight" not in settings(mu.param_groups("adam", lr=0.1), "lr")


SCHEDULERS = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (s + 1)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=[g["lr"] for g in o.param_groups], total_steps=20
    ),
    "warm-up": lambda o: transformers.get_cosine_schedule_with_warmup(o, 3, 20),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_keep_the_ratios(mu: autofit.Analysis, name: str) -> None:
    optimizer = mu.optimizer(torch.optim.AdamW, lr=0.1)
    ratios = [g["lr"] / optimizer.param_groups[0]["lr"] for g in optimizer.param_groups]
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        now = [g["lr"] for g in optimizer.param_groups]
        assert [n / now[0] for n in now] == pytest.approx(ratios)


def test_a_learning_rate_that_is_a_tensor_stays_one(mu: autofit.Analysis) -> None:
    """As compiled steps want it: a number would be compiled into them."""
    rate = torch.tensor(1e-2)
    optimizer = mu.optimizer("adamw", lr=rate)
    numbers = settings(mu.param_groups("adamw", lr=1e-2), "lr")
    for share in (1.0, 0.5):
        found = settings(optimizer.param_groups, "lr")
        assert all(isinstance(lr, torch.Tensor) for lr in found.values())
        assert {k: float(lr) for k, lr in found.items()} == pytest.approx({k: share * v for k, v in numbers.items()})
        assert autofit.check(mu, param_groups=optimizer).ok
        for group in optimizer.param_groups:  # each has its own: this is what schedulers do
            group["lr"].mul_(0.5)
    assert rate == torch.tensor(1e-2)
    own = [{"params": list(mu.model.parameters()), "lr": torch.tensor(1e-2)}]
    assert settings(mu.param_groups("adamw", lr=1.0, groups=own), "lr") == pytest.approx(numbers)


def test_adam_with_weight_decay_warns(mu: autofit.Analysis) -> None:
    with pytest.warns(UserWarning, match="no width rule is sourced"):
        mu.param_groups("adam", lr=0.1, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> torch.Tensor:
    """A short run in float64; the outputs after it."""
    y = torch.arange(8) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X.double()), y).backward()
        optimizer.step()
    return model(X.double()).detach()


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
def test_the_folded_form_trains_exactly_alike(rule: str) -> None:
    """abc-symmetry (TP5 Lemma J.1): a multiplier, or the same moved into init, lr, eps and weight decay."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            donor = make().double()
            self.first, self.middle = donor[0], donor[2]
            self.last = nn.Parameter(donor[4].weight.detach().clone())
            self.bias = nn.Parameter(torch.zeros(3).double())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.middle(torch.tanh(self.first(x))))
            return torch.relu(x + 1) @ self.last.T + self.bias

    class Modular(Functional):
        def __init__(self) -> None:
            super().__init__()
            last, bias = self.last, self.bias
            del self.last, self.bias
            self.head = nn.Linear(last.shape[1], 3).double()
            self.head.weight.data, self.head.bias.data = last.data, bias.data

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(torch.tanh(self.middle(torch.tanh(self.first(x)))) + 1))

    folded = autofit.muify(Functional(), X.double(), base=32)
    multiplied = autofit.muify(Modular(), X.double(), base=32)
    assert folded.plan.parameters["last"].fold == 0.25
    assert multiplied.plan.parameters["head.weight"].fold == 1
    keywords: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.0 if rule == "adam" else 0.1}
    if rule != "sgd":
        keywords["eps"] = 1e-3
    a = train(folded.model, folded.optimizer(rule, **keywords))
    b = train(multiplied.model, multiplied.optimizer(rule, **keywords))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_eps_scales_in_every_group() -> None:
    """With a large eps, updates stay width-independent only if eps follows the gradients (RULES 2)."""

    def update(width: int, scale_eps: bool) -> float:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
        mu = autofit.muify(model, X, base=64)
        optimizer = mu.optimizer("adam", lr=1e-2, eps=1e-3, scale_eps=scale_eps)
        before = model[0].weight.detach().clone()
        nn.functional.cross_entropy(model(X), torch.arange(8) % 3).backward()
        optimizer.step()
        return (model[0].weight.detach() - before).abs().mean().item()

    def exponent(scale_eps: bool) -> float:
        return math.log(update(1024, scale_eps) / update(64, scale_eps)) / math.log(16)

    assert abs(exponent(True)) < 0.15
    assert exponent(False) < -0.3
