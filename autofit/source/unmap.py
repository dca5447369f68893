"""``vmap`` of functions of numbers, as masks of attention are made by, written as ops that broadcast."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autofit.errors import ExportError
from autofit.program import describe, live, op_name

aten = torch.ops.aten
CREATING = {aten.new_ones.default, aten.new_zeros.default, aten.new_full.default}


def unmap(graph: fx.Graph) -> None:
    """Give every mapped axis a place among the first of all values: ``f(i, j)`` becomes ``f(i[:, None], j[None])``.

    Raises:
        ExportError: what is mapped takes or gives more than single numbers.
    """
    if not any(op_name(n) == "_add_batch_dim" for n in graph.nodes):
        return
    _Unmap(graph).run()
    graph.lint()


class _Unmap:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.depth = max(int(str(n.args[2])) for n in graph.nodes if op_name(n) == "_add_batch_dim")
        self.whole: dict[fx.Node, fx.Node] = {}
        self.like: fx.Node

    def run(self) -> None:
        alive = live(self.graph)
        for node in list(self.graph.nodes):
            mapped = op_name(node) == "_add_batch_dim" or any(i in self.whole for i in node.all_input_nodes)
            if node.op == "call_function" and node in alive and mapped:
                self.like = node
                with self.graph.inserting_before(node):
                    self._write(node)

    def _write(self, node: fx.Node) -> None:
        name, args = op_name(node), node.args
        if name == "_add_batch_dim":
            value: Any = args[0]
            if value in self.whole or _rank(value) != 1:
                self._refuse(node)
            for axis in range(self.depth):
                if axis != int(str(args[2])) - 1:
                    shape = [*value.meta["val"].shape[:axis], 1, *value.meta["val"].shape[axis:]]
                    value = self._new(aten.unsqueeze.default, (value, axis), {}, shape)
            self.whole[node] = value
        elif name == "_remove_batch_dim":
            value, level = self.whole[args[0]], args[1]  # type: ignore[index]
            if args[3] != 0:
                self._refuse(node)
            if level == 1:
                shape = list(node.meta["val"].shape)
                node.replace_all_uses_with(self._new(aten.expand.default, (value, shape), {}, shape))
            self.whole[node] = value
        else:
            self.whole[node] = self._number(node)

    def _number(self, node: fx.Node) -> fx.Node:
        """An op that gives one number."""
        target, args, kwargs = node.target, node.args, dict(node.kwargs)
        if op_name(node) == "flat_apply" and "ModIndex" in str(args[2]):
            target, args = aten.index.Tensor, (args[3], list(args[4:]))
        elif target in CREATING:
            args = (args[0], [1] * self.depth, *args[2:])
        elif any(_rank(i) for i in node.all_input_nodes):
            self._refuse(node)
        if _rank(node):
            self._refuse(node)
        args, kwargs = fx.map_arg((args, kwargs), lambda n: self.whole.get(n, n))
        shapes = [w.meta["val"].shape for i in node.all_input_nodes if (w := self.whole.get(i)) is not None]
        shape = [1] * self.depth if target in CREATING else list(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
        return self._new(target, args, kwargs, shape)

    def _new(self, target: Any, args: Any, kwargs: dict[str, Any], shape: list[int]) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        made.meta = dict(self.like.meta)
        made.meta["val"] = torch.empty(shape, dtype=self.like.meta["val"].dtype, device="meta")
        return made

    def _refuse(self, node: fx.Node) -> None:
        raise ExportError("vmap over more than single numbers", where=describe(node))


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0
