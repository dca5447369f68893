"""Equal blocks are captured once: the answer is that of a capture of the whole, for models of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from families import FAMILIES
from torch import nn

import autofit
from autofit import folding
from autofit.capture import capture
from autofit.program import Program

DEPTHS = ("n_layer", "num_hidden_layers", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
ATTENTION = {"num_key_value_heads": 2, "head_dim": 16}
X = torch.zeros(3, 16)
TRACED_EACH = ("resnet", "falcon")
"""The first writes into buffers, and a list is an index in the second, which has no values on meta."""


@contextmanager
def whole() -> Iterator[None]:
    """Nothing is folded."""
    with patch.object(folding, "COPIES", 10**9):
        yield


def text(program: Program) -> list[str]:
    """A graph with its values, modules and source lines; nodes named in its order."""
    folding._renumber(program.graph)
    lines = []
    for node in program.graph.nodes:
        values = node.meta.get("val")
        forms = [
            (tuple(v.shape), v.stride(), v.dtype) if isinstance(v, torch.Tensor) else v
            for v in (values if isinstance(values, tuple | list) else [values])
        ]
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        lines.append(f"{node.format_node()} {forms} {stack} {node.meta.get('stack_trace')}")
    return lines


def deep(name: str) -> nn.Module:
    family = FAMILIES[name]
    if name == "resnet":
        return family.build(depths=[1, 1, 6, 1])
    if name == "clip":
        fields = {k: {**v, "num_hidden_layers": 5} for k, v in family.fields.items() if k.endswith("_config")}
        return family.build(**fields)
    return family.build(**{field: 7 if name == "deepseek_v3" else 5 for field in DEPTHS if field in family.fields})


@pytest.mark.parametrize("name", FAMILIES)
def test_folded_and_unfolded_are_one_answer(name: str) -> None:
    torch.manual_seed(0)
    model = deep(name)
    mine = autofit.analyze(model, base=16)
    with whole():
        other = autofit.analyze(model, base=16)
    programs = [found.roles.growth.dims.program for found in (mine, other)]
    assert programs[1].folded == 0
    assert (programs[0].folded >= 4) == (name not in TRACED_EACH)
    if name != "deberta_v2":  # all copies read the literals of the traced one
        assert text(programs[0]) == text(programs[1])
    assert str(mine) == str(other)
    plain = [replace(f.plan, sites=tuple(replace(s, node="") for s in f.plan.sites)) for f in (mine, other)]
    assert plain[0] == plain[1]


class Block(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.scale, self.calls = scale, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.two(self.one(x).relu())


class Stack(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def captured(model: nn.Module, x: torch.Tensor = X) -> Program:
    """Captured, after a comparison with a capture of the whole, and with nothing left on the model."""
    before = [(m, dict(m.__dict__), dict(m._parameters)) for m in model.modules()]
    program = capture(model, x)
    for module, attributes, parameters in before:
        assert module.__dict__ == attributes
        assert module._parameters == parameters
    with whole():
        assert text(program) == text(capture(model, x))
    return program


def test_a_copy_that_differs_is_traced() -> None:
    assert captured(Stack([Block() for _ in range(6)])).folded == 5
    assert captured(Stack([Block(1.0 if i != 3 else 0.5) for i in range(6)])).folded == 4
    assert captured(Stack([Block(0.5 if i % 2 else 1.0) for i in range(6)])).folded == 4
    assert captured(Stack([Block(float(i)) for i in range(6)])).folded == 0


def test_a_copy_that_does_not_run_has_its_parameters() -> None:
    class Skipping(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks[:4]:
                x = block(x)
            return x

    model = Skipping([Block() for _ in range(6)])
    assert captured(model).folded == 3
    assert {p.name for p in capture(model, X).parameters} == dict(model.named_parameters()).keys()


class Counting(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Keeping(Block):
    last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = super().forward(x)
        return self.last


class Normalized(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Writing(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2.0) + self.two(self.one(x))


@pytest.mark.parametrize("kind", [Counting, Keeping, Normalized, Writing])
def test_a_block_that_leaves_something_behind_is_traced_each_time(kind: type[Block]) -> None:
    assert captured(Stack([kind() for _ in range(5)])).folded == 0


def test_what_a_block_puts_into_a_list_is_seen() -> None:
    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Into() for _ in range(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: list[torch.Tensor] = []
            for block in self.blocks:
                x = block(x, found)
            return torch.stack(found).sum(0)

    class Into(Block):
        def forward(self, x: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
            y = super().forward(x)
            found.append(y)
            return y

    assert captured(Collecting()).folded == 0


def test_parts_of_the_answer_that_are_no_tensors_are_given_again() -> None:
    class Answering(Block):
        def forward(self, x: torch.Tensor, *, more: dict[str, Any]) -> Any:  # type: ignore[override]
            y = super().forward(x) + more["bias"]
            return {"y": y, "x": x, "n": 3, "none": None}

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Answering() for _ in range(5))
            self.bias = nn.Parameter(torch.zeros(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                out = block(x, more={"bias": self.bias})
                x = out["y"] * out["n"] + out["x"]
            return x

    assert captured(Reading()).folded == 4


def test_a_hook_on_one_copy_counts() -> None:
    model = Stack([Block() for _ in range(5)])
    model.blocks[2].one.register_forward_hook(lambda module, args, output: output * 0.5)
    assert captured(model).folded == 3
    mu = autofit.muify(Stack([nn.Linear(3, 16), *(Block() for _ in range(5)), nn.Linear(16, 3)]), X[:, :3], base=8)
    again = capture(mu.model, X[:, :3])
    assert again.folded == 4


def test_a_model_that_fails_says_the_same() -> None:
    class Looking(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such thing")

    for blocks in (5, 1):
        with pytest.raises(autofit.ExampleError, match="no such thing"):
            capture(Stack([Looking() for _ in range(blocks)]), X)


def test_large_tables_on_meta_are_sampled() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(200_000, 64, padding_idx=3)
            self.inner = nn.Linear(64, 64)
            self.head = nn.Linear(64, 100_000)
            self.other = nn.Linear(64, 50_000)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.orthogonal_(self.inner.weight)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.inner(self.table(x)).relu()
            return self.head(y), self.other(y)

    with patch("autofit.deferred.SAMPLE", 2**16):
        mu = autofit.analyze(autofit.deferred_init(Wide), torch.zeros(2, 4, dtype=torch.long), base=16)
    std = {name: p.init_std for name, p in mu.plan.parameters.items()}
    assert std["table.weight"] == pytest.approx(1.0, rel=0.02)
    assert std["head.weight"] == pytest.approx(0.02, rel=0.02)
    assert std["other.weight"] == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    assert mu.plan.parameters["other.weight"].init_law.startswith("1/sqrt(3)")
