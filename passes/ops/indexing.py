"""Ops that look up, select or count."""

from __future__ import annotations

import itertools

from torch import fx

from autofit.dims import Cell, Kind
from autofit.passes.ops.context import Call, Context, Rule
from autofit.passes.ops.elementwise import tensors
from autofit.program import op_name


def embedding(ctx: Context, node: Call) -> None:
    """table (n, d), indices (b) -> (b, d): n is an index range."""
    table, indices = node.args[0], node.args[1]
    ctx.unify_all(ctx[node], ctx[indices])
    ctx.unify(ctx[node][-1], ctx[table][-1])
    ctx.data([ctx[table][0]], node, "index")
    if ctx.origin[table.name] == "weight":
        ctx.use(node, table, [(ctx[table][0], "index"), (ctx[table][-1], "out")])
    ctx.origin[node.name] = "data"


def embedding_bag(ctx: Context, node: Call) -> None:
    """table (n, d), indices, offsets (b) -> (b, d): n is an index range."""
    table = node.args[0]
    ctx.unify(ctx[node][0][-1], ctx[table][-1])
    ctx.data([ctx[table][0]], node, "index")
    ctx.use(node, table, [(ctx[table][0], "index"), (ctx[table][-1], "out")])


def index(ctx: Context, node: Call) -> None:
    """x (n, d)[i (b)] -> (b, d): indexed axes are replaced by those of the broadcast indices."""
    x, indices = node.args[0], list(node.args[1])
    before, out = ctx[x], ctx[node]
    indices += [None] * (len(before) - len(indices))
    used = [i for i, n in enumerate(indices) if n is not None]
    rank = max(len(ctx[indices[i]]) for i in used)
    adjacent = used == list(range(used[0], used[-1] + 1))
    at = used[0] if adjacent else 0
    if "bool" not in str(indices[used[0]].meta["val"].dtype):
        for i in used:
            ctx.broadcast(out[at : at + rank], ctx[indices[i]])
        kept = [b for i, b in enumerate(before) if i not in used]
        ctx.unify_all([*out[:at], *out[at + rank :]], kept)
    elif len(used) == 1:
        mask = len(ctx[indices[used[0]]])
        ctx.unify_all(out[at + 1 :], before[at + mask :])
        rank, used = 1, list(range(at, at + mask))
    if all(ctx.holds_data(before[i]) for i in used):
        ctx.data(out[at : at + rank], node)  # a choice of positions
    _looked_up(ctx, node, x, set(used))


def _looked_up(ctx: Context, node: Call, x: fx.Node, dims: set[int]) -> None:
    if ctx.origin[x.name] == "weight":
        kinds: list[tuple[Cell, Kind]] = [(c, "index" if i in dims else "out") for i, c in enumerate(ctx[x])]
        for i in dims:
            ctx.data([ctx[x][i]], node, "index")
        ctx.use(node, x, kinds)
        ctx.origin[node.name] = "data"


def index_select(ctx: Context, node: Call) -> None:
    """x (n, d), i (b) -> (b, d)."""
    x, dim, indices = node.args
    at = int(dim) % len(ctx[x])
    for i, (o, b) in enumerate(zip(ctx[node], ctx[x], strict=True)):
        ctx.unify(o, ctx[indices][0] if i == at else b)
    if ctx.holds_data(ctx[x][at]):
        ctx.data([ctx[node][at]], node)
    _looked_up(ctx, node, x, {at})


def gather(ctx: Context, node: Call) -> None:
    """x (n, d), i (m, d) -> (m, d)."""
    x, dim, indices = node.args[:3]
    ctx.unify_all(ctx[node], ctx[indices])
    for i, (o, b) in enumerate(zip(ctx[node], ctx[x], strict=True)):
        if i != int(dim) % max(len(ctx[x]), 1) and o.size == b.size:
            ctx.unify(o, b)


def take_along_dim(ctx: Context, node: Call) -> None:
    """x (n, d), i (m, 1) -> (m, d); without a dimension, x is flat."""
    x, indices, dim = (*node.args, None)[:3]
    if dim is None:
        return
    at = int(dim) % len(ctx[x])
    ctx.broadcast([c for i, c in enumerate(ctx[node]) if i != at], [c for i, c in enumerate(ctx[x]) if i != at])
    ctx.broadcast(ctx[node], ctx[indices])


def scatter(ctx: Context, node: Call) -> None:
    """x (n, d), i (m, d) -> (n, d): n is an index range."""
    ctx.unify_all(ctx[node], ctx[node.args[0]])
    dim = node.args[1]
    if isinstance(dim, int) and ctx[node]:
        ctx.data([ctx[node][dim % len(ctx[node])]], node, "index")
        source: Call = node.args[3] if len(node.args) > 3 else None
        if ctx.is_tensor(source):
            for i, (o, b) in enumerate(zip(ctx[node], ctx[source], strict=False)):
                if i != dim % len(ctx[node]) and o.size == b.size:
                    ctx.unify(o, b)


def keep_first(ctx: Context, node: Call) -> None:
    """x (a, b), ... -> (a, b)."""
    ctx.unify_all(ctx[node], ctx[node.args[0]])


