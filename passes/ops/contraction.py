"""Ops that sum over a shared axis: linear maps, matrix products, attention, recurrences."""

from __future__ import annotations

from typing import Any

from torch import fx

from autofit.dims import Cell, Kind
from autofit.passes.ops.context import Call, Context, Rule
from autofit.passes.ops.elementwise import tensors

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def linear(ctx: Context, node: Call) -> None:
    """(b, i) x (o, i), bias (o) -> (b, o): i contracted."""
    x, w = node.args[0], node.args[1]
    batch = LETTERS[: len(ctx[x]) - 1]
    out = "z" if len(ctx[w]) == 2 else ""
    ctx.contract(node, x, w, (batch + "y", out + "y", batch + out))
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if bias is not None:
        ctx.unify(ctx[bias][0], ctx[node][-1])


def matmul(ctx: Context, node: Call) -> None:
    """(..., m, k) x (..., k, n) -> (..., m, n): k contracted, batch axes right-aligned."""
    _matmul(ctx, node, node.args[0], node.args[1])


def _matmul(ctx: Context, node: Call, left: Any, right: Any) -> None:
    a, b = ctx[left], ctx[right]
    if len(a) == 1 and len(b) == 1:
        ctx.contract(node, left, right, ("y", "y", ""))
        return
    batch = LETTERS[: max(len(a), len(b), 2) - 2]
    rows, columns = ("w" if len(a) > 1 else ""), ("z" if len(b) > 1 else "")
    on_left = batch[len(batch) - max(len(a) - 2, 0) :] + rows + "y"
    on_right = batch[len(batch) - max(len(b) - 2, 0) :] + "y" + columns
    ctx.contract(node, left, right, (on_left, on_right, batch + rows + columns))


def addmm(ctx: Context, node: Call) -> None:
    """c + (m, k) x (k, n) -> (m, n): k contracted, c broadcast."""
    _matmul(ctx, node, node.args[1], node.args[2])
    ctx.broadcast(ctx[node], ctx[node.args[0]])


def tensordot(ctx: Context, node: Call) -> None:
    """(a, k) x (k, b) -> (a, b): the listed axes are contracted."""
    left, right, dims_left, dims_right = node.args[:4]
    on_left = list(LETTERS[: len(ctx[left])])
    on_right = list(LETTERS[len(on_left) : len(on_left) + len(ctx[right])])
    for a, b in zip(dims_left, dims_right, strict=True):
        on_right[b] = on_left[a]
    kept = [c for c in on_left if c not in on_right] + [c for c in on_right if c not in on_left]
    ctx.contract(node, left, right, ("".join(on_left), "".join(on_right), "".join(kept)))


def outer(ctx: Context, node: Call) -> None:
    """(m), (n) -> (m, n)."""
    ctx.contract(node, node.args[0], node.args[1], ("w", "z", "wz"))


def einsum(ctx: Context, node: Call) -> None:
    """Einstein summation of one or two operands; `autofit.inline` makes chains of two of longer ones."""
    equation = str(node.args[0]).replace(" ", "")
    operands = tensors(node.args[1])
    left, _, right = equation.partition("->")
    terms = left.split(",")
    free = [c for c in LETTERS + LETTERS.upper() if c not in equation]
    dots = max((len(ctx[n]) - len(t.replace("...", "")) for n, t in zip(operands, terms, strict=True)), default=0)
    ellipsis = "".join(free[:dots])

    def expand(term: str, rank: int) -> str:
        count = rank - len(term.replace("...", ""))
        return term.replace("...", ellipsis[len(ellipsis) - count :])

    terms = [expand(t, len(ctx[n])) for t, n in zip(terms, operands, strict=True)]
    if "->" not in equation:
        counts = "".join(terms)
        right = ellipsis + "".join(sorted(c for c in set(counts) - set(ellipsis) if counts.count(c) == 1))
    right = expand(right, len(ctx[node]))
    if len(operands) == 2:
        ctx.contract(node, operands[0], operands[1], (terms[0], terms[1], right))
        return
    known: dict[str, Cell] = {}
    for cells, term in [*zip([ctx[n] for n in operands], terms, strict=True), (ctx[node], right)]:
        for cell, letter in zip(cells, term, strict=True):
            if letter in known:
                ctx.unify(cell, known[letter])
            known.setdefault(letter, cell)


