"""Ops that keep axes in place: pointwise, norms, reductions, scans."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx

from autofit.dims import Cell, Kind
from autofit.passes.ops.context import Call, Context, Rule


def tensors(value: Any) -> list[fx.Node]:
    """Tensor-valued nodes anywhere in an argument."""
    found: list[fx.Node] = []
    fx.map_arg(value, lambda n: found.append(n) if isinstance(n.meta.get("val"), torch.Tensor) else None)
    return found


def pointwise(ctx: Context, node: Call) -> None:
    """(..., a) op (..., a) -> (..., a): right-aligned axes are equal."""
    out = ctx[node]
    if out and isinstance(out[0], tuple):  # max and min over an axis, with the place
        reduction(ctx, node)
        return
    for operand in tensors((node.args, node.kwargs)):
        ctx.broadcast(out, ctx[operand])
    _equal_operands(ctx, node)


def _equal_operands(ctx: Context, node: Call) -> None:
    """Axes that the result does not show (it was broadcast from size 1) still meet pairwise."""
    operands = tensors((node.args, node.kwargs))
    for a, b in itertools.pairwise(operands):
        if len(ctx[a]) == len(ctx[b]):
            ctx.broadcast(ctx[a], ctx[b])


def unary(ctx: Context, node: Call) -> None:
    """(..., a) -> (..., a): the first operand's axes, in place."""
    out = ctx[node]
    values = out if out and isinstance(out[0], tuple) else (out,)
    for value in values:
        if len(value) == len(ctx[node.args[0]]):
            ctx.unify_all(value, ctx[node.args[0]])


def broadcast_tensors(ctx: Context, node: Call) -> None:
    """(a, 1), (1, b), ... -> (a, b), (a, b), ...: right-aligned axes are equal."""
    for out, operand in zip(ctx[node], tensors(node.args), strict=True):
        ctx.broadcast(out, ctx[operand])
        ctx.unify_all(out, ctx[node][0])


def real_transform(ctx: Context, node: Call) -> None:
    """(..., a, ...) -> (..., b, ...): a Fourier transform that changes the length of one axis, which is data."""
    before, out = ctx[node.args[0]], ctx[node]
    at = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else -1)
    changed = {int(d) % len(out) for d in (at if isinstance(at, list | tuple) else [at])}
    for i, (o, b) in enumerate(zip(out, before, strict=True)):
        if i not in changed or o.size == b.size:
            ctx.unify(o, b)
        else:
            ctx.data([o], node)
            ctx.gap(node, "a transform along an axis that it makes longer or shorter", (b,))


def last_axes_norm(ctx: Context, node: Call) -> None:
    """(..., d), gain (d), bias (d) -> (..., d)."""
    pointwise(ctx, node)


def channel_norm(ctx: Context, node: Call) -> None:
    """(b, c, ...), per-channel (c) -> (b, c, ...)."""
    x = node.args[0]
    out = ctx[node][0] if ctx[node] and isinstance(ctx[node][0], tuple) else ctx[node]
    ctx.unify_all(out, ctx[x])
    for operand in tensors((node.args[1:], node.kwargs)):
        if len(ctx[operand]) == 1:
            ctx.unify(ctx[operand][0], ctx[x][1])


def weight_norm(ctx: Context, node: Call) -> None:
    """v (a, b), g (a, 1) -> (a, b): rows of v, scaled to the lengths g."""
    v, g = node.args[:2]
    ctx.unify_all(ctx[node], ctx[v])
    ctx.unify_all(ctx[g], ctx[v])
    ctx.use(node, g, [(c, "elementwise") for c in ctx[g]], v)


def reduction(ctx: Context, node: Call) -> None:
    """(..., a, ...) -> (..., ...): the reduced axes vanish, the others stay."""
    x = node.args[0]
    before, value = ctx[x], ctx[node]
    for out in value if value and isinstance(value[0], tuple) else (value,):
        dims = _reduced(node, len(before))
        if len(out) == len(before):
            kept = [(o, b) for i, (o, b) in enumerate(zip(out, before, strict=True)) if i not in dims]
        else:
            kept = list(zip(out, [b for i, b in enumerate(before) if i not in dims], strict=False))
        for o, b in kept:
            ctx.unify(o, b)
    _sum_of_product(ctx, node)


def _reduced(node: Call, rank: int) -> set[int]:
    at = 2 if "norm" in str(node.target) else 1
    dims = node.kwargs.get("dim", node.args[at] if len(node.args) > at else None)
    if isinstance(dims, bool) or dims is None:
        return set(range(rank))
    listed = dims if isinstance(dims, list | tuple) else [dims]
    return {int(d) % rank for d in listed} if listed and rank else set(range(rank))


