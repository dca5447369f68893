"""What nobody would write by hand is taken out: casts to what a value is, sums with zero, masks op by op.

Every change is made in all captures alike, and only where it holds in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from autofit.program import module_path, op_name
from autofit.source.calls import simplify
from autofit.source.worlds import World, Worlds, dtypes

aten = torch.ops.aten
ALIASES = frozenset(f"aten.{n}" for n in "alias lift_fresh_copy".split())
CASTS = frozenset(f"aten.{n}" for n in "to _to_copy type_as".split())
RESHAPING = frozenset(f"aten.{n}" for n in "view reshape expand _unsafe_view".split())


def tidy(worlds: Worlds) -> None:
    """Rewrite the graphs in place."""
    real = [w for w in worlds.sizes if w.program is not worlds.first.program]
    if worlds.half is not None:
        _read_before_casts(worlds.first, worlds.half)
        _cast_to_values(worlds.first, worlds.half, real)
    every = [w for w in (worlds.first, *real, worlds.evaluation, worlds.half) if w is not None]
    for node in list(worlds.first.program.calls()):
        copies = [node, *(w.at[node] for w in every[1:] if node in w.at)]
        if len(copies) > len(real) and all(does_nothing(n) for n in copies):
            for n in copies:
                n.replace_all_uses_with(n.all_input_nodes[0])
            if worlds.evaluation is not None:
                passed = worlds.evaluation.passed
                passed.update({m: node.all_input_nodes[0] for m, given in passed.items() if given is node})
    constant = _constants(worlds.first)
    for node in list(worlds.first.program.calls()):
        if node.name in constant and any(u.name not in constant for u in node.users):
            seen = [w for w in every if w is worlds.first or node in w.at]
            if len(seen) > len(real):
                _replace_mask([node, *(w.at[node] for w in seen[1:])], seen)
    for world in every:
        simplify(world.program.graph)


def _read_before_casts(first: World, half: World) -> None:
    """A cast to the dtype that a value has gives that value itself, and who reads it later seems to read the cast:
    in another dtype they are two, and it is seen who reads which."""
    back = {theirs: mine for mine, theirs in half.at.items()}
    for node in first.program.graph.nodes:
        other = half.at.get(node)
        if other is None or len(other.all_input_nodes) != len(node.all_input_nodes):
            continue
        for mine, theirs in zip(node.all_input_nodes, other.all_input_nodes, strict=True):
            real = back.get(theirs)
            if real is not None and real is not mine and _uncast(mine) is _uncast(real):
                node.replace_input_with(mine, real)


def _cast_to_values(first: World, half: World, others: list[World]) -> None:
    """A cast to the model's own dtype becomes one to the dtype of a value that has it."""
    placeholders = [n for n in first.program.graph.nodes if n.op == "placeholder"]
    names = {p.node: p.names for p in first.program.parameters}
    before: list[fx.Node] = []
    for node in list(first.program.calls()):
        other = half.at.get(node)
        if other is None or op_name(node) not in CASTS or other.meta["val"].dtype == node.meta["val"].dtype:
            before.append(node)
            continue
        path = module_path(node)
        own = [p for p in placeholders if any(n.rpartition(".")[0] == path for n in names.get(p.name, ()))]
        here = [n for n in before if module_path(n) == path]
        given = [i for n in here for i in n.all_input_nodes if i not in here]
        wanted = node.meta["val"].dtype, other.meta["val"].dtype
        found = next((n for n in (*own, *given, *reversed(before)) if dtypes(n, half) == wanted), None)
        before.append(node)
        if found is not None and all(node in w.at and found in w.at for w in others):
            _cast_like(node, found)
            _cast_like(other, half.at[found])
            for w in others:
                _cast_like(w.at[node], w.at[found])


def _cast_like(node: fx.Node, like: fx.Node) -> None:
    node.target, node.args, node.kwargs = aten.to.other, (node.args[0], like), {}


def _uncast(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and op_name(node) in CASTS | ALIASES and does_nothing(node):
        node = node.all_input_nodes[0]
    return node


def does_nothing(node: fx.Node) -> bool:
    """Whether a value is its first operand."""
    if not node.args or not isinstance(node.args[0], fx.Node) or node.target is None:
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor) or before.dtype != after.dtype:
        return False
    name, same = op_name(node), tuple(before.shape) == tuple(after.shape)
    if name in ALIASES or (name in CASTS and same):
        return True
    if name in ("aten.add", "aten.sub"):
        return bool(same) and _is(node.args[1], 0) and not node.kwargs
    if name in ("aten.mul", "aten.div"):
        return bool(same) and _is(node.args[1], 1) and not node.kwargs
    if name == "aten.slice":
        return same and (len(node.args) < 5 or _is(node.args[4], 1))
    if name == "aten.dropout":
        return _is(node.args[1], 0)
    return same and (name in RESHAPING or (name == "aten.contiguous" and node.args[0].op == "placeholder"))


