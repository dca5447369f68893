"""Ops that rename, split, join or create axes."""

from __future__ import annotations

from typing import Any

from torch import fx

from autofit.dims import Cell
from autofit.passes.ops.context import Call, Context, Rule
from autofit.passes.ops.elementwise import tensors
from autofit.program import op_name


def view(ctx: Context, node: Call) -> None:
    """(a * b, c) -> (a, b * c): row-major runs are equal products."""
    ctx.regroup(node, ctx[node.args[0]], ctx[node])


def permutation(node: Call, rank: int) -> list[int]:
    """Source axis of each result axis."""
    name, args = node.target._schema.name, node.args
    order = list(range(rank))
    if name.endswith(("permute",)):
        return [int(d) % rank for d in args[1]]
    if name.endswith(("transpose", "transpose_", "swapaxes", "swapdims", "transpose_copy")):
        a, b = int(args[1]) % rank, int(args[2]) % rank
        order[a], order[b] = order[b], order[a]
        return order
    if name.endswith(("numpy_T",)):
        return order[::-1]
    if name.endswith(("movedim", "moveaxis")):
        one = [args[1]] if isinstance(args[1], int) else list(args[1])
        two = [args[2]] if isinstance(args[2], int) else list(args[2])
        source, target = [int(d) % rank for d in one], [int(d) % rank for d in two]
        rest = [d for d in order if d not in source]
        placed = dict(zip(target, source, strict=True))
        return [placed[i] if i in placed else rest.pop(0) for i in order]
    order[-2:] = order[-2:][::-1]  # t, mT, adjoint, mH
    return order


def permute(ctx: Context, node: Call) -> None:
    """(a, b, c) -> (c, a, b)."""
    before = ctx[node.args[0]]
    for out, source in zip(ctx[node], permutation(node, len(before)), strict=True):
        ctx.unify(out, before[source])


def expand_as(ctx: Context, node: Call) -> None:
    """(1, b), (a, b) -> (a, b)."""
    ctx.broadcast(ctx[node], ctx[node.args[1]])
    expand(ctx, node)


def view_as_complex(ctx: Context, node: Call) -> None:
    """(a, 2) -> (a)."""
    *rest, pair = ctx[node.args[0]]
    ctx.unify_all(ctx[node], rest)
    ctx.data([pair], node, "taps")


def view_as_real(ctx: Context, node: Call) -> None:
    """(a) -> (a, 2)."""
    *rest, pair = ctx[node]
    ctx.unify_all(rest, ctx[node.args[0]])
    ctx.data([pair], node, "taps")


def expand(ctx: Context, node: Call) -> None:
    """(1, b) -> (n, b): axes of size 1 are repeated, the others stay."""
    before, out = ctx[node.args[0]], ctx[node]
    ctx.broadcast(out, before)
    for o, b in zip(reversed(out), reversed(before), strict=False):
        if b.size == 1 < o.size:
            ctx.note(o, "copies", node)


