"""Convolutions, pooling, resampling: channel axes stay, spatial axes are data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from autofit.dims import Cell, Kind
from autofit.passes.ops.context import Call, Context, Rule
from autofit.program import op_name, shape_of


def convolution(ctx: Context, node: Call) -> None:
    """x (b, g*i, s), w (g*o, i, taps), bias (g*o) -> (b, g*o, s'): i and taps contracted."""
    args = dict(zip(("x", "w", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False))
    _convolve(ctx, node, args, transposed=False, groups=int(args.get("groups", node.kwargs.get("groups", 1))))


def transposed_convolution(ctx: Context, node: Call) -> None:
    """x (b, g*i, s), w (g*i, o, taps), bias (g*o) -> (b, g*o, s'): i and taps contracted."""
    names = ("x", "w", "bias", "stride", "padding", "output_padding", "groups")
    args = dict(zip(names, node.args, strict=False))
    _convolve(ctx, node, args, transposed=True, groups=int(args.get("groups", node.kwargs.get("groups", 1))))


def general_convolution(ctx: Context, node: Call) -> None:
    """The op behind all convolutions; its seventh argument says whether it is transposed."""
    args = dict(zip(("x", "w", "bias", "stride"), node.args, strict=False))
    _convolve(ctx, node, args, transposed=bool(node.args[6]), groups=int(node.args[8]))


def _convolve(ctx: Context, node: Call, args: dict[str, Any], *, transposed: bool, groups: int) -> None:
    x, w, bias = args["x"], args["w"], args.get("bias", node.kwargs.get("bias"))
    cx, cw, out = ctx[x], ctx[w], ctx[node]
    spatial = len(cw) - 2
    if len(cx) == spatial + 2:
        ctx.unify(out[0], cx[0])
    c_in, c_out = cx[-spatial - 1], out[-spatial - 1]
    w_in, w_out = (cw[0], cw[1]) if transposed else (cw[1], cw[0])
    kinds: list[tuple[Cell, Kind]] = [(t, "taps") for t in cw[2:]]
    ctx.data(cw[2:], node, "taps")
    if groups == 1:
        ctx.unify(c_in, w_in)
        ctx.unify(c_out, w_out)
        kinds += [(w_in, "in"), (w_out, "out")]
    elif groups == c_in.size and cw[1].size == 1:
        if cw[0].size == c_in.size:  # depthwise: every channel on its own
            ctx.unify(c_in, cw[0])
        else:
            copies = ctx.axes.new(cw[0].size // c_in.size, node.name, "outputs per channel")
            ctx.data([copies], node, "taps")
            ctx.axes.join(cw[0], [c_in, copies])
        ctx.unify(c_out, cw[0])
        kinds += [(cw[0], "elementwise"), (cw[1], "taps")]
    else:
        kinds += _grouped(ctx, node, c_in, c_out, (w_in, w_out), groups, transposed)
    for cell, kind in kinds:
        if kind == "in":
            ctx.note(cell, "weight", node)
            ctx.note(c_in, "weight", node)
    if ctx.is_tensor(bias):
        ctx.unify(ctx[bias][0], c_out)
    stride = _each(args.get("stride", node.kwargs.get("stride", 1)), spatial)
    for o, i, step in zip(out[len(out) - spatial :], cx[len(cx) - spatial :], stride, strict=True):
        if o.size == i.size and step == 1:  # slides along an axis, which may be anything: channels, too
            ctx.unify(o, i)
        else:
            ctx.data([o], node)
    if ctx.origin[w.name] == "weight":
        ctx.use(node, w, kinds, x)


def _grouped(
    ctx: Context,
    node: Call,
    c_in: Cell,
    c_out: Cell,
    weight: tuple[Cell, Cell],
    groups: int,
    transposed: bool,
) -> list[tuple[Cell, Kind]]:
    """Groups are a stack of independent maps; one axis of the weight is (group x channels)."""
    stack = ctx.axes.new(groups, node.name, "groups")
    each_in = ctx.axes.new(c_in.size // groups, node.name, "in per group")
    each_out = ctx.axes.new(c_out.size // groups, node.name, "out per group")
    w_in, w_out = weight
    ctx.axes.join(c_in, [stack, each_in])
    ctx.axes.join(c_out, [stack, each_out])
    if transposed:
        ctx.axes.join(w_in, [stack, each_in])
        ctx.unify(w_out, each_out)
    else:
        ctx.axes.join(w_out, [stack, each_out])
        ctx.unify(w_in, each_in)
    ctx.note(stack, "stack", node)
    ctx.note(stack, "groups", node)
    if w_in.size == 1 or each_in.size == 1:
        return [(w_in, "elementwise"), (w_out, "elementwise")]
    return [(w_in, "in"), (w_out, "out")]


def pooling(ctx: Context, node: Call) -> None:
    """(b, c, s) -> (b, c, s'): spatial axes are data, apart from those that a window of one leaves alone."""
    before, value = ctx[node.args[0]], ctx[node]
    spatial = int(re.findall(r"(\d)d", op_name(node))[-1])
    same = _untouched(node, spatial)
    for out in value if value and isinstance(value[0], tuple) else (value,):
        for i, (o, b) in enumerate(zip(out, before, strict=True)):
            if i < len(out) - spatial or i - (len(out) - spatial) in same:
                ctx.unify(o, b)
            else:
                ctx.data([o], node)


def _untouched(node: Call, spatial: int) -> set[int]:
    """Spatial axes along which a pooling window has one element, one step and no margin."""
    if op_name(node).removeprefix("aten.").startswith(("max_pool", "avg_pool")):
        names = ("kernel_size", "stride", "padding")
        given = {**dict(zip(names, node.args[1:4], strict=False)), **node.kwargs}
        kernel = _each(given["kernel_size"], spatial)
        stride = _each(given.get("stride") or kernel, spatial)
        padding = _each(given.get("padding", 0), spatial)
        return {i for i in range(spatial) if (kernel[i], stride[i], padding[i]) == (1, 1, 0)}
    if "upsample" in op_name(node):  # a table of positions may be resampled along one of its axes
        before, after = (shape_of(n.meta["val"])[-spatial:] for n in (node.args[0], node))
        return {i for i in range(spatial) if before[i] == after[i]}
    return set()


def _each(value: int | Sequence[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def pixel_shuffle(ctx: Context, node: Call) -> None:
    """(b, c * k * k, h, w) -> (b, c, h * k, w * k)."""
    before, out = ctx[node.args[0]], ctx[node]
    factor = int(node.args[1])
    taps = ctx.axes.new(factor * factor, node.name, "taps")
    ctx.data([taps], node, "taps")
    ctx.unify_all(out[:-3], before[:-3])
    ctx.axes.join(before[-3], [out[-3], taps])
    ctx.data(out[-2:], node)


def pixel_unshuffle(ctx: Context, node: Call) -> None:
    """(b, c, h * k, w * k) -> (b, c * k * k, h, w)."""
    before, out = ctx[node.args[0]], ctx[node]
    taps = ctx.axes.new(int(node.args[1]) ** 2, node.name, "taps")
    ctx.data([taps], node, "taps")
    ctx.unify_all(out[:-3], before[:-3])
    ctx.axes.join(out[-3], [before[-3], taps])
    ctx.data(out[-2:], node)


def im2col(ctx: Context, node: Call) -> None:
    """(b, c, h, w) -> (b, c * taps, windows)."""
    before, out = ctx[node.args[0]], ctx[node]
    taps = ctx.axes.new(out[-2].size // before[-3].size, node.name, "taps")
    ctx.data([taps, out[-1]], node, "taps")
    ctx.unify_all(out[:-2], before[:-3])
    ctx.axes.join(out[-2], [before[-3], taps])


def col2im(ctx: Context, node: Call) -> None:
    """(b, c * taps, windows) -> (b, c, h, w)."""
    before, out = ctx[node.args[0]], ctx[node]
    taps = ctx.axes.new(before[-2].size // out[-3].size, node.name, "taps")
    ctx.data([taps, *out[-2:]], node, "taps")
    ctx.unify_all(out[:-3], before[:-2])
    ctx.axes.join(before[-2], [out[-3], taps])


def grid_sample(ctx: Context, node: Call) -> None:
    """x (b, c, h, w), grid (b, h', w', 2) -> (b, c, h', w')."""
    ctx.unify_all(ctx[node][:2], ctx[node.args[0]][:2])
    ctx.unify(ctx[node][0], ctx[node.args[1]][0])
    ctx.data(ctx[node][2:], node)


def region_pooling(ctx: Context, node: Call) -> None:
    """x (b, c, h, w), boxes (k, 5) -> (k, c, h', w')."""
    value = ctx[node]
    for out in value if value and isinstance(value[0], tuple) else (value,):
        ctx.unify(out[0], ctx[node.args[1]][0])
        ctx.unify(out[1], ctx[node.args[0]][1])
        ctx.data(out[2:], node)


def chosen_boxes(ctx: Context, node: Call) -> None:
    """Numbers of boxes: data."""
    ctx.data(ctx[node], node)


RULES: dict[str, Rule] = {
    **{f"aten.conv{n}d": convolution for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": transposed_convolution for n in (1, 2, 3)},
    "aten.convolution": general_convolution,
    **{
        f"aten.{kind}_pool{n}d{tail}": pooling
        for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")
        for n in (1, 2, 3)
        for tail in ("", "_with_indices")
    },
    **{
        f"aten.upsample_{n}": pooling
        for n in "nearest1d nearest2d nearest3d linear1d bilinear2d bicubic2d trilinear3d".split()
    },
    **{f"aten.upsample_{n}.vec": pooling for n in ("nearest2d", "bilinear2d")},
    "aten._upsample_bilinear2d_aa": pooling,
    "aten._upsample_bicubic2d_aa": pooling,
    **{f"aten._upsample_nearest_exact{n}": pooling for n in ("1d", "2d", "3d")},
    "aten.reflection_pad1d": pooling,
    "aten.reflection_pad2d": pooling,
    "aten.replication_pad2d": pooling,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.im2col": im2col,
    "aten.col2im": col2im,
    "aten.grid_sampler": grid_sample,
    "torchvision.roi_align": region_pooling,
    "torchvision.roi_pool": region_pooling,
    "torchvision.nms": chosen_boxes,
}
