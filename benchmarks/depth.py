"""Does the best learning rate hold over depth?

A pre-LN decoder of width 32 (d_head 16, ReLU FFN x4, LayerNorm gains, learned positions, context 64, untied) is
trained for 100 steps on bytes by Adam, with 2 to 32 layers, under muP alone and with a scheme of depth; base 2 layers:

    python benchmarks/depth.py run --jobs 2        # resumable; rows in docs/depth.jsonl
    python benchmarks/depth.py table
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bottleneck import Decoder
from bytes_task import CONTEXT, data, read, run, train_on, validate

import autofit

ROWS = Path(__file__).parent.parent / "docs" / "depth.jsonl"
SCHEMES = ("mup", "mup+completep", "mup+depth")
WIDTH, BASE, STEPS = 32, 2, 100


def train(scheme: str, layers: int, exponent: int, seed: int) -> dict[str, Any]:
    """One run, and what came of it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Decoder(WIDTH, "plain", layers)
    example = torch.zeros(3, CONTEXT, dtype=torch.long)
    mu = autofit.muify(model, example, base=Decoder(WIDTH, "plain", BASE), scheme=scheme)
    train_on(model, mu.optimizer("adam", lr=2.0**exponent, betas=(0.9, 0.95), fused=True), STEPS, seed)
    key = {"scheme": scheme, "layers": layers, "log2_lr": exponent, "seed": seed}
    return {**key, "loss": validate(model), "data": data()[2], "torch": torch.__version__}


def table() -> Iterator[str]:
    """Loss by learning rate, the optimum, and the regret of the base's optimum, by scheme and depth."""
    rows = read(ROWS)
    exponents = sorted({r["log2_lr"] for r in rows})
    yield "| scheme | layers | " + " | ".join(f"2^{e}" for e in exponents) + " | best | by seed | regret |"
    yield "|" + "---|" * (len(exponents) + 5)
    for scheme in SCHEMES:
        base_best = None
        for layers in sorted({r["layers"] for r in rows if r["scheme"] == scheme}):
            mine = [r for r in rows if (r["scheme"], r["layers"]) == (scheme, layers)]
            losses = {e: mean(r["loss"] for r in mine if r["log2_lr"] == e) for e in exponents}
            best = min(losses, key=losses.__getitem__)
            base_best = best if base_best is None else base_best
            by_seed = [
                min((r for r in mine if r["seed"] == s), key=lambda r: r["loss"])["log2_lr"]
                for s in sorted({r["seed"] for r in mine})
            ]
            cells = " | ".join(f"{losses[e]:.3f}" for e in exponents)
            regret = losses[base_best] - losses[best]
            yield f"| {scheme} | {layers} | {cells} | 2^{best} | {' '.join(map(str, by_seed))} | {regret:.3f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("--layers", type=int, nargs="+", default=[2, 8, 32])
    runner.add_argument("--exponents", type=int, nargs="+", default=[-11, -10, -9, -8, -7, -6, -5])
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    runner.add_argument("--jobs", type=int, default=2)
    commands.add_parser("table")
    chosen = parser.parse_args()
    if chosen.command == "run":
        wanted = product(SCHEMES, sorted(chosen.layers, reverse=True), chosen.exponents, chosen.seeds)
        keys = ("scheme", "layers", "log2_lr", "seed")
        run(train, keys, sorted(wanted, key=lambda k: -k[1]), ROWS, chosen.jobs)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
