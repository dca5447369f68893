"""Baked, a model is a plain one: equal outputs, no hooks, and a checkpoint that knows nothing of autofit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
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
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "autofit":
            raise ImportError(name)
sys.meta_path.insert(0, Nobody())
for folder in sys.argv[1:]:
    saved = torch.load(folder + "/expected.pt")
    model = getattr(transformers, saved["class"]).from_pretrained(folder + "/model")
    for training, expected in saved["expected"].items():
        model.train(training)
        torch.manual_seed(1)
        out = model(**saved["inputs"])
        torch.testing.assert_close(out["logits" if "logits" in out else "logits_per_image"], expected,
                                   rtol=1e-4, atol=1e-5, msg=lambda m: folder + m)
"""
SAVED = {
    "gpt2": {"grow": "head_dim"},  # rows of a fused projection
    "llama": {"grow": "head_dim"},
    "t5": {},
    "vit": {"grow": "head_dim"},
    "bert": {"grow": "head_dim"},
    "mixtral": {"grow": "head_dim"},
    "whisper": {},
    "clip": {},
    "mamba": {},
    "gemma2": {"untie": True},
}
"""Families, with what they are muified and baked by."""


def test_checkpoints_for_a_process_without_autofit(tmp_path: Path) -> None:
    """Trained for two steps, baked and saved: the same logits in eval and train mode where only transformers is."""
    for name, given in SAVED.items():
        mu, inputs = muified(name, **{k: v for k, v in given.items() if k != "untie"})
        model = mu.model.train()
        optimizer = mu.optimizer("adamw", lr=1e-3)
        for _ in range(2):
            logits(model, inputs).square().mean().backward()
            optimizer.step()
        expected = {}
        for training in (False, True):
            model.train(training)
            torch.manual_seed(1)
            expected[training] = logits(model, inputs).detach()
        mu.bake(untie="untie" in given).save_pretrained(tmp_path / name / "model")
        saved = {"class": type(model).__name__, "inputs": inputs, "expected": expected}
        torch.save(saved, tmp_path / name / "expected.pt")
    folders = [str(tmp_path / name) for name in SAVED]
    run = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_untied_where_nothing_else_can_take_a_multiplier() -> None:
    mu, inputs = muified("gemma2")
    model, before = mu.model, logits(mu.model, inputs).detach()
    with pytest.raises(autofit.LoweringError, match=r"is tied(.|\n)*bake\(untie=True\)"):
        mu.bake()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    mu.bake(untie=True)
    torch.testing.assert_close(logits(model, inputs).detach(), before, rtol=1e-4, atol=1e-6)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    with pytest.raises(autofit.LoweringError, match="was untied to be baked"):
        mu.unbake()


class Settings:
    tie_word_embeddings = True

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class LooksAtItsTie(nn.Module):
    """Scales logits where the configuration says that they are tied, as T5 does; with no gain before the readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = Settings()
        self.embed = nn.Embedding(50, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + self.inner(x).relu()
        return self.head(x * 0.5 if self.config.tie_word_embeddings else x)


def test_a_forward_that_looks_at_its_tie_is_not_untied() -> None:
    ids = torch.randint(0, 50, (2, 5))
    mu = autofit.muify(LooksAtItsTie(32), ids, base=LooksAtItsTie(16))
    before, values = mu.model(ids).detach(), mu.model.embed.weight.detach().clone()
    with pytest.raises(autofit.LoweringError, match="untied, this model computes something else"):
        mu.bake(untie=True)
    assert mu.model.head.weight is mu.model.embed.weight
    assert mu.model.config.tie_word_embeddings
    torch.testing.assert_close(mu.model.embed.weight.detach(), values, rtol=0, atol=0)
    torch.testing.assert_close(mu.model(ids).detach(), before, rtol=0, atol=0)


def test_a_refusal_names_the_field_that_is_the_scale() -> None:
    """Granite multiplies every residual branch by a field of its configuration."""

    def make(layers: int) -> nn.Module:
        fields = {"num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.5, "vocab_size": 99}
        sizes = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.GraniteMoeConfig(**fields, **sizes, num_hidden_layers=layers)
        return transformers.GraniteMoeForCausalLM(config)

    mu = autofit.muify(make(4), base=make(2), scheme="mup+completep")
    with pytest.raises(autofit.LoweringError, match=r"residual_multiplier \(now 0.5\) times 0.5"):
        mu.bake()
    inputs = example_for(mu.model)
    wanted = logits(mu.model.eval(), inputs).detach()
    config = mu.model.config
    config.residual_multiplier *= 0.5
    plain = transformers.GraniteMoeForCausalLM(config).eval()
    plain.load_state_dict(mu.model.state_dict())
    torch.testing.assert_close(logits(plain, inputs), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "t5"])
def test_taken_back(name: str) -> None:
    mu, inputs = muified(name, **({"grow": "head_dim"} if name == "gpt2" else {}))
    before = logits(mu.model, inputs).detach()
    mu.bake()
    baked = {k: v.clone() for k, v in mu.model.state_dict().items()}
    with pytest.raises(autofit.LoweringError, match="baked itself"):
        mu.unbake(baked)
    assert mu.unbake() is mu.model
    torch.testing.assert_close(logits(mu.model, inputs).detach(), before, rtol=1e-4, atol=1e-6)
    assert mu.optimizer("adamw", lr=1e-3).param_groups  # trains in muP again
    with pytest.raises(autofit.LoweringError, match="already muified"):
        mu.unbake()

    other, _ = muified(name, **({"grow": "head_dim"} if name == "gpt2" else {}))
    with torch.no_grad():
        for p in other.model.parameters():
            p.zero_()
    other.unbake(baked)
    torch.testing.assert_close(logits(other.model, inputs).detach(), before, rtol=1e-4, atol=1e-6)


def test_an_untied_checkpoint_is_not_loaded_into_a_tied_model() -> None:
    mu, _ = muified("gpt2")
    state = {k: v.clone() for k, v in mu.model.state_dict().items()}
    values = state["transformer.wte.weight"].clone()
    state["lm_head.weight"] *= 2
    with pytest.raises(autofit.LoweringError, match="two in the checkpoint: it was untied"):
        mu.unbake(state)
    torch.testing.assert_close(mu.model.transformer.wte.weight.detach(), values, rtol=0, atol=0)
    del state["lm_head.weight"], state["transformer.ln_f.weight"]
    with pytest.raises(autofit.LoweringError, match=r"lacks transformer\.ln_f\.weight"):
        mu.unbake(state)


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