def put_back(ctx: Context, node: Call) -> None:
    """x (n, d), part (m, d) -> (n, d): a part of x is another."""
    keep_first(ctx, node)
    source = node.args[1]
    if len(ctx[source]) == len(ctx[node]):
        for o, b in zip(ctx[node], ctx[source], strict=True):
            if o.size == b.size:
                ctx.unify(o, b)


def select_scatter(ctx: Context, node: Call) -> None:
    """x (n, d), row (d) -> (n, d): a row of x is another."""
    keep_first(ctx, node)
    dim = int(node.args[2]) % len(ctx[node])
    ctx.unify_all([c for i, c in enumerate(ctx[node]) if i != dim], ctx[node.args[1]])


def index_put(ctx: Context, node: Call) -> None:
    """x (n, d), [i (b)], values (b, d) -> (n, d)."""
    keep_first(ctx, node)
    values = node.args[2]
    first = next((n for n in node.args[1] if n is not None), None)
    if first is not None and "bool" in str(first.meta["val"].dtype):
        kept = ctx[node][len(ctx[first]) :]
        if ctx.is_tensor(values) and kept and len(ctx[values]) >= len(kept) and node.args[1][0] is first:
            ctx.broadcast(kept, ctx[values][-len(kept) :])
        return
    used = [i for i, n in enumerate(node.args[1]) if n is not None]
    if ctx.is_tensor(values) and used == list(range(len(used))):
        ctx.broadcast(
            ctx[node][len(used) :],
            ctx[values][-(len(ctx[node]) - len(used)) :] if len(ctx[node]) > len(used) else (),
        )


def masked_scatter(ctx: Context, node: Call) -> None:
    """x (n, d), mask (n, 1), source (m, d) or (m x d) -> (n, d): rows, where the mask is one number for each."""
    keep_first(ctx, node)
    mask, source = node.args[1], node.args[2]
    while isinstance(mask, fx.Node) and mask.op == "call_function" and mask.meta["val"].shape[-1:] != (1,):
        mask = mask.args[0] if op_name(mask) in ("aten.expand", "aten.expand_as", "aten.to", "aten.clone") else None
    if isinstance(mask, fx.Node) and mask.meta["val"].shape[-1:] == (1,) and ctx[source]:
        width, given = ctx[node][-1], ctx[source][-1]
        if len(ctx[source]) == 1 and given.size > width.size:
            rows = ctx.axes.new(given.size // width.size, node.name, "rows")
            ctx.axes.join(given, [rows, width])
        else:
            ctx.unify(width, given)


def topk(ctx: Context, node: Call) -> None:
    """(b, n) -> values (b, k), indices (b, k): n is an index range, k a number of choices."""
    before = ctx[node.args[0]]
    dim = int(node.args[2] if len(node.args) > 2 else -1) % len(before)
    ctx.data([before[dim]], node, "index")
    for out in ctx[node]:
        for i, (o, b) in enumerate(zip(out, before, strict=True)):
            if i != dim:
                ctx.unify(o, b)
        ctx.data([out[dim]], node, "index")


def sort(ctx: Context, node: Call) -> None:
    """(a, b) -> (a, b), (a, b)."""
    for out in ctx[node]:
        ctx.unify_all(out, ctx[node.args[0]])


def counted(ctx: Context, node: Call) -> None:
    """x (b) -> (b, n) or (n): n is an index range."""
    out = ctx[node]
    ctx.unify_all(out[:-1], ctx[node.args[0]])
    if out:
        ctx.data([out[-1]], node, "index")


def classification_loss(ctx: Context, node: Call) -> None:
    """logits (b, c, ...), labels (b, ...) -> (): c is an index range."""
    logits = ctx[node.args[0]]
    if len(logits) > 1:
        ctx.data([logits[1]], node, "index")


def loss(ctx: Context, node: Call) -> None:
    """x (a, b), y (a, b) -> () or (a, b)."""
    operands = tensors(node.args)
    for a, b in itertools.pairwise(operands):
        if len(ctx[a]) == len(ctx[b]):
            ctx.unify_all(ctx[a], ctx[b])
    if len(ctx[node]) == len(ctx[operands[0]]):
        ctx.unify_all(ctx[node], ctx[operands[0]])


RULES: dict[str, Rule] = {
    "aten.embedding": embedding,
    "aten.embedding_bag": embedding_bag,
    "aten._embedding_bag": embedding_bag,
    "aten.index": index,
    "aten.index_select": index_select,
    "aten.gather": gather,
    **{f"aten.{n}": scatter for n in "scatter scatter_add scatter_reduce".split()},
    **{f"aten.{n}": keep_first for n in "index_add index_copy index_fill".split()},
    **{f"aten.{n}": put_back for n in "slice_scatter diagonal_scatter".split()},
    "aten.select_scatter": select_scatter,
    "aten.masked_scatter": masked_scatter,
    "aten.take_along_dim": take_along_dim,
    "aten.index_put": index_put,
    "aten.topk": topk,
    "aten.sort": sort,
    **{f"aten.{n}": counted for n in "one_hot histc bincount bucketize searchsorted multinomial".split()},
    **{f"aten.{n}": classification_loss for n in "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d".split()},
    **{
        f"aten.{n}": loss
        for n in "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy "
        "binary_cross_entropy_with_logits kl_div".split()
    },
}
