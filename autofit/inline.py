"""Bring a captured graph to one level of plain ops: regions inlined, control flow as selection, einsums in pairs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

Mapping = dict[fx.Node, Any]


def inline(module: fx.GraphModule) -> None:
    """Rewrite a captured graph in place, so that op rules see every contraction and every path.

    ``cond`` becomes both branches and a selection; ``while_loop`` and ``scan`` become one round and a selection
    between what it made and what it was given, so that axes of both are one; ``flex_attention`` becomes attention,
    its score function elementwise on the scores' place; an einsum of many operands becomes a chain of pairs.
    """
    changed = False
    while found := [(n, rewrite) for n in module.graph.nodes if (rewrite := _REWRITES.get(_name(n)))]:
        changed = True
        for node, rewrite in found:
            with module.graph.inserting_before(node):
                _replace(node, rewrite(_Region(module, node)))
    for node in [n for n in module.graph.nodes if n.op == "call_function" and _name(n) == "aten::einsum"]:
        if len(_Region(module, node).args[1]) > 2:
            changed = True
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(_in_pairs(node))
            module.graph.erase_node(node)
    if changed:
        for node in [n for n in module.graph.nodes if n.op == "get_attr" and not n.users]:
            module.graph.erase_node(node)
        module.graph.lint()
        module.recompile()


def _name(node: fx.Node) -> str:
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else str(getattr(node.target, "__name__", ""))


class _Region:
    """A node that runs graphs of its own, and how to copy these beside it."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self.module, self.node, self.graph = module, node, module.graph
        self.args: Any = node.args  # torch types arguments as one wide union

    def copy(self, reference: fx.Node, inputs: list[Any]) -> list[Any]:
        """Put the nodes of a region before the node; its results."""
        region = getattr(self.module, str(reference.target))
        mapping: Mapping = dict(zip((n for n in region.graph.nodes if n.op == "placeholder"), inputs, strict=True))
        results: Any = ()
        for inner in region.graph.nodes:
            if inner.op == "output":
                results = fx.map_arg(inner.args[0], mapping.__getitem__)
            elif inner.op != "placeholder":
                mapping[inner] = self.graph.node_copy(inner, mapping.__getitem__)
                if inner.op == "get_attr":
                    mapping[inner].target = f"{reference.target}_{inner.target}"
                    setattr(self.module, mapping[inner].target, getattr(region, str(inner.target)))
                elif not inner.meta.get("nn_module_stack"):
                    _place(mapping[inner], self.node)
        return list(results) if isinstance(results, tuple | list) else [results]

    def call(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new node, with its fake value."""
        node = self.graph.call_function(op, args, kwargs)
        fakes = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with torch.no_grad():
            node.meta["val"] = op(*fakes[0], **fakes[1])
        _place(node, self.node)
        return node

    def select(self, condition: fx.Node | None, one: Any, other: Any) -> Any:
        """A value that is one of two tensors."""
        if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
            return one
        if condition is None:
            condition = self.call(torch.ops.aten.isfinite.default, one)
        return self.call(torch.ops.aten.where.self, condition, one, other)


def _place(node: fx.Node, like: fx.Node) -> None:
    node.meta |= {k: like.meta[k] for k in ("nn_module_stack", "stack_trace") if k in like.meta}


def _replace(node: fx.Node, results: list[Any]) -> None:
    """Let every ``results[i]`` take the place of ``node[i]``."""
    for user in list(node.users):
        assert user.target is operator.getitem, user
        user.replace_all_uses_with(results[int(str(user.args[1]))])
        user.graph.erase_node(user)
    node.graph.erase_node(node)


def _plain_region(region: _Region) -> list[Any]:
    """``wrap(flag, ..., graph, *inputs)``."""
    args = region.args
    at = next(i for i, a in enumerate(args) if isinstance(a, fx.Node) and a.op == "get_attr")
    return region.copy(args[at], list(args[at + 1 :]))


def _cond(region: _Region) -> list[Any]:
    """``cond(predicate, graph, graph, inputs)``."""
    predicate, one, other, inputs = region.args
    made = [region.copy(branch, list(inputs)) for branch in (one, other)]
    return [region.select(predicate, a, b) for a, b in zip(*made, strict=True)]


def _while_loop(region: _Region) -> list[Any]:
    """``while_loop(graph of the condition, graph of the body, carried, others)``."""
    condition, body, carried, others = region.args
    carried, inputs = list(carried), [*carried, *others]
    (again,) = region.copy(condition, inputs)
    made = region.copy(body, inputs)
    return [region.select(again, a, b) for a, b in zip(made, carried, strict=True)]


def _scan(region: _Region) -> list[Any]:
    """``scan(graph, first state, sequences, others)``: sequences along their first axis."""
    body, state, sequences, others = region.args
    state, length = list(state), sequences[0].meta["val"].shape[0]
    steps = [region.call(torch.ops.aten.select.int, s, 0, 0) for s in sequences]
    made = region.copy(body, [*state, *steps, *others])
    last = [region.select(None, a, b) for a, b in zip(made, state, strict=False)]
    rows = [region.call(torch.ops.aten.unsqueeze.default, y, 0) for y in made[len(state) :]]
    shapes = [list(r.meta["val"].shape[1:]) for r in rows]
    return last + [
        region.call(torch.ops.aten.expand.default, r, [length, *s]) for r, s in zip(rows, shapes, strict=True)
    ]


def _flex_attention(region: _Region) -> list[Any]:
    """``flex_attention(q, k, v, graph of the score, mask, scale, ...)``."""
    q, k, v, _, _, scale = region.args[:6]
    grouped = q.meta["val"].shape[1] != k.meta["val"].shape[1]
    op = torch.ops.aten.scaled_dot_product_attention.default
    out = region.call(op, q, k, v, scale=scale, enable_gqa=grouped)
    return [out, None, None]


def _regions() -> Iterator[tuple[str, Callable[[_Region], list[Any]]]]:
    yield from ((n, _plain_region) for n in ("wrap_with_set_grad_enabled", "wrap_with_autocast", "invoke_subgraph"))
    yield from (("cond", _cond), ("while_loop", _while_loop), ("scan", _scan), ("flex_attention", _flex_attention))


_REWRITES = dict(_regions())


def _in_pairs(node: fx.Node) -> fx.Node:
    """An einsum of many operands as a chain of einsums of two; an axis is summed when nothing later needs it."""
    owner: Any = node.graph.owning_module
    region = _Region(owner, node)
    equation, operands = str(region.args[0]).replace(" ", ""), list(region.args[1])
    terms, _, result = equation.partition("->")
    letters = terms.split(",")
    if "->" not in equation:
        every = "".join(letters)
        result = "".join(sorted(c for c in set(every) - set(".") if every.count(c) == 1))
        result = ("..." if "..." in every else "") + result
    left: fx.Node = operands[0]
    at = letters[0]
    for i, (operand, term) in enumerate(zip(operands[1:], letters[1:], strict=True), start=1):
        later = result + "".join(letters[i + 1 :])
        dots = "..." if "..." in at + term else ""
        kept = dots + "".join(dict.fromkeys(c for c in at + term if c in later and c != "."))
        out = result if i == len(operands) - 1 else kept
        left = region.call(torch.ops.aten.einsum.default, f"{at},{term}->{out}", [left, operand])
        at = kept
    return left
