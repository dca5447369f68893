"""Refusals: what, where, what to do; and a failed call leaves everything as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import autofit
from autofit import lowering
from autofit.plan import Plan

X = torch.zeros(7, 10)


def mlp(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(10, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.one(x) * y


def test_no_example_and_none_inferable() -> None:
    with pytest.raises(autofit.ExampleError, match=r"none could be inferred(.|\n)*pass example="):
        autofit.muify(TwoInputs())


def test_a_first_layer_is_enough_for_an_example() -> None:
    assert autofit.analyze(mlp(), base=16).plan.parameters["4.weight"].role == "output"


@pytest.mark.parametrize("example", [object(), "text", 3])
def test_examples_of_the_wrong_kind(example: Any) -> None:
    with pytest.raises(autofit.ExampleError, match="pass one tensor, a tuple"):
        autofit.muify(mlp(), example)


def test_a_forward_that_raises_is_shown_with_its_line() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(10, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the user's own trouble")

    with pytest.raises(autofit.ExampleError, match=r"the user's own trouble(.|\n)*test_errors\.py:\d+ in forward"):
        autofit.muify(Broken(), X)


def test_the_message_says_whose_example_failed() -> None:
    """One that was given, one that was inferred, or the model's own, on the base."""
    wide = nn.Sequential(nn.Linear(11, 64), nn.ReLU(), nn.Linear(64, 3))
    with pytest.raises(autofit.ExampleError, match=r"failed on the example \(float(.|\n)*call the model on this"):
        autofit.analyze(wide, X, base=16)
    pooled = nn.Sequential(nn.Conv1d(1, 64, 400), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(autofit.ExampleError, match=r"inferred, not given \(float32(.|\n)*pass example="):
        autofit.analyze(pooled, base=16)
    with pytest.raises(autofit.BaseError, match=r"the base model does not run(.|\n)*same architecture(.|\n)*base=\("):
        autofit.analyze(mlp(), X, base=wide)


def test_tensors_on_two_devices_are_named() -> None:
    class Old(nn.Module):
        """With a constructor that heeds no device."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, 64), nn.Linear(64, 3)
            self.shift = nn.Parameter(torch.Tensor(64).uniform_())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.relu(self.one(x) + self.shift))

    with torch.device("meta"):
        model = Old()
    with pytest.raises(autofit.ExampleError, match=r"different devices, shift on cpu, one\.weight on meta(.|\n)*move"):
        autofit.analyze(model, X, base=16)
    assert autofit.analyze(model.to("meta"), X, base=16).plan.parameters["shift"].role == "vector"


def test_data_dependent_control_flow_is_named() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x)
            if x.sum() > 0:
                x = x * 2
            return self.two(x)

    assert autofit.analyze(Early(), X, base=4).roles.growth.dims.program.front_end.startswith("running it once")
    with pytest.raises(autofit.CaptureError, match=r"control flow from tensor values"):
        autofit.muify(Early().to("meta"), X.to("meta"))


def test_an_op_without_a_rule_is_refused_and_can_be_allowed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, 64), nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.linalg.matrix_exp(torch.diag_embed(self.one(x))).sum(1))

    with pytest.raises(autofit.DimensionError, match=r"no rule for aten\.(.|\n)*test_errors\.py:\d+"):
        autofit.muify(Odd(), X, base=16)
    found = autofit.analyze(Odd(), X, base=16, strict=False)
    assert "no rule" in str(found)


def test_a_weight_that_is_divided_by_its_own_contraction() -> None:
    """What a power iteration gives is a number of weights alone: a product of it is no attention."""

    def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 3))

    with pytest.raises(autofit.DimensionError, match=r"a weight is scaled by what a contraction of weights gives"):
        autofit.muify(normed(parametrizations.spectral_norm), X, base=16)
    plan = autofit.muify(normed(parametrizations.weight_norm), X, base=16).plan
    assert [s.kind for s in plan.sites] == ["readout"]


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.idle = nn.Linear(10, 64), nn.Linear(64, 3), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def test_a_matrix_that_is_never_used() -> None:
    with pytest.raises(autofit.PlanError, match=r"idle\.weight \(64, 64\) is never used"):
        autofit.muify(Idle(), X, base=16)
    assert any("idle.weight" in n for n in autofit.analyze(Idle(), X, base=16, strict=False).plan.notes)
    model = Idle()
    mu = autofit.muify(model, X, base=16, unused="freeze")
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["idle.weight", "idle.bias"]
    assert "frozen, as this example does not reach them: idle.weight, idle.bias" in " ".join(str(mu).split())
    assert Plan.from_dict(mu.plan.to_dict()) == mu.plan
    before = model.idle.weight.clone()
    optimizer = mu.optimizer("adamw", lr=1e-1, weight_decay=0.5)
    model(X).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.idle.weight, before)
    assert not torch.equal(model.one.weight, Idle().one.weight)
    looked_at = autofit.analyze(fresh := Idle(), X, base=16, unused="freeze")
    assert all(p.requires_grad for p in fresh.parameters())
    names = [n for g in looked_at.param_groups("adam", lr=1.0) for n in g["param_names"]]
    assert sorted(names) == ["one.bias", "one.weight", "two.bias", "two.weight"]


def test_a_single_number_that_is_read_is_not_unused() -> None:
    """As a learned temperature: it has no axis that an op could do anything with."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3))
            self.scale, self.idle = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * self.scale.exp()

    mu = autofit.muify(Scaled(), X, base=16, unused="freeze")
    assert mu.plan.frozen == ("idle",)
    assert mu.model.scale.requires_grad
    assert "aten.exp" in mu.plan.parameters["scale"].where
    optimizer = mu.optimizer("adamw", lr=1e-3)
    assert [g["lr"] for g in optimizer.param_groups if "scale" in g["param_names"]] == [1e-3]
    answer = autofit.check(mu, param_groups=optimizer)
    assert answer.ok
    assert answer.notes == ("not checked, as single numbers have no axes: scale",)


def test_what_was_frozen_is_trained_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autofit.api.verify_values", fail)
    model = Idle()
    with pytest.raises(KeyboardInterrupt):
        autofit.muify(model, X, base=16, unused="freeze")
    assert all(p.requires_grad for p in model.parameters())


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(101, 64)
        self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, 101, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.table(ids)).relu())


