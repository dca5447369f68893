"""The task of the transfer benchmarks: the next byte of the standard library's own sources.

Top-level ``*.py`` files of the running interpreter, sorted; every tenth is for validation. The hash that rows hold
depends on the interpreter's version.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

CONTEXT, BATCH = 64, 4


@cache
def data() -> tuple[torch.Tensor, torch.Tensor, str]:
    """Training bytes, bytes for validation, and a hash of both."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts = [b"".join(f.read_bytes() for i, f in enumerate(files) if (i % 10 == 9) == held) for held in (False, True)]
    train, held = (torch.frombuffer(bytearray(p), dtype=torch.uint8) for p in parts)
    return train, held, hashlib.sha256(parts[0] + parts[1]).hexdigest()[:12]


def windows(source: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Random windows of one byte more than the context."""
    starts = torch.randint(len(source) - CONTEXT - 1, (count,), generator=generator)
    return torch.stack([source[s : s + CONTEXT + 1] for s in starts]).long()


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next byte, in nats."""
    return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train_on(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    """Some steps; the order of the data is the seed's."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, windows(data()[0], BATCH, order)).backward()
        optimizer.step()


@torch.no_grad()
def validate(model: nn.Module) -> float:
    """Loss of 64 fixed windows."""
    return loss_of(model, windows(data()[1], 64, torch.Generator().manual_seed(0))).item()


def read(rows: Path) -> list[dict[str, Any]]:
    """Rows so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def run(
    train: Callable[..., dict[str, Any]],
    keys: Sequence[str],
    wanted: Iterable[tuple[Any, ...]],
    rows: Path,
    jobs: int,
    cluster: str | None = None,
) -> None:
    """Whatever is missing, in this order; ``train`` gives a row with its arguments under ``keys``.

    Args:
        train: one run.
        keys: names of its arguments.
        wanted: arguments of all runs.
        rows: file of what is done, to which the rest is added.
        jobs: processes here.
        cluster: address of a Ray cluster on which to run instead, or ``local`` for one that is started here.
    """
    done = {tuple(r[k] for k in keys) for r in read(rows)}
    missing = [k for k in wanted if k not in done]
    with rows.open("a") as file:
        for row in _on_ray(train, missing, jobs, cluster) if cluster else _in_processes(train, missing, jobs):
            print(json.dumps(row), file=file, flush=True)
            print(".", end="", file=sys.stderr, flush=True)


def _in_processes(train: Callable[..., dict[str, Any]], missing: list[Any], jobs: int) -> Iterator[dict[str, Any]]:
    with ProcessPoolExecutor(jobs) as pool:
        for job in as_completed([pool.submit(train, *k) for k in missing]):
            yield job.result()


def _on_ray(
    train: Callable[..., dict[str, Any]], missing: list[Any], jobs: int, cluster: str
) -> Iterator[dict[str, Any]]:
    """One task of one core each; a task whose worker or machine dies is run again."""
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False}
    ray.init(**({"num_cpus": jobs, **quiet} if cluster == "local" else {"address": cluster, "log_to_driver": False}))
    remote = ray.remote(num_cpus=1, max_retries=5)(train)
    waiting = [remote.remote(*k) for k in missing]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        ray.shutdown()