def repeat(ctx: Context, node: Call) -> None:
    """(a, b) -> (n * a, b)."""
    before, out = ctx[node.args[0]], ctx[node]
    padded = [None] * (len(out) - len(before)) + list(before)
    for o, b in zip(out, padded, strict=True):
        if b is None or b.size == 1 or o.size == 0:
            continue
        if o.size == b.size:
            ctx.unify(o, b)
        else:
            count = ctx.axes.new(o.size // b.size, node.name, "count")
            ctx.axes.join(o, [count, b])
            ctx.note(count, "copies", node)


def repeat_interleave(ctx: Context, node: Call) -> None:
    """(a, b) -> (a * n, b): every element n times in a row."""
    x, repeats = node.args[0], node.args[1]
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    before, out = ctx[x], ctx[node]
    if dim is None or not isinstance(repeats, int):
        return
    for i, (o, b) in enumerate(zip(out, before, strict=True)):
        if i == dim % len(before) and repeats != 1:
            count = ctx.axes.new(repeats, node.name, "count")
            ctx.axes.join(o, [b, count])
        else:
            ctx.unify(o, b)


def cat(ctx: Context, node: Call) -> None:
    """(a, c), (b, c) -> (a + b, c)."""
    parts, out = [ctx[n] for n in tensors(node.args[0])], ctx[node]
    parts = [p for p in parts if len(p) == len(out)]
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(out)
    for part in parts:
        for i, (o, p) in enumerate(zip(out, part, strict=True)):
            if i != dim:
                ctx.unify(o, p)
    joined = [p[dim] for p in parts if p[dim].size]
    if all(ctx.axes.find(p).fixed for p in joined):
        ctx.data([out[dim]], node)
    else:
        ctx.axes.concatenate(out[dim], joined)


def stack(ctx: Context, node: Call) -> None:
    """n x (a) -> (n, a): n counts the calls in the program, so it is fixed."""
    parts, out = [ctx[n] for n in tensors(node.args[0])], ctx[node]
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(out)
    rest = [o for i, o in enumerate(out) if i != dim]
    for part in parts:
        ctx.unify_all(rest, part)
    ctx.data([out[dim]], node, "stacked")


def pad_sequence(ctx: Context, node: Call) -> None:
    """(t, a), (u, a) -> (n, max(t, u), a): samples and steps are data."""
    out = ctx[node]
    for part in tensors(node.args[0]):
        ctx.unify_all(out[2:], ctx[part][1:])
    ctx.data(out[:2], node)


def split(ctx: Context, node: Call) -> None:
    """(a + b, c) -> (a, c), (b, c)."""
    before, outs = ctx[node.args[0]], ctx[node]
    dim = int(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) % len(before)
    at = 0
    for out in outs:
        for i, (o, b) in enumerate(zip(out, before, strict=True)):
            if i != dim:
                ctx.unify(o, b)
        size = out[dim].size
        _slice(ctx, node, before[dim], at, at + size, out[dim])
        at += size


def glu(ctx: Context, node: Call) -> None:
    """(a + a, c) -> (a, c): one half gates the other."""
    before, out = ctx[node.args[0]], ctx[node]
    dim = int(node.args[1] if len(node.args) > 1 else -1) % len(before)
    for i, (o, b) in enumerate(zip(out, before, strict=True)):
        if i == dim:
            _slice(ctx, node, b, 0, o.size, o)
            _slice(ctx, node, b, o.size, 2 * o.size, o)
        else:
            ctx.unify(o, b)


def unbind(ctx: Context, node: Call) -> None:
    """(n, a) -> n x (a)."""
    before = ctx[node.args[0]]
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(before)
    for out in ctx[node]:
        ctx.unify_all(out, [b for i, b in enumerate(before) if i != dim])


def _only_shape(node: Call) -> bool:
    """Whether a value is read for its shape alone."""
    return bool(node.users) and all(op_name(u).endswith("_like") or ".new_" in op_name(u) for u in node.users)


def _slice(ctx: Context, node: Call, whole: Any, start: int, stop: int, into: Any) -> None:
    if _only_shape(node):
        return
    if into.size == whole.size:
        ctx.unify(into, whole)
    elif ctx.axes.find(whole).fixed:
        into.origins |= whole.origins
        ctx.data([into], node)
    elif into.size:
        ctx.axes.slice(whole, start, stop, into)


def slice_(ctx: Context, node: Call) -> None:
    """(a + b) -> (a); with a step, (n * k)[i::k] -> (n)."""
    args = [*node.args, *[None] * 5]
    before, out = ctx[node.args[0]], ctx[node]
    dim = int(args[1] or node.kwargs.get("dim", 0) or 0) % len(before)
    step = args[4] if args[4] is not None else node.kwargs.get("step", 1)
    size = before[dim].size
    start = args[2] if args[2] is not None else node.kwargs.get("start") or 0
    for i, (o, b) in enumerate(zip(out, before, strict=True)):
        if i != dim:
            ctx.unify(o, b)
    if isinstance(start, fx.Node):
        _moving_slice(ctx, node, before[dim], out[dim])
        return
    start = max(0, start + size if start < 0 else start)
    if step == 1:
        _slice(ctx, node, before[dim], start, start + out[dim].size, out[dim])
    elif out[dim].size * step == size and not ctx.axes.find(before[dim]).fixed:
        count = ctx.axes.new(step, node.name, "step")
        ctx.axes.join(before[dim], [out[dim], count])
        out[dim].origins |= before[dim].origins
    else:
        ctx.data([out[dim]], node)


def narrow(ctx: Context, node: Call) -> None:
    """(a + b) -> (a)."""
    x, dim, start, _ = node.args
    before, out = ctx[x], ctx[node]
    for i, (o, b) in enumerate(zip(out, before, strict=True)):
        if i != int(dim) % len(before):
            ctx.unify(o, b)
        elif isinstance(start, int):
            _slice(ctx, node, b, start, start + o.size, o)
        else:
            _moving_slice(ctx, node, b, o)


def _moving_slice(ctx: Context, node: Call, whole: Cell, part: Cell) -> None:
    """A part whose place depends on values: of data."""
    ctx.data([part], node)
    if not ctx.axes.find(whole).fixed:
        ctx.gap(node, "a slice whose place depends on values", (whole,))


def select(ctx: Context, node: Call) -> None:
    """(n, a) -> (a)."""
    before = ctx[node.args[0]]
    dim = int(node.args[1]) % len(before)
    ctx.unify_all(ctx[node], [b for i, b in enumerate(before) if i != dim])


def diagonal(ctx: Context, node: Call) -> None:
    """(a, n, n) -> (a, n)."""
    before, out = ctx[node.args[0]], ctx[node]
    dims = [*node.args[2:4], 0, 1][:2] if len(node.args) > 2 else [0, 1]
    drop = {int(d) % len(before) for d in dims}
    ctx.unify_all(out[:-1], [b for i, b in enumerate(before) if i not in drop])


def unfold(ctx: Context, node: Call) -> None:
    """(a, n) -> (a, m, w): m windows of w elements; both are data."""
    x, dim = node.args[0], int(node.args[1])
    before, out = ctx[x], ctx[node]
    at = dim % len(before)
    for i, (o, b) in enumerate(zip(out, before, strict=False)):
        if i != at:
            ctx.unify(o, b)
    ctx.data([out[at]], node)
    ctx.data([out[-1]], node, "taps")


def as_strided(ctx: Context, node: Call) -> None:
    """Axes that keep size and stride are the same; the others are windows over data."""
    before, out = ctx[node.args[0]], ctx[node]
    old, new = node.args[0].meta["val"].stride(), node.meta["val"].stride()
    free = {i for i, b in enumerate(before) if b.size > 1}
    windows = []
    for o, stride in zip(out, new, strict=True):
        same = [i for i in free if before[i].size == o.size and old[i] == stride]
        if same:
            ctx.unify(o, before[same[0]])
            free.remove(same[0])
        elif o.size > 1:
            windows.append(o)
    if any(not ctx.axes.find(before[i]).fixed for i in free):
        ctx.gap(node, "as_strided cuts an axis that is not data")
    ctx.data(windows, node)


def create(ctx: Context, node: Call) -> None:
    """() -> (a, b): new axes, equal to nothing yet."""


def pad(ctx: Context, node: Call) -> None:
    """(a, b) -> (a, p + b + q)."""
    before, out = ctx[node.args[0]], ctx[node]
    for o, b in zip(out, before, strict=True):
        if o.size == b.size:
            ctx.unify(o, b)
        elif ctx.holds_data(b):
            ctx.data([o], node)


def diff(ctx: Context, node: Call) -> None:
    """(a, b) -> (a, b - 1 + p)."""
    pad(ctx, node)


RULES: dict[str, Rule] = {
    **{
        f"aten.{n}": view
        for n in "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as ravel "
        "atleast_1d atleast_2d atleast_3d squeeze_copy".split()
    },
    **{
        f"aten.{n}": permute
        for n in "permute transpose swapaxes swapdims t numpy_T mT mH matrix_H adjoint movedim moveaxis "
        "transpose_copy".split()
    },
    "aten.expand": expand,
    "aten.expand_as": expand_as,
    "aten.view_as_complex": view_as_complex,
    "aten.view_as_real": view_as_real,
    "aten.broadcast_to": expand,
    "aten.repeat": repeat,
    "aten.tile": repeat,
    "aten.repeat_interleave": repeat_interleave,
    "aten.cat": cat,
    "aten.concat": cat,
    "aten.concatenate": cat,
    "aten.stack": stack,
    **{
        f"aten.{n}": split for n in "split split_with_sizes chunk unsafe_chunk unsafe_split tensor_split hsplit".split()
    },
    "aten.glu": glu,
    "aten.unbind": unbind,
    "aten.slice": slice_,
    "aten.narrow": narrow,
    "aten.select": select,
    "aten.diagonal": diagonal,
    "aten.pad": pad,
    "aten.constant_pad_nd": pad,
    "aten.diff": diff,
    "aten.unfold": unfold,
    "aten.as_strided": as_strided,
    "aten.pad_sequence": pad_sequence,
    **{
        f"aten.{n}": create
        for n in "arange zeros ones full empty rand randn randint eye linspace scalar_tensor new_zeros new_ones "
        "new_full new_empty tensor tril_indices triu_indices randperm hann_window normal empty_strided "
        "new_empty_strided logspace nonzero outer meshgrid "
        "_has_compatible_shallow_copy_type _local_scalar_dense item".split()
    },
}
