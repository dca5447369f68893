"""What muP costs: analysis against one ``torch.export``, and training against the untouched model.

    python benchmarks/cost.py            # all, about 8 minutes on 2 cores
    python benchmarks/cost.py --quick    # fewer repetitions

Every figure is a ratio of medians of runs that alternate within this one process; the machine's speed cancels.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import time
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import nn

import autofit
from autofit.capture import capture
from autofit.examples import candidate_examples, without_cache
from autofit.measure import spreads
from autofit.passes.assign_roles import AssignRoles
from autofit.passes.infer_dims import InferDims
from autofit.passes.place_multipliers import PlaceMultipliers
from autofit.passes.resolve_base import ResolveBase

transformers.logging.set_verbosity_error()


def gpt2(layers: int = 12, width: int = 768) -> nn.Module:
    """GPT-2 (124M at 12 layers), real weights."""
    config = transformers.GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
    return transformers.GPT2LMHeadModel(config)


def clock(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def export(model: nn.Module) -> None:
    """One torch.export of the whole model, as a user would call it."""
    example = without_cache(model, next(iter(candidate_examples(model))))
    torch.export.export(model, example.args, example.kwargs, strict=False)


def analysis(repetitions: int) -> None:
    """``analyze`` and ``muify`` against one export of the same model."""
    model = gpt2()
    fresh = [copy.deepcopy(model) for _ in range(repetitions)]
    export(model)
    times: dict[str, list[float]] = {"export": [], "analyze": [], "muify": []}
    for i in range(repetitions):
        times["export"].append(clock(lambda: export(model)))
        times["analyze"].append(clock(lambda: autofit.analyze(model, base=256)))
        times["muify"].append(clock(lambda i=i: autofit.muify(fresh[i], base=256)))
    medians = {k: statistics.median(v) for k, v in times.items()}
    print(f"GPT-2 124M, {repetitions} paired runs, export {medians['export']:.2f} s")
    for name, goal in (("analyze", 1.3), ("muify", 2.5)):
        ratios = sorted(a / b for a, b in zip(times[name], times["export"], strict=True))
        spread = f"[{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        print(f"  {name}: {medians[name] / medians['export']:.2f}x export {spread} (goal <= {goal})")


def stages() -> None:
    """Milliseconds per thousand nodes at 12, 24 and 48 layers: flat means linear."""
    print("stage cost per 1000 ops, ms")
    for layers in (12, 24, 48):
        with torch.device("meta"):
            model = gpt2(layers, width=256)
        program = capture(model)
        count = sum(1 for _ in program.calls()) / 1000
        row = {}
        dims = InferDims()(program)
        growth = ResolveBase(64)(dims)
        roles = AssignRoles()(growth)
        modules = dict(model.named_modules())
        for name, run in {
            "capture": lambda m=model: capture(m),
            "dims": lambda p=program: InferDims()(p),
            "base": lambda d=dims: ResolveBase(64)(d),
            "roles": lambda g=growth: AssignRoles()(g),
            "place": lambda r=roles, m=modules: PlaceMultipliers(m)(r),
            "measure": lambda m=model: spreads(m),
        }.items():
            row[name] = statistics.median(clock(run) for _ in range(3)) * 1000 / count
        print(f"  {layers} layers, {count * 1000:.0f} ops: " + ", ".join(f"{k} {v:.1f}" for k, v in row.items()))


def training(repetitions: int) -> None:
    """A training step and an optimizer step, untouched against muified, in turn."""
    config = transformers.GPT2Config(n_layer=6, n_embd=512, n_head=8, vocab_size=8192)
    torch.manual_seed(0)
    plain = transformers.GPT2LMHeadModel(config)
    rewritten = copy.deepcopy(plain)
    mu = autofit.muify(rewritten, base=256)
    pairs = {
        "untouched": (plain, torch.optim.AdamW(plain.parameters(), lr=1e-4)),
        "muified": (rewritten, mu.optimizer("adamw", lr=1e-4)),
    }
    ids = torch.randint(0, 8192, (4, 128))
    step: dict[str, list[float]] = {k: [] for k in pairs}
    update: dict[str, list[float]] = {k: [] for k in pairs}

    def forward_backward(model: nn.Module) -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    for i in range(repetitions + 3):
        order = list(pairs) if i % 2 else list(pairs)[::-1]
        for name in order:
            model, optimizer = pairs[name]
            optimizer.zero_grad()
            seconds = clock(lambda m=model: forward_backward(m))
            updating = clock(optimizer.step)
            if i >= 3:
                step[name].append(seconds + updating)
                update[name].append(updating)
    for label, times in (("training step", step), ("optimizer step", update)):
        ratios = sorted(a / b for a, b in zip(times["muified"], times["untouched"], strict=True))
        print(
            f"{label}: {statistics.median(ratios):.3f}x untouched, median of {len(ratios)} pairs "
            f"[quartiles {ratios[len(ratios) // 4]:.3f}..{ratios[3 * len(ratios) // 4]:.3f}], "
            f"{len(pairs['muified'][1].param_groups)} groups"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    analysis(3 if quick else 7)
    stages()
    training(15 if quick else 60)
