"""The base travels in a transformers configuration, and loaded values stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import autofit

FIELDS = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 0}
QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = transformers.GPT2LMHeadModel
TOKENS = torch.arange(20).view(2, 10)


def fresh(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return GPT2(transformers.GPT2Config(**FIELDS, **QUIET, **more))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = model(TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} | {"n": len(g["params"])} for g in optimizer.param_groups]


@pytest.mark.parametrize("scheme", ["mup", "u-mup"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(scheme: str, tmp_path: Path) -> None:
    model = fresh()
    mu = autofit.muify(model, base=32, scheme=scheme, tunables={"embedding": {"lr": 2.0}})
    optimizer = mu.optimizer("adamw", lr=1e-2)
    train(model, optimizer, 3)
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    whole = train(model, optimizer, 3)

    loaded = GPT2.from_pretrained(tmp_path).train()
    before = {n: p.detach().clone() for n, p in loaded.named_parameters()}
    again = autofit.muify(loaded)  # no base, no scheme
    assert all(torch.equal(before[n], p) for n, p in loaded.named_parameters())
    resumed = again.optimizer("adamw", lr=1e-2)
    assert settings(resumed) == settings(optimizer)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert train(loaded, resumed, 3) == whole


def test_a_new_model_of_that_configuration_has_the_base_and_values_of_its_own(tmp_path: Path) -> None:
    autofit.muify(fresh(), base=32).model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.n_embd = 128
    torch.manual_seed(0)
    wide = transformers.AutoModelForCausalLM.from_config(config)
    mu = autofit.muify(wide)
    assert mu.base()["n_embd"] == 32
    row = mu.plan.parameters["transformer.h.0.attn.c_attn.weight"]
    assert row.r_in == 4
    assert row.init_factor == pytest.approx(0.5)  # std 0.02 at the base, 4 times as wide


def test_only_what_the_checkpoint_lacks_is_given_initial_values(tmp_path: Path) -> None:
    autofit.muify(fresh(), base=32).model.save_pretrained(tmp_path)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path, num_labels=3, pad_token_id=0)
    body = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    head = model.score.weight.detach().clone()
    mu = autofit.muify(model)
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, body)
    assert mu.plan.parameters["score.weight"].role == "output"
    assert mu.plan.parameters["score.weight"].init_law != "loaded"
    assert torch.allclose(model.score.weight, head * mu.plan.parameters["score.weight"].init_factor)


def test_a_checkpoint_that_is_not_in_mup_is_refused_and_left_alone(tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path)
    model = GPT2.from_pretrained(tmp_path)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(autofit.PlanError, match="was not trained in muP") as refusal:
        autofit.muify(model, base=32)
    assert "from_config" in str(refusal.value)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert autofit.muify(model, base=64).plan.parameters["lm_head.weight"].init_factor == 1  # nothing to change
    frozen = GPT2.from_pretrained(tmp_path).requires_grad_(False)
    autofit.muify(frozen, base=32, frozen="keep")


def test_another_base_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    autofit.muify(fresh(), base=32).model.save_pretrained(tmp_path)
    with pytest.raises(autofit.BaseError, match="n_embd 16, not 32"):
        autofit.muify(GPT2.from_pretrained(tmp_path), base=16)
    with pytest.raises(autofit.BaseError, match="ntk, not mup"):
        autofit.muify(GPT2.from_pretrained(tmp_path), scheme="ntk")
    said = json.loads((tmp_path / "config.json").read_text())
    said["autofit"]["version"] = 99
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(autofit.BaseError, match="cannot read"):
        autofit.muify(GPT2.from_pretrained(tmp_path))


def test_a_baked_model_says_nothing() -> None:
    mu = autofit.muify(fresh(tie_word_embeddings=False), base=32)
    assert mu.model.config.autofit["base"] == mu.base()
    mu.bake()
    assert not hasattr(mu.model.config, "autofit")
    mu.unbake()
    assert mu.model.config.autofit["base"] == mu.base()


def test_a_refused_model_says_nothing() -> None:
    model = fresh()
    with pytest.raises(autofit.AutofitError):
        autofit.muify(model, base=-1)
    autofit.analyze(model, base=32)
    assert not hasattr(model.config, "autofit")
