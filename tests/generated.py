"""Random architectures that know what every parameter is: the generator of test_generated.

A `Spec` names the parts of a model and its dimensions; `Sizes` gives each dimension its number of elements in the
model and in the base. `build` makes the module for either, and writes down next to each parameter what it contracts
and what it gives, so that roles and ratios follow by RULES 1 without looking at any graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

Sizes = dict[str, tuple[int, int]]
POOL = (2, 3, 4, 5, 6, 7, 8, 12)
PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
FIXED = ("vocabulary", "features", "classes", "length", "batch")


@dataclass(frozen=True)
class Block:
    """One block of the stack; fields that its kind does not use are ignored.

    Attributes:
        kind: ``mlp``, ``split``, ``attention`` or ``conv``.
        norm: ``layer``, ``rms``, ``handmade`` or ``none``, in front.
        skip: ``add``, ``concat`` or ``none``, around.
        bias, gain: biases, and a scale per channel on the result.
        gate: of an MLP: ``none``, ``fused``, ``sliced`` or ``separate``.
        depth: inner layers of an MLP.
        layout: how weights multiply: ``linear``, ``matmul`` or ``einsum``.
        qkv: ``separate``, ``chunk``, ``stacked`` (3, heads, size) or ``interleaved`` (heads, 3, size).
        product: ``sdpa``, ``matmul`` or ``einsum``.
        scale: of the logits: ``root``, ``inverse``, ``constant`` or ``none``.
        causal: masked attention.
        qk_norm: a norm on queries and keys.
        depthwise: of a convolution, followed by one with a single tap.
    """

    kind: str
    norm: str = "none"
    skip: str = "add"
    bias: bool = True
    gain: bool = False
    gate: str = "none"
    depth: int = 1
    layout: str = "linear"
    qkv: str = "separate"
    product: str = "sdpa"
    scale: str = "root"
    causal: bool = False
    qk_norm: bool = False
    depthwise: bool = False


@dataclass(frozen=True)
class Spec:
    """An architecture without sizes.

    Attributes:
        entry: ``tokens``, ``features`` or ``patches``.
        embedding_scale: tokens are multiplied by the root of the width.
        position: ``added``, ``looked_up`` or ``none``.
        blocks: the distinct blocks; ``order`` says which runs when.
        final_norm: norm in front of the heads.
        heads: of ``tokens``, ``tied``, ``functional`` (a tie without a module), ``classes``, ``value``.
        readout_scale: all heads' results are divided by the root of the width.
        frozen: every how many parameters one has no gradient; 0 for none.
    """

    entry: str = "tokens"
    embedding_scale: bool = False
    position: str = "none"
    blocks: tuple[Block, ...] = ()
    order: tuple[int, ...] = ()
    final_norm: str = "none"
    heads: tuple[str, ...] = ("classes",)
    readout_scale: bool = False
    frozen: int = 0

    def dimensions(self) -> list[str]:
        """Names of all dimensions that may grow."""
        names = ["width"]
        for i, b in enumerate(self.blocks):
            if b.kind == "attention":
                names += [f"{i}.heads", f"{i}.head_dim"]
            elif b.kind == "split":
                names += [f"{i}.left", f"{i}.right"]
            else:
                names += [f"{i}.inner{j}" for j in range(b.depth)]
        return names


@dataclass(frozen=True)
class Width:
    """Size of an axis in the model and in the base."""

    now: int
    base: float
    grows: bool

    def __add__(self, other: Width) -> Width:
        return Width(self.now + other.now, self.base + other.base, self.grows or other.grows)

    def __mul__(self, other: Width) -> Width:
        return Width(self.now * other.now, self.base * other.base, self.grows or other.grows)

    @property
    def ratio(self) -> float:
        return self.now / self.base


ONE = Width(1, 1, False)


@dataclass(frozen=True)
class Fact:
    """What one parameter is.

    Attributes:
        kind: ``matrix``, ``vector`` or ``table``.
        ins, outs: contracted and surviving axes.
        bare: the result reaches the end of its block without passing a growing dimension.
        block: number of its block, -1 for heads and entry.
    """

    kind: str
    ins: Width
    outs: Width
    bare: bool
    block: int

    @property
    def role(self) -> str:
        if self.kind != "matrix":
            name = "vector" if self.kind == "vector" else "input"
            return name if self.outs.grows else "fixed"
        table = {(False, False): "fixed", (False, True): "input", (True, False): "output", (True, True): "hidden"}
        return table[self.ins.grows, self.outs.grows]


@dataclass
class Book:
    """Builds layers at one size and notes what they are."""

    sizes: dict[str, Width]
    base: bool
    block: int = -1
    facts: dict[nn.Parameter, Fact] = field(default_factory=dict)

    def size(self, width: Width) -> int:
        return int(width.base if self.base else width.now)

    def note(self, p: nn.Parameter, kind: str, outs: Width, ins: Width = ONE, bare: bool = True) -> nn.Parameter:
        self.facts[p] = Fact(kind, ins, outs, bare, self.block)
        return p

    def linear(
        self, ins: Width, outs: Width, bias: bool = True, layout: str = "linear", bare: bool = True
    ) -> nn.Module:
        a, b = self.size(ins), self.size(outs)
        made = nn.Linear(a, b, bias) if layout == "linear" else Product(a, b, bias, layout)
        self.note(made.weight, "matrix", outs, ins, bare)
        if bias:
            self.note(made.bias, "vector", outs)
        return made

    def conv(self, ins: Width, outs: Width, bias: bool, taps: int, depthwise: bool, bare: bool) -> nn.Module:
        a, b = self.size(ins), self.size(outs)
        made = nn.Conv1d(a, b, taps, padding=taps // 2, bias=bias, groups=a if depthwise else 1)
        if depthwise:
            self.note(made.weight, "vector", outs)
        else:
            self.note(made.weight, "matrix", outs, ins, bare)
        if bias:
            self.note(made.bias, "vector", outs)
        return made

    def norm(self, kind: str, width: Width) -> nn.Module:
        types = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "handmade": HandmadeNorm, "none": nn.Identity}
        made = types[kind](self.size(width)) if kind != "none" else nn.Identity()
        for p in made.parameters():
            self.note(p, "vector", width)
        return made


class Product(nn.Module):
    """A weight stored as (in, out)."""

    def __init__(self, ins: int, outs: int, bias: bool, layout: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs) / ins**0.5)
        self.bias = nn.Parameter(torch.randn(outs)) if bias else None
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight if self.layout == "matmul" else torch.einsum("bsi,io->bso", x, self.weight)
        return y if self.bias is None else y + self.bias


class HandmadeNorm(nn.Module):
    """RMS norm in elementary ops."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Mlp(nn.Module):
    """Inner layers, the first of them perhaps gated."""

    def __init__(self, book: Book, spec: Block, width: Width, inner: list[Width]) -> None:
        super().__init__()
        self.gate = spec.gate
        chain = [width, *inner, width]
        ends = [not any(w.grows for w in chain[j + 1 :]) for j in range(len(chain))]  # from here on nothing grows
        first = inner[0] + inner[0] if spec.gate in ("fused", "sliced") else inner[0]
        self.first = book.linear(width, first, spec.bias, spec.layout, ends[0])
        if spec.gate == "separate":
            self.second = book.linear(width, inner[0], spec.bias, spec.layout, ends[0])
        self.rest = nn.ModuleList(
            book.linear(a, b, spec.bias, spec.layout, ends[j + 1])
            for j, (a, b) in enumerate(zip(inner, chain[2:], strict=True))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.gate == "fused":
            a, b = y.chunk(2, -1)
            y = F.silu(a) * b
        elif self.gate == "sliced":
            half = y.shape[-1] // 2
            y = F.silu(y[..., :half]) * y[..., half:]
        elif self.gate == "separate":
            y = F.silu(y) * self.second(x)
        else:
            y = F.gelu(y)
        for i, layer in enumerate(self.rest):
            y = layer(torch.relu(y) if i else y)
        return y


class Split(nn.Module):
    """One projection in two unequal parts, each with its own way back."""

    def __init__(self, book: Book, spec: Block, width: Width, left: Width, right: Width) -> None:
        super().__init__()
        self.parts = [book.size(left), book.size(right)]
        bare = not (left.grows or right.grows or width.grows)
        self.both = book.linear(width, left + right, spec.bias, spec.layout, bare)
        self.left = book.linear(left, width, spec.bias, spec.layout, not width.grows)
        self.right = book.linear(right, width, spec.bias, spec.layout, not width.grows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.both(x).split(self.parts, -1)
        return self.left(torch.tanh(a)) + self.right(torch.relu(b))


class Attention(nn.Module):
    """Self-attention in one of many spellings."""

    def __init__(self, book: Book, spec: Block, width: Width, heads: Width, head_dim: Width) -> None:
        super().__init__()
        self.spec, self.heads, self.head_dim = spec, book.size(heads), book.size(head_dim)
        inner = heads * head_dim
        bare = not (inner.grows or width.grows)
        if spec.qkv == "separate":
            self.q, self.k, self.v = (book.linear(width, inner, spec.bias, spec.layout, bare) for _ in range(3))
        else:
            self.qkv = book.linear(width, inner + inner + inner, spec.bias, spec.layout, bare)
        self.out = book.linear(inner, width, spec.bias, spec.layout, not width.grows)
        self.q_norm, self.k_norm = (book.norm("rms" if spec.qk_norm else "none", head_dim) for _ in range(2))

    def project(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        b, s, _ = x.shape
        h, d, how = self.heads, self.head_dim, self.spec.qkv
        if how == "stacked":
            return iter(self.qkv(x).view(b, s, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0))
        if how == "interleaved":
            return (t.transpose(1, 2) for t in self.qkv(x).view(b, s, h, 3 * d).chunk(3, -1))
        three = (self.q(x), self.k(x), self.v(x)) if how == "separate" else self.qkv(x).split(h * d, -1)
        return (t.view(b, s, h, d).transpose(1, 2) for t in three)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x)
        q, k = self.q_norm(q), self.k_norm(k)
        d = self.head_dim
        scale = {"root": d**-0.5, "inverse": 1 / d, "constant": 0.3, "none": 1.0}[self.spec.scale]
        if self.spec.product == "sdpa":
            own = None if self.spec.scale == "root" else scale
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.spec.causal, scale=own)
        elif self.spec.product == "matmul":
            y = self.masked(q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        else:
            logits = self.masked(torch.einsum("bhsd,bhtd->bhst", q * scale, k))
            y = torch.einsum("bhst,bhtd->bhsd", logits.softmax(-1), v)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.spec.causal:
            return logits
        s = logits.shape[-1]
        return logits.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), float("-inf"))


