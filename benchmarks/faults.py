"""Ways in which integrations of muP were wrong, each planted into a model that is right, and who sees it.

``python benchmarks/faults.py run`` writes docs/faults.md: every fault under the static check and the coordinate check,
three seeds; and the same decoders without a fault, and the families of the tests with all optimizers, of which none may
be called wrong.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from handmade import BASE, Decoder, Options, batch, train

import autofit

ROOT = Path(__file__).parent.parent
MUP = "https://github.com/microsoft/mup"
LR = {"adamw": 1e-3, "sgd": 0.1}


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Attributes:
        name: of it, as in `handmade`.
        on: part of the name of the parameter or module that a finding has to be about.
        source: where it happened or is warned of: address, and what is there.
        options: the decoder in which it is planted.
        measured: whether widths of 64 to 256 and a few steps show it.
        static: whether initial values, factors and groups show it.
    """

    name: str
    on: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    measured: bool = True
    static: bool = True


SGD: dict[str, Any] = {"optimizer": "sgd"}
FAULTS = (
    Fault(
        "hidden lr not scaled", "blocks", f"{MUP}/pull/73: the package exported torch's own optimizers beside its own"
    ),
    Fault(
        "readout multiplier missing",
        "head",
        "https://github.com/vllm-project/vllm/pull/52158: a head of its own lost the factor behind the decoder",
    ),
    Fault("readout multiplier doubled", "head", f"{MUP}/issues/7: two forms of the readout's rule side by side"),
    Fault(
        "1/r and lr/r on the same readout",
        "head.weight",
        "https://github.com/karpathy/nanochat/pull/644: on the logits and on the head's lr",
    ),
    Fault(
        "readout's backward scaled by r",
        "blocks",
        "https://github.com/graphcore-research/unit-scaling/issues/73: factors that act in one direction, and SGD",
        SGD,
        static=False,
    ),
    Fault("tied table rescaled", "wte", f"{MUP}/issues/55: the embedding's std grows with width", {"tied": True}),
    Fault(
        "tied table zeroed",
        "wte",
        "https://github.com/karpathy/llm.c/pull/650: zeroing the readout zeroes the embedding",
        {"tied": True},
        measured=False,
    ),
    Fault(
        "attention left at d^-1/2",
        "attention",
        f"{MUP}/issues/8: a multiplier of sqrt(d) takes 1/d back",
        {"growing_head": True},
        measured=False,
    ),
    Fault(
        "attention scaled twice",
        "attention",
        "https://github.com/huggingface/transformers/pull/38290: on the queries, and inside the fused op",
        {"growing_head": True},
        measured=False,
    ),
    Fault(
        "embedding lr scaled",
        "wte",
        "https://github.com/microsoft/dion/pull/94: a table under a rule for matrices (near)",
    ),
    Fault(
        "keys and values of one head as hidden",
        "kv.weight",
        "https://github.com/marin-community/levanter/pull/1231: which role projections into fixed heads have",
        {**SGD, "shared_kv": True},
    ),
    Fault(
        "keys and values of one head under the readout's 1/r",
        "kv.weight",
        f"{MUP}/issues/70: how to treat shared heads",
        {"shared_kv": True},
    ),
    Fault(
        "router with the rule of a readout",
        "router",
        f"{MUP}/issues/48: a router as MuReadout; without the factor, one step moves it like r",
        {"experts": True},
    ),
    Fault(
        "router as hidden",
        "router",
        "arXiv 2508.09752 derives rules of routers",
        {**SGD, "experts": True},
        measured=False,
    ),
    Fault(
        "experts' stack axis counted as fan-in",
        ".up",
        "https://github.com/keras-team/keras/pull/22789: fans of stacked kernels (not muP)",
        {"experts": True},
    ),
    Fault(
        "a fused weight with the fan of one head",
        "kv.weight",
        "https://github.com/pytorch/pytorch/pull/171361: fans of packed projections (not muP)",
    ),
    Fault("(in, out) layout read transposed", "features", f"{MUP}, README, limitations", {"features": True}),
    Fault(
        "initial values forgotten for one family",
        "out.weight",
        "https://github.com/OpenBioML/protein-lm-scaling/pull/64: which initialization runs last",
    ),
    Fault("initial values rescaled twice", "blocks", f"{MUP}, README: rescale_params when a checkpoint is loaded"),
    Fault(
        "initial values of the readout put into the tied table",
        "wte",
        "https://github.com/Modalities/modalities/pull/456: an initializer that ignores ties (not muP)",
        {"tied": True},
    ),
    Fault(
        "name list that never matches",
        "blocks",
        "https://github.com/ml-explore/mlx-lm/pull/1622: a name that the checkpoint does not have",
    ),
    Fault(
        "schedule that overwrites the groups",
        "blocks",
        "https://github.com/huggingface/nanotron/pull/404: warmup from the global lr",
        static=False,
    ),
    Fault("weight decay not compensated", "blocks", f"{MUP}/pull/73: decay with MuAdam", measured=False),
    Fault("eps not scaled", "wte", "https://github.com/EleutherAI/nanoGPT-mup, README", measured=False),
    Fault("SGD with Adam's rule", "wte", "https://github.com/graphcore-research/unit-scaling/pull/74 (near)", SGD),
    Fault(
        "norm gains given lr/r",
        "norm",
        "https://github.com/open-lm-engine/lm-engine/pull/515: a pattern for all that is left",
    ),
    Fault("base and target swapped", "blocks", f"{MUP}/issues/30: base shapes from the wrong model (near)"),
    Fault(
        "embeddings times sqrt(d) not counted",
        "wte",
        "https://github.com/RLinf/RLinf/pull/1098: the factor of Gemma's embedding (not muP)",
    ),
    Fault(
        "the readout's own d^-1/2 counted twice",
        "head",
        "https://github.com/ml-explore/mlx-lm/pull/764: a multiplier that leaks into tied logits",
    ),
    Fault("bias under the readout multiplier", "head_bias", f"{MUP}/issues/12: (Wx + b)/fan_in", measured=False),
    Fault(
        "a head in no group",
        "head.weight",
        "https://github.com/ACEsuit/mace/pull/1529: a module that no list of groups named (not muP)",
        measured=False,
    ),
)
RIGHT: tuple[dict[str, Any], ...] = (
    {},
    {"tied": True},
    {"shared_kv": True},
    {"experts": True},
    {"growing_head": True},
    {"features": True},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "shared_kv": True},
    {"optimizer": "sgd", "experts": True},
)