def _is(value: object, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number


def _constants(world: World) -> set[str]:
    """Values that follow from sizes alone."""
    found: set[str] = set()
    for node in world.program.calls():
        pure = "rand" not in op_name(node) and "dropout" not in op_name(node) and "bernoulli" not in op_name(node)
        if pure and all(i.name in found for i in node.all_input_nodes):
            found.add(node.name)
    return found


def _value(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """The value of a node that follows from sizes alone."""
    if node not in known:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _value(n, known))
        kwargs = {k: "cpu" if k == "device" else v for k, v in kwargs.items()}
        args = tuple(torch.device("cpu") if isinstance(a, torch.device) else a for a in args)
        op: Any = node.target
        known[node] = op(*args, **kwargs)
    return known[node]


def _replace_mask(copies: list[fx.Node], worlds: Iterable[World]) -> None:
    """A causal mask as ``ones(n, n).tril()``, where its values are these in every capture."""
    value = copies[0].meta.get("val")
    if (
        not isinstance(value, torch.Tensor)
        or value.dim() < 2
        or value.shape[-1] != value.shape[-2]
        or value.shape[-1] < 2
    ):
        return
    try:
        masks = [_value(n, {}) for n in copies]
    except Exception:
        return
    if any(m.shape[-1] != m.shape[-2] for m in masks):  # square at one size of the data alone
        return
    for make in (_causal, _window, _causal_float):
        wanted = [make(m) for m in masks]
        if all(w is not None for w in wanted) and len({w[0] for w in wanted if w}) == 1:
            whole = not all(_broadcasts(u, copies[0]) for u in copies[0].users if u.users)
            for node, plan in zip(copies, wanted, strict=True):
                assert plan is not None
                expand: Steps = [(aten.expand.default, (list(node.meta["val"].shape),), {})]
                _put(node, plan[1] + (expand if whole else []))
            for pair in zip(*(_new(n) for n in copies), strict=True):
                for world, other in zip(list(worlds)[1:], pair[1:], strict=True):
                    world.at[pair[0]] = other
            return


def _broadcasts(reader: fx.Node, mask: fx.Node) -> bool:
    """Whether an op takes a mask without its leading axes as well."""
    others = [i.meta["val"].dim() for i in reader.all_input_nodes if i is not mask]
    rank = mask.meta["val"].dim()
    return rank == 2 or (op_name(reader) in BROADCASTING and max(others, default=0) >= rank)


BROADCASTING = frozenset(
    f"aten.{n}"
    for n in "add sub mul where masked_fill logical_and logical_or bitwise_and bitwise_or __and__ __or__ "
    "scaled_dot_product_attention".split()
)
"""Ops that align their operands from the last axis on."""
Steps = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]


def _causal(mask: torch.Tensor) -> tuple[object, Steps] | None:
    n = mask.shape[-1]
    if (
        mask.dtype != torch.bool
        or mask.dim() < 2
        or not torch.equal(mask, torch.ones(n, n, dtype=torch.bool).tril().expand_as(mask))
    ):
        return None
    return "causal", [(aten.ones.default, ([n, n],), {"dtype": torch.bool}), (aten.tril.default, (), {})]


def _window(mask: torch.Tensor) -> tuple[object, Steps] | None:
    n = mask.shape[-1]
    if mask.dtype != torch.bool:
        return None
    width = int(mask.reshape(-1, n, n)[0, -1].sum())
    if width >= n or not torch.equal(mask, torch.ones_like(mask).tril().triu(1 - width)):
        return None
    ones = (aten.ones.default, ([n, n],), {"dtype": torch.bool})
    return ("window", width), [ones, (aten.tril.default, (), {}), (aten.triu.default, (1 - width,), {})]


def _causal_float(mask: torch.Tensor) -> tuple[object, Steps] | None:
    n = mask.shape[-1]
    if not mask.is_floating_point():
        return None
    low = float(mask.reshape(-1, n, n)[0, 0, -1])
    if low >= 0 or not torch.equal(mask, torch.full((n, n), low, dtype=mask.dtype).triu(1).expand_as(mask)):
        return None
    full = (aten.full.default, ([n, n], low), {"dtype": mask.dtype})
    return "causal", [full, (aten.triu.default, (1,), {})]


def _put(node: fx.Node, steps: Steps) -> None:
    at: fx.Node | None = None
    made = []
    with node.graph.inserting_after(node):
        for target, args, kwargs in reversed(steps):  # each goes right behind the node
            made.append(node.graph.call_function(target, args, kwargs))
    made.reverse()
    for step in made:
        if at is not None:
            step.args = (at, *step.args)
        step.meta = {k: node.meta[k] for k in ("nn_module_stack", "stack_trace") if k in node.meta}
        shape = node.meta["val"].shape if step.target is aten.expand.default else node.meta["val"].shape[-2:]
        step.meta["val"] = torch.empty(shape, dtype=node.meta["val"].dtype, device="meta")
        at = step
    assert at is not None
    node.replace_all_uses_with(at)
    node.meta["replaced_by"] = made


def _new(node: fx.Node) -> list[fx.Node]:
    made: list[fx.Node] = node.meta["replaced_by"]
    return made
