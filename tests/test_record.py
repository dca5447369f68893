"""The run-once recorder: the same answers as export where both work, and answers where export has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES
from torch import nn

import autofit


class LooksAtData(nn.Module):
    """Any model, behind a branch on its output that export cannot follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        result = self.inner(**inputs)[0]
        return result.relu() if result.isnan().any() else result


IDS = {"input_ids": torch.zeros(3, 17, dtype=torch.long)}
INPUTS: dict[str, dict[str, Any]] = {
    "gpt2": IDS,
    "llama": IDS,
    "bert": IDS,
    "mixtral": IDS,
    "t5": IDS | {"decoder_input_ids": torch.zeros(3, 19, dtype=torch.long)},
    "resnet": {"pixel_values": torch.zeros(3, 3, 37, 37)},
}


@pytest.mark.parametrize("name", INPUTS)
def test_recorder_and_export_give_one_answer(name: str) -> None:
    model = FAMILIES[name].build()
    exported = autofit.analyze(model, INPUTS[name], base=32)
    recorded = autofit.analyze(LooksAtData(model), INPUTS[name], base=32)
    assert exported.roles.growth.dims.program.front_end.startswith("torch.export")
    assert recorded.roles.growth.dims.program.front_end.startswith("running it once")
    for parameter in exported.plan.parameters.values():
        other = recorded.plan.parameters[f"inner.{parameter.name}"]
        assert (other.role, other.rule, other.r_in, other.r_out) == (
            parameter.role,
            parameter.rule,
            parameter.r_in,
            parameter.r_out,
        )
        assert other.init_factor == parameter.init_factor
    assert [(s.kind, s.scale, s.multiplier) for s in recorded.plan.sites] == [
        (s.kind, s.scale, s.multiplier) for s in exported.plan.sites
    ]
    assert "only the path which this example takes" in " ".join(str(recorded).split())


class EarlyExit(nn.Module):
    """Layers until a unit is confident enough, with batch statistics on the way."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(10, width), nn.BatchNorm1d(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x))
        for layer in self.layers:
            h = h + layer(h).relu()
            if h.abs().max() > 1e6:
                break
        return self.head(h)


def test_recording_changes_nothing() -> None:
    model = EarlyExit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(7, 10)
    state = torch.get_rng_state()
    autofit.analyze(model, x, base=16)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_an_early_exit_net_is_rewritten() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 10)
    model, plain = EarlyExit().eval(), EarlyExit().eval()
    plain.load_state_dict(model.state_dict())
    mu = autofit.muify(model, x, base=16, init="keep")
    assert [mu.plan.parameters[f"layers.{i}.weight"].role for i in range(3)] == ["hidden"] * 3
    torch.testing.assert_close(model(x), plain(x) / 4)


def test_a_path_that_was_not_taken_is_refused() -> None:
    """An example on which the net exits at once says nothing about the layers behind the exit."""
    x = torch.full((7, 10), 1e9)
    model = EarlyExit().eval()
    with pytest.raises(autofit.PlanError, match=r"layers\.1\.weight (.|\n)*never used by forward on this example"):
        autofit.muify(model, x, base=16)


def test_longformer_with_global_attention() -> None:
    """Its windows are cut at places that depend on which tokens attend to all."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.LongformerConfig(**sizes, vocab_size=139, attention_window=4, max_position_embeddings=64)
    model = transformers.LongformerForMaskedLM(config)
    ids = torch.zeros(3, 12, dtype=torch.long)
    everywhere = torch.zeros_like(ids)
    everywhere[:, 0] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "global_attention_mask": everywhere}
    mu = autofit.muify(model, inputs, base=32)
    assert "running it once" in mu.roles.growth.dims.program.front_end
    rules = {
        p.name.rpartition("self.")[2]: p.rule for p in mu.plan.parameters.values() if "layer.1.attention" in p.name
    }
    assert {rules[f"{n}.weight"] for n in ("query", "key", "value", "query_global", "key_global", "value_global")} == {
        "hidden"
    }
    mu.model(**inputs, labels=ids).loss.backward()


class CachedMask(nn.Module):
    """Keeps the mask of the last length on itself, as older Transformer examples do."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.mask: torch.Tensor | None = None
        self.table = nn.Embedding(31, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(width, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.mask is None or self.mask.shape[0] != ids.shape[1]:
            self.mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.body(self.table(ids), self.mask, is_causal=True)).log_softmax(-1)


def test_a_mask_kept_on_the_module_is_left_as_it_was() -> None:
    model = CachedMask()
    mu = autofit.muify(model, torch.zeros(3, 7, dtype=torch.long), base=32)
    assert model.mask is None
    assert {p.rule for p in mu.plan.parameters.values() if p.name.endswith("linear1.weight")} == {"hidden"}
    assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 31)
