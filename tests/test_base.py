"""Every form of a base, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn

import autofit

X = torch.zeros(7, 10)


def mlp(width: int = 64, middle: int = 96, depth: int = 1) -> nn.Module:
    inner = [layer for _ in range(depth) for layer in (nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, width))]
    return nn.Sequential(nn.Linear(10, width), *inner, nn.Linear(width, 3))


def ratios(model: nn.Module, base: Any) -> dict[str, tuple[float, float]]:
    plan = autofit.analyze(model, X, base=base).plan
    return {n: (p.r_in, p.r_out) for n, p in plan.parameters.items()}


EXPECTED = {
    "0.weight": (1, 4),
    "0.bias": (1, 4),
    "1.weight": (4, 4),
    "1.bias": (1, 4),
    "3.weight": (4, 4),
    "3.bias": (1, 4),
    "4.weight": (4, 1),
    "4.bias": (1, 1),
}


def test_a_number_is_the_base_of_the_main_dimension() -> None:
    assert ratios(mlp(), 16) == EXPECTED


def test_a_second_model_and_a_factory() -> None:
    assert ratios(mlp(), mlp(16, 24)) == EXPECTED
    assert ratios(mlp(), lambda: mlp(16, 24)) == EXPECTED


def test_a_second_model_may_grow_unevenly() -> None:
    found = ratios(mlp(), mlp(32, 24))
    assert found["1.weight"] == (2, 4)
    assert found["3.weight"] == (4, 2)


def test_a_mapping_and_a_saved_base(tmp_path: Path) -> None:
    mu = autofit.analyze(mlp(), X, base=16)
    assert ratios(mlp(), mu.base()) == EXPECTED
    file = tmp_path / "base.json"
    mu.save_base(file)
    assert json.loads(file.read_text()) == {"0": 16, "1": 24, "3": 16}
    assert ratios(mlp(), file) == EXPECTED
    assert ratios(mlp(), str(file)) == EXPECTED


def test_a_saved_base_fits_any_depth(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    file = tmp_path / "base.json"
    autofit.analyze(family.build(), base=32).save_base(file)
    shallow = autofit.analyze(family.build(), base=file).plan
    deep = autofit.analyze(family.build(n_layer=3), base=file).plan
    name = "transformer.h.1.mlp.c_fc.weight"
    assert deep.parameters[name].r_in == shallow.parameters[name].r_in == 2
    assert deep.parameters["transformer.h.2.mlp.c_fc.weight"].r_out == 2


def test_the_packages_own_base_file(tmp_path: Path) -> None:
    """mup's ``.bsh``: numbers are base sizes, null is an axis that does not grow."""
    text = """\
# This is a base shape file encoded in yaml
0.weight: [16, null]
0.bias: [16]
1.weight: [24, 16]
1.bias: [24]
3.weight: [16, 24]
3.bias: [16]
4.weight: [null, 16]
4.bias: [null]
"""
    file = tmp_path / "mlp.bsh"
    file.write_text(text)
    assert ratios(mlp(), file) == EXPECTED


def test_a_shallower_second_model_gives_the_widths() -> None:
    family = FAMILIES["gpt2"]
    found = autofit.analyze(family.build(n_layer=3), base=family.build(n_embd=32, n_head=2, n_layer=2)).plan
    assert found.parameters["transformer.h.2.attn.c_attn.weight"].r_in == 2
    assert any("fewer layers" in n for n in found.notes)


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf"), True])
def test_numbers_that_are_no_width(number: float) -> None:
    with pytest.raises(autofit.BaseError):
        autofit.analyze(mlp(), X, base=number)


def test_a_deeper_base_is_named() -> None:
    family = FAMILIES["gpt2"]
    with pytest.raises(autofit.BaseError, match="deeper than the model"):
        autofit.analyze(family.build(), base=family.build(n_layer=3))


def test_another_architecture_is_named_with_the_first_difference() -> None:
    with pytest.raises(autofit.BaseError, match=r"another architecture(.|\n)*aten\."):
        autofit.analyze(FAMILIES["llama"].build(), base=FAMILIES["qwen2"].build())


def test_a_base_that_differs_in_a_fixed_dimension() -> None:
    other = nn.Sequential(nn.Linear(10, 16), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.Linear(16, 5))
    with pytest.raises(autofit.BaseError, match=r"4\.weight: an axis of 3 is 5 in the base"):
        autofit.analyze(mlp(), X, base=other)


def test_a_base_whose_axes_do_not_match_is_a_disagreement() -> None:
    """The residual add makes both one dimension; a base that says otherwise cannot be the same program."""

    class Residual(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, a), nn.Linear(10, b)
            self.out = nn.Linear(a, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.one(x) + self.two(x))

    # one.weight (8, 10) and two.weight (1, 10): runs by broadcasting, but is not what the model does
    with pytest.raises(autofit.BaseError, match="static and differential inference disagree"):
        autofit.analyze(Residual(32, 32), X, base=Residual(8, 1))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"nope": 4}, "no such dimension"),
        ({"0": 16}, "gives no size for '1'"),
        ({"0": 0, "1": 4}, "not a positive number"),
        ({"0": "16", "1": 4}, "not a positive number"),
    ],
)
def test_mappings_that_do_not_fit(base: dict[str, Any], message: str) -> None:
    with pytest.raises(autofit.BaseError, match=message):
        autofit.analyze(mlp(), X, base=base)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not JSON"),
        ("b.json", "[1]", "not a mapping"),
        ("c.json", '{"0": "16"}', "not a number"),
        ("d.json", "[" * 100000, "not JSON"),
        ("e.bsh", "!!python/object/apply:os.system ['touch pwned']", "not safe YAML"),
        ("f.bsh", "a: 3", "base shape of 'a'"),
        ("g.bsh", "0.weight: [16, null]", "is missing in the base shapes"),
    ],
)
def test_corrupt_and_hostile_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(autofit.BaseError, match=message) as caught:
        autofit.analyze(mlp(), X, base=file)
    assert str(file) in str(caught.value)
    assert not Path("pwned").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(autofit.BaseError, match="cannot be read"):
        autofit.analyze(mlp(), X, base=tmp_path / "missing.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(autofit.BaseError, match="not text"):
        autofit.analyze(mlp(), X, base=tmp_path / "bytes.json")
    with pytest.raises(autofit.BaseError, match=r"returned a int"):
        autofit.analyze(mlp(), X, base=lambda: 3)  # type: ignore[arg-type, return-value]
