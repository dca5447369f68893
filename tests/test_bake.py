"""Baked, a model is a plain one: equal outputs, no hooks, and a checkpoint that knows nothing of autofit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from inputs import example_for, logits
from torch import nn

import autofit

REFUSED = {
    ("gemma2", "mup"): "embedding: model.embed_tokens.weight is tied",
    ("gemma2", "mup+completep"): "embedding: model.embed_tokens.weight is tied",
    ("mixtral", "mup+completep"): "residual",
    ("qwen3_moe", "mup+completep"): "residual",
    ("deepseek_v3", "mup+completep"): "residual",
}
"""A lookup's own factor beside a tied readout; what is gathered from experts comes from no one weight."""


def muified(name: str, scheme: str = "mup", **more: Any) -> tuple[autofit.Analysis, Any]:
    """A family at twice its base, and inputs."""
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    depth = {"depth_ratio": 3.0} if scheme == "mup+completep" else {}
    mu = autofit.muify(model, base=FAMILIES[name].main // 2, scheme=scheme, **depth, **more)
    return mu, example_for(model)


@pytest.mark.parametrize("scheme", ["mup", "mup+completep"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_model_with_equal_outputs(name: str, scheme: str) -> None:
    mu, inputs = muified(name, scheme)
    model, keys = mu.model, list(mu.model.state_dict())
    before = logits(model, inputs).detach()
    if (name, scheme) in REFUSED:
        with pytest.raises(autofit.LoweringError, match=f"{REFUSED[name, scheme]}(.|\n)*nothing was changed"):
            mu.bake()
        torch.testing.assert_close(logits(model, inputs).detach(), before, rtol=0, atol=0)
        return
    assert mu.bake() is model
    torch.testing.assert_close(logits(model, inputs).detach(), before, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(key.startswith("_autofit") for m in model.modules() for key in vars(m))


@pytest.mark.parametrize(
    "given", [{"form": "table9"}, {"scheme": "u-mup"}, {"tunables": {"norm_gain": 2.0, "hidden": 3.0}}]
)
def test_factors_on_parameters(given: dict[str, Any]) -> None:
    mu, inputs = muified("llama", **given)
    before = logits(mu.model, inputs).detach()
    torch.testing.assert_close(logits(mu.bake(), inputs).detach(), before, rtol=1e-4, atol=1e-6)


def test_a_growing_head_in_a_fused_projection() -> None:
    """Rows of the queries alone; in training mode, too, and after steps."""
    mu, inputs = muified("gpt2", grow="head_dim", zero_query=False)
    assert any(s.carrier.indices for s in mu.plan.sites)
    optimizer = mu.optimizer("adamw", lr=1e-3)
    logits(mu.model, inputs).square().mean().backward()
    optimizer.step()
    torch.manual_seed(1)
    before = logits(mu.model.train(), inputs).detach()
    mu.bake()
    torch.manual_seed(1)
    torch.testing.assert_close(logits(mu.model, inputs).detach(), before, rtol=1e-4, atol=1e-6)


LOAD = """
import sys, torch, transformers
assert "autofit" not in sys.modules
model = transformers.GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
inputs, expected = torch.load(sys.argv[2])
torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-6)
assert "autofit" not in sys.modules
"""


def test_a_checkpoint_for_a_process_without_autofit(tmp_path: Path) -> None:
    mu, inputs = muified("gpt2", grow="head_dim")
    expected = logits(mu.model, inputs).detach()
    mu.bake().save_pretrained(tmp_path / "model")
    torch.save((inputs, expected), tmp_path / "expected.pt")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "model"), str(tmp_path / "expected.pt")], check=True)


def test_refusals() -> None:
    x = torch.zeros(2, 5)

    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))

    with pytest.raises(autofit.PlanError, match="analyze applies nothing"):
        autofit.analyze(make(32), x, base=make(16)).bake()
    mu = autofit.muify(make(32), x, base=make(16))
    mu.bake()
    with pytest.raises(autofit.LoweringError, match="baked already"):
        mu.bake()
    with pytest.raises(autofit.LoweringError, match="has lost its multiplier"):
        mu.param_groups("adamw", lr=1e-3)
    meta = autofit.muify(autofit.deferred_init(lambda: make(32)), x, base=make(16))
    with pytest.raises(autofit.LoweringError, match="is on meta"):
        meta.bake()
    assert any(m._forward_pre_hooks for m in meta.model.modules())