def test_a_zero_readout_and_its_refusal_on_a_tied_table() -> None:
    ids = torch.arange(101)[None]
    model = Tied(tied=False)
    table = model.table.weight.clone()
    mu = autofit.muify(model, ids, base=16, zero_readout=True)
    assert not model(ids).any()
    assert torch.equal(model.table.weight, table)
    assert model.inner.weight.any()
    assert mu.plan.parameters["head.weight"].init_factor == 0
    with pytest.raises(autofit.PlanError, match=r"tied to a table(.|\n)*table\.weight = head\.weight"):
        autofit.muify(Tied(tied=True), ids, base=16, zero_readout=True)
    with pytest.raises(autofit.PlanError, match="choose one"):
        autofit.muify(Tied(tied=False), ids, base=16, zero_readout=True, init="keep")


def test_nothing_can_grow() -> None:
    with pytest.raises(autofit.DimensionError, match="can grow"):
        autofit.muify(nn.Linear(10, 3), X)


def test_a_second_muify_is_refused_and_changes_nothing() -> None:
    model = mlp()
    autofit.muify(model, X, base=16)
    x = torch.randn(7, 10)
    before = model(x)
    with pytest.raises(autofit.LoweringError, match="already muified"):
        autofit.muify(model, X, base=16)
    assert torch.equal(model(x), before)
    with pytest.raises(autofit.LoweringError, match="already muified"):
        autofit.muify(copy.deepcopy(model), X, base=16)
    with pytest.raises(autofit.BaseError, match="already muified"):
        autofit.analyze(mlp(), X, base=model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scheme": "nope"}, autofit.PlanError),
        ({"init": "zero"}, autofit.PlanError),
        ({"grow": "both"}, autofit.PlanError),
        ({"bottleneck": "x"}, autofit.PlanError),
        ({"base": "no/such/file.json"}, autofit.BaseError),
        ({"base": object()}, autofit.BaseError),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        autofit.muify(mlp(), X, **options)


def test_the_model_must_be_a_module() -> None:
    with pytest.raises(autofit.AutofitError, match=r"not a torch\.nn\.Module"):
        autofit.muify("gpt2")  # type: ignore[arg-type]


class Snapshot:
    """Everything of a model that a failed call must leave alone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values = copy.deepcopy(model.state_dict())
        self.attributes = {n: set(m.__dict__) for n, m in model.named_modules()}
        self.hooks = self._hooks()
        self.rng = torch.get_rng_state()
        self.modes = [m.training for m in model.modules()]
        self.identities = [id(p) for p in model.parameters()]

    def _hooks(self) -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.model.modules()]

    def check(self) -> None:
        now = self.model.state_dict()
        assert all(torch.equal(now[k], v) for k, v in self.values.items())
        assert {n: set(m.__dict__) for n, m in self.model.named_modules()} == self.attributes
        assert self._hooks() == self.hooks
        assert torch.equal(torch.get_rng_state(), self.rng)
        assert [m.training for m in self.model.modules()] == self.modes
        assert [id(p) for p in self.model.parameters()] == self.identities


def interrupt(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["install", "rescale", "verify_program", "verify_values", "capture"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_at_any_stage_leaves_the_model_alone(
    stage: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    from autofit import api

    model = mlp()
    snapshot = Snapshot(model)
    owner: Any = lowering if stage in ("install", "rescale") else api
    real: Callable[..., Any] = getattr(owner, stage)

    def fail(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise error

    monkeypatch.setattr(owner, stage, fail)
    with pytest.raises(error):
        autofit.muify(model, X, base=16)
    snapshot.check()


def test_analyze_changes_nothing() -> None:
    class Stateful(nn.Module):
        """Dropout, buffers, and an attribute written in forward."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(10, 64), nn.BatchNorm1d(64), nn.Linear(64, 3)
            self.seen: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.shape[0])
            return self.two(nn.functional.dropout(self.norm(self.one(x)), training=self.training))

    model, x = Stateful(), torch.randn(7, 10)
    snapshot = Snapshot(model)
    autofit.analyze(model, x, base=16)
    snapshot.check()
    assert model.seen == []
    rnn = nn.LSTM(10, 64, batch_first=True)
    kept = Snapshot(rnn)
    autofit.analyze(rnn, torch.zeros(3, 5, 10), base=16)
    kept.check()
    assert all(w is p for w, p in zip(rnn._flat_weights, rnn.parameters(), strict=True))


def test_an_example_that_runs_is_not_blamed() -> None:
    """Nested tensors run, but neither front end takes them."""
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3))
    ragged = torch.nested.nested_tensor([torch.randn(3, 10), torch.randn(5, 10)], layout=torch.jagged)
    with pytest.raises(autofit.CaptureError, match=r"runs on the example(.|\n)*plain dense tensors"):
        autofit.analyze(model, ragged, base=32)


def test_what_comes_after_muify_is_said_in_one_way() -> None:
    """Compiled, wrapped, or sharded models: muify goes first."""
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    for wrapped, said in ((torch.compile(net), "compiled by torch.compile"), (nn.DataParallel(net), "DataParallel")):
        for example in (None, torch.zeros(2, 3)):
            with pytest.raises(autofit.PlanError, match=said) as refusal:
                autofit.muify(wrapped, example, base=4)
            assert "muify the model first" in str(refusal.value)
