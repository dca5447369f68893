"""Plain torch models, written the way people write them; roles by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autofit


class LanguageModel(nn.Module):
    """LSTM language model."""

    def __init__(self, width: int = 64, cell: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, width)
        self.rnn = cell(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


class Sensor(nn.Module):
    """GRU over raw features: its input weights are input-role."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """``nn.TransformerEncoder``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, width)
        self.position = nn.Parameter(torch.randn(13, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 3 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(ids) + self.position).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 64, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 48, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


class Functional(nn.Module):
    """No modules at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 64) / 5**0.5)
        self.gain = nn.Parameter(torch.ones(64))
        self.middle = nn.Parameter(torch.randn(64, 96) / 8)
        self.mixed = nn.Parameter(torch.randn(80, 96) / 96**0.5)
        self.last = nn.Parameter(torch.randn(80, 3) / 80**0.5)
        self.offset = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x @ self.first) * self.gain
        x = torch.relu(torch.einsum("bi,ij->bj", x, self.middle))
        x = torch.relu(F.linear(x, self.mixed))
        return torch.addmm(self.offset, x, self.last)


class ActorCritic(nn.Module):
    """Policy and value heads on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.policy = nn.Linear(64, 4)
        self.value = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.trunk(x)
        return self.policy(x), self.value(x).squeeze(-1)


class HandTied(nn.Module):
    """A tie that no attribute shows."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, width)
        self.body = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return F.linear(self.norm(x + torch.relu(self.body(x))), self.embed.weight)


IDS = torch.zeros(3, 13, dtype=torch.long)
CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, str]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 3)),
        torch.zeros(7, 10),
        {
            "0.weight": "input",
            "0.bias": "vector",
            "2.weight": "hidden",
            "2.bias": "vector",
            "4.weight": "output",
            "4.bias": "fixed",
        },
    ),
    "lstm": (
        LanguageModel,
        IDS,
        {
            "embed.weight": "input",
            "rnn.weight_ih_l0": "hidden",
            "rnn.weight_hh_l0": "hidden",
            "rnn.bias_ih_l0": "vector",
            "rnn.bias_hh_l1": "vector",
            "rnn.weight_ih_l1": "hidden",
            "head.weight": "output",
            "head.bias": "fixed",
        },
    ),
    "gru": (
        Sensor,
        torch.zeros(3, 11, 5),
        {
            "rnn.weight_ih_l0": "input",
            "rnn.weight_hh_l0": "hidden",
            "rnn.weight_ih_l0_reverse": "input",
            "rnn.bias_ih_l0": "vector",
            "head.weight": "output",
        },
    ),
    "encoder": (
        Encoder,
        IDS,
        {
            "embed.weight": "input",
            "position": "input",
            "encoder.layers.0.self_attn.in_proj_weight": "hidden",
            "encoder.layers.0.self_attn.in_proj_bias": "vector",
            "encoder.layers.1.self_attn.out_proj.weight": "hidden",
            "encoder.layers.1.linear1.weight": "hidden",
            "encoder.layers.1.linear2.weight": "hidden",
            "encoder.layers.1.norm1.weight": "vector",
            "head.weight": "output",
            "head.bias": "fixed",
        },
    ),
    "convolutions": (
        convolutional,
        torch.zeros(5, 3, 11, 11),
        {
            "0.weight": "input",
            "1.weight": "vector",
            "3.weight": "vector",
            "4.weight": "hidden",
            "5.bias": "vector",
            "7.weight": "hidden",
            "7.bias": "vector",
            "10.weight": "output",
            "10.bias": "fixed",
        },
    ),
    "functional": (
        Functional,
        torch.zeros(7, 5),
        {
            "first": "input",
            "gain": "vector",
            "middle": "hidden",
            "mixed": "hidden",
            "last": "output",
            "offset": "fixed",
        },
    ),
    "actor-critic": (
        ActorCritic,
        torch.zeros(7, 8),
        {
            "trunk.0.weight": "input",
            "trunk.2.weight": "hidden",
            "policy.weight": "output",
            "policy.bias": "fixed",
            "value.weight": "output",
            "value.bias": "fixed",
        },
    ),
    "hand-made tie": (
        HandTied,
        IDS,
        {"embed.weight": "input", "body.weight": "hidden", "norm.weight": "vector"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_roles(case: str) -> None:
    make, example, roles = CASES[case]
    model = make()
    keys = list(model.state_dict())
    mu = autofit.muify(model, example, base=16)
    found = {name: mu.plan.parameters[name].role for name in roles}
    assert found == roles
    assert list(model.state_dict()) == keys
    assert not any(p.rule.startswith("bottleneck") for p in mu.plan.parameters.values())


def test_transposed_layouts_give_the_same_ratios() -> None:
    """Fan-in comes from the contraction, never from the layout (RULES 1)."""
    found = autofit.analyze(Functional(), torch.zeros(7, 5), base={"first": 16, "middle": 48, "mixed": 20})
    table = found.plan.parameters
    assert (table["middle"].r_in, table["middle"].r_out) == (4, 2)
    assert (table["mixed"].r_in, table["mixed"].r_out) == (2, 4)
    assert table["last"].r_in == 4


def test_a_hand_made_tie_gets_its_multiplier_upstream() -> None:
    """``F.linear(x, emb.weight)`` has no module: the norm in front of it carries 1/r."""
    torch.manual_seed(0)
    model = HandTied()
    ids = torch.arange(39).reshape(3, 13) % 31
    plain = model(ids)
    mu = autofit.muify(model, ids, base=16, init="keep")
    torch.testing.assert_close(model(ids), plain / 4)
    (site,) = (s for s in mu.plan.sites if s.kind == "readout")
    assert str(site.carrier) == "output norm"


def test_a_functional_readout_is_folded_by_the_symmetry() -> None:
    """No boundary in front of ``relu(x) @ last``: Table 3 instead of Table 8."""
    model = Functional()
    std = model.last.std().item()
    mu = autofit.muify(model, torch.zeros(7, 5), base=20)
    plan = mu.plan.parameters["last"]
    assert plan.fold == pytest.approx(0.25)
    # drawn with 80^-1/2: at the base 20^-1/2; Table 3 asks for r^-1 of that
    assert model.last.std().item() == pytest.approx(std * 2 * 0.25, rel=1e-3)
    lrs = {n: g["lr"] for g in mu.param_groups("adam", lr=1.0) for n in g["param_names"]}
    assert lrs["last"] == pytest.approx(0.25)
    with pytest.raises(autofit.PlanError, match="init='keep'"):
        autofit.analyze(Functional(), torch.zeros(7, 5), base=20, init="keep")


def test_shared_layers_have_one_plan() -> None:
    """One block applied three times, as ALBERT does."""

    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.block, self.out = nn.Linear(5, 64), nn.Linear(64, 64), nn.Linear(64, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inp(x)
            for _ in range(3):
                x = x + torch.tanh(self.block(x))
            return self.out(x)

    mu = autofit.muify(Looped(), torch.zeros(7, 5), base=16)
    assert [p.role for p in mu.plan.parameters.values()] == [
        "input",
        "vector",
        "hidden",
        "vector",
        "output",
        "fixed",
    ]


def test_a_latent_of_fixed_rank_is_down_and_up() -> None:
    """LoRA-like pair: output-role bottleneck down, input-role up (RULES 7)."""

    class Latent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inp, self.down = nn.Linear(5, width), nn.Linear(width, 8, bias=False)
            self.up, self.out = nn.Linear(8, width, bias=False), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.inp(x))
            return self.out(x + self.up(self.down(x)))

    x = torch.zeros(7, 5)
    found = autofit.analyze(Latent(64), x, base=Latent(16)).plan.parameters
    assert (found["down.weight"].role, found["down.weight"].rule) == ("output", "bottleneck")
    assert found["up.weight"].role == "input"
    option = autofit.analyze(Latent(64), x, base=Latent(16), bottleneck="output").plan.parameters
    assert found["down.weight"].init_factor == pytest.approx(1.0)
    assert option["down.weight"].init_factor == pytest.approx(0.5)


@pytest.mark.parametrize(("batch", "length"), [(2, 5), (3, 13), (5, 11), (8, 16)])
def test_batch_and_sequence_sizes_leave_the_plan_alone(batch: int, length: int) -> None:
    def plan(b: int, s: int) -> dict[str, Any]:
        torch.manual_seed(0)
        model = LanguageModel()
        data = autofit.analyze(model, torch.zeros(b, s, dtype=torch.long), base=16).plan.to_dict()
        return {k: data[k] for k in ("parameters", "base")}

    assert plan(batch, length) == plan(7, 23)


def test_renaming_leaves_the_roles_alone() -> None:
    class Renamed(LanguageModel):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head_embed_norm, self.w = self.embed, self.head
            del self.embed, self.head

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.w(self.rnn(self.lm_head_embed_norm(ids))[0])

    a = autofit.analyze(LanguageModel(), IDS, base=16).plan.parameters
    b = autofit.analyze(Renamed(), IDS, base=16).plan.parameters
    assert b["lm_head_embed_norm.weight"].role == a["embed.weight"].role
    assert b["w.weight"].role == a["head.weight"].role


class Normed(nn.Module):
    """Weight normalization over constant initial values: the row lengths hold the scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 3)
        nn.init.normal_(self.inner.weight, std=0.02)
        nn.utils.parametrizations.weight_norm(self.inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.first(x)).relu())


