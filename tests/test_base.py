"""Every form of a base, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
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


def _attention_models(width: int) -> dict[str, nn.Module]:
    vocabulary = {"vocab_size": 307, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2Config(n_embd=width, n_head=width // 16, n_layer=2, **vocabulary)
    sizes = {"hidden_size": width, "num_attention_heads": width // 16, "intermediate_size": 2 * width}
    llama = transformers.LlamaConfig(**sizes, num_key_value_heads=width // 32, num_hidden_layers=2, **vocabulary)
    return {"gpt2": transformers.GPT2LMHeadModel(gpt2), "llama": transformers.LlamaForCausalLM(llama)}


class OneMore(nn.Module):
    """A model that runs one op more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self.inner(input_ids, use_cache=False).logits
        return logits.abs() if self.inner.config.hidden_size < 128 else logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("told", ["shapes", "another program"])
def test_heads_that_only_the_product_with_their_size_tells(family: str, told: str, tmp_path: Path) -> None:
    """Weights' shapes hold heads x head size alone: the head size is taken to be the same, and said to be."""
    model, base = (OneMore(_attention_models(width)[family]) for width in (128, 64))
    ids = torch.zeros(3, 17, dtype=torch.long)
    expected = autofit.analyze(model.inner, {"input_ids": ids}, base=base.inner)
    chosen: Any = base
    if told == "shapes":
        chosen = tmp_path / "base.bsh"
        chosen.write_text(json.dumps({n: list(p.shape) for n, p in base.named_parameters()}))
    found = autofit.analyze(model, ids, base=chosen)
    for name, p in expected.plan.parameters.items():
        q = found.plan.parameters[f"inner.{name}"]
        assert (q.role, q.r_in, q.r_out) == (p.role, p.r_in, p.r_out), name
    assert any("head_dim" in n and "taken to be the same" in n for n in found.plan.notes)


def test_another_head_size_that_shapes_cannot_tell_is_refused(tmp_path: Path) -> None:
    model = _attention_models(128)["gpt2"]
    file = tmp_path / "base.bsh"
    file.write_text(
        json.dumps(
            {n: [72 * s // 128 if s in (128, 384, 512) else s for s in p.shape] for n, p in model.named_parameters()}
        )
    )
    with pytest.raises(autofit.BaseError, match="cannot be divided in the base"):
        autofit.analyze(model, base=file)


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
    assert not any("one model alone" in n for n in found.notes)


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
    with pytest.raises(autofit.BaseError, match=r"4: an axis of 3 is 5 in the base"):
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


def test_a_base_whose_parts_do_not_make_the_whole(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(10, 32), nn.Linear(10, 48), nn.Linear(80, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([self.one(x), self.two(x)], 1))

    shapes = "one.weight: [8, null]\none.bias: [8]\ntwo.weight: [12, null]\ntwo.bias: [12]\nout.bias: [null]\n"
    file = tmp_path / "base.bsh"
    file.write_text(shapes + "out.weight: [null, 20]\n")
    assert ratios(Joined(), file)["out.weight"] == (4, 1)
    file.write_text(shapes + "out.weight: [null, 24]\n")
    with pytest.raises(autofit.BaseError, match="is 24 in the base, where its parts do not make that"):
        autofit.analyze(Joined(), X, base=file)


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
    with pytest.raises(autofit.BaseError, match=r"base='64' is a string(.|\n)*pass the number: base=64"):
        autofit.analyze(mlp(), X, base="64")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(autofit.BaseError, match="not text"):
        autofit.analyze(mlp(), X, base=tmp_path / "bytes.json")
    with pytest.raises(autofit.BaseError, match=r"returned a int"):
        autofit.analyze(mlp(), X, base=lambda: 3)  # type: ignore[arg-type, return-value]


def bert(width: int) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=width // 16,
        intermediate_size=2 * width,
        vocab_size=101,
    )
    return transformers.BertModel(config)


def test_pooled_features_are_a_width_and_the_report_says_why() -> None:
    """Nothing contracts what the pooler gives: a number takes it for a width, a second model measures it."""
    by_number = autofit.analyze(bert(64), base=32)
    by_model = autofit.analyze(bert(64), base=bert(32))
    for found in (by_number, by_model):
        assert found.plan.parameters["pooler.dense.weight"].role == "hidden"
        assert found.plan.parameters["pooler.dense.bias"].role == "vector"
    assert "pooler.dense: 64 elements are contracted by nothing, as wide as hidden_size" in " ".join(
        str(by_number).split()
    )
    assert "contracted by nothing" not in " ".join(str(by_model).split())
    as_output = autofit.analyze(bert(64), base=by_number.base() | {"pooler.dense": 64})
    assert as_output.plan.parameters["pooler.dense.weight"].role == "output"
    partial = {k: v for k, v in by_number.base().items() if k != "pooler.dense"}
    assert autofit.analyze(bert(64), base=partial).plan.parameters["pooler.dense.weight"].role == "hidden"


def autoencoder(width: int, features: int = 20) -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, features)
    )


