"""Does the best learning rate of a narrow model stay the best one over width?

Next-byte prediction on the standard library's own sources, constant learning rate, the same order of data for every
width and learning rate of a seed. Settings:

    decoder       2 layers, d_head 32, widths 64 to 256, 150 steps of Adam; base 64
    smoke         the same at widths 32 and 128, d_head 16, 100 steps; with the two negative controls
    tied, head, decay, zero, mlp: one table; four heads that grow; AdamW with decay 0.1; a readout that starts at zero;
                  an MLP of three tanh layers over eight bytes
    gpt2, llama   transformers' own models through muify: tied; two queries to a key
    sgd, muon     the decoder of smoke

Ways: muP; without muP (sp); and as negative controls muP with one learning rate for all (one lr), and muP without the
readout's 1/r (no 1/r), which the optimum alone does not tell.

    python benchmarks/transfer.py run decoder smoke --jobs 2     # resumable; rows in docs/transfer.jsonl
    python benchmarks/transfer.py run decoder --ray auto         # on a Ray cluster; --ray local starts one here
    python benchmarks/transfer.py write                          # tables and pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from bytes_task import CONTEXT, data, read, run, train_on, validate, windows
from torch import nn

import autofit

DOCS = Path(__file__).parent.parent / "docs"
ROWS = DOCS / "transfer.jsonl"
WAYS = ("mup", "sp", "one lr", "no 1/r")
KEYS = ("setting", "way", "width", "log2_lr", "seed")


@dataclass(frozen=True)
class Setting:
    """One question.

    Attributes:
        widths: the first is the base.
        exponents: of two, the learning rates.
        steps: of training.
        ways: that are tried.
        head: size of a head; 0 for four heads that grow.
        optimizer: name of its rule.
        batch: sequences of a step.
        seeds: how many.
    """

    widths: tuple[int, ...] = (32, 128)
    exponents: tuple[int, ...] = tuple(range(-11, -4))
    steps: int = 100
    ways: tuple[str, ...] = ("mup", "sp")
    head: int = 16
    optimizer: str = "adam"
    batch: int = 4
    seeds: int = 3


FULL: dict[str, Any] = {"widths": (64, 128, 256), "exponents": tuple(range(-12, -4)), "steps": 150, "head": 32}
SETTINGS = {
    "decoder": Setting(**FULL),
    "smoke": Setting(ways=WAYS),
    "tied": Setting(**FULL | {"widths": (64, 256)}),
    "head": Setting(**FULL | {"widths": (128, 512), "head": 0}, seeds=1),
    "decay": Setting(**FULL | {"widths": (64, 256)}, optimizer="adamw"),
    "zero": Setting(),
    "mlp": Setting(widths=(64, 128, 256, 512), exponents=tuple(range(-12, -4)), steps=150, batch=256),
    "gpt2": Setting(widths=(64, 256), exponents=tuple(range(-12, -4)), steps=150),
    "llama": Setting(widths=(64, 256), exponents=tuple(range(-12, -4)), steps=150),
    "sgd": Setting(exponents=tuple(range(-6, 3)), optimizer="sgd"),
    "muon": Setting(exponents=tuple(range(-10, -2)), optimizer="muon"),
}


class Block(nn.Module):
    """Pre-norm, no biases; gains alone in norms."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.heads = width // head if head else 4
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm2(x)).relu())


class Decoder(nn.Module):
    """Two blocks; tables of std 1, all other weights fan_in^-1/2."""

    def __init__(self, width: int, head: int, tied: bool = False) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(Block(width, head), Block(width, head))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, 256, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        self.tied = tied
        if tied:
            self.head.weight = self.bytes.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.head(self.norm(self.blocks(x)))
        return x * self.norm.weight.shape[0] ** -0.5 if self.tied else x


