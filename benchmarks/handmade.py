"""A decoder that is put into muP by hand, as papers and repositories do it, and the same with one fault planted.

Nothing here uses autofit. The faults are the catalogue of `benchmarks/faults.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, CONTEXT, FEATURES, EXPERTS, HEAD, BASE = 61, 16, 7, 3, 16, 64


@dataclass(frozen=True)
class Options:
    """What the decoder has, and what is wrong with it.

    Attributes:
        tied: one table for lookups and logits.
        shared_kv: one head of keys and values, whatever the width.
        experts: feed-forward layers of routed experts, stacked.
        growing_head: four heads whose size grows, in the place of heads of one size whose number grows.
        features: real numbers enter besides tokens, by a weight of layout (in, out).
        optimizer: ``adamw`` or ``sgd``: whose rule the groups have.
        fault: what is wrong; empty for nothing.
    """

    tied: bool = False
    shared_kv: bool = False
    experts: bool = False
    growing_head: bool = False
    features: bool = False
    optimizer: str = "adamw"
    fault: str = ""


class Scaled(torch.autograd.Function):
    """A factor forward, and another one backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float, backward: float) -> torch.Tensor:
        """``factor * x``."""
        ctx.factor = backward
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """By the other factor."""
        return grads[0] * ctx.factor, None, None


class Attention(nn.Module):
    """Causal; logits over d where the head size d grows, scaled to be as usual at the base."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.heads = 4 if o.growing_head else width // HEAD
        self.size = width // self.heads
        self.kv_heads = 1 if o.shared_kv else self.heads
        self.query = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * self.kv_heads * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        at_base = 4 if o.growing_head else self.size**0.5
        self.scale = at_base / self.size
        if o.fault == "attention left at d^-1/2":
            self.scale = self.size**-0.5
        if o.fault == "attention scaled twice":
            self.scale = at_base / self.size * (self.size / HEAD) ** -0.5
        self.kv_factor = BASE / width if o.fault == "keys and values of one head under the readout's 1/r" else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From and to (batch, positions, width)."""
        b, t, width = x.shape
        q = self.query(x).view(b, t, self.heads, self.size).transpose(1, 2)
        kv = self.kv(x * self.kv_factor).view(b, t, 2 * self.kv_heads, self.size).transpose(1, 2)
        k, v = kv.chunk(2, 1)
        logits = (q @ k.transpose(-1, -2)) * self.scale
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        mixed = logits.masked_fill(later, -1e9).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, t, width))


class FeedForward(nn.Module):
    """ReLU of four times the width, or several of them, mixed by a router."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.experts = o.experts
        if o.experts:
            self.router = nn.Linear(width, EXPERTS, bias=False)
            self.up = nn.Parameter(torch.empty(EXPERTS, width, 4 * width))
            self.down = nn.Parameter(torch.empty(EXPERTS, 4 * width, width))
        else:
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From and to (batch, positions, width)."""
        if not self.experts:
            return self.down(F.relu(self.up(x)))
        hidden = F.relu(torch.einsum("btd,edf->ebtf", x, self.up))
        given = torch.einsum("ebtf,efd->ebtd", hidden, self.down)
        return torch.einsum("ebtd,bte->btd", given, self.router(x).softmax(-1))


