"""Writes in place as values: who reads a tensor after a write reads what the write left."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

aten = torch.ops.aten
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def functionalize(module: fx.GraphModule) -> None:
    """Rewrite a captured graph in place, so that every value has one meaning from its node to its last reader.

    A write into a part of a tensor, as ``x[:, 0] = y``, becomes a new whole tensor (``select_scatter``) that later
    readers of ``x`` read, and of the parts of ``x`` that were cut before. Nodes that are not affected stay.
    """
    writes = [n for n in module.graph.nodes if _written(n) is not None]
    if not writes:
        return
    memory = _Memory(module.graph)
    for node in list(module.graph.nodes):
        memory.pass_over(node)
    module.graph.lint()
    module.recompile()


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor that an op writes into and returns."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return None
    first: Any = node.target._schema.arguments[0].alias_info
    if first is None or not first.is_write or not node.target._schema.returns:
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


Chain = tuple[fx.Node, ...]
"""Views, each of the one before it, from a whole tensor to a part of it."""


class _Memory:
    """What lies in the memory of each tensor, while the program is read from its start to its end."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.place: dict[fx.Node, tuple[fx.Node, Chain]] = {}
        self.held: dict[tuple[fx.Node, Chain], fx.Node] = {}
        self.written: set[fx.Node] = set()

    def pass_over(self, node: fx.Node) -> None:
        """Let a node read what is there now; note what it writes, or what it is a view of."""
        for operand in node.all_input_nodes:
            root, chain = self._where(operand)
            if root in self.written and self.held.get((root, chain)) is not operand:
                with self.graph.inserting_before(node):
                    node.replace_input_with(operand, self._read(root, chain))
        old = _written(node)
        source = _source(node)
        if old is not None:
            self._write(node, old)
        elif source is not None:
            root, chain = self._where(source)
            self.place[node] = root, (*chain, node)
            self.held[self.place[node]] = node

    def _where(self, node: fx.Node) -> tuple[fx.Node, Chain]:
        return self.place.get(node, (node, ()))

    def _read(self, root: fx.Node, chain: Chain) -> fx.Node:
        """The part of a tensor, cut anew where it was written since."""
        if (root, chain) not in self.held:
            self.held[root, chain] = self._cut(chain[-1], self._read(root, chain[:-1])) if chain else root
            self.place[self.held[root, chain]] = root, chain
        return self.held[root, chain]

    def _cut(self, view: fx.Node, whole: fx.Node) -> fx.Node:
        if view.target is operator.getitem:
            pieces: Any = view.args[0]
            again = self.graph.node_copy(pieces, lambda n: whole if n is pieces.args[0] else n)
            return self.graph.node_copy(view, lambda n: again)
        return self.graph.node_copy(view, lambda n: whole if n is view.args[0] else n)

    def _write(self, node: fx.Node, old: fx.Node) -> None:
        root, chain = self._where(old)
        name = _op(node)
        new = node
        with self.graph.inserting_before(node.next):
            if name == "copy_":
                value: Any = node.args[1]
                same = value.meta["val"].shape == old.meta["val"].shape
                op, shape = (aten.clone, ()) if same else (aten.expand, (list(old.meta["val"].shape),))
                new = self._call(node, op.default, value, *shape, like=old.meta["val"])
                node.replace_all_uses_with(new)
            wholes = [self._read(root, chain[:depth]) for depth in range(len(chain))]
            made = [new]
            for view, whole in zip(reversed(chain), reversed(wholes), strict=True):
                put = self._put_back(view, whole, made[-1])
                if put is None:  # a way back that is not known: the parts around stay as they were
                    break
                made.append(put)
        complete = len(made) == len(chain) + 1
        for at in [at for at in self.held if at[0] is root and (complete or at[1][: len(chain)] == chain)]:
            del self.held[at]
        for depth, value in zip(range(len(chain), -1, -1), made, strict=False):
            self.held[root, chain[:depth]] = value
            self.place[value] = root, chain[:depth]
        self.written.add(root)
        plain = getattr(getattr(aten, name[:-1], None), str(node.target._overloadname), None)  # type: ignore[union-attr]
        if name == "copy_":
            self.graph.erase_node(node)
        elif plain is not None and name.endswith("_"):
            node.target = plain

    def _put_back(self, part: fx.Node, source: fx.Node, new: fx.Node) -> fx.Node | None:
        """The whole tensor with a new part; ``None`` where the way back is not known."""
        whole, op, args = source.meta["val"], _op(part), part.args
        if part.target is operator.getitem:
            return self._put_back_piece(part, source, new)
        if op in ("select", "slice", "diagonal"):
            return self._call(part, getattr(aten, f"{op}_scatter").default, source, new, *args[1:], like=whole)
        if op == "narrow":
            dim, start, length = args[1:]
            end = start + length  # type: ignore[operator]
            return self._call(part, aten.slice_scatter.default, source, new, dim, start, end, like=whole)
        if op == "expand" or new.meta["val"].numel() != whole.numel() or whole.dim() > len(PRIMES):
            return None
        if op in ("transpose", "permute", "t", "mT", "numpy_T", "movedim", "swapaxes", "swapdims"):
            probe = torch.empty(PRIMES[: whole.dim()], device="meta")
            moved = list(part.target(probe, *args[1:], **part.kwargs).shape)  # type: ignore[operator]
            return self._call(part, aten.permute.default, new, [moved.index(p) for p in probe.shape], like=whole)
        return self._call(part, aten.reshape.default, new, list(whole.shape), like=whole)

    def _put_back_piece(self, part: fx.Node, source: fx.Node, new: fx.Node) -> fx.Node | None:
        """A piece of a split, chunk or unbind, put back where it was cut."""
        split: Any = part.args[0]
        which, pieces, whole = int(part.args[1]), split.meta["val"], source.meta["val"]  # type: ignore[arg-type]
        if pieces[which].dim() < whole.dim():
            dim = split.args[1] if len(split.args) > 1 else 0
            return self._call(part, aten.select_scatter.default, source, new, dim, which, like=whole)
        cut = [d for d in range(whole.dim()) if pieces[which].shape[d] != whole.shape[d]]
        if len(cut) != 1:
            return None
        start = sum(p.shape[cut[0]] for p in pieces[:which])
        end = start + pieces[which].shape[cut[0]]
        return self._call(part, aten.slice_scatter.default, source, new, cut[0], start, end, like=whole)

    def _call(self, place: fx.Node, op: Any, *args: Any, like: torch.Tensor) -> fx.Node:
        node = self.graph.call_function(op, args)
        node.meta |= {k: place.meta[k] for k in ("nn_module_stack", "stack_trace") if k in place.meta}
        node.meta["val"] = like
        return node