class Bytes(nn.Module):
    """An MLP over the eight bytes before each, as embeddings of 16; gain 5/3, as tanh asks for."""

    BEFORE = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 16)
        sizes = (16 * self.BEFORE, width, width, width)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, 256)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=5 / 3 * layer.in_features**-0.5)
        nn.init.normal_(self.head.weight, std=width**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.bytes(tokens.unfold(1, self.BEFORE, self.BEFORE)).flatten(2)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


class Logits(nn.Module):
    """A model of transformers that gives logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


IDS = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def make(setting: str, width: int) -> nn.Module:
    """The model of a setting, with initial values."""
    if setting == "mlp":
        return Bytes(width)
    if setting == "gpt2":
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.1}
        sizes = {"n_embd": width, "n_layer": 2, "n_head": width // 32, "n_positions": CONTEXT}
        return Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **quiet, **IDS)))
    if setting == "llama":
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=width // 16,
            num_key_value_heads=width // 32,
            head_dim=16,
            initializer_range=0.1,
            **IDS,
        )
        return Logits(transformers.LlamaForCausalLM(config))
    return Decoder(width, SETTINGS[setting].head, setting == "tied")


def prepared(setting: str, way: str, width: int, lr: float) -> tuple[nn.Module, Any]:
    """A model and its optimizer."""
    s = SETTINGS[setting]
    model, base = make(setting, width), make(setting, s.widths[0])
    example = torch.zeros(3, CONTEXT, dtype=torch.long)
    options: dict[str, Any] = {"scheme": "sp"} if way == "sp" else {}
    if setting == "head":
        options["grow"] = "head_dim"
    if setting == "zero":
        options["zero_readout"] = True
    if way == "no 1/r":
        options["tunables"] = {"output": width / s.widths[0]}
    mu = autofit.muify(model, example, base=base, **options)
    betas = {} if s.optimizer in ("sgd", "muon") else {"betas": (0.9, 0.95)}
    more: dict[str, Any] = {"momentum": 0.9} if s.optimizer == "sgd" else {}
    if s.optimizer == "muon":
        more = {"adjust_lr_fn": "match_rms_adamw"}
    decay = 0.1 if setting == "decay" else 0.0
    optimizer = mu.optimizer(s.optimizer, lr=lr, weight_decay=decay, **betas, **more)
    if way == "one lr":
        for group in optimizer.param_groups:
            group["lr"] = lr
    return model, optimizer


def train(setting: str, way: str, width: int, log2_lr: int, seed: int) -> dict[str, Any]:
    """One run, and what came of it; a loss that is not a number is that of a guess, 8 bits."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, optimizer = prepared(setting, way, width, 2.0**log2_lr)
    if setting == "mlp":
        loss = train_bytes(model, optimizer, seed)
    else:
        train_on(model, optimizer, SETTINGS[setting].steps, seed)
        loss = validate(model)
    loss = loss if loss == loss and loss < 20 else 20.0
    key = dict(zip(KEYS, (setting, way, width, log2_lr, seed), strict=True))
    return {**key, "loss": loss, "data": data()[2], "torch": torch.__version__}


def train_bytes(model: nn.Module, optimizer: Any, seed: int) -> float:
    """The MLP: a batch of windows of its eight bytes and the next."""
    s, size = SETTINGS["mlp"], Bytes.BEFORE
    order = torch.Generator().manual_seed(seed)

    def loss_of(source: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        batch = windows(source, count, generator)[:, : size + 1]
        return nn.functional.cross_entropy(model(batch[:, :size])[:, 0], batch[:, size])

    for _ in range(s.steps):
        optimizer.zero_grad()
        loss_of(data()[0], s.batch, order).backward()
        optimizer.step()
    with torch.no_grad():
        return loss_of(data()[1], 2048, torch.Generator().manual_seed(0)).item()


@dataclass(frozen=True)
class Answer:
    """What rows of one setting and way say.

    Attributes:
        losses: mean over seeds, by width and exponent.
        best: exponent by width; by_seed: for every seed.
        regret: at the widest, of the base's best.
        wider_worse: exponents at which a wider model is worse than the base.
    """

    losses: dict[int, dict[int, float]]
    best: dict[int, int]
    by_seed: dict[int, tuple[int, ...]]
    regret: float
    wider_worse: tuple[int, ...]

    @property
    def shift(self) -> int:
        """Steps of the grid from the base's optimum to the widest model's."""
        return self.best[max(self.best)] - self.best[min(self.best)]


def answer(rows: list[dict[str, Any]]) -> Answer:
    """Of the rows of one setting and way."""
    widths = sorted({r["width"] for r in rows})
    exponents = sorted({r["log2_lr"] for r in rows})
    losses = {
        w: {
            e: mean(found)
            for e in exponents
            if (found := [r["loss"] for r in rows if (r["width"], r["log2_lr"]) == (w, e)])
        }
        for w in widths
    }
    best = {w: min(at, key=at.__getitem__) for w, at in losses.items()}
    by_seed = {
        w: tuple(
            min((r for r in rows if (r["width"], r["seed"]) == (w, s)), key=lambda r: r["loss"])["log2_lr"]
            for s in sorted({r["seed"] for r in rows if r["width"] == w})
        )
        for w in widths
    }
    wide, base = losses[widths[-1]], losses[widths[0]]
    regret = wide[best[widths[0]]] - wide[best[widths[-1]]]
    worse = tuple(e for e in exponents if e in wide and e in base and wide[e] > base[e])
    return Answer(losses, best, by_seed, regret, worse)


def sections(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Tables of all settings that were run."""
    for setting in SETTINGS:
        mine = [r for r in rows if r["setting"] == setting]
        if not mine:
            continue
        exponents = sorted({r["log2_lr"] for r in mine})
        yield f"\n### {setting}\n"
        yield "| way | width | " + " | ".join(f"2^{e}" for e in exponents) + " | best | by seed |"
        yield "|" + "---|" * (len(exponents) + 4)
        said = []
        for way in WAYS:
            if not (own := [r for r in mine if r["way"] == way]):
                continue
            a = answer(own)
            for w, losses in a.losses.items():
                cells = " | ".join(f"{losses[e]:.3f}" if e in losses else "" for e in exponents)
                yield f"| {way} | {w} | {cells} | 2^{a.best[w]} | {' '.join(map(str, a.by_seed[w]))} |"
            worse = (
                f"; wider is worse at 2^{', 2^'.join(map(str, a.wider_worse))}"
                if a.wider_worse
                else "; wider is better at every one"
            )
            said.append(
                f"- {way}: the optimum moves {a.shift:+d} steps, the base's loses {a.regret:.3f} at the widest{worse}."
            )
        yield ""
        yield from said
        if setting in DRAWN:
            yield f"\n![loss over learning rate](transfer-{setting}.svg)"


DRAWN = ("decoder", "gpt2", "llama")


def draw(rows: list[dict[str, Any]], setting: str) -> None:
    """Loss over learning rate by width, with minima."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for axes, way in zip(panels, ("mup", "sp"), strict=True):
        a = answer([r for r in rows if (r["setting"], r["way"]) == (setting, way)])
        for colour, (width, losses) in zip(colours, a.losses.items(), strict=False):
            axes.plot(
                list(losses), list(losses.values()), color=colour, marker="o", markersize=4, label=f"width {width}"
            )
            axes.plot([a.best[width]], [losses[a.best[width]]], color=colour, marker="*", markersize=15)
        axes.axvline(a.best[min(a.best)], color="#888888", linewidth=0.8, linestyle="dashed")
        axes.set_title({"mup": "with muP", "sp": "without"}[way] + f": regret {a.regret:.3f}")
        axes.set_xlabel("log2 of the learning rate (stars: minima; dashed: the base's)")
        axes.legend(frameon=False)
    panels[0].set_ylabel("validation loss, nats per byte")
    top = max(loss for r in rows if r["setting"] == setting for loss in [r["loss"]] if loss < 6)
    panels[0].set_ylim(top=min(top, min(r["loss"] for r in rows if r["setting"] == setting) + 1.2))
    figure.savefig(DOCS / f"transfer-{setting}.svg", metadata={"Date": None})


def write() -> None:
    """Put tables into docs/is-it-right.md, between its two marks, and draw."""
    rows = read(ROWS)
    page = DOCS / "is-it-right.md"
    before, begin, rest = page.read_text().partition("<!-- transfer -->\n")
    _, end, after = rest.partition("<!-- end of transfer -->\n")
    if not begin or not end:
        raise SystemExit(f"{page} has no marks of transfer")
    page.write_text(before + begin + "\n".join(sections(rows)) + "\n\n" + end + after)
    for setting in DRAWN:
        if any(r["setting"] == setting for r in rows):
            draw(rows, setting)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("settings", nargs="+", choices=list(SETTINGS))
    runner.add_argument("--seeds", type=int, nargs="+")
    runner.add_argument("--jobs", type=int, default=2)
    runner.add_argument("--ray", help="address of a Ray cluster, 'auto', or 'local' to start one here")
    runner.add_argument("--rows", type=Path, default=ROWS)
    commands.add_parser("write")
    chosen = parser.parse_args()
    if chosen.command == "write":
        write()
        return
    wanted: list[tuple[Any, ...]] = []
    for name in chosen.settings:
        s = SETTINGS[name]
        wanted += product((name,), s.ways, s.widths, s.exponents, chosen.seeds or range(s.seeds))
    # at the base all ways are one run, but for what a negative control changes at any width
    run(train, KEYS, sorted(wanted, key=lambda k: -k[2]), chosen.rows, chosen.jobs, chosen.ray)


if __name__ == "__main__":
    main()
