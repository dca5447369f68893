"""Optimizers of the table, and measured ones: the exponents of RMS(dW x), from torch's and others' own classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import autofit
from autofit import rules
from autofit.exponents import Fit, fit, updates
from autofit.optim import optimizer_class
from autofit.rules import optimizers, table

WIDTHS = (128, 256, 512, 1024)
ALL = [name for name, o in optimizers().items() if not (o.beside or o.one_lr)]
"""Optimizers that take every parameter, each with a learning rate of its own."""
CHANGING = {"adafactor": 0.4, "shampoo": 0.4}
"""What one learning rate for all gives at least somewhere, as an exponent; 0.9 for the rest, too."""


def measured(
    name: str, *, scale_lr: bool = True, scale_eps: bool = True, eps: float = 1e-8, widths: tuple[int, ...] = WIDTHS
) -> dict[str, Fit]:
    cls, _ = optimizer_class(name)

    def settings(role: str, growth: Mapping[str, float]) -> dict[str, float]:
        rule = table("mup", name).rules["input" if role == "up" else role]
        lr = {"lr": 1e-7 * (rule.lr(growth) if scale_lr else 1.0), "weight_decay": 0.0}
        return lr | ({"eps": eps * (rule.eps(growth) if scale_eps else 1.0)} if rule.eps is not None else {})

    def at(pair: tuple[int, int]) -> dict[str, float]:
        return updates(
            lambda groups: cls(groups, lr=1e-7), settings, scheme="mup", widths=pair, base=128, steps=8, seed=0
        )

    return fit(at, widths)


@pytest.mark.parametrize("name", ALL)
def test_learning_rates_keep_updates_the_same_at_every_width(name: str) -> None:
    """Spectral condition (arXiv 2310.17813); with one learning rate for all they are not."""
    widths = WIDTHS if name != "shampoo" else WIDTHS[:2]  # of whole matrices, by their singular values: minutes
    for role, found in measured(name, widths=widths).items():
        assert max(map(abs, found.exponents.values())) <= 0.1, (role, found)
    control = [
        abs(e) for found in measured(name, scale_lr=False, widths=widths).values() for e in found.exponents.values()
    ]
    assert max(control) >= CHANGING.get(name, 0.9)


@pytest.mark.parametrize("name", [name for name in ALL if optimizers()[name].eps])
def test_epsilon_keeps_its_share_of_every_gradient(name: str) -> None:
    """An eps far above all gradients. A bottleneck's gradient shrinks at first, like r^-1/2, and not once it trains."""
    roles = ("input", "hidden", "output", "vector")
    for scale_eps, expected in ((True, 0.0), (False, -1.0)):
        found = measured(name, scale_eps=scale_eps, eps=1.0, widths=(128, 512))
        for role in roles:
            last = list(found[role].exponents.values())[-1]
            assert last == pytest.approx(expected, abs=0.1), (role, scale_eps)


@pytest.mark.filterwarnings("ignore:.*no width rule is sourced")
@pytest.mark.parametrize("name", ALL)
def test_a_model_trains_with_it(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    x = torch.randn(32, 10)
    mu = autofit.muify(model, x, base=16)
    optimizer = mu.optimizer(name, lr=1e-3, weight_decay=1e-3)
    assert type(optimizer) is optimizer_class(name)[0]
    if hasattr(optimizer, "train"):
        optimizer.train()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(32) % 3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    hidden = next(g for g in optimizer.param_groups if "2.weight" in g["param_names"])
    assert hidden["lr"] == pytest.approx(1e-3 * table("mup", name).rules["hidden"].lr(r_in=4, r_out=4))


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test measures is not in the table afterwards."""
    yield
    rules._MEASURED.clear()
    table.cache_clear()


class Signs(torch.optim.Optimizer):
    """Steps of the gradient's sign, with a decay of one of three kinds."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, decay: str = "with lr") -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.decay = decay

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                grad = p.grad + group["weight_decay"] * p if self.decay == "gradient" else p.grad
                share = {"with lr": group["lr"], "independent": 1.0, "gradient": 0.0}[self.decay]
                p.mul_(1 - share * group["weight_decay"])
                p.sub_(group["lr"] * grad.sign())


@pytest.mark.usefixtures("forgotten")
def test_an_unknown_optimizer_is_measured_and_used_by_class_and_name() -> None:
    x = torch.randn(8, 10)
    mu = autofit.muify(nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 3)), x, base=16)
    with pytest.raises(autofit.OptimizerError, match="measure_optimizer"):
        mu.optimizer(Signs, lr=1e-3)
    found = autofit.measure_optimizer(Signs, widths=(128, 256))
    assert {role: str(lr) for role, lr in found.lr.items()} == {
        role: str(rule.lr) for role, rule in table("mup", "adam").rules.items()
    }
    assert "hidden                r_in^1.00 r_out^0.00             0.000  1/r_in" in str(found)
    by_class = mu.param_groups(Signs, lr=1e-3)
    by_name = mu.param_groups("signs", lr=1e-3)
    assert [g["lr"] for g in by_class] == [g["lr"] for g in by_name]
    assert {n: g["lr"] for g in by_class for n in g["param_names"]}["2.weight"] == 2.5e-4


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(("decay", "factor"), [("with lr", 4.0), ("independent", 1.0), ("gradient", 1.0)])
def test_how_weight_decay_enters_is_seen(decay: str, factor: float) -> None:
    found = autofit.measure_optimizer(Signs, widths=(128, 256), decay=decay)
    assert found.optimizer.decay == decay
    assert table("mup", "signs").rules["hidden"].weight_decay(r_in=4.0, r_out=4.0) == factor


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("cls", "power"), [(torch.optim.SGD, 1), (torch.optim.Adafactor, -1), (torch.optim.RMSprop, 0)]
)
def test_measuring_finds_the_rules_of_the_table(cls: type, power: int) -> None:
    mine = type("Mine", (cls,), {})
    found = autofit.measure_optimizer(mine, name="mine", widths=(128, 512))
    assert found.optimizer.power == power
    known = table("mup", cls.__name__.lower()).rules
    assert {role: str(lr) for role, lr in found.lr.items()} == {role: str(rule.lr) for role, rule in known.items()}


@pytest.mark.usefixtures("forgotten")
def test_what_follows_no_power_law_is_refused() -> None:
    class Uneven(torch.optim.Adadelta):
        """Its own small number decides how it starts."""

    with pytest.raises(autofit.OptimizerError, match="no power law"):
        autofit.measure_optimizer(Uneven, widths=(128, 256))
    with pytest.raises(autofit.OptimizerError, match="is in the table of rules as adam"):
        autofit.measure_optimizer(torch.optim.Adam, widths=(128, 256))
    for widths in ((128,), (100, 200), (0, 128)):
        with pytest.raises(autofit.OptimizerError, match="multiples of 32"):
            autofit.measure_optimizer(Signs, widths=widths)


def test_decoupled_weight_decay_is_kept_with_lr() -> None:
    x = torch.zeros(8, 10)
    mu = autofit.muify(nn.Sequential(nn.Linear(10, 64), nn.Linear(64, 64), nn.Linear(64, 3)), x, base=16)
    optimizer = mu.optimizer(torch.optim.NAdam, lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True)
    assert all(g["decoupled_weight_decay"] for g in optimizer.param_groups)
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(1e-4) for g in optimizer.param_groups)
    with pytest.raises(autofit.OptimizerError, match="no setting 'decoupled_weight_decay'"):
        mu.param_groups("sgd", lr=1e-3, decoupled_weight_decay=True)
