"""Pre-softmax logits: the factor of RULES 3 on every spelling, with equal weights and a growing head size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autofit

WIDTH, HEADS, LENGTH = 64, 2, 7
D = WIDTH // HEADS


class Attention(nn.Module):
    """Self-attention in a chosen spelling; ``logits`` keeps what enters the softmax."""

    def __init__(self, spelling: Callable[..., torch.Tensor], fused: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.spelling = spelling
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (t.unflatten(-1, (HEADS, D)).transpose(1, 2) for t in (q, k, v))
        y = self.spelling(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """The one place where every explicit spelling goes through; tests replace it to see the logits."""
    return logits.softmax(-1)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_scale(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(D))


def matmul_divide(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax(q @ k.transpose(-1, -2) / math.sqrt(D)) @ v


def scale_on_q(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax((q * D**-0.5) @ k.mT) @ v


def scale_on_k(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax(q @ (k * D**-0.5).mT) @ v


def scale_on_both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax((q * D**-0.25) @ (k * D**-0.25).mT) @ v


def einsum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bhst,bhtd->bhsd", softmax(torch.einsum("bhsd,bhtd->bhst", q, k) * D**-0.5), v)


def bmm(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    flat = [t.reshape(-1, LENGTH, D) for t in (q, k, v)]
    weights = softmax(torch.bmm(flat[0], flat[1].transpose(1, 2)) / D**0.5)
    return torch.bmm(weights, flat[2]).view_as(v)


def baddbmm(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    flat = [t.reshape(-1, LENGTH, D) for t in (q, k, v)]
    bias = torch.zeros(1, LENGTH, LENGTH, dtype=q.dtype)
    weights = softmax(torch.baddbmm(bias, flat[0], flat[1].mT, alpha=D**-0.5))
    return torch.bmm(weights, flat[2]).view_as(v)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    bias = torch.full((LENGTH, LENGTH), -1e9).triu(1)
    return softmax(q @ k.mT * D**-0.5 + bias) @ v


def unscaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax(q @ k.mT) @ v


def already_mup(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax(q @ k.mT / D) @ v


def product_and_sum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return softmax((q[..., :, None, :] * k[..., None, :, :]).sum(-1) * D**-0.5) @ v


def rotary(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    angle = torch.arange(LENGTH)[:, None] * 0.5 ** torch.arange(D // 2)
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    return softmax(turn(q) @ turn(k).mT * D**-0.5) @ v


# exponent of the head size that each spelling already has; muP asks for -1
SPELLINGS = {
    sdpa: -0.5,
    sdpa_scale: -0.5,
    matmul_divide: -0.5,
    scale_on_q: -0.5,
    scale_on_k: -0.5,
    scale_on_both: -0.5,
    einsum: -0.5,
    bmm: -0.5,
    baddbmm: -0.5,
    masked: -0.5,
    unscaled: 0.0,
    already_mup: -1.0,
    product_and_sum: -0.5,
    rotary: -0.5,
}
IDS = torch.arange(3 * LENGTH).reshape(3, LENGTH) % 11


def record(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Logits that enter the softmax in one forward pass."""
    seen: list[torch.Tensor] = []

    def explicit(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.detach())
        return logits.softmax(-1)

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        return explicit(logits) @ v

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "softmax", explicit)
        patch.setattr(F, "scaled_dot_product_attention", fused)
        model(IDS)
    return seen[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
def test_logits_change_by_the_missing_factor(
    spelling: Callable[..., torch.Tensor], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = Attention(spelling, fused).double()
    model = copy.deepcopy(plain)
    autofit.muify(model, IDS, base=WIDTH // 4, grow="head_dim", init="keep")
    before, after = record(plain, monkeypatch), record(model, monkeypatch)
    factor = 4.0 ** (-1.0 - SPELLINGS[spelling])
    seen = before > -1e8  # an additive mask is no product of activations: it stays
    torch.testing.assert_close(after[seen], before[seen] * factor, rtol=1e-12, atol=1e-14)
    assert torch.equal(after[~seen] < -1e8, before[~seen] < -1e8)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
def test_growing_heads_leave_the_logits_alone(
    spelling: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Attention(spelling).double()
    model = copy.deepcopy(plain)
    autofit.muify(model, IDS, base=WIDTH // 4, grow="heads", init="keep")
    assert torch.equal(record(plain, monkeypatch), record(model, monkeypatch))


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` projects inside: no boundary between the projection and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.out = nn.Linear(WIDTH, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.out(self.attention(x, x, x, need_weights=False)[0])


def test_multihead_attention_module() -> None:
    """Scaling the key's input is exact: its bias adds a constant along the softmax."""
    torch.manual_seed(0)
    plain = Multihead().double()
    nn.init.normal_(plain.attention.in_proj_bias)
    model = copy.deepcopy(plain)
    autofit.muify(model, IDS, base=WIDTH // 4, grow="head_dim", init="keep")
    x = plain.embed(IDS)
    _, after = model.attention(x, x, x, need_weights=True, average_attn_weights=False)
    w, b = plain.attention.in_proj_weight, plain.attention.in_proj_bias
    q, k, _ = F.linear(x, w, b).unflatten(-1, (3, HEADS, D)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(after, (q @ k.mT * (D**-0.5 * 4**-0.5)).softmax(-1))


NORMS = {
    "layer_norm": lambda x: F.layer_norm(x, (D,)),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "by hand": lambda x: x / x.norm(dim=-1, keepdim=True),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_normalized_queries_and_keys_are_left_alone(norm: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Normed(Attention):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            q, k, v = (t(x).unflatten(-1, (HEADS, D)).transpose(1, 2) for t in (self.q, self.k, self.v))
            q, k = norm(q), norm(k)
            return self.out(self.spelling(q, k, v).transpose(1, 2).flatten(2))

    found = autofit.analyze(Normed(matmul_divide), IDS, base=WIDTH // 4, grow="head_dim")
    site = next(s for s in found.plan.sites if s.kind == "attention")
    assert site.multiplier == 1
    assert "gains set the scale" in site.reason
    assert any("gains set the scale" in n for n in found.plan.notes)


def test_a_cube_is_no_normalization() -> None:
    """Behind a polynomial no boundary carries the factor: that is said, and not taken for a normalization."""

    def cubed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = q + q.pow(3), k + k.pow(3)
        return (q @ k.mT / math.sqrt(D)).softmax(-1) @ v

    with pytest.raises(autofit.LoweringError, match=r"no module boundary can carry(.|\n)*test_attention"):
        autofit.analyze(Attention(cubed), IDS, base=WIDTH // 4, grow="head_dim")


def test_linear_attention_is_refused_with_its_line() -> None:
    def linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return q @ (k.mT @ v)

    with pytest.raises(
        autofit.PlanError, match=r"unsupported attention site.*linear attention(.|\n)*test_attention"
    ) as e:
        autofit.analyze(Attention(linear), IDS, base=WIDTH // 4, grow="head_dim")
    assert "grow='heads'" in str(e.value)


class Shared(nn.Module):
    """One block run twice, as in ALBERT, with a growing head size."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.qkv = nn.Linear(width, 3 * width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(2):
            parts = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
            heads = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in parts)
            x = x + F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.last(x)


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
def test_a_shared_block_is_scaled_in_every_call(fused: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    model, expected = Shared(64, fused), Shared(64, fused)
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():  # by hand: queries (weight and bias) times sqrt(8 / 16)
        for p in (expected.qkv if fused else expected.q).parameters():
            p[:64] *= 0.5**0.5
    mu = autofit.muify(model, x, base=Shared(32, fused), init="keep", strict=False)
    assert [s.multiplier for s in mu.plan.sites] == pytest.approx([0.5**0.5, 0.5**0.5, 0.5])
    scaled = expected(x) - expected.last.bias
    torch.testing.assert_close(model(x) - model.last.bias, scaled / 2)


class Relative(nn.Module):
    """Queries meet keys and relative positions; the sum of both is scaled, as in Transformer-XL and DeBERTa."""

    def __init__(self, width: int, keys: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.q, self.v = nn.Linear(width, width), nn.Linear(width, width)
        self.k = nn.Linear(width, width) if keys else nn.Identity()
        self.place = nn.Linear(5, width) if keys else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)

        def heads(t: torch.Tensor) -> torch.Tensor:
            return t.unflatten(-1, (2, -1)).transpose(1, 2)

        q, k, v = heads(self.q(h)), heads(self.k(h)), heads(self.v(h))
        positions = heads(self.place(x if isinstance(self.place, nn.Linear) else h.flip(1)))
        logits = (q @ k.mT + q @ positions.mT) / q.shape[-1] ** 0.5
        return self.last((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("keys", [True, False], ids=["keys of their own", "queries carry both"])
def test_a_scale_behind_a_sum_counts_for_both_terms(keys: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    model, expected = Relative(64, keys), Relative(64, keys)
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():  # by hand: 1/sqrt(32) is there, so sqrt(16 / 32) is missing
        for p in expected.q.parameters():
            p *= 0.5**0.5
    mu = autofit.muify(model, x, base=Relative(32, keys), init="keep")
    attention = [s for s in mu.plan.sites if s.kind == "attention"]
    assert [(s.present, s.multiplier) for s in attention] == [(-0.5, pytest.approx(0.5**0.5))] * 2
    assert keys or {str(s.carrier) for s in attention} == {"output q"}
    torch.testing.assert_close(model(x) - model.last.bias, (expected(x) - expected.last.bias) / 2)


class Summed(nn.Module):
    """Queries and keys that are each a sum of two projections, or a stack of two."""

    def __init__(self, width: int, stacked: bool) -> None:
        super().__init__()
        self.stacked = stacked
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        a, b, c, d = (part(h) for part in self.parts)
        q, k = (torch.stack((a, b), 1), torch.stack((c, d), 1)) if self.stacked else (a + b, c + d)
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ (h[:, None] if self.stacked else h)
        return self.last(mixed.sum(1) if self.stacked else mixed)


@pytest.mark.parametrize("stacked", [False, True], ids=["sum", "stack"])
def test_all_terms_carry_the_factor(stacked: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    model, expected = Summed(64, stacked), Summed(64, stacked)
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        for p in expected.parts[:2].parameters():
            p *= 0.5**0.5
    mu = autofit.muify(model, x, base=Summed(32, stacked), init="keep")
    assert [str(s.carrier) for s in mu.plan.sites] == ["output parts.0 and 1 more", "input last"]
    torch.testing.assert_close(model(x) - model.last.bias, (expected(x) - expected.last.bias) / 2)


class Sliced(nn.Module):
    """A stack of two queries of which each meets keys of its own; the second's keys are made from the first's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        a, b, c, d = (part(h) for part in self.parts)
        q, scale = torch.stack((a, b), 1), a.shape[-1] ** 0.5
        one, two = (q[:, :1] @ c.mT[:, None] / scale).softmax(-1), (q[:, 1:] @ (c + d).mT[:, None] / scale).softmax(-1)
        return self.last(((one + two) @ h[:, None]).squeeze(1))


def test_parts_of_a_stack_carry_the_factor_of_several_sites() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    model, expected = Sliced(64), Sliced(64)
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        for p in expected.parts[:2].parameters():
            p *= 0.5**0.5
    mu = autofit.muify(model, x, base=Sliced(32), init="keep")
    attention = [s for s in mu.plan.sites if s.kind == "attention"]
    assert [str(s.carrier) for s in attention] == ["output parts.0 and 1 more"] * 2
    torch.testing.assert_close(model(x) - model.last.bias, (expected(x) - expected.last.bias) / 2)


class Compared(nn.Module):
    """Two towers that give their features and a learned scale of the features' product."""

    def __init__(self, width: int, factor: float = 1.0) -> None:
        super().__init__()
        towers = (nn.Sequential(nn.Linear(5, width, False), nn.Linear(width, width, False)) for _ in range(2))
        self.left, self.right = towers
        self.scale = nn.Parameter(torch.tensor([3.0]))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, b = self.left(x), self.right(x)
        return (a @ b.T) * self.factor * self.scale.to(a.dtype) - 1, a, b


def test_a_learned_scale_carries_the_factor_of_features_that_are_outputs() -> None:
    """Its start and learning rate take the factor: training is that of a factor in forward (TP5 Lemma J.1)."""
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64)
    model, expected = Compared(64).double(), Compared(64, 0.5).double()
    expected.load_state_dict(model.state_dict())
    mu = autofit.muify(model, x, base=Compared(32).double())
    assert [(str(s.carrier), s.multiplier) for s in mu.plan.sites if s.kind != "readout"] == [("weight scale", 0.5)]
    torch.testing.assert_close(model(x), expected(x))
    frozen = Compared(64)
    frozen.scale.requires_grad_(False)
    with pytest.raises(autofit.PlanError, match="can only go into scale, which is frozen"):
        autofit.analyze(frozen, x.float(), base=Compared(32), frozen="keep")
    one = mu.optimizer(torch.optim.Adam, lr=0.01, eps=0.0)
    hidden = [p for n, p in expected.named_parameters() if ".1.weight" in n]
    others = [p for n, p in expected.named_parameters() if ".1.weight" not in n]
    two = torch.optim.Adam([{"params": others}, {"params": hidden, "lr": 0.005}], lr=0.01, eps=0.0)
    for _ in range(3):
        for m, optimizer in ((model, one), (expected, two)):
            optimizer.zero_grad()
            m(x)[0].pow(2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(model(x), expected(x))


class Alike(nn.Module):
    """Products of all pairs of features, as in contrastive training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.head(self.first(x).relu())
        return (z @ z.T).softmax(-1)


def test_both_sides_of_a_product_carry_the_root_of_its_factor() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    model = Alike(64)
    z = model.head(model.first(x).relu())
    mu = autofit.muify(model, x, base=Alike(32), init="keep")
    (site,) = mu.plan.sites
    assert (str(site.carrier), site.carrier.power, site.multiplier) == ("output head", 0.5, 0.5)
    assert "its root" in str(mu)
    torch.testing.assert_close(model(x), (z @ z.T / 2).softmax(-1))


class OneDropout(Alike):
    """Queries and keys that pass the same module, one after the other."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.keys, self.drop = nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        return (self.drop(self.head(h)) @ self.drop(self.keys(h)).T).softmax(-1)


def test_a_module_on_both_sides_of_a_product_does_not_carry_its_factor() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    model, plain = OneDropout(64), OneDropout(64)
    plain.load_state_dict(model.state_dict())
    mu = autofit.muify(model, x, base=OneDropout(32), init="keep")
    assert [str(s.carrier) for s in mu.plan.sites] == ["output head"]
    h = plain.first(x).relu()
    torch.testing.assert_close(model(x), (plain.head(h) @ plain.keys(h).T / 2).softmax(-1))
