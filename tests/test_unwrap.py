"""A model whose blocks were wrapped after muify: groups, initial values and checks are those of the model without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

import autofit

CONFIG = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=50, use_cache=False
)
TOKENS = torch.arange(12).reshape(2, 6)


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda block: torch.compile(block, backend="eager"),
    "checkpointed": checkpoint_wrapper,
    "both": lambda block: torch.compile(checkpoint_wrapper(block), backend="eager"),
    "of one's own": Wrapper,
}


def made() -> autofit.Analysis:
    model = autofit.deferred_init(lambda: transformers.LlamaForCausalLM(CONFIG))
    return autofit.muify(model, base=32)


def wrapped(mu: autofit.Analysis, wrapper: Callable[[nn.Module], nn.Module]) -> autofit.Analysis:
    layers = mu.model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = wrapper(layer)
    mu.model.lm_head = wrapper(mu.model.lm_head)
    return mu


def losses(mu: autofit.Analysis) -> list[float]:
    mu.model.to_empty(device="cpu")
    mu.init_(torch.Generator().manual_seed(0))
    optimizer = mu.optimizer("adamw", lr=1e-2)
    found = []
    for _ in range(3):
        loss = mu.model(input_ids=TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def settings(mu: autofit.Analysis) -> list[dict[str, object]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in mu.param_groups("adamw", lr=1e-2, weight_decay=0.1)]


@pytest.fixture(scope="module")
def plain() -> tuple[list[dict[str, object]], list[float]]:
    mu = made()
    return settings(mu), losses(mu)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_blocks_train_as_they_are(wrapper: Callable[[nn.Module], nn.Module], plain: tuple) -> None:
    mu = wrapped(made(), wrapper)
    assert settings(mu) == plain[0]
    assert autofit.check(mu, param_groups=mu.param_groups("adamw", lr=1e-2)).ok
    assert losses(mu) == pytest.approx(plain[1], abs=1e-6)
    seen: list[str] = []
    mu.param_groups("adamw", lr=1e-2, per_parameter=lambda name, p: seen.append(name))
    assert sorted(seen) == sorted(mu.plan.parameters)


def test_a_wrapped_part() -> None:
    whole = autofit.analyze(autofit.deferred_init(lambda: transformers.LlamaForCausalLM(CONFIG)), base=32)
    stage = autofit.deferred_init(lambda: transformers.LlamaForCausalLM(CONFIG).model.layers)
    part = autofit.apply(whole.plan, stage, {"": "model.layers"})
    before = [g["param_names"] for g in part.param_groups("adamw", lr=1e-2)]
    stage[0] = checkpoint_wrapper(stage[0])
    assert [g["param_names"] for g in part.param_groups("adamw", lr=1e-2)] == before
    stage.to_empty(device="cpu")
    part.init_(torch.Generator().manual_seed(0))
    mu = made()
    mu.model.to_empty(device="cpu")
    mu.init_(torch.Generator().manual_seed(0))
    for mine, theirs in zip(stage.parameters(), mu.model.model.layers.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Nested(nn.Module):
    """Has a part of the name that wrappers give to what they wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        return self.module(x)


def test_a_part_that_is_called_like_what_wrappers_wrap() -> None:
    model = nn.Sequential(Nested(), nn.ReLU(), nn.Linear(64, 3))
    mu = autofit.muify(model, torch.zeros(2, 8), base=16)
    before = settings(mu)
    model[0] = Wrapper(Wrapper(model[0]))
    assert settings(mu) == before
    twin = replace(mu, model=copy.deepcopy(model))
    assert settings(twin) == before


def test_what_is_no_wrapper_is_still_refused() -> None:
    def fresh() -> tuple[nn.Sequential, autofit.Analysis]:
        model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.Linear(64, 3))
        return model, autofit.muify(model, torch.zeros(2, 8), base=16)

    model, mu = fresh()
    parametrizations.weight_norm(model[2])
    with pytest.raises(autofit.OptimizerError, match=r"2\.parametrizations\.weight\.original0 is not in the plan"):
        mu.param_groups("adamw", lr=1e-2)
    model, mu = fresh()
    model[3] = nn.Sequential(nn.Linear(64, 3))
    with pytest.raises(autofit.LoweringError, match="the module was replaced after muify"):
        mu.param_groups("adamw", lr=1e-2)


@pytest.mark.parametrize("call", ["export", "diff", "graph"])
def test_the_source_is_that_of_the_model_without_wrappers(call: str) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    mu = autofit.muify(model, torch.zeros(2, 8), base=16)
    model[2] = Wrapper(model[2])
    with pytest.raises(autofit.LoweringError, match=r"2 was wrapped after muify, and is 2\.module now"):
        getattr(mu, call)()
