"""Initial values of inner bottlenecks: std falling like r_in^-1/2 (``hidden``) or like 1/r_in (``output``)?

A growing sum into a fixed dimension inside the model, of four kinds: keys and values of a fixed number of heads, MLA's
latents, a router, adapters of fixed rank. Each is trained in muP on bytes of the standard library's sources, by
Adam, at growing widths and several learning rates:

    python benchmarks/bottleneck.py run --jobs 2        # resumable; rows in docs/bottleneck.jsonl
    python benchmarks/bottleneck.py table

The model is a pre-LN decoder of two layers (d_head 16, ReLU FFN x4, LayerNorm gains, learned positions, context 64,
untied); adapters stand beside frozen random projections of the attention. Base width 32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bytes_task import CONTEXT, data, loss_of, read, run, train_on, validate, windows
from torch import nn

import autofit

ROWS = Path(__file__).parent.parent / "docs" / "bottleneck.jsonl"
KINDS = ("kv", "mla", "router", "lora")
INITS = ("hidden", "output")
BASE, HEAD, RANK, EXPERTS = 32, 16, 16, 4
STEPS = 150


class Attention(nn.Module):
    """Causal attention; keys and values come from one fixed head, from a latent, or as wide as the queries."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        shared = HEAD if kind == "kv" else width
        linear = partial(Adapted if kind == "lora" else nn.Linear, bias=False)
        self.kind, self.down = kind, nn.Linear(width, RANK, bias=False) if kind == "mla" else nn.Identity()
        into = RANK if kind == "mla" else width
        self.q, self.o = linear(width, width), linear(width, width)
        self.k, self.v = linear(into, shared), linear(into, shared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latent = self.down(x)
        q, k, v = (f.unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q(x), self.k(latent), self.v(latent)))
        shape = q.shape
        y = nn.functional.scaled_dot_product_attention(q, k.expand(shape), v.expand(shape), is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Adapted(nn.Module):
    """A frozen projection and a pair of fixed rank, the second of which starts at zero (arXiv 2106.09685)."""

    def __init__(self, into: int, out: int, bias: bool) -> None:
        super().__init__()
        self.whole, self.a, self.b = (nn.Linear(*s, bias=bias) for s in ((into, out), (into, RANK), (RANK, out)))
        self.whole.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole(x) + self.b(self.a(x))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """All experts, weighted by a softmax router."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.empty(EXPERTS, width, 2 * width))
        self.down = nn.Parameter(torch.empty(EXPERTS, 2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("btw,ewh->bteh", x, self.up).relu()
        each = torch.einsum("bteh,ehw->btew", hidden, self.down)
        return (self.router(x).softmax(-1).unsqueeze(-1) * each).sum(-2)


class Decoder(nn.Module):
    """Two layers."""

    def __init__(self, width: int, kind: str, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        norm = partial(nn.LayerNorm, width, bias=False)

        def feed() -> nn.Module:
            if kind == "router":
                return Experts(width)
            up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
            return nn.Sequential(up, nn.ReLU(), down)

        self.blocks = nn.ModuleList(
            nn.ModuleList((norm(), Attention(width, kind), norm(), feed())) for _ in range(layers)
        )
        self.norm, self.head = norm(), nn.Linear(width, 256, bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                table = name.startswith(("tokens", "places"))
                fan = p.shape[-2] if p.ndim == 3 else p.shape[-1]
                nn.init.zeros_(p) if name.endswith("b.weight") else nn.init.normal_(p, std=1.0 if table else fan**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for first, attention, second, feed in self.blocks:  # type: ignore[misc]
            x = x + attention(first(x))
            x = x + feed(second(x))
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def bottlenecks(self) -> list[nn.Module]:
        """The modules whose weights are inner bottlenecks."""
        attention = [m for m in self.modules() if isinstance(m, Attention)]
        return {
            "kv": [n for m in attention for n in (m.k, m.v)],
            "mla": [m.down for m in attention],
            "router": [m.router for m in self.modules() if isinstance(m, Experts)],
            "lora": [m.a for m in self.modules() if isinstance(m, Adapted)],
        }[attention[0].kind]


def backward_share(model: Decoder, batch: torch.Tensor) -> float:
    """RMS of the gradients that come back through the bottlenecks, over that of the embedding's."""
    found: list[torch.Tensor] = []
    whole: list[torch.Tensor] = []
    hooks = [m.register_full_backward_hook(lambda _, g, __: found.append(g[0])) for m in model.bottlenecks()]
    hooks.append(model.tokens.register_forward_hook(lambda m, a, out: out.register_hook(whole.append) and None))
    loss_of(model, batch).backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    return (mean(g.square().mean().item() for g in found) / whole[0].square().mean().item()) ** 0.5


def train(kind: str, init: str, width: int, exponent: int, seed: int) -> dict[str, Any]:
    """One run, and what came of it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Decoder(width, kind)
    frozen = "plan" if kind == "lora" else None
    mu = autofit.muify(
        model, torch.zeros(3, CONTEXT, dtype=torch.long), base=Decoder(BASE, kind), bottleneck=init, frozen=frozen
    )
    optimizer = mu.optimizer("adam", lr=2.0**exponent, betas=(0.9, 0.95), fused=True)
    probe = windows(data()[1], 16, torch.Generator().manual_seed(1))
    shares = [backward_share(model, probe)]
    train_on(model, optimizer, STEPS, seed)
    shares.append(backward_share(model, probe))
    key = {"kind": kind, "init": init, "width": width, "log2_lr": exponent, "seed": seed}
    return {**key, "loss": validate(model), "backward": shares, "data": data()[2], "torch": torch.__version__}


def table() -> Iterator[str]:
    """Loss by learning rate, the optimum, and the growth of the backward signal, by kind, init and width."""
    rows = read(ROWS)
    exponents = sorted({r["log2_lr"] for r in rows})
    yield "| kind | init | width | " + " | ".join(f"2^{e}" for e in exponents) + " | best | backward at init, end |"
    yield "|" + "---|" * (len(exponents) + 5)
    for kind, init, width in product(KINDS, INITS, sorted({r["width"] for r in rows})):
        mine = [r for r in rows if (r["kind"], r["init"], r["width"]) == (kind, init, width)]
        if not mine:
            continue
        found = {e: [r["loss"] for r in mine if r["log2_lr"] == e] for e in exponents}
        losses = {e: mean(values) for e, values in found.items() if values}
        best = min(losses, key=losses.__getitem__)
        shares = [mean(r["backward"][i] for r in mine if r["log2_lr"] == best) for i in (0, 1)]
        cells = " | ".join(f"{losses[e]:.3f}" if e in losses else "" for e in exponents)
        yield f"| {kind} | {init} | {width} | {cells} | 2^{best} | {shares[0]:.3f}, {shares[1]:.3f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("--widths", type=int, nargs="+", default=[32, 128, 512])
    runner.add_argument("--exponents", type=int, nargs="+", default=[-10, -9, -8, -7, -6, -5])
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    runner.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    runner.add_argument("--jobs", type=int, default=2)
    commands.add_parser("table")
    chosen = parser.parse_args()
    if chosen.command == "run":
        wanted = product(chosen.kinds, INITS, sorted(chosen.widths, reverse=True), chosen.exponents, chosen.seeds)
        keys = ("kind", "init", "width", "log2_lr", "seed")
        run(train, keys, sorted(wanted, key=lambda k: -k[2]), ROWS, chosen.jobs)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