def test_row_lengths_follow_their_weight() -> None:
    torch.manual_seed(0)
    model = Normed(256)
    mu = autofit.muify(model, torch.zeros(7, 10), base=16)
    length, rows = (mu.plan.parameters[f"inner.parametrizations.weight.original{i}"] for i in (0, 1))
    assert (length.role, rows.role) == ("vector", "hidden")
    assert model.inner.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)


class ThreeAxes(nn.Module):
    """Projections with an axis for heads and one for their size, and a table that meets queries, as in XLNet."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, heads, size) * 0.02) for _ in range(3))
        self.table = nn.Parameter(torch.randn(2, heads, size) * 0.02)
        self.out = nn.Parameter(torch.randn(width, heads, size) * 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        q, k, v = (torch.einsum("bth,hnd->bntd", h, w) for w in (self.q, self.k, self.v))
        met = torch.einsum("bntd,snd->bnts", q, self.table).sum(-1, keepdim=True)
        logits = (torch.einsum("bntd,bnsd->bnts", q, k) + met) / q.shape[-1] ** 0.5
        return self.last(torch.einsum("bnts,bnsd,hnd->bth", logits.softmax(-1), v, self.out))


@pytest.mark.parametrize("size", [24, 64])
def test_of_heads_and_their_size_one_grows(size: int) -> None:
    """Also where a head is as wide as the model, and where the two are axes of their own."""
    x = torch.zeros(2, 7, 5)
    for base in (32, ThreeAxes(32, 2, size)):
        found = autofit.analyze(ThreeAxes(64, 4, size), x, base=base)
        ratios = {n: (p.r_in, p.r_out) for n, p in found.plan.parameters.items()}
        assert ratios["q"] == ratios["k"] == ratios["v"] == (2, 2)
        assert ratios["out"] == (2, 2)
        assert ratios["table"] == (1, 2)
        assert [s.multiplier for s in found.plan.sites if s.kind == "attention"] == [1.0]


class Sines(nn.Module):
    """Positions as a projection of fixed sines, which then meet the queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.q, self.v = nn.Linear(width, width), nn.Linear(width, width)
        self.place = nn.Linear(width, width, bias=False)
        angles = torch.arange(7.0)[:, None] / 10 ** torch.linspace(0, 1, width // 2)
        self.register_buffer("sines", torch.cat((angles.sin(), angles.cos()), -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        q, p = self.q(h).unflatten(-1, (-1, 8)), self.place(self.sines).unflatten(-1, (-1, 8))
        logits = torch.einsum("btnd,snd->bnts", q, p) / 8**0.5
        v = self.v(h).unflatten(-1, (-1, 8)).transpose(1, 2)
        return self.last(h + (logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_projection_of_constants_is_hidden() -> None:
    found = autofit.analyze(Sines(64), torch.zeros(2, 7, 5), base=Sines(32))
    place = found.plan.parameters["place.weight"]
    assert (place.role, place.r_in, place.r_out) == ("hidden", 2, 2)


class Streams(nn.Module):
    """Hyper-connections: four residual streams, mixed by weights that are computed from them."""

    def __init__(self, width: int = 64, streams: int = 4) -> None:
        super().__init__()
        self.streams = streams
        self.embed = nn.Embedding(31, width)
        self.mix = nn.ModuleList([nn.Linear(streams * width, (2 + streams) * streams) for _ in range(2)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.head = nn.Linear(width, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n = self.streams
        x = self.embed(ids).unsqueeze(-2).expand(-1, -1, n, -1)
        for mix, layer in zip(self.mix, self.layers, strict=True):
            pre, post, comb = mix(F.rms_norm(x.flatten(-2), [x[0, 0].numel()])).split([n, n, n * n], -1)
            inner = torch.relu(layer((pre.sigmoid().unsqueeze(-1) * x).sum(-2)))
            comb = comb.unflatten(-1, (n, n)).softmax(-1)
            x = post.sigmoid().unsqueeze(-1) * inner.unsqueeze(-2) + comb.transpose(-1, -2) @ x
        return self.head(x.mean(-2))


@pytest.mark.parametrize("base", [16, "second"])
def test_streams_beside_a_width_do_not_grow(base: int | str) -> None:
    plan = autofit.analyze(
        Streams(), torch.zeros(3, 7, dtype=torch.long), base=Streams(16) if base == "second" else base
    ).plan
    found = {n: (p.role, p.r_in, p.r_out) for n, p in plan.parameters.items() if n.endswith("weight")}
    assert found == {
        "embed.weight": ("input", 1, 4),
        "mix.0.weight": ("output", 4, 1),
        "mix.1.weight": ("output", 4, 1),
        "layers.0.weight": ("hidden", 4, 4),
        "layers.1.weight": ("hidden", 4, 4),
        "head.weight": ("output", 4, 1),
    }


class MixedStreams(nn.Module):
    """Copies of one width side by side, mixed by weights of low rank that are as wide as all of them."""

    def __init__(self, width: int = 64, streams: int = 4, rank: int = 16) -> None:
        super().__init__()
        self.streams = streams
        self.embed, self.head = nn.Embedding(31, width), nn.Linear(width, 31)
        self.down, self.up = nn.Linear(streams * width, rank), nn.Linear(rank, streams * width)
        self.inject, self.layer = nn.Linear(streams * width, streams), nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).repeat(1, 1, self.streams)
        gates = self.up(F.silu(self.down(x))).sigmoid().unflatten(-1, (self.streams, -1))
        inner = self.layer((gates * x.unflatten(-1, (self.streams, -1))).mean(-2))
        x = x + (self.inject(x).sigmoid().unsqueeze(-1) * inner.unsqueeze(-2)).flatten(-2)
        return self.head(x.unflatten(-1, (self.streams, -1)).mean(-2))


def test_copies_of_a_width_do_not_grow_in_its_place() -> None:
    plan = autofit.analyze(MixedStreams(), torch.zeros(3, 7, dtype=torch.long), base=16).plan
    found = {n: (p.role, p.r_in, p.r_out) for n, p in plan.parameters.items() if n.endswith("weight")}
    assert found == {
        "embed.weight": ("input", 1, 4),
        "down.weight": ("hidden", 4, 4),
        "up.weight": ("hidden", 4, 4),
        "inject.weight": ("output", 4, 1),
        "layer.weight": ("hidden", 4, 4),
        "head.weight": ("output", 4, 1),
    }


class Placed(nn.Module):
    """An image's features take the places of some tokens, and are sorted by a score."""

    def __init__(self, width: int = 64, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.embed, self.see = nn.Embedding(31, width), nn.Linear(10, width)
        self.score, self.head = nn.Linear(width, 1), nn.Linear(width, 31)

    def forward(self, ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        seen = self.see(image)
        mask = (ids == 0).unsqueeze(-1)
        x = x.masked_scatter(mask, seen.view(-1)) if self.flat else x.masked_scatter(mask.expand_as(x), seen)
        order = self.score(x).argsort(1)
        return self.head(torch.take_along_dim(x, order, dim=1))


@pytest.mark.parametrize("flat", [False, True])
def test_features_put_among_tokens_are_as_wide(flat: bool) -> None:
    """Nothing but the place they are put in says how wide the features are."""
    example = (torch.zeros(1, 7, dtype=torch.long), torch.zeros(7, 10))
    found = autofit.analyze(Placed(61, flat), example, base=61 / 4).plan
    assert found.parameters["see.weight"].r_out == 4
    assert found.parameters["head.weight"].role == "output"
    assert found.base == {"embed": 61 / 4}


class Padded(nn.Module):
    """Sequences of different lengths, cut out of one batch and filled up."""

    def __init__(self, width: int = 61) -> None:
        super().__init__()
        self.see, self.head = nn.Linear(10, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cut = [row[: 3 + i] for i, row in enumerate(self.see(x))]
        return self.head(nn.utils.rnn.pad_sequence(cut, batch_first=True))


def test_sequences_that_are_filled_up_keep_their_features() -> None:
    found = autofit.analyze(Padded(), torch.zeros(2, 7, 10), base=61 / 4).plan
    assert {n: (p.role, p.r_in, p.r_out) for n, p in found.parameters.items() if "weight" in n} == {
        "see.weight": ("input", 1, 4),
        "head.weight": ("output", 4, 1),
    }


class Queries(nn.Module):
    """Learned queries, the first prediction made before any data is seen, and a readout shared by all rounds."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.see, self.queries = nn.Linear(10, width), nn.Parameter(torch.randn(5, width))
        self.norm, self.update = nn.LayerNorm(width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        queries = self.norm(self.queries).expand(len(x), -1, -1)
        first = self.head(queries)
        queries = queries + self.update(torch.relu(self.see(x))).unsqueeze(1)
        return first, self.head(torch.stack([self.norm(queries)]).squeeze(0))


def test_a_readout_of_learned_queries() -> None:
    model, plain, x = Queries(), Queries(), torch.randn(7, 10)
    plain.load_state_dict(model.state_dict())
    autofit.muify(model, torch.zeros(7, 10), base=16, init="keep")
    plain.head.weight.data /= 4
    for a, b in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(a, b)


class Grouped(nn.Module):
    """Learned tokens beside those of an image, mixed along the tokens by a weight (GroupViT)."""

    def __init__(self, width: int = 64, tokens: int = 64) -> None:
        super().__init__()
        self.see, self.tokens = nn.Linear(10, width), nn.Parameter(torch.randn(1, tokens, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.mix, self.head = nn.Linear(tokens, 3), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.see(x), self.tokens.expand(len(x), -1, -1)], 1)
        x = (self.q(x) @ self.k(x).mT / self.q.out_features**0.5).softmax(-1) @ self.v(x)
        return self.head(self.mix(x[:, -self.tokens.shape[1] :].mT).mT)


def test_learned_tokens_beside_those_of_the_input_are_positions() -> None:
    found = autofit.analyze(Grouped(), torch.randn(2, 7, 10), base=32).plan
    assert (found.parameters["tokens"].r_out, found.parameters["mix.weight"].role) == (2, "fixed")
    assert {s.ratio for s in found.sites if s.multiplier != 1} == {2}


class SelfConditioned(nn.Module):
    """Predictions in the middle are shares of classes, which a weight takes back (self-conditioned CTC)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.out, self.back = nn.Linear(10, width), nn.Linear(width, 29), nn.Linear(29, width)
        self.last = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h + self.back(self.out(h).softmax(-1)))


def test_shares_are_classes_and_said_to_be() -> None:
    analysis = autofit.analyze(SelfConditioned(), torch.randn(7, 10), base=32)
    roles = {n: p.role for n, p in analysis.plan.parameters.items() if "weight" in n}
    assert roles == {"first.weight": "input", "out.weight": "output", "back.weight": "input", "last.weight": "output"}
    assert any("normalized by a softmax, as classes are, and taken not to grow" in note for note in analysis.plan.notes)
    wide = autofit.analyze(SelfConditioned(), torch.randn(7, 10), base={"first": 32, "out": 14.5})
    assert wide.plan.parameters["out.weight"].role == "hidden"


class TwiceWide(nn.Module):
    """A readout of two kinds of features that are equally wide, as of a class token and a mean."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(2 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.middle(self.first(x)).relu()
        return self.last(torch.cat([h[:, 0], h.mean(1)], -1))


def test_a_number_means_one_of_the_widths_that_are_read_out_together() -> None:
    found = autofit.analyze(TwiceWide(), torch.randn(2, 7, 10), base=32).plan
    assert {p.r_in for p in found.parameters.values()} == {1, 2}


class Merged(nn.Module):
    """Four patches are merged into one, in an order of its own: their number is no width."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.see, self.norm, self.head = nn.Linear(10, width), nn.LayerNorm(4 * width), nn.Linear(4 * width, 3)
        self.register_buffer("order", torch.arange(16).flip(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.see(x)[:, self.order]
        return self.head(self.norm(x.view(len(x), 4, -1)))


def test_chosen_positions_are_data_like_those_they_are_chosen_from() -> None:
    found = autofit.analyze(Merged(), torch.randn(2, 16, 10), base=32).plan
    assert (found.parameters["see.weight"].r_out, found.parameters["head.weight"].r_in) == (2, 2)
