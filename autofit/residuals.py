"""Residual streams: which sums add a branch to what they pass on, and how many there are in a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from autofit.dims import Dims
from autofit.flow import CASTS, STRUCTURAL
from autofit.program import op_name

PASSING = STRUCTURAL | CASTS | {"aten.neg", "aten.native_dropout"}


@dataclass(frozen=True)
class Residual:
    """One sum of a stream and a branch (CompleteP, arXiv 2505.01618, section 3).

    Attributes:
        node: the sum.
        branch: the operand that is computed from the stream by weights.
        stream: number of the stream, in execution order.
        weights: names of the parameters that only this branch reads.
    """

    node: fx.Node
    branch: fx.Node
    stream: int
    weights: frozenset[str]


def residuals(dims: Dims) -> tuple[Residual, ...]:
    """All sums whose one side is the stream itself, and whose other side holds weights that contract it.

    The stream's side comes to the sum through nodes without parameters that keep the shape. So neither masks that are
    added to logits nor the terms inside an activation function are residuals. A branch in a branch is one, too.
    """
    return tuple(_Finder(dims).find())


class _Finder:
    def __init__(self, dims: Dims) -> None:
        self.dims = dims
        self.weights: dict[fx.Node, set[str]] = {}
        self.contracting: set[fx.Node] = set()
        for use in dims.uses:
            self.weights.setdefault(use.node, set()).add(use.parameter)
            if "in" in use.kinds.values():
                self.contracting.add(use.node)
        self.stream_of: dict[fx.Node, int] = {}
        self.skips: dict[fx.Node, fx.Node] = {}
        self.streams = 0
        self.live: set[fx.Node] = set()
        for node in reversed(dims.program.graph.nodes):
            if node.op == "output" or any(u in self.live for u in node.users):
                self.live.add(node)

    def find(self) -> Iterator[Residual]:
        """In execution order."""
        for node in self.dims.program.calls():
            if op_name(node) != "aten.add" or len(node.all_input_nodes) != 2:
                continue
            left, right = node.all_input_nodes
            if not _alike(left, node) or not _alike(right, node):
                continue
            for skip, branch in ((left, right), (right, left)):
                inside = self._inside(self._stream(skip), branch)
                if inside & self.contracting:
                    self.skips[node] = skip
                    self.stream_of[node] = self._number(skip)
                    weights = frozenset(w for n in inside for w in self.weights.get(n, ()))
                    yield Residual(node, branch, self.stream_of[node], weights)
                    break

    def _stream(self, node: fx.Node) -> set[fx.Node]:
        """A value and what it was on its way: other shapes of it, and the stream before earlier sums."""
        found = {node}
        while True:
            if node in self.skips:
                node = self.skips[node]
            elif op_name(node) in PASSING and node.op == "call_function" and node.all_input_nodes:
                node = node.all_input_nodes[0]
            else:
                return found
            found.add(node)

    def _inside(self, stream: set[fx.Node], branch: fx.Node) -> set[fx.Node]:
        """Nodes from the stream to the branch's end, with what nothing else reads; none if it is not from there."""
        above: list[fx.Node] = []
        seen, stack, meets = set(stream), [branch], False
        while stack:
            node = stack.pop()
            if node in stream:
                meets = True
            if node in seen or self.dims.origin.get(node.name) != "data":
                continue
            seen.add(node)
            above.append(node)
            if node not in self.skips or node is branch or self._nested(node, stream):
                stack += node.all_input_nodes
        if not meets:
            return set()
        inside: set[fx.Node] = set()
        for node in sorted(above, key=lambda n: -self._order[n]):
            if node is branch or all(u in inside for u in node.users if u in self.live):
                inside.add(node)
        return inside

    def _nested(self, node: fx.Node, stream: set[fx.Node]) -> bool:
        """Whether an earlier sum began inside this branch: on another stream than this one, made from it."""
        first = min(self._stream(node), key=self._order.__getitem__)
        return not self._stream(node) & stream and self._order[first] > max(self._order[n] for n in stream)

    @property
    def _order(self) -> dict[fx.Node, int]:
        known: dict[fx.Node, int] = self.__dict__.setdefault("_places", {})
        if not known:
            known.update({n: i for i, n in enumerate(self.dims.program.graph.nodes)})
        return known

    def _number(self, skip: fx.Node) -> int:
        """The stream that a value belongs to: that of the last sum before it, with nothing contracted between."""
        node: fx.Node | None = skip
        while node is not None:
            if node in self.stream_of:
                return self.stream_of[node]
            if node in self.contracting or node.op != "call_function":
                break
            node = next((n for n in node.all_input_nodes if self._is_data(n) and _alike(n, node)), None)
        self.streams += 1
        return self.streams - 1

    def _is_data(self, node: fx.Node) -> bool:
        return self.dims.origin.get(node.name) == "data"


def _alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether two values are tensors with as many elements."""
    a, b = node.meta.get("val"), other.meta.get("val")
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.numel() == b.numel()
