"""A decoder put into muP by hand, as papers and repositories do it, and ways in which such integrations were wrong.

Nothing here uses autofit: what it says about these models is tested against what is known of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, CONTEXT, FEATURES, EXPERTS, HEAD, BASE = 61, 16, 7, 3, 16, 64
STD = 0.5
"""Of hidden weights, times the root of what they sum, at any width."""


@dataclass(frozen=True)
class Options:
    """What the decoder has, and what is wrong with it.

    Attributes:
        tied: one table for lookups and logits.
        shared_kv: one head of keys and values, whatever the width.
        experts: a routed feed-forward layer, with a stack of expert weights.
        growing_head: one number of heads, whose size grows, in the place of the other way round.
        features: real features enter besides tokens, by a weight that is stored (in, out).
        fault: what is wrong; empty for nothing.
        optimizer: whose rule the groups have.
    """

    tied: bool = False
    shared_kv: bool = False
    experts: bool = False
    growing_head: bool = False
    features: bool = False
    fault: str = ""
    optimizer: str = "adamw"


class Backward(torch.autograd.Function):
    """A factor forward, and another one backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        """``forward * x``."""
        ctx.backward_factor = backward
        return x * forward

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """With the other factor."""
        return grads[0] * ctx.backward_factor, None, None


class Attention(nn.Module):
    """Causal attention with 1/d logits where the head grows."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.heads = 4 if o.growing_head else width // HEAD
        self.size, self.o = width // self.heads, o
        self.kv = 1 if o.shared_kv else self.heads
        self.qkv = nn.Linear(width, width + 2 * self.kv * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        usual = (BASE // 4) ** 0.5 if o.growing_head else 1.0
        self.scale = usual / self.size if o.growing_head else self.size**-0.5
        if o.fault == "attention left at d^-1/2":
            self.scale = self.size**-0.5
        if o.fault == "attention 1/d applied twice":
            self.scale = self.size**-0.5 * usual / self.size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From and to (batch, positions, width)."""
        b, t, width = x.shape
        q, k, v = self.qkv(x).split([width, self.kv * self.size, self.kv * self.size], -1)
        q = q.view(b, t, self.heads, self.size).transpose(1, 2)
        k, v = (y.view(b, t, self.kv, self.size).transpose(1, 2) for y in (k, v))
        logits = (q @ k.transpose(-1, -2)) * self.scale
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        y = logits.masked_fill(~mask, -1e9).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, width))