class Convolution(nn.Module):
    """Convolutions over the sequence."""

    def __init__(self, book: Book, spec: Block, width: Width, inner: list[Width]) -> None:
        super().__init__()
        chain = [width, *inner, width]
        layers: list[nn.Module] = [book.conv(width, width, spec.bias, 3, True, True)] if spec.depthwise else []
        for j, (a, b) in enumerate(pairwise(chain)):
            bare = not any(w.grows for w in chain[j + 1 :])
            layers += [book.conv(a, b, spec.bias, 1 if spec.depthwise else 3, False, bare), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class Layer(nn.Module):
    """A block with what is around it."""

    def __init__(self, book: Book, number: int, spec: Block) -> None:
        super().__init__()
        book.block = number
        width, at = book.sizes["width"], book.sizes
        inner = [at[f"{number}.inner{j}"] for j in range(spec.depth) if f"{number}.inner{j}" in at]
        self.skip = spec.skip
        self.norm = book.norm(spec.norm, width)
        if spec.kind == "mlp":
            self.body: nn.Module = Mlp(book, spec, width, inner)
        elif spec.kind == "split":
            self.body = Split(book, spec, width, at[f"{number}.left"], at[f"{number}.right"])
        elif spec.kind == "attention":
            self.body = Attention(book, spec, width, at[f"{number}.heads"], at[f"{number}.head_dim"])
        else:
            self.body = Convolution(book, spec, width, inner)
        size = book.size(width)
        self.gain = book.note(nn.Parameter(torch.ones(size)), "vector", width) if spec.gain else None
        if spec.skip == "concat":
            self.join = book.linear(width + width, width, spec.bias)
        book.block = -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(self.norm(x))
        if self.gain is not None:
            y = y * self.gain
        if self.skip == "concat":
            return self.join(torch.cat([x, y], -1))
        return x + y if self.skip == "add" else y


class Generated(nn.Module):
    """The whole model."""

    def __init__(self, spec: Spec, book: Book) -> None:
        super().__init__()
        at, width = book.sizes, book.sizes["width"]
        self.spec, self.width = spec, book.size(width)
        if spec.entry == "tokens":
            self.enter: nn.Module = nn.Embedding(book.size(at["vocabulary"]), self.width)
            book.note(self.enter.weight, "table", width)
        elif spec.entry == "features":
            self.enter = book.linear(at["features"], width)
        else:
            self.enter = nn.Conv2d(3, self.width, 2, stride=2)
            book.note(self.enter.weight, "matrix", width, Width(3, 3, False))
            book.note(self.enter.bias, "vector", width)
        length = book.size(at["length"])
        if spec.position == "added":
            self.position = book.note(nn.Parameter(torch.randn(length, self.width)), "table", width)
        elif spec.position == "looked_up":
            self.position = nn.Embedding(length, self.width)
            book.note(self.position.weight, "table", width)
        self.blocks = nn.ModuleList(Layer(book, i, b) for i, b in enumerate(spec.blocks))
        self.norm = book.norm(spec.final_norm, width)
        self.heads = nn.ModuleDict()
        for head in spec.heads:
            outs = {"classes": at["classes"], "value": ONE}.get(head, at["vocabulary"])
            if head == "tied":
                self.heads[head] = nn.Linear(self.width, book.size(outs), bias=False)
                self.heads[head].weight = self.enter.weight
            elif head != "functional":
                self.heads[head] = book.linear(width, outs)
        for i, p in enumerate(self.parameters()):
            p.requires_grad_(not spec.frozen or (i + 1) % spec.frozen != 0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.enter(x)
        if self.spec.entry == "patches":
            x = x.flatten(2).transpose(1, 2)
        if self.spec.embedding_scale:
            x = x * math.sqrt(self.width)
        if self.spec.position == "added":
            x = x + self.position
        elif self.spec.position == "looked_up":
            x = x + self.position(torch.arange(x.shape[1]))
        for i in self.spec.order:
            x = self.blocks[i](x)
        x = self.norm(x)
        found = [self.read(head, x) for head in self.spec.heads]
        return tuple(y * self.width**-0.5 for y in found) if self.spec.readout_scale else tuple(found)

    def read(self, head: str, x: torch.Tensor) -> torch.Tensor:
        if head == "functional":
            return F.linear(x, self.enter.weight)
        if head == "classes":
            return self.heads[head](x.mean(1))
        y = self.heads[head](x)
        return y.squeeze(-1) if head == "value" else y


@dataclass(frozen=True)
class Expected:
    """The truth about a model: by parameter (role, rule, r_in, r_out), and every site that does something."""

    parameters: dict[str, tuple[str, str, float, float]]
    sites: tuple[tuple[str, str, float], ...]


def build(spec: Spec, sizes: Sizes, base: bool = False) -> nn.Module:
    """The model, or its base."""
    torch.manual_seed(0)
    return Generated(spec, Book(_widths(sizes), base))


def example(spec: Spec, sizes: Sizes) -> torch.Tensor:
    """An input."""
    batch, length = sizes["batch"][0], sizes["length"][0]
    generator = torch.Generator().manual_seed(1)
    if spec.entry == "tokens":
        return torch.randint(sizes["vocabulary"][0], (batch, length), generator=generator)
    if spec.entry == "features":
        return torch.randn(batch, length, sizes["features"][0], generator=generator)
    return torch.randn(batch, 3, 2, 2 * length, generator=generator)


def expect(spec: Spec, sizes: Sizes, ratio: float | None = None) -> Expected:
    """What is right for a model and its base; with ``ratio``, for a number: all widths grow by it, heads do not."""
    widths = _widths(sizes)
    if ratio is not None:
        for name in spec.dimensions():
            kept = name.endswith("head_dim")
            now = widths[name].now
            widths[name] = Width(now, now, False) if kept else Width(now, now / ratio, True)
    book = Book(widths, base=False)
    model = Generated(spec, book)
    parameters, sites = {}, []
    for name, p in model.named_parameters():
        fact = book.facts[p]
        runs = 1 if fact.block < 0 else spec.order.count(fact.block)
        true_output = fact.role == "output" and (fact.block < 0 or _open(spec, widths, fact))
        rule = "bottleneck" if fact.role == "output" and not true_output else fact.role
        parameters[name] = (fact.role, rule, fact.ins.ratio, fact.outs.ratio)
        if true_output:
            present = -0.5 if fact.block < 0 and spec.readout_scale else 0.0
            sites += [("readout", name, fact.ins.ratio ** (-1 - present))] * runs
    width = widths["width"]
    if width.grows:
        present = -0.5 if spec.readout_scale else 0.0
        tied = sum(h in ("tied", "functional") for h in spec.heads)
        sites += [("readout", "enter.weight", width.ratio ** (-1 - present))] * tied
        if spec.embedding_scale and spec.entry == "tokens":
            sites.append(("embedding", "enter.weight", width.ratio**-0.5))
    for i in spec.order:
        b = spec.blocks[i]
        if b.kind == "attention" and widths[f"{i}.head_dim"].grows and not b.qk_norm:
            present = {"root": -0.5, "inverse": -1.0}.get(b.scale, 0.0)
            sites.append(("attention", "", widths[f"{i}.head_dim"].ratio ** (-1 - present)))
    return Expected(parameters, tuple(s for s in sites if s[2] != 1))


def _open(spec: Spec, widths: dict[str, Width], fact: Fact) -> bool:
    """Whether the result of a block's weight reaches a model output through fixed dimensions alone."""
    if not fact.bare or widths["width"].grows:
        return False
    passes = [spec.blocks[i].skip != "none" or not _grows_inside(spec, widths, i) for i in spec.order]
    return any(i == fact.block and all(passes[at + 1 :]) for at, i in enumerate(spec.order))


def _grows_inside(spec: Spec, widths: dict[str, Width], block: int) -> bool:
    return any(widths[n].grows for n in spec.dimensions() if n.startswith(f"{block}."))


def _widths(sizes: Sizes) -> dict[str, Width]:
    return {n: Width(now, base, now != base) for n, (now, base) in sizes.items()}


blocks = st.builds(
    Block,
    kind=st.sampled_from(["mlp", "attention", "split", "conv"]),
    norm=st.sampled_from(["none", "layer", "rms", "handmade"]),
    skip=st.sampled_from(["add", "none", "concat"]),
    bias=st.booleans(),
    gain=st.booleans(),
    gate=st.sampled_from(["none", "fused", "sliced", "separate"]),
    depth=st.integers(1, 2),
    layout=st.sampled_from(["linear", "matmul", "einsum"]),
    qkv=st.sampled_from(["separate", "chunk", "stacked", "interleaved"]),
    product=st.sampled_from(["sdpa", "matmul", "einsum"]),
    scale=st.sampled_from(["root", "inverse", "constant", "none"]),
    causal=st.booleans(),
    qk_norm=st.sampled_from([False, False, False, True]),
    depthwise=st.booleans(),
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """An architecture: one to two distinct blocks, run up to three times."""
    found = tuple(draw(st.lists(blocks, min_size=1, max_size=2)))
    order = tuple(range(len(found))) + ((draw(st.integers(0, len(found) - 1)),) if draw(st.booleans()) else ())
    entry = draw(st.sampled_from(["tokens", "features", "patches"]))
    final_norm = draw(st.sampled_from(["none", "layer", "rms", "handmade"]))
    kinds = ["classes", "value"] + ["tokens", "tied"] * (entry == "tokens")
    kinds += ["functional"] * (entry == "tokens" and final_norm != "none")
    heads = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=2, unique=True))
    if "functional" in heads:
        heads = ["functional"]  # has no module, so the norm in front carries its factor, and that serves one head
    return Spec(
        entry=entry,
        embedding_scale=entry == "tokens" and draw(st.booleans()),
        position=draw(st.sampled_from(["none", "added", "looked_up"])),
        blocks=found,
        order=order,
        final_norm=final_norm,
        heads=tuple(heads),
        readout_scale=draw(st.integers(0, 4)) == 0,
        frozen=draw(st.sampled_from([0, 0, 0, 3, 7])),
    )


@st.composite
def chance_sizes(draw: st.DrawFn, spec: Spec) -> Sizes:
    """Small sizes, many of them equal on purpose; one to all dimensions grow."""
    favourite = draw(st.sampled_from(POOL))
    size = st.one_of(st.just(favourite), st.sampled_from(POOL))
    sizes: Sizes = {}
    for name in FIXED:
        n = draw(size)
        sizes[name] = (n, n)
    growing = draw(st.sets(st.sampled_from(spec.dimensions()), min_size=1)) | (
        {"width"} if draw(st.integers(0, 3)) else set()
    )
    for name in spec.dimensions():
        now = draw(size)
        same = name not in growing and not (name.endswith(".right") and f"{name[:-5]}left" in growing)
        same = same and not (name.endswith(".left") and f"{name[:-4]}right" in growing)
        least = 1 if name.endswith("heads") else 2
        below = [n for n in (1, *POOL) if least <= n < now]
        if not below and not same:
            now, below = 4, [2, 3]
        sizes[name] = (now, now if same else draw(st.sampled_from(below)))
    return sizes


@st.composite
def free_sizes(draw: st.DrawFn, spec: Spec, sizes: Sizes) -> Sizes:
    """Sizes without any coincidence in the model, that grow where ``sizes`` do."""
    primes = draw(st.permutations(PRIMES[: len(sizes)]))
    return {
        name: (prime, prime if now == base else (prime + 1) // 2)
        for prime, (name, (now, base)) in zip(primes, sizes.items(), strict=True)
    }
