"""Which node of one capture is which of another: where the programs are the same, or one does less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx
from torch.utils import _pytree

from autofit.program import op_name
from autofit.source.calls import Call

COPYING = frozenset({"aten.contiguous", "aten.clone"})
"""Ops that are not there where a value lies in memory as it should already."""


@dataclass
class Pairing:
    """Nodes of one capture beside those of another.

    Attributes:
        pairs: the other's node for each that it has.
        skipped: nodes that the other has not.
        passed: of these, those that are read by others, with the value that these read there instead.
    """

    pairs: dict[fx.Node, fx.Node] = field(default_factory=dict)
    skipped: set[fx.Node] = field(default_factory=set)
    passed: dict[fx.Node, fx.Node] = field(default_factory=dict)


def pair(a: Call, b: Call, held: Iterable[tuple[fx.Node, fx.Node]]) -> Pairing | None:
    """Pair two captures that run the same ops in the same modules; ``held`` are their placeholders."""
    made = Pairing(dict(held))
    return made if _same(a, b, made.pairs) else None


def _same(a: Call, b: Call, pairs: dict[fx.Node, fx.Node]) -> bool:
    both = _aligned(a, b)
    if both is None:
        return False
    for x, y in both:
        if isinstance(x, Call) and isinstance(y, Call):
            if not _same(x, y, pairs):
                return False
        elif isinstance(x, fx.Node) and isinstance(y, fx.Node):
            pairs[x] = y
    return True


def _aligned(a: Call, b: Call) -> list[tuple[fx.Node | Call, fx.Node | Call]] | None:
    """Items of two calls side by side if they are the same, apart from copies that one has."""
    mine, theirs = a.items, b.items
    if list(map(_brief, mine)) != list(map(_brief, theirs)):
        mine, theirs = ([i for i in items if _brief(i) not in COPYING] for items in (mine, theirs))
    if a.path != b.path or list(map(_brief, mine)) != list(map(_brief, theirs)):
        return None
    return list(zip(mine, theirs, strict=True))


def pair_partly(a: Call, b: Call, held: Iterable[tuple[fx.Node, fx.Node]]) -> Pairing:
    """Pair two captures of which the second may leave out what the first does: dropped paths, noise of training."""
    made = _Partly(Pairing(dict(held)))
    made.calls(a, b)
    made.settle()
    return made.found


class _Partly:
    def __init__(self, found: Pairing) -> None:
        self.found = found
        self.back = {theirs: mine for mine, theirs in found.pairs.items()}
        self.instead: dict[fx.Node, set[fx.Node]] = {}

    def calls(self, a: Call, b: Call) -> None:
        """Pair what two calls of one module do; where the second does something else, nothing of it is paired."""
        both = _aligned(a, b) or self._subset(a, b)
        for x, y in both or ():
            if isinstance(x, Call) and isinstance(y, Call):
                self.calls(x, y)
            elif isinstance(x, fx.Node) and isinstance(y, fx.Node) and x not in self.found.pairs:
                self._put(x, y)

    def _subset(self, a: Call, b: Call) -> list[tuple[fx.Node | Call, fx.Node | Call]] | None:
        """The items of the second call with those that they are in the first; the rest of the first is skipped."""
        both: list[tuple[fx.Node | Call, fx.Node | Call]] = []
        items = list(a.items)
        lost = set[fx.Node]()
        for y in b.items:
            at = next((i for i, x in enumerate(items) if self._fits(x, y, _nodes(items[:i]))), None)
            if at is None:
                if isinstance(y, fx.Node) and _brief(y) in COPYING and y.all_input_nodes[0] in self.back:
                    self.back[y] = self.back[y.all_input_nodes[0]]
                    continue
                self.found.skipped -= lost
                return None
            lost |= set(_nodes(items[:at]))
            self.found.skipped |= lost
            both.append((items[at], y))
            x = items[at]
            if isinstance(x, Call) and isinstance(y, Call):
                self.calls(x, y)
            elif isinstance(x, fx.Node) and isinstance(y, fx.Node):
                self._put(x, y)
            del items[: at + 1]
        self.found.skipped |= set(_nodes(items))
        return both

    def _fits(self, x: fx.Node | Call, y: fx.Node | Call, before: list[fx.Node]) -> bool:
        """Whether an item may be another's: the same op on the same values, or on those that others pass on."""
        if _brief(x) != _brief(y):
            return False
        if isinstance(x, Call) or isinstance(y, Call):
            return True
        mine, theirs = (_pytree.tree_leaves((n.args, dict(n.kwargs))) for n in (x, y))
        if len(mine) != len(theirs):
            return False
        skipped = self.found.skipped | set(before)
        for own, other in zip(mine, theirs, strict=True):
            if isinstance(own, fx.Node) != isinstance(other, fx.Node):
                return False
            if isinstance(own, fx.Node) and own not in skipped and self.back.get(other, own) is not own:
                return False
        return True

    def _put(self, x: fx.Node, y: fx.Node) -> None:
        self.found.pairs[x] = y
        self.back[y] = x
        mine, theirs = (_pytree.tree_leaves((n.args, dict(n.kwargs))) for n in (x, y))
        for own, other in zip(mine, theirs, strict=False):
            if isinstance(own, fx.Node) and own in self.found.skipped and other in self.back:
                self.instead.setdefault(own, set()).add(self.back[other])

    def settle(self) -> None:
        """Keep what is passed where all that read it read one value instead."""
        for node, values in self.instead.items():
            others = [u for u in node.users if u not in self.found.skipped]
            if len(values) == 1 and all(u in self.found.pairs or u.op == "output" for u in others):
                self.found.passed[node] = next(iter(values))


def _nodes(items: Iterable[fx.Node | Call]) -> list[fx.Node]:
    return [n for i in items for n in (i.nodes() if isinstance(i, Call) else [i])]


def _brief(item: fx.Node | Call) -> str:
    return item.path if isinstance(item, Call) else op_name(item)