class Block(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, o), FeedForward(width, o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From and to (batch, positions, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Two blocks; 1/r on what enters the readout."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.o, self.r = o, width / BASE
        if o.fault == "base and target swapped":
            self.r = BASE / width
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        if o.features:
            self.features = nn.Parameter(torch.empty(FEATURES, width))
        self.blocks = nn.ModuleList([Block(width, o) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(VOCABULARY))
        if o.tied:
            self.head.weight = self.wte.weight
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Initial values: std 1/2, that of hidden weights with what they sum as at the base, over the root of r."""
        fault, r = self.o.fault, self.r
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            own = 0.5 * (r * BASE) ** -0.5 if is_hidden(name) else 0.5
            if fault == "initial values forgotten for one family" and name.endswith("out.weight"):
                own = 0.5 * BASE**-0.5
            if fault == "a fused weight with the fan of one head" and name.endswith("kv.weight"):
                own = 0.5 * BASE**-0.5
            if fault == "initial values rescaled twice" and is_hidden(name):
                own *= r**-0.5
            p.normal_(std=own)
        if fault == "tied table zeroed":
            self.wte.weight.zero_()
        if fault == "tied table rescaled":
            self.wte.weight.mul_(r**0.5)
        if fault == "initial values of the readout put into the tied table":
            self.wte.weight.div_(r)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (batch, positions, vocabulary) of tokens (batch, positions)."""
        fault, factor = self.o.fault, 1 / self.r
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        if fault == "embeddings times sqrt(d) not counted":
            x = x * self.r**0.5
        if self.o.features:
            x = x + features @ self.features
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if fault == "readout multiplier missing":
            factor = 1.0
        if fault == "readout multiplier doubled":
            factor = self.r**-2
        if fault == "the readout's own d^-1/2 counted twice":
            factor = self.r**-1.5
        x = Scaled.apply(x, factor, self.r) if fault == "readout's backward scaled by r" else x * factor
        if fault == "bias under the readout multiplier":
            return self.head(x) + self.head_bias * (1 / self.r)
        return self.head(x) + self.head_bias


def is_hidden(name: str) -> bool:
    """Whether a weight contracts the width, inside."""
    return name.startswith("blocks.") and "norm" not in name and not name.endswith("bias")


def factors(model: Decoder) -> Iterator[tuple[str, nn.Parameter, dict[str, float]]]:
    """Factors on the base's settings by parameter: Table 8 of Tensor Programs V, and what RULES adds to it."""
    o, r = model.o, model.r
    for name, p in model.named_parameters():
        hidden, fixed = is_hidden(name), name == "head_bias"
        inner = name.endswith("router.weight") or (o.shared_kv and name.endswith("kv.weight"))
        if o.optimizer == "sgd" and o.fault != "SGD with Adam's rule":
            lr = 1 / r if inner else 1.0 if hidden or fixed else r
            if inner and o.fault in ("keys and values of one head as hidden", "router as hidden"):
                lr = 1.0
        else:
            lr = 1 / r if hidden else 1.0
        eps = 1.0 if fixed else r**-0.5 if inner else 1 / r
        if o.fault in SCALED and SCALED[o.fault](name):
            lr = 1 / r
        if o.fault in UNSCALED and UNSCALED[o.fault](name):
            lr = 1.0
        decay = 1.0 if o.fault == "weight decay not compensated" else 1 / lr
        yield name, p, {"lr": lr, "weight_decay": decay, "eps": 1.0 if o.fault == "eps not scaled" else eps}


SCALED = {
    "embedding lr scaled": lambda name: name == "wte.weight",
    "norm gains given lr/r": lambda name: "norm" in name and name.endswith("weight"),
    "(in, out) layout read transposed": lambda name: name == "features",
    "1/r and lr/r on the same readout": lambda name: name == "head.weight",
}
"""Faults that divide a learning rate by r, and whose."""
UNSCALED = {
    "hidden lr not scaled": is_hidden,
    "name list that never matches": lambda name: True,
    "router with the rule of a readout": lambda name: name.endswith("router.weight"),
    "experts' stack axis counted as fan-in": lambda name: name.endswith((".up", ".down")),
    "a fused weight with the fan of one head": lambda name: name.endswith("kv.weight"),
}
"""Faults that do not divide a learning rate by r, and whose."""


class Flattened:
    """A schedule that gives all groups one learning rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.optimizer, self.lr = optimizer, lr

    def step(self) -> None:
        """After the optimizer's."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr


def train(model: Decoder, lr: float, decay: float = 0.1) -> tuple[Any, ...]:
    """The model with its optimizer, and a schedule if that is what is wrong."""
    base = {"lr": lr, "weight_decay": decay} | ({"eps": 1e-8} if model.o.optimizer == "adamw" else {})
    groups = [
        {"params": [p], **{k: v * own[k] for k, v in base.items()}}
        for name, p, own in factors(model)
        if not (model.o.fault == "a head in no group" and name == "head.weight")
    ]
    cls = torch.optim.SGD if model.o.optimizer == "sgd" else torch.optim.AdamW
    optimizer = cls(groups, lr=lr)
    if model.o.fault == "schedule that overwrites the groups":
        return model, optimizer, Flattened(optimizer, lr)
    return model, optimizer


def batch(o: Options) -> dict[str, torch.Tensor]:
    """Tokens, and features where the decoder has them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (2, 7), generator=generator)
    return {"tokens": tokens} | ({"features": torch.randn(2, 7, FEATURES, generator=generator)} if o.features else {})
