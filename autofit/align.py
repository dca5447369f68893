"""Two captures of one architecture side by side: where they differ, and the numbers that their ops take."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from autofit.dims import Dims
from autofit.flow import Flow
from autofit.program import Program, describe, fold_layers, module_path, op_name

COPIES = {f"aten.{n}" for n in "contiguous clone alias detach lift_fresh_copy to _to_copy".split()} | {
    f"aten.{n}" for n in "_assert_tensor_metadata _assert_scalar _assert_async".split()
}


def first_difference(here: Program, there: Program) -> str | None:
    """The first node at which two programs differ, in words; ``None`` if they run the same ops."""
    ours, theirs = telling(here), telling(there)
    for a, b in zip(ours, theirs, strict=False):
        calls = a.op == "call_function"
        if a.op != b.op or (calls and (op_name(a) != op_name(b) or len(a.all_input_nodes) != len(b.all_input_nodes))):
            return f"{describe(a)} here, {describe(b)} in the base"
    if len(ours) != len(theirs):
        return f"{len(ours)} ops here, {len(theirs)} in the base"
    return None


def telling(program: Program) -> list[fx.Node]:
    """Nodes but for copies and checks, which depend on sizes: one head is contiguous, where two are not."""
    return [n for n in program.graph.nodes if n.op != "call_function" or op_name(n) not in COPIES]


def constants_by_module(here: Dims, there: Dims) -> tuple[dict[tuple[str, str], tuple[float, float]], list[str]]:
    """Numbers of modules that run the same ops, and the others that take numbers; of layers that the base lacks,
    those in which all of its layers agree."""
    ours, theirs = _by_module(here.program), _by_module(there.program)
    flows, found, apart = (Flow(here), Flow(there)), {}, []
    for path, nodes in ours.items():
        copies = [theirs[path]] if path in theirs else []
        copies = copies or [other for name, other in theirs.items() if fold_layers(name) == fold_layers(path)]
        alike = [other for other in copies if [op_name(n) for n in other] == [op_name(n) for n in nodes]]
        told = [constants(zip(nodes, other, strict=True), *flows) for other in alike]
        if not told and any(flows[0].scalar(a) is not None for n in nodes for a in n.args if isinstance(a, float)):
            apart.append(path)
        found.update({key: pair for t in told for key, pair in t.items() if all(o.get(key) == pair for o in told)})
    return found, apart


def _by_module(program: Program) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = {}
    for node in telling(program):
        if node.op == "call_function":
            found.setdefault(module_path(node), []).append(node)
    return found


def constants(
    pairs: Iterable[tuple[fx.Node, fx.Node]], here: Flow, there: Flow
) -> dict[tuple[str, str], tuple[float, float]]:
    """Numbers that ops take, as (this model, base): literals, and what either program computes from numbers."""
    found = {}
    for node, other in pairs:
        if node.op != "call_function":
            continue
        for key, a, b in [
            *[(str(i), a, b) for i, (a, b) in enumerate(zip(node.args, other.args, strict=False))],
            *[(k, v, other.kwargs.get(k)) for k, v in node.kwargs.items()],
        ]:
            mine, theirs = here.scalar(a), there.scalar(b)
            if mine is not None and theirs is not None:
                found[node.name, key] = (mine, theirs)
    return found