def _op(node: fx.Node) -> str:
    return getattr(node.target, "_opname", str(getattr(node.target, "__name__", node.target)))


def _source(node: fx.Node) -> fx.Node | None:
    """The value that a value is a view of: they share memory."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.target is operator.getitem:
        whole = source.args[0] if _views_of(source) else None
        return whole if isinstance(whole, fx.Node) else None
    return source if _views_of(node) and not isinstance(node.meta.get("val"), tuple | list) else None


def _views_of(node: fx.Node) -> bool:
    """Whether an op gives views of its first operand."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    returns = node.target._schema.returns
    if not returns or returns[0].alias_info is None or returns[0].alias_info.is_write:
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    first = after[0] if isinstance(after, tuple | list) and after else after
    if not isinstance(before, torch.Tensor) or not isinstance(first, torch.Tensor):
        return False
    try:
        return math.prod(first.shape) == 0 or _share(before, first) or _shares_again(node, before)
    except NotImplementedError:  # a tensor without memory of its own, as in vmap: the schema's word is taken
        return True


def _share(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _shares_again(node: fx.Node, before: torch.Tensor) -> bool:
    """Whether an op gives a view when it runs once more, without values: a recorded node's memory is not kept."""
    if any(isinstance(a, fx.Node) for a in pytree.tree_leaves((node.args[1:], dict(node.kwargs)))):
        return False
    with FakeTensorMode(), torch.no_grad():
        probe = torch.empty_strided(before.shape, before.stride(), dtype=before.dtype, device=before.device)
        try:
            result = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError):
            return False
    first = result[0] if isinstance(result, tuple | list) and result else result
    return isinstance(first, torch.Tensor) and _share(probe, first)
