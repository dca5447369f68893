"""It trains right: slopes of a coordinate check over widths 32..256 on real models (RULES 12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
import transformers
from coordinates import Inputs, measure
from torch import nn

import autofit

VOCABULARY = 61
G = torch.Generator().manual_seed(0)
IDS = torch.randint(0, VOCABULARY, (8, 16), generator=G)
NEXT = torch.randint(0, VOCABULARY, (8, 16), generator=G)
IMAGES = torch.randn(32, 3, 16, 16, generator=G)
LABELS = torch.randint(0, VOCABULARY, (32,), generator=G)
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def gpt2(width: int, heads: int, tied: bool) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=width,
        n_layer=2,
        n_head=heads,
        vocab_size=VOCABULARY,
        n_positions=32,
        tie_word_embeddings=tied,
        **SPECIAL,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(width: int) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 8,
        num_key_value_heads=width // 16,
        head_dim=8,
        vocab_size=VOCABULARY,
        **SPECIAL,
    )
    return transformers.LlamaForCausalLM(config)


def bert(width: int) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        **QUIET,
    )
    return transformers.BertForMaskedLM(config)


def t5(width: int) -> nn.Module:
    config = transformers.T5Config(
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=width // 16,
        vocab_size=VOCABULARY,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def vit(width: int) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        image_size=16,
        patch_size=4,
        num_labels=VOCABULARY,
        **QUIET,
    )
    return transformers.ViTForImageClassification(config)


class LanguageModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.rnn = nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


def convolutional(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, 2 * width, 1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, VOCABULARY),
    )


@dataclass(frozen=True)
class Case:
    """A model to train."""

    make: Callable[[int], nn.Module]
    inputs: Inputs
    targets: torch.Tensor
    example: Any = None
    grow: Literal["heads", "head_dim"] = "heads"


TOKENS = {"input_ids": IDS}
CASES = {
    "gpt2 tied, head size grows": Case(lambda w: gpt2(w, 2, True), TOKENS, NEXT, grow="head_dim"),
    "gpt2 untied, heads grow": Case(lambda w: gpt2(w, w // 16, False), TOKENS, NEXT),
    "llama GQA": Case(llama, TOKENS, NEXT),
    "bert": Case(bert, TOKENS, NEXT),
    "t5": Case(t5, {**TOKENS, "decoder_input_ids": IDS.flip(1)}, NEXT),
    "vit": Case(vit, {"pixel_values": IMAGES}, LABELS),
    "lstm": Case(LanguageModel, IDS, NEXT, IDS),
    "conv net with BatchNorm": Case(convolutional, IMAGES, LABELS, IMAGES),
}
LR = 2e-3


@pytest.mark.parametrize("name", CASES)
def test_updates_do_not_grow_with_width(name: str) -> None:
    case = CASES[name]

    def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = case.make(width)
        mu = autofit.muify(model, case.example, base=32, grow=case.grow)
        return model, mu.optimizer("adam", lr=LR)

    slopes = measure(make, case.inputs, case.targets)
    module, worst = slopes.worst
    assert worst <= 0.15, module
    assert slopes.output >= -0.3


def test_the_untouched_model_fails_the_same_check() -> None:
    """Control: plain Adam on an untouched GPT-2 grows by more than a factor 2 per doubling."""
    case = CASES["gpt2 untied, heads grow"]

    def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = case.make(width)
        return model, torch.optim.Adam(model.parameters(), lr=LR)

    assert measure(make, case.inputs, case.targets).worst[1] > 1.0