def test_an_output_as_wide_as_data_and_model_is_ambiguous() -> None:
    x = torch.zeros(7, 20)
    with pytest.raises(autofit.DimensionError, match=r"ambiguous dimension: 20 elements of 4 are(.|\n)*base model"):
        autofit.analyze(autoencoder(20), x, base=5)
    settled = autofit.analyze(autoencoder(20), x, base={"2": 5, "0": 5, "4": 20})
    assert settled.plan.parameters["4.weight"].role == "output"
    assert autofit.analyze(autoencoder(20), x, base=autoencoder(5)).plan.parameters["4.weight"].role == "output"
    features = autofit.analyze(autoencoder(40, 40), x, base=autoencoder(10, 10))
    assert features.plan.parameters["4.weight"].role == "hidden"


def test_a_stream_that_is_the_input_is_named() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1)
    mu = autofit.analyze(encoder, torch.zeros(3, 7, 64), base=32)
    assert mu.plan.parameters["layers.0.norm1.weight"].role == "fixed"
    assert any("one dimension with the input's" in note for note in mu.plan.notes)
    assert not any("input's" in note for note in autofit.analyze(mlp(), X, base=16).plan.notes)


class Timed(nn.Module):
    """A table of sines, made by the program, enters a weight: its number is fixed, or follows the width."""

    def __init__(self, width: int, sines: int) -> None:
        super().__init__()
        self.sines, self.time, self.out = sines, nn.Linear(sines, width), nn.Linear(width, 3)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angle = t[:, None] * torch.exp(-torch.arange(self.sines // 2) / self.sines)
        return self.out(self.time(torch.cat([angle.cos(), angle.sin()], -1)).relu())


def test_features_that_the_program_makes_are_a_width_only_where_something_says_so() -> None:
    t = torch.rand(7)

    def role(width: int, sines: int, base: Any) -> str:
        return autofit.analyze(Timed(width, sines), t, base=base).plan.parameters["time.weight"].role

    assert role(64, 32, 16) == "input"
    assert role(64, 64, 16) == "hidden"
    assert role(64, 64, Timed(16, 64)) == "input"
    assert role(64, 32, Timed(16, 8)) == "hidden"
    measured = autofit.analyze(Timed(64, 32), t, base=Timed(16, 8)).base()
    assert role(64, 32, measured) == "hidden"


def llama(width: int, head_dim: int) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=head_dim,
        intermediate_size=4 * width,
        vocab_size=101,
    )
    return transformers.LlamaForCausalLM(config)


def test_a_mapping_reaches_the_rotated_halves_of_a_head() -> None:
    """``head_dim`` names the whole head; rotation splits that of queries and keys into two equal parts."""
    model = llama(64, 16)
    sizes = {"hidden_size": 32, "head_dim": 8, "num_attention_heads": 4, "intermediate_size": 128}
    by_mapping = autofit.analyze(model, base=sizes)
    by_model = autofit.analyze(model, base=llama(32, 8))
    assert by_mapping.base() == by_model.base()
    assert [s.multiplier for s in by_mapping.roles.sites] == [s.multiplier for s in by_model.roles.sites]
    assert {s.multiplier for s in by_mapping.roles.sites if s.kind == "attention"} == {2**-0.5}
    with pytest.raises(autofit.BaseError, match="does not divide"):
        autofit.analyze(model, base=sizes | {"head_dim": 7})


class Scaled(nn.Module):
    """Attention whose scale is a tensor that the program computes: only a second model shows that it follows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(10, width) for _ in range(3))
        self.out = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scale = torch.sqrt(torch.tensor(q.shape[-1] * 3.0))
        return self.out(((q @ k.mT) / scale).softmax(-1) @ v)


def test_scales_computed_by_the_program_are_measured() -> None:
    mu = autofit.analyze(Scaled(64), torch.zeros(2, 7, 10), base=Scaled(16))
    (site,) = (s for s in mu.roles.sites if s.kind == "attention")
    assert site.present == -0.5
    assert site.multiplier == 0.5


class Stack(nn.Module):
    """Blocks whose inner widths may differ."""

    def __init__(self, width: int, inner: tuple[int, int, int]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, n), nn.ReLU(), nn.Linear(n, width)) for n in inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def test_a_saved_base_names_layers_that_differ_only_there(tmp_path: Path) -> None:
    """Widths that are equal here and not in the base: what `save_base` writes can be read again."""
    x = torch.zeros(5, 10)
    found = autofit.analyze(Stack(64, (64, 64, 64)), x, base=Stack(32, (16, 48, 16)))
    found.save_base(tmp_path / "base.json")
    again = autofit.analyze(Stack(64, (64, 64, 64)), x, base=tmp_path / "base.json")
    ratios = {p.name: (p.r_in, p.r_out) for p in again.plan.parameters.values()}
    assert ratios == {p.name: (p.r_in, p.r_out) for p in found.plan.parameters.values()}
    assert ratios["blocks.1.0.weight"] == (2, 64 / 48)
    assert ratios["blocks.2.0.weight"] == (2, 4)


class Fed(nn.Module):
    """A model whose input is as wide as itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def test_a_base_may_bring_its_own_example() -> None:
    with pytest.raises(autofit.BaseError):
        autofit.analyze(Fed(64), torch.zeros(5, 64), base=Fed(32))
    for base in ((Fed(32), torch.zeros(5, 32)), lambda: (Fed(32), torch.zeros(5, 32))):
        found = autofit.analyze(Fed(64), torch.zeros(5, 64), base=base)
        assert found.plan.parameters["last.weight"].r_in == 2
        again = autofit.analyze(Fed(64), torch.zeros(5, 64), base=found.base())
        assert again.plan.parameters["first.weight"].role == found.plan.parameters["first.weight"].role == "hidden"


def test_examples_that_were_inferred_need_not_agree() -> None:
    """Their sizes avoid those of each model's own parameters."""
    nets = [
        nn.Sequential(nn.Linear(10, n), nn.ReLU(), nn.Linear(n, 3 * n), nn.ReLU(), nn.Linear(3 * n, 2)) for n in (10, 5)
    ]
    found = autofit.analyze(nets[0], base=nets[1])
    assert found.plan.parameters["2.weight"].r_in == 2


class Chosen(nn.Module):
    """Which tokens are an image's, copied for every feature (ERNIE 4.5 VL)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.see, self.head = nn.Embedding(31, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        mask = (ids > 3)[..., None].expand(-1, -1, x.shape[-1])
        out = torch.zeros_like(x)
        out[mask] = self.see(x[mask].reshape(-1, x.shape[-1])).flatten()
        return self.head(out)


def test_copies_that_nothing_contracts_may_have_another_number_in_the_base() -> None:
    plan = autofit.analyze(Chosen(64), torch.zeros(3, 7, dtype=torch.long), base=Chosen(16)).plan
    assert {n: (p.role, p.r_in, p.r_out) for n, p in plan.parameters.items() if n.endswith("weight")} == {
        "embed.weight": ("input", 1, 4),
        "see.weight": ("hidden", 4, 4),
        "head.weight": ("output", 4, 1),
    }


def test_a_number_by_which_nothing_grows_is_refused() -> None:
    class Net(nn.Module):
        """One head, whose size nothing else has."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(7, width), nn.Linear(7, width), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), x))

    x = torch.zeros(2, 5, 7)
    with pytest.raises(autofit.BaseError, match=r"nothing grows: q = 64(.|\n)*grow='head_dim'"):
        autofit.analyze(Net(64), x, base=16)
    for given in ({"base": 16, "grow": "head_dim"}, {"base": Net(16)}):
        assert autofit.analyze(Net(64), x, **given).plan.sites[0].multiplier == 0.5


def test_a_field_that_may_be_a_number_of_rows_names_no_width() -> None:
    """The inner width is 256, as is the number of positions, of which there is a table."""
    config = transformers.GPT2Config(n_embd=64, n_head=4, n_layer=2, n_positions=256, vocab_size=307)
    base = autofit.analyze(transformers.GPT2LMHeadModel(config), base=32).base()
    assert "n_positions" not in base
    assert base["transformer.h.*.mlp.c_fc"] == 128
