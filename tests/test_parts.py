"""A plan made once for a whole model, applied by four processes to the stage of a pipeline that each holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

import autofit

WIDTH, STAGES, LAYERS = 64, 4, 8
TOKENS = torch.arange(24).view(2, 12) % 17


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (f(h).unflatten(-1, (-1, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 17)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Stage(nn.Module):
    """Some of the layers, counted from 0, with the table before the first and the head after the last."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.before = nn.Embedding(17, WIDTH) if rank == 0 else nn.Identity()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS // STAGES))
        self.after = nn.Linear(WIDTH, 17) if rank == STAGES - 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        for layer in self.layers:
            x = layer(x)
        return self.after(x)


def names(rank: int) -> dict[str, str]:
    held = range(LAYERS // STAGES)
    return {f"layers.{i}": f"layers.{i + rank * len(held)}" for i in held} | {"before": "table", "after": "head"}


def settings(optimizer: torch.optim.Optimizer, model: nn.Module, title: Any) -> dict[str, Any]:
    of = {id(p): name for name, p in model.named_parameters()}
    return {
        title(of[id(p)]): {k: v for k, v in g.items() if k not in ("params", "param_names")}
        for g in optimizer.param_groups
        for p in g["params"]
    }


def run_stage(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=STAGES)
    stage = autofit.deferred_init(lambda: Stage(rank))
    part = autofit.apply(Path(folder) / "plan.json", stage, names(rank))
    stage.to_empty(device="cpu")
    part.init_(torch.Generator().manual_seed(3))
    x = TOKENS if rank == 0 else torch.empty(*TOKENS.shape, WIDTH)
    if rank:
        distributed.recv(x, rank - 1)
    y = stage(x)
    if rank < STAGES - 1:
        distributed.send(y.detach().contiguous(), rank + 1)
    title = {own: part.whole[own] for own in part.whole}.__getitem__
    said = {
        "groups": settings(part.optimizer("adamw", lr=0.01, weight_decay=0.1), stage, title),
        "values": {part.whole[n]: p.detach() for n, p in stage.named_parameters()},
        "output": y.detach() if rank == STAGES - 1 else None,
    }
    torch.save(said, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_four_stages_are_the_whole_model(tmp_path: Path) -> None:
    whole = autofit.deferred_init(Whole)
    mu = autofit.muify(whole, TOKENS, base=16)
    (tmp_path / "plan.json").write_text(json.dumps(mu.plan.to_dict()))
    whole.to_empty(device="cpu")
    mu.init_(torch.Generator().manual_seed(3))
    multiprocessing.start_processes(run_stage, (str(tmp_path),), STAGES, start_method="spawn")
    stages = [torch.load(tmp_path / f"{rank}.pt") for rank in range(STAGES)]

    values = {name: t for said in stages for name, t in said["values"].items()}
    expected = dict(whole.named_parameters())
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], p) for name, p in expected.items())
    groups = {name: g for said in stages for name, g in said["groups"].items()}
    assert groups == settings(mu.optimizer("adamw", lr=0.01, weight_decay=0.1), whole, str)
    assert len({g["lr"] for g in groups.values()}) > 1
    torch.testing.assert_close(stages[-1]["output"], whole(TOKENS).detach())


def test_a_part_with_values_is_rescaled_once() -> None:
    mu = autofit.analyze(Whole(), TOKENS, base=16)
    stage = Stage(3)
    before = {n: p.detach().clone() for n, p in stage.named_parameters()}
    part = autofit.apply(mu.plan, stage, names(3))
    for name, p in stage.named_parameters():
        factor = mu.plan.parameters[part.whole[name]].init_factor
        assert torch.allclose(p, before[name] * factor)
    x = torch.randn(2, 12, WIDTH)
    plain = Stage(3)
    plain.load_state_dict(stage.state_dict())
    assert not torch.allclose(stage(x), plain(x))  # the readout's multiplier is there
    with pytest.raises(autofit.LoweringError, match="already muified"):
        autofit.apply(mu.plan, stage, names(3))


def test_what_the_plan_does_not_know_is_refused(tmp_path: Path) -> None:
    plan = autofit.analyze(Whole(), TOKENS, base=16).plan
    with pytest.raises(autofit.PlanError, match=r"has no parameter after\.weight"):
        autofit.apply(plan, Stage(3))
    small = Stage(3)
    small.after = nn.Linear(WIDTH, 5)
    with pytest.raises(autofit.PlanError, match=r"after.weight is \(5, 64\), and head.weight \(17, 64\)"):
        autofit.apply(plan, small, names(3))
    assert not small.after._forward_pre_hooks
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(autofit.PlanError, match="cannot be read"):
        autofit.apply(tmp_path / "plan.json", Stage(3), names(3))
    with pytest.raises(autofit.PlanError, match="was not seen"):
        autofit.apply(plan, Stage(3), names(3)).init_()