def distance(ctx: Context, node: Call) -> None:
    """(b, p, m), (b, r, m) -> (b, p, r): m summed over. Not linear: no factor on one side scales the result."""
    left, right = node.args[:2]
    batch = LETTERS[: len(ctx[node]) - 2]
    if "weight" in (ctx.origin[left.name], ctx.origin[right.name]):
        ctx.contract(node, left, right, (batch + "wy", batch + "zy", batch + "wz"))
        return
    a, b, out = ctx[left], ctx[right], ctx[node]
    ctx.unify(a[-1], b[-1])
    ctx.note(a[-1], "activations", node)
    ctx.unify(out[-2], a[-2])
    ctx.unify(out[-1], b[-2])
    ctx.unify_all(out[:-2], a[:-2])


def triangular_solve(ctx: Context, node: Call) -> None:
    """A (b, n, n), B (b, n, k) -> (b, n, k): the inverse of A times B."""
    a, b, out = ctx[node.args[0]], ctx[node.args[1]], ctx[node]
    ctx.unify_all(out, b)
    rows = out[-1] if node.kwargs.get("left") is False else out[-2]
    ctx.unify(a[-1], rows)
    ctx.unify(a[-2], rows)
    ctx.broadcast(out[:-2], a[:-2])


def attention(ctx: Context, node: Call) -> None:
    """(b, h, s, d), (b, g, t, d), (b, g, t, v) -> (b, h, s, v): d and t contracted, h = g * n."""
    q, k, v = node.args[:3]
    cq, ck, cv, out = ctx[q], ctx[k], ctx[v], ctx[node]
    ctx.unify(cq[-1], ck[-1])
    ctx.unify(ck[-2], cv[-2])
    ctx.unify(out[-1], cv[-1])
    ctx.unify_all(out[:-1], cq[:-1])
    for a, b, c in zip(cq[:-2], ck[:-2], cv[:-2], strict=False):
        ctx.unify(b, c)
        if a.size == b.size:
            ctx.unify(a, b)
        elif b.size > 1:
            ctx.axes.join(a, [b, ctx.axes.new(a.size // b.size, node.name, "group")])
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if ctx.is_tensor(mask):
        ctx.broadcast([*cq[:-2], cq[-2], ck[-2]], ctx[mask])
    ctx.product(node, q, k, ((cq[-1], ck[-1]),), tuple(cq[:-2]))


def grouped_mm(ctx: Context, node: Call) -> None:
    """(n, i) x (e, i, o), offsets (e) -> (n, o): i contracted, e a stack of independent maps."""
    x, w = node.args[0], node.args[1]
    cw = ctx[w]
    ctx.unify(ctx[x][1], cw[1])
    ctx.unify(ctx[node][1], cw[2])
    ctx.unify(ctx[node][0], ctx[x][0])
    ctx.note(cw[0], "stack", node)
    ctx.note(cw[1], "weight", node)
    ctx.note(ctx[x][1], "weight", node)
    ctx.use(node, w, [(cw[0], "stack"), (cw[1], "in"), (cw[2], "out")], x)


def recurrent(ctx: Context, node: Call) -> None:
    """x (.., i), states (l, b, h), w_ih (g*h, i), w_hh (g*h, h), biases (g*h) -> (.., h): i and h contracted."""
    name = node.target._schema.name
    gates = {"lstm": 4, "gru": 3}.get(name.split("::")[1].split(".")[0], 1)
    x, states, weights = node.args[0], node.args[1], node.args[2]
    layers, bidirectional = int(node.args[4]), bool(node.args[7])
    hidden = tensors(states)
    outs = ctx[node]
    below: list[Cell] = [ctx[x][-1]]
    per = len(weights) // (layers * (2 if bidirectional else 1))
    tensors_of = iter(weights)
    for layer in range(layers):
        produced = []
        for _ in range(2 if bidirectional else 1):
            group = [next(tensors_of) for _ in range(per)]
            w_ih, w_hh, *rest = group
            size = ctx[w_hh][0].size // gates
            h = ctx.axes.new(size, node.name, f"hidden {layer}")
            for w in group[:2] + rest[:2] * (per >= 4):
                count = ctx.axes.new(gates, node.name, "gates")
                ctx.data([count], node, "gates")
                ctx.axes.join(ctx[w][0], [count, h])
            fed = h
            if per in (3, 5):  # projected LSTM: the state that is fed back is w_hr @ h
                fed = ctx.axes.new(ctx[rest[-1]][0].size, node.name, f"projection {layer}")
                ctx.unify(ctx[rest[-1]][0], fed)
                ctx.unify(ctx[rest[-1]][1], h)
                _recurrent_use(ctx, node, rest[-1], [(ctx[rest[-1]][0], "out"), (ctx[rest[-1]][1], "in")], x)
            if len(below) == 1:
                ctx.unify(ctx[w_ih][1], below[0])
            else:
                ctx.axes.concatenate(ctx[w_ih][1], below)
            ctx.unify(ctx[w_hh][1], fed)
            ctx.note(below[0] if len(below) == 1 else ctx[w_ih][1], "weight", node)
            _recurrent_use(ctx, node, w_ih, [(ctx[w_ih][0], "out"), (ctx[w_ih][1], "in")], x)
            _recurrent_use(ctx, node, w_hh, [(ctx[w_hh][0], "out"), (ctx[w_hh][1], "in")], x)
            for state, cell in zip(hidden, (fed, h), strict=False):
                ctx.unify(ctx[state][-1], cell)
            for state, cell in zip(outs[1:], (fed, h), strict=False):
                ctx.unify(state[-1], cell)
            produced.append(fed)
        below = produced
    sequence = outs[0]
    ctx.unify_all(sequence[:-1], ctx[x][:-1])
    if len(below) == 1:
        ctx.unify(sequence[-1], below[0])
    else:
        ctx.axes.concatenate(sequence[-1], below)


def _recurrent_use(ctx: Context, node: Call, w: fx.Node, kinds: list[tuple[Cell, Kind]], x: fx.Node) -> None:
    for cell, kind in kinds:
        if kind == "in":
            ctx.note(cell, "weight", node)
    ctx.use(node, w, kinds, x)


def recurrent_cell(ctx: Context, node: Call) -> None:
    """x (b, i), state (b, h), w_ih (g*h, i), w_hh (g*h, h), biases (g*h) -> (b, h): i and h contracted."""
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(node.target._schema.name.split("::")[1], 1)
    x, states, w_ih, w_hh, *biases = node.args
    h = ctx.axes.new(ctx[w_hh][1].size, node.name, "hidden")
    for w in (w_ih, w_hh, *tensors(biases)):
        count = ctx.axes.new(gates, node.name, "gates")
        ctx.data([count], node, "gates")
        ctx.axes.join(ctx[w][0], [count, h])
    ctx.unify(ctx[w_hh][1], h)
    ctx.unify(ctx[w_ih][1], ctx[x][-1])
    outs = ctx[node] if ctx[node] and isinstance(ctx[node][0], tuple) else (ctx[node],)
    for cells in (*(ctx[s] for s in tensors([states])), *outs):
        ctx.unify(cells[-1], h)
        ctx.unify_all(cells[:-1], ctx[x][:-1])
    for w in (w_ih, w_hh):
        _recurrent_use(ctx, node, w, [(ctx[w][0], "out"), (ctx[w][1], "in")], x)


def bilinear(ctx: Context, node: Call) -> None:
    """(b, i), (b, j), w (o, i, j) -> (b, o): i and j contracted."""
    x, y, w = node.args[:3]
    cw = ctx[w]
    ctx.unify(ctx[x][-1], cw[1])
    ctx.unify(ctx[y][-1], cw[2])
    ctx.unify(ctx[node][-1], cw[0])
    ctx.unify_all(ctx[node][:-1], ctx[x][:-1])
    for cell in (cw[1], cw[2]):
        ctx.note(cell, "weight", node)
    ctx.use(node, w, [(cw[0], "out"), (cw[1], "in"), (cw[2], "in")], x)


RULES: dict[str, Rule] = {
    "aten.linear": linear,
    **{f"aten.{n}": matmul for n in "matmul mm bmm mv dot vdot inner".split()},
    **{f"aten.{n}": addmm for n in "addmm baddbmm addmv".split()},
    "aten.outer": outer,
    "aten.tensordot": tensordot,
    "aten.einsum": einsum,
    "aten.linalg_solve_triangular": triangular_solve,
    "aten.cdist": distance,
    "aten._cdist_forward": distance,
    "aten.scaled_dot_product_attention": attention,
    "transformers.grouped_mm_fallback": grouped_mm,
    "aten._grouped_mm": grouped_mm,
    **{f"aten.{n}": recurrent for n in "lstm gru rnn_tanh rnn_relu".split()},
    **{f"aten.{n}": recurrent_cell for n in "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split()},
    "aten.bilinear": bilinear,
}