class FeedForward(nn.Module):
    """ReLU of four times the width; routed to stacked experts where there are any."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.o = o
        if o.experts:
            self.router = nn.Linear(width, EXPERTS, bias=False)
            self.up = nn.Parameter(torch.empty(EXPERTS, width, 4 * width))
            self.down = nn.Parameter(torch.empty(EXPERTS, 4 * width, width))
        else:
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From and to (batch, positions, width)."""
        if not self.o.experts:
            return self.down(F.relu(self.up(x)))
        gates = self.router(x).softmax(-1)
        hidden = F.relu(torch.einsum("btd,edf->ebtf", x, self.up))
        return torch.einsum("ebtd,bte->btd", torch.einsum("ebtf,efd->ebtd", hidden, self.down), gates)


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
    """Two blocks in muP, with ``1/r`` on the logits."""

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
        if o.fault == "existing sqrt(d) counted twice":
            self.root = width**-0.5 / BASE**-0.5
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Initial values."""
        for name, p in self.named_parameters():
            if p.ndim > 1:
                p.normal_(std=std_of(name, p, self.o, self.r))
        if self.o.fault == "tied table zeroed":
            self.wte.weight.zero_()
        if self.o.fault in ("tied table rescaled", "init applied before the tie"):
            self.wte.weight.mul_(self.r**0.5 if self.o.fault == "tied table rescaled" else self.r**-0.5)
        if self.o.fault == "rescaled twice":
            for name, p in self.named_parameters():
                if name.endswith(HIDDEN):
                    p.mul_(self.r**-0.5)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (batch, positions, vocabulary) of tokens (batch, positions)."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        if self.o.fault == "existing sqrt(d) kept on embeddings":
            x = x * (self.r**0.5)
        if self.o.features:
            x = x + features @ self.features
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        fault, factor = self.o.fault, 1 / self.r
        if fault in ("readout multiplier missing",):
            factor = 1.0
        if fault in ("readout multiplier doubled", "rescaled twice"):
            factor = self.r**-2
        if fault == "existing sqrt(d) counted twice":
            factor *= self.root
        if fault == "readout backward scaled by r":
            x = Backward.apply(x, factor, self.r)
        else:
            x = x * factor
        if fault == "bias under the readout multiplier":
            return self.head(x) + self.head_bias * (1 / self.r)
        return self.head(x) + self.head_bias


HIDDEN = ("qkv.weight", "out.weight", "up", "down", "up.weight", "down.weight", "router.weight")


def std_of(name: str, p: torch.Tensor, o: Options, r: float) -> float:
    """Initial standard deviation."""
    into = p.shape[1] if name.endswith(("up", "down")) else p.shape[-1]
    if name.endswith(HIDDEN):
        std = STD * into**-0.5
        if o.fault == "base and target swapped":
            std = STD * (into / r**-2) ** -0.5 if r < 1 else std
        forgotten = o.fault == "init forgotten for one family" and name.endswith("out.weight")
        fan = o.fault == "fused qkv with the fan of one head" and name.endswith("qkv.weight")
        return STD * BASE**-0.5 if forgotten or fan else std
    return 0.5


def groups(model: Decoder, lr: float = 1e-3, decay: float = 0.1) -> list[dict[str, Any]]:
    """One group per parameter, by Table 8 of Tensor Programs V."""
    o, r = model.o, model.r
    found = []
    for name, p in model.named_parameters():
        hidden = name.endswith(HIDDEN)
        bottleneck = name.endswith("router.weight")
        if o.optimizer == "sgd":
            factor = {True: 1.0, False: r}[hidden]
            factor = 1 / r if bottleneck else factor
            factor = 1.0 if name == "head_bias" else factor
        else:
            factor = 1 / r if hidden else 1.0
        fault = o.fault
        if fault == "SGD with Adam's rule":
            factor = 1 / r if hidden else 1.0
        if fault == "hidden lr not scaled" and hidden:
            factor = 1.0
        if fault == "name list that never matches":
            factor = 1.0
        if fault == "embedding lr scaled" and name.startswith("wte"):
            factor = 1 / r
        if fault == "norm gain given lr/r" and "norm" in name and name.endswith("weight"):
            factor = 1 / r
        if fault == "router with the rule of a readout" and bottleneck:
            factor = 1.0
        if fault == "router as hidden" and bottleneck:
            factor = 1.0 if o.optimizer == "sgd" else factor
        if fault == "experts' stack axis counted" and name.endswith(("up", "down")):
            factor = 1.0  # fan_in read off the first axis, which does not grow
        if fault == "Conv1D transposed" and name == "features":
            factor = 1 / r
        if fault == "fused qkv with the fan of one head" and name.endswith("qkv.weight"):
            factor = 1.0
        if fault == "multiplier 1/r and lr/r on the same readout" and name == "head.weight":
            factor = 1 / r
        eps = 1e-8 if fault == "eps not scaled" else 1e-8 / (1 if name == "head_bias" else r)
        if bottleneck and fault != "eps not scaled":
            eps = 1e-8 * r**-0.5
        setting = {
            "lr": lr * factor,
            "weight_decay": decay / (1 if fault == "weight decay not compensated" else factor),
        }
        if o.optimizer == "adamw":
            setting["eps"] = eps
        if fault == "a head in no group" and name == "head.weight":
            continue
        found.append({"params": [p], **setting})
    return found


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Attributes:
        name: of it.
        kinds: the findings that tell it: one of these, on a parameter or site whose name has ``at``.
        at: part of the name.
        options: of the decoder in which it can be planted.
        source: where it happened, or who warns of it.
    """

    name: str
    kinds: tuple[str, ...]
    at: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)


def optimizer(model: Decoder, lr: float = 1e-3, decay: float = 0.1) -> torch.optim.Optimizer:
    """With its groups."""
    if model.o.optimizer == "sgd":
        return torch.optim.SGD(groups(model, lr, decay), lr=lr)
    return torch.optim.AdamW(groups(model, lr, decay), lr=lr)