def statically(o: Options, seed: int = 0) -> autofit.Check:
    """The static check of a decoder at four times the base."""
    torch.manual_seed(seed)
    wide, optimizer, *_ = train(Decoder(4 * BASE, o), LR[o.optimizer])
    return autofit.check(wide, batch(o), base=Decoder(BASE, o), param_groups=optimizer, lr=LR[o.optimizer])


def by_training(o: Options, seeds: int = 3, widths: tuple[int, ...] = (64, 128, 256)) -> autofit.CoordCheck:
    """The coordinate check; SGD without decay, which would be all that it learns in a few steps."""
    decay = 0.1 if o.optimizer == "adamw" else 0.0
    return autofit.coord_check(
        lambda width: train(Decoder(width, o), LR[o.optimizer], decay), widths, BASE, seeds=seeds, data=batch(o)
    )


def told(fault: Fault, answer: autofit.Check) -> list[str]:
    """What the static check says of a fault, where it is."""
    return list(dict.fromkeys(f.what for f in answer.findings if fault.on in f.name))


def seen(fault: Fault, answer: autofit.CoordCheck) -> str:
    """The worst slope where a fault is."""
    for f in answer.faults:
        if fault.on in f.line.name:
            return f"{f.what} of {f.line.name}: {f.slope}"
    return ""


def rows(seeds: int) -> Iterator[tuple[str, str, str, str]]:
    """Every fault: what both checks say."""
    for fault in FAULTS:
        o = Options(**fault.options, fault=fault.name)
        static = [told(fault, statically(o, seed)) for seed in range(seeds)]
        measured = seen(fault, by_training(o, seeds))
        same = ", ".join(static[0]) if all(static) else ""
        print(f"{fault.name}: {same or '-'} | {measured or '-'}", flush=True)
        yield fault.name, same, measured, fault.source


def false_alarms(seeds: int) -> tuple[int, list[str]]:
    """How often something right was checked, and what was called wrong."""
    sys.path.insert(0, str(ROOT / "tests"))
    from families import FAMILIES

    count, wrong = 0, []
    for options in RIGHT:
        o = Options(**options)
        for seed in range(seeds):
            count += 1
            wrong += [f"static: {options}"] * (not statically(o, seed).ok)
        count += 1
        wrong += [f"measured: {options}"] * (not by_training(o, seeds).ok)
    for name, family in FAMILIES.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            mu = autofit.muify(family.build(), base=family.main // 4, frozen="plan", unused="freeze")
            for optimizer in OPTIMIZERS:
                more = {"beside": {"lr": 1e-3}} if optimizer == "muon" else {}
                groups = mu.param_groups(optimizer, lr=1e-3, **more)
                count += 1
                answer = autofit.check(mu, param_groups=groups, optimizer=optimizer, lr=1e-3)
                wrong += [f"static: {name}, {optimizer}, seed {seed}"] * bool(answer.findings and not answer.ok)
    return count, wrong


OPTIMIZERS = ("adamw", "adam", "sgd", "lion", "adafactor", "nadam", "radam", "adagrad", "muon")


def main() -> None:
    """Write docs/faults.md."""
    warnings.simplefilter("ignore")
    seeds = 3
    found = list(rows(seeds))
    count, wrong = false_alarms(seeds)
    caught = sum(bool(static or measured) for _, static, measured, _ in found)
    lines = [
        "# Planted faults",
        "",
        f"Written by `python benchmarks/faults.py run` on {date.today()} with torch {torch.__version__}: ways in which "
        "integrations of muP were wrong, or the same mistake elsewhere, each planted into a decoder of two blocks that "
        "is in muP by hand (benchmarks/handmade.py).",
        "",
        f"{caught} of {len(found)} are seen. Static: `autofit.check` on width 256 against 64, the kind of finding, in "
        f"each of {seeds} seeds. Measured: `autofit.coord_check` over widths 64, 128 and 256, {seeds} seeds, 4 steps, "
        "the worst slope there.",
        "",
        f"Of {count} checks of what is right ({len(RIGHT)} decoders by both checks, 24 families of transformers with "
        f"{len(OPTIMIZERS)} optimizers by the static one, {seeds} seeds) {len(wrong)} were called wrong"
        + (": " + "; ".join(wrong) if wrong else "")
        + ".",
        "",
        "| fault | static | measured | where it happened |",
        "|---|---|---|---|",
        *(f"| {name} | {static or '-'} | {measured or '-'} | {source} |" for name, static, measured, source in found),
        "",
    ]
    (ROOT / "docs" / "faults.md").write_text("\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1:] != ["run"]:
        sys.exit(__doc__)
    main()
