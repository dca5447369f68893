"""What a report or a plan costs at the sizes that matter: on meta, one core, each run in a process of its own.

    python benchmarks/scale.py            # three runs of each case; writes docs/scale.md

Cases: Llama-3.1-405B and DeepSeek-V3 by their published configurations, a decoder of 1,000 layers, 100,000 parameter
tensors in 64 stages of a pipeline, and shards of 64 processes, of which one is simulated.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
RUNS = 3
Figures = dict[str, float]


@contextmanager
def timed(into: Figures, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start


def llama(layers: int = 126, **fields: Any) -> Any:
    """Llama-3.1-405B (arXiv 2407.21783, table 3)."""
    import transformers

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 8}
    sizes |= {"vocab_size": 128256, "max_position_embeddings": 131072, "num_hidden_layers": layers} | fields
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=rope))


def deepseek() -> Any:
    """DeepSeek-V3 (arXiv 2412.19437, section 4.2), whose sizes are the defaults of its configuration."""
    import transformers

    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config())


def report(build: Callable[[], Any]) -> Figures:
    """From the first import to the text of the report."""
    found: Figures = {}
    with timed(found, "seconds"):
        import torch

        import autofit

        with torch.device("meta"):
            model = build()
        with timed(found, "plan"):
            analysis = autofit.analyze(model)
        text = str(analysis)
    program = analysis.roles.growth.dims.program
    found |= {"billions": sum(p.numel() for p in model.parameters()) / 1e9, "tensors": len(analysis.plan.parameters)}
    return found | {"nodes": len(program.graph.nodes), "folded": program.folded, "lines": text.count("\n")}


def stages() -> Figures:
    """A plan of 10^5 tensors as a file, read and applied by one of 64 stages."""
    import torch

    import autofit
    from autofit.plan import ParameterTable

    found: Figures = {}
    with torch.device("meta"):
        model = llama(63, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, vocab_size=1000)
    plan = autofit.analyze(model).plan
    layers = [p for p in plan.parameters.values() if ".layers." in p.name]
    copies = 100_000 // len(layers) + 1

    def moved(name: str, by: int) -> str:
        head, layer, tail = name.split(".", 3)[1:]
        return f"model.{head}.{int(layer) + by}.{tail}"

    many = [
        replace(p, name=moved(p.name, 63 * i), names=(moved(p.name, 63 * i),)) for i in range(copies) for p in layers
    ]
    whole = replace(plan, parameters=ParameterTable((*many, *(p for p in plan.parameters.values() if p not in layers))))
    found["tensors"] = len(whole.parameters)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        with timed(found, "write"):
            path.write_text(json.dumps(whole.to_dict()))
        found["megabytes"] = path.stat().st_size / 1e6
        held = copies * 63 // 64
        with torch.device("meta"):
            stage = llama(held, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, vocab_size=1000)
        names = {f"model.layers.{i}": f"model.layers.{i + 7 * held}" for i in range(held)}
        with timed(found, "read"):
            read = autofit.Plan.from_dict(json.loads(path.read_text()))
        with timed(found, "apply"):
            part = autofit.apply(read, stage, names)
    with timed(found, "groups"):
        part.param_groups("adamw", lr=1e-3)
    return found


def shards() -> Figures:
    """One of 64 processes with fully sharded parameters; messages are not sent."""
    import torch
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    import autofit

    found: Figures = {}
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    mesh = distributed.init_device_mesh("cpu", (64,))
    model = autofit.deferred_init(
        lambda: llama(126, hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=2)
    )
    mu = autofit.muify(model)
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    model.to_empty(device="cpu")
    with timed(found, "init"):
        mu.init_(torch.Generator().manual_seed(0))
    with timed(found, "groups"):
        mu.optimizer("adamw", lr=1e-3)
    found |= {"tensors": len(mu.plan.parameters), "billions": sum(p.numel() for p in model.parameters()) / 1e9}
    return found


CASES: dict[str, tuple[str, Callable[[], Figures]]] = {
    "405b": ("Llama-3.1-405B, report", lambda: report(llama)),
    "671b": ("DeepSeek-V3, report", lambda: report(deepseek)),
    "1000": (
        "1,000 layers, report",
        lambda: report(
            lambda: llama(1000, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, vocab_size=1000)
        ),
    ),
    "stages": ("100,000 tensors, 64 stages", stages),
    "shards": ("64 shards, the first of them", shards),
}


def measure(case: str) -> Figures:
    """In a process of its own, on one core."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    pin = ["taskset", "-c", "0"] if sys.platform == "linux" else []
    run = subprocess.run([*pin, sys.executable, __file__, case], env=env, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def page(figures: dict[str, list[Figures]]) -> str:
    """The document."""
    import torch
    import transformers

    a, b = figures["stages"], figures["shards"]
    rows = "\n".join(
        f"| {CASES[case][0]} | {spread(found, 'seconds')} | {spread(found, 'plan')} | {spread(found, 'gigabytes', 2)} "
        + "".join(f"| {found[0][name]:.0f} " for name in ("billions", "tensors", "nodes", "folded"))
        + "|"
        for case, found in figures.items()
        if "folded" in found[0]
    )
    return f"""# Cost at scale

`python benchmarks/scale.py`, {date.today()}, torch {torch.__version__}, transformers {transformers.__version__},
Python {platform.python_version()}, one core. Medians of {RUNS}, in brackets the least and the most.

| case | seconds | of it the plan | peak memory, GB | parameters, billions | tensors | nodes | module calls copied |
|---|---|---|---|---|---|---|---|
{rows}

Seconds are from the first `import` to the text of the report, on `meta`: no weight is allocated. What is not the plan
(`autofit.analyze`) is importing torch and transformers, building the model and writing the report. A module call is
copied where its own forward, run on `meta`, makes op for op what the traced one made; others are traced.

## What processes do

A plan of {a[0]["tensors"]:.0f} parameter tensors is a JSON file of {a[0]["megabytes"]:.0f} MB, written in
{spread(a, "write")} s. One of 64 stages of a pipeline reads it in {spread(a, "read")} s, applies its part in
{spread(a, "apply", 2)} s (`autofit.apply`; nothing is captured), and has its optimizer groups in
{spread(a, "groups", 2)} s.

With {b[0]["tensors"]:.0f} tensors ({b[0]["billions"]:.2f} billion values) in 64 shards, simulated for one process
without messages, `mu.init_()` takes {spread(b, "init")} s on a CPU core and the optimizer
{spread(b, "groups", 2)} s. Every process draws every tensor whole and keeps its part, one tensor at a time, so that
values do not depend on the number of processes: that is the time of drawing all values once, whatever their number, and
the memory of the largest tensor beside the shards. On paper, 405 billion values of 4 bytes are 1.6 TB to write: a
second or two at the bandwidth of a GPU's memory.
"""


def spread(rows: list[Figures], name: str, digits: int = 1) -> str:
    values = [row[name] for row in rows]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """One case, or all of them and the page."""
    if len(sys.argv) > 1:
        found = CASES[sys.argv[1]][1]()
        found["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(found))
        return
    figures: dict[str, list[Figures]] = {case: [] for case in CASES}
    for _ in range(RUNS):
        for case in CASES:
            figures[case].append(measure(case))
            print(case, figures[case][-1], flush=True)
    PAGE.write_text(page(figures))


if __name__ == "__main__":
    main()
