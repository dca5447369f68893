"""Are the exponents that the static check derives those that training has? Eight families, with muP and without.

``python benchmarks/predicted.py run`` trains one small step at widths 64 to 512, three seeds, and writes
docs/predicted.jsonl, docs/predicted.md and docs/predicted.svg. Slopes are compared at every module and parameter: of
what it gives at the start, and of what the step changes there. Initial standard deviations are width^-1/2, so that
without muP, too, sizes are powers of the width; with a constant like 0.02 small terms that grow take over on the way.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure
from torch import nn

import autofit
from autofit.slopes import Line

DOCS = Path(__file__).parent.parent / "docs"
WIDTHS = (64, 128, 256, 512)
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": 61}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA_LIKE = {"num_hidden_layers": 2, "head_dim": 16, **IDS}


def gpt2(width: int) -> nn.Module:
    """Fused projections of layout (in, out), learned positions."""
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False}
    config = transformers.GPT2Config(
        n_embd=width, n_layer=2, n_head=width // 16, n_positions=32, initializer_range=width**-0.5, **quiet, **IDS
    )
    return transformers.GPT2LMHeadModel(config)


def llama_like(name: str, **fields: Any) -> Callable[[int], nn.Module]:
    """Grouped queries, gates, root-mean-square norms."""

    def make(width: int) -> nn.Module:
        config = getattr(transformers, f"{name}Config")(
            hidden_size=width,
            intermediate_size=2 * width,
            num_attention_heads=width // 16,
            num_key_value_heads=width // 32,
            initializer_range=width**-0.5,
            **LLAMA_LIKE,
            **fields,
        )
        model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
        return model

    return make


def bert_like(name: str, model: str, **fields: Any) -> Callable[[int], nn.Module]:
    """Encoders with norms behind or in front, as the class has them."""

    def make(width: int) -> nn.Module:
        config = getattr(transformers, f"{name}Config")(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=width // 16,
            initializer_range=width**-0.5,
            **QUIET,
            **fields,
        )
        made: nn.Module = getattr(transformers, model)(config)
        return made

    return make


def vit(width: int) -> nn.Module:
    """With patches whose weights, as those of any first layer, do not shrink with width."""
    model = bert_like("ViT", "ViTForImageClassification", image_size=16, patch_size=4, num_labels=10)(width)
    nn.init.normal_(model.get_parameter("vit.embeddings.patch_embeddings.projection.weight"), std=48**-0.5)
    return model


def t5(width: int) -> nn.Module:
    """Encoder and decoder, no scale of attention, initial values of its own."""
    config = transformers.T5Config(
        d_model=width,
        d_ff=2 * width,
        d_kv=16,
        num_heads=width // 16,
        num_layers=2,
        dropout_rate=0.0,
        tie_word_embeddings=False,
        vocab_size=61,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def neox(width: int) -> nn.Module:
    """Attention and feed-forward side by side."""
    config = transformers.GPTNeoXConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        initializer_range=width**-0.5,
        max_position_embeddings=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **IDS,
    )
    return transformers.GPTNeoXForCausalLM(config)


class Convolutions(nn.Module):
    """Residual convolutions with group norms, by torch's own initialization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(1, width) for _ in range(2)])
        self.depthwise = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2)])
        self.pointwise = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to (batch, 10)."""
        x = self.stem(x)
        for norm, depthwise, pointwise in zip(self.norms, self.depthwise, self.pointwise, strict=True):
            x = x + pointwise(torch.relu(depthwise(norm(x))))
        return self.head(self.norm(x.mean((2, 3))))


def convolutions(width: int) -> tuple[nn.Module, torch.Tensor]:
    """With images of 8 by 8."""
    return Convolutions(width), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


FAMILIES: dict[str, Callable[[int], Any]] = {
    "gpt2": gpt2,
    "llama": llama_like("Llama"),
    "qwen2": llama_like("Qwen2"),
    "gpt_neox": neox,
    "bert": bert_like("Bert", "BertForMaskedLM", tie_word_embeddings=False, vocab_size=61),
    "t5": t5,
    "vit": vit,
    "convolutions": convolutions,
}


def compared(family: str) -> Iterator[dict[str, Any]]:
    """Every module and parameter of a family: slopes, measured and predicted."""
    found = autofit.coord_check(FAMILIES[family], WIDTHS, lr=1e-4, steps=1, seeds=3)
    for way, lines in (("muP", found.lines), ("without muP", found.control)):
        for ln in lines:
            if ln.kind != "logits":
                yield {"family": family, "way": way, "kind": ln.kind, "name": ln.name, **_slopes(ln)}


def _slopes(ln: Line) -> dict[str, Any]:
    pairs = zip(("start", "change"), (ln.start_slope, ln.change_slope), ln.predicted, strict=True)
    return {what: [s.value, s.error, p] for what, s, p in pairs if s is not None and p is not None}


def write(rows: list[dict[str, Any]]) -> None:
    """The table and the picture."""
    (DOCS / "predicted.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = [
        "# Predicted and measured exponents",
        "",
        f"Written by `python benchmarks/predicted.py run` on {date.today()} with torch {torch.__version__} and "
        f"transformers {transformers.__version__}: slopes over widths {', '.join(map(str, WIDTHS))}, one step of Adam "
        "with lr 1e-4, three seeds. Largest difference between the slope that exponents of width give and the measured "
        "one; in brackets, how many were compared.",
        "",
        "| family | way | modules, start | modules, change | parameters, start | parameters, change |",
        "|---|---|---|---|---|---|",
    ]
    for family in dict.fromkeys(r["family"] for r in rows):
        for way in ("muP", "without muP"):
            cells = [
                _worst([r for r in rows if (r["family"], r["way"], r["kind"]) == (family, way, kind)], what)
                for kind in ("module", "parameter")
                for what in ("start", "change")
            ]
            lines.append(f"| {family} | {way} | {' | '.join(cells)} |")
    far = [r for r in rows if r["kind"] == "parameter" and "change" in r and _off(r, "change") > 0.15]
    lines += ["", "![measured over predicted](predicted.svg)", "", "Parameters that are off by more than 0.15:", ""]
    lines += [
        f"- {r['family']}, {r['way']}: {r['name']}: {r['change'][0]:+.2f} against {r['change'][2]:+.2f}" for r in far
    ]
    (DOCS / "predicted.md").write_text("\n".join([*lines, ""]))
    draw(rows)


def _off(row: dict[str, Any], what: str) -> float:
    return abs(row[what][0] - row[what][2])


def _worst(rows: list[dict[str, Any]], what: str) -> str:
    known = [r for r in rows if what in r]
    if not known:
        return "-"
    worst = max(known, key=lambda r: _off(r, what))
    return f"{_off(worst, what):.2f} ({len(known)}) {worst['name'] if _off(worst, what) > 0.15 else ''}".strip()


def draw(rows: list[dict[str, Any]]) -> None:
    """Measured over predicted."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("start", "change"), strict=True):
        for way, colour, marker in (("without muP", "#D55E00", "s"), ("muP", "#0072B2", "o")):
            points = [r[what] for r in rows if r["way"] == way and what in r and r["kind"] == "module"]
            axes.plot(
                [p[2] for p in points],
                [p[0] for p in points],
                linestyle="none",
                marker=marker,
                markersize=4,
                alpha=0.6,
                color=colour,
                label=way,
            )
        ends = [-0.8, 2.2]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        for off in (-0.15, 0.15):
            axes.plot(ends, [e + off for e in ends], color="#888888", linewidth=0.6, linestyle="dashed")
        axes.set_title({"start": "a module's output at the start", "change": "what one step changes in it"}[what])
        axes.set_xlabel("predicted slope over width")
        axes.set_ylabel("measured slope")
        axes.legend(frameon=False)
    figure.savefig(DOCS / "predicted.svg", metadata={"Date": None})


def main() -> None:
    """All families, or those that are named, whose rows then take the place of the old ones."""
    warnings.simplefilter("ignore")
    names = sys.argv[2:] or list(FAMILIES)
    old = DOCS / "predicted.jsonl"
    kept = (
        [r for r in map(json.loads, old.read_text().splitlines()) if r["family"] not in names] if old.exists() else []
    )
    for name in names:
        fresh = list(compared(name))
        for way in ("muP", "without muP"):
            mine = [r for r in fresh if r["way"] == way and r["kind"] == "module"]
            print(name, way, _worst(mine, "start"), _worst(mine, "change"), flush=True)
        kept += fresh
        write(sorted(kept, key=lambda r: list(FAMILIES).index(r["family"])))


if __name__ == "__main__":
    if sys.argv[1:2] != ["run"]:
        sys.exit(__doc__)
    main()
