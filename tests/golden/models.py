"""Plain torch models, as people write them: no muP in them. Needs torch alone.

The generator of the golden values edits them by hand as mup's documentation asks; the tests do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 5


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, width), nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Uneven(nn.Module):
    """A middle that grows as the square of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        middle = width**2 // 64
        self.first, self.second = nn.Linear(12, width), nn.Linear(width, middle)
        self.third, self.head = nn.Linear(middle, width), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))


class Residual(nn.Module):
    """Pre-norm residual blocks without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(12, width, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(3 * width, width, bias=False) for _ in range(3))
        self.head = nn.Linear(width, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(x)


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(12, width)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down, self.head = nn.Linear(2 * width, width), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.inp(x))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class Convolutional(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.one(x)))
        return self.head(torch.relu(self.two(x)).mean((2, 3)))


class BagOfWords(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(17, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(self.embed(ids).mean(1))))


class ActorCritic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.policy, self.value = nn.Linear(width, CLASSES), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.trunk(x)
        return self.policy(x) + self.value(x)


class Autoencoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(12, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
        self.decode = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.decode(self.encode(x)))


class Transformer(nn.Module):
    """A decoder block with learned positions; ``heads`` heads of ``width / heads``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.tokens, self.positions = nn.Embedding(17, width), nn.Embedding(9, width)
        self.one, self.two, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 17)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        y = self.one(x)
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        return self.head(self.last(x + self.down(F.gelu(self.up(self.two(x))))))


class Tied(nn.Module):
    """An embedding that is also the readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(17, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 17, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + torch.relu(self.body(x)))


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(17, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 17)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


@dataclass(frozen=True)
class Golden:
    """A model, what it eats, and where its readouts are.

    Attributes:
        make: width -> model.
        example: input.
        readouts: paths of the readouts.
        grow: ``head_dim`` where the attention scale has to change.
    """

    make: Callable[[int], nn.Module]
    example: torch.Tensor
    readouts: tuple[str, ...] = ("head",)
    grow: str = "heads"


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


IDS = torch.randint(0, 17, (6, 9), generator=torch.Generator().manual_seed(1))
MODELS: dict[str, Golden] = {
    "mlp": Golden(MLP, _floats(6, 12)),
    "uneven": Golden(Uneven, _floats(6, 12)),
    "residual": Golden(Residual, _floats(6, 12)),
    "gated": Golden(Gated, _floats(6, 12)),
    "convolutional": Golden(Convolutional, _floats(6, 3, 8, 8)),
    "bag of words": Golden(BagOfWords, IDS),
    "actor-critic": Golden(ActorCritic, _floats(6, 12), ("policy", "value")),
    "autoencoder": Golden(Autoencoder, _floats(6, 12)),
    "transformer, heads grow": Golden(lambda w: Transformer(w, w // 16), IDS),
    "transformer, head size grows": Golden(lambda w: Transformer(w, 2), IDS, grow="head_dim"),
    "tied": Golden(Tied, IDS),
    "recurrent": Golden(Recurrent, IDS),
}
BASE, TARGET, SEED = 32, 128, 0
WIDTHS = (16, BASE, 96, 256)
LR, WEIGHT_DECAY = 0.01, 0.1


@dataclass(frozen=True)
class Case:
    """An optimizer and its settings.

    Attributes:
        rule: its name in torch, in lower case.
        settings: keywords of its constructor, but for the learning rate.
        grouped: whether the user makes two groups: matrices with settings of their own, and the rest.
    """

    rule: str
    settings: dict[str, float]
    grouped: bool = False

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The user's groups: for matrices, twice the learning rate; for the rest, no weight decay."""
        parameters = list(model.parameters())
        matrices, rest = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        made: list[dict[str, Any]] = [{"params": matrices, "lr": 2 * LR}, {"params": rest, "weight_decay": 0.0}]
        return [group for group in made if group["params"]]


CASES = {
    "sgd": Case("sgd", {}),
    "sgd, momentum and weight decay": Case("sgd", {"momentum": 0.9, "weight_decay": WEIGHT_DECAY}),
    "sgd, groups": Case("sgd", {"momentum": 0.9, "weight_decay": WEIGHT_DECAY}, grouped=True),
    "adam": Case("adam", {}),
    "adam, weight decay": Case("adam", {"weight_decay": WEIGHT_DECAY}),
    "adamw, weight decay": Case("adamw", {"weight_decay": WEIGHT_DECAY}),
    "adamw, groups": Case("adamw", {"weight_decay": WEIGHT_DECAY}, grouped=True),
}


def loss(output: torch.Tensor) -> torch.Tensor:
    """A loss of any output, for a few training steps."""
    return (output - torch.sin(torch.arange(output.numel()).reshape(output.shape))).square().mean()