def _sum_of_product(ctx: Context, node: Call) -> None:
    """``(x * y).sum(a)`` is a contraction of x and y over a."""
    x = node.args[0]
    if "aten.sum" not in str(node.target) or "aten.mul" not in str(x.target) or len(x.users) != 1:
        return
    operands = tensors(x.args)
    if len(operands) != 2 or operands[0] is operands[1]:
        return
    rank = len(ctx[x])
    letters = [chr(97 + i) for i in range(rank)]
    reduced = _reduced(node, rank)
    sides = []
    for operand in operands:
        cells = ctx[operand]
        sides.append("".join(letters[rank - len(cells) :]))
    full = [i for i in reduced if all(len(ctx[o]) >= rank - i and ctx[o][i - rank].size > 1 for o in operands)]
    origins = {ctx.origin[o.name] for o in operands}
    if not full or "constant" in origins or origins == {"weight"}:
        return
    pairs = tuple((ctx[operands[0]][i - rank], ctx[operands[1]][i - rank]) for i in full)
    if origins == {"data"}:
        batch = tuple(
            c
            for i, c in enumerate(ctx[x])
            if i not in reduced and all(len(ctx[o]) >= rank - i and ctx[o][i - rank].size > 1 for o in operands)
        )
        ctx.product(x, operands[0], operands[1], pairs, batch)
        return
    weight, partner = sorted(operands, key=lambda o: ctx.origin[o.name] != "weight")
    ctx.uses = [u for u in ctx.uses if not (u.node is x and u.operand is weight)]
    kinds: list[tuple[Cell, Kind]] = []
    for at, cell in enumerate(ctx[weight], start=rank - len(ctx[weight])):
        on_both = len(ctx[partner]) >= rank - at and ctx[partner][at - rank].size > 1
        kinds.append((cell, "in" if at in full else "stack" if on_both else "out"))
    for a, b in pairs:
        ctx.note(a, "weight", node)
        ctx.note(b, "weight", node)
    ctx.use(node, weight, kinds, partner)


def assertion(ctx: Context, node: Call) -> None:
    """x -> nothing."""


UNARY = (
    "softmax log_softmax _softmax _log_softmax softmin cumsum cumprod logcumsumexp cummax cummin flip roll dropout "
    "alpha_dropout feature_dropout native_dropout contiguous clone alias detach lift_fresh_copy lift_fresh "
    "to _to_copy type_as triu tril zeros_like ones_like empty_like full_like rand_like randn_like "
    "randint_like bernoulli uniform exponential log_normal random cauchy geometric "
    "nan_to_num celu normalize rrelu rrelu_with_noise gelu isnan isinf isfinite "
    "logical_not bitwise_not positive fill zero square threshold sort argsort relu6 hardtanh "
    "fused_dropout detach_copy float_power frac erfinv expm1 "
    "real imag conj _conj _conj_physical conj_physical _neg_view resolve_conj resolve_neg angle "
    "float double half bfloat16 long int bool"
)
POINTWISE = (
    "add sub rsub mul multiply subtract divide div true_divide floor_divide remainder fmod pow where masked_fill "
    "clamp clamp_min clamp_max hardswish log_sigmoid polar complex "
    "maximum minimum min max eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or "
    "bitwise_xor __and__ __or__ __xor__ lerp addcmul addcdiv atan2 copy "
    "__lshift__ __rshift__ fmax fmin hypot copysign heaviside xlogy floor_divide isclose"
)
RULES: dict[str, Rule] = {
    **{f"aten.{n}": unary for n in UNARY.split()},
    **{f"aten.{n}": pointwise for n in POINTWISE.split()},
    **{
        f"aten.{n}": reduction
        for n in "sum mean amax amin max_dim min_dim argmax argmin any all prod var std var_mean std_mean "
        "logsumexp norm linalg_norm linalg_vector_norm nansum median mode count_nonzero aminmax nanmean".split()
    },
    **{f"aten.fft_{n}": unary for n in "fft fft2 fftn ifft ifft2 ifftn fftshift ifftshift".split()},
    "aten.broadcast_tensors": broadcast_tensors,
    **{f"aten.fft_{n}": real_transform for n in "rfft irfft hfft ihfft".split()},
    "aten.prelu": channel_norm,
    "aten._weight_norm": weight_norm,
    "aten.layer_norm": last_axes_norm,
    "aten.rms_norm": last_axes_norm,
    "aten._fused_rms_norm": last_axes_norm,
    "aten.batch_norm": channel_norm,
    "aten.group_norm": channel_norm,
    "aten.instance_norm": channel_norm,
    "aten._assert_tensor_metadata": assertion,
    "aten._assert_async": assertion,
    "aten._assert_scalar": assertion,
    "aten.sym_constrain_range_for_size": assertion,
}
