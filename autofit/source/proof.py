"""Is an exported file the model? Its own capture against the rewritten one's, node for node, or else by values."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from autofit.capture import capture, outputs
from autofit.errors import AutofitError, ExportError
from autofit.examples import Example
from autofit.program import Program, op_name
from autofit.source.ops import SKIPPED
from autofit.source.pairing import COPYING
from autofit.source.tidy import does_nothing
from autofit.source.worlds import SHAPED, named_inputs

NAME = "_autofit_exported"
CASTS = frozenset({"aten.to", "aten._to_copy", "aten.type_as"})


def load(text: str) -> types.ModuleType:
    """Run an exported file as a module of its own."""
    made = types.ModuleType(NAME)
    sys.modules[NAME] = made  # dataclasses look their module up
    try:
        exec(compile(text, f"<{NAME}>", "exec"), made.__dict__)
    finally:
        sys.modules.pop(NAME, None)
    return made


def prove(
    text: str,
    model: nn.Module,
    lowered: Program,
    inputs: Mapping[str, torch.Tensor],
    reference: nn.Module | None = None,
) -> str:
    """Check an exported file against the model that it came from.

    Args:
        text: of the file.
        model: whose state it has to take: the same names, shapes and ties.
        lowered: the captured program with its multipliers, in training mode.
        inputs: of the example, by name.
        reference: the same model with the multipliers on it that the file has, if there is one.

    Returns:
        How it was shown: ``"node for node"`` or ``"by values"``, or why it could not be.

    Raises:
        ExportError: the file is not that model.
    """
    cpu = all(t.device.type == "cpu" for t in model.parameters())
    with warnings.catch_warnings(), torch.device("cpu" if cpu else "meta"), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            again = load(text).build()
        except Exception as error:
            raise ExportError(f"the exported file does not run: {type(error).__name__}: {error}") from error
    mine = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    theirs = {n: tuple(p.shape) for n, p in again.named_parameters(remove_duplicate=False)}
    if mine != theirs or model.state_dict().keys() != again.state_dict().keys():
        both = dict(mine.items() ^ theirs.items()) or (model.state_dict().keys() ^ again.state_dict().keys())
        raise ExportError(f"the exported file has another state: {', '.join(sorted(map(str, both))[:3])}")
    tied = len(list(model.parameters())), len(list(again.parameters()))
    if tied[0] != tied[1]:
        raise ExportError(f"the exported file has {tied[1]} parameters, the model {tied[0]}: a tie was lost")
    example = dict(inputs) if cpu else {n: v.to("meta") for n, v in inputs.items()}
    try:
        captured = capture(again.train(), example)
    except AutofitError as error:
        raise ExportError(f"the exported file cannot be captured again: {error}") from error
    ids: dict[Any, int] = {}
    alike = _keys(lowered, ids) == _keys(captured, ids)
    if reference is None or any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        told = "not shown: there are no values to compare, and the file spells some ops in another way"
        return "node for node" if alike else told
    again.load_state_dict(model.state_dict())
    _compare(reference, lowered, again)
    return "node for node" if alike else "by values"


def _compare(model: nn.Module, lowered: Program, again: nn.Module) -> None:
    """Outputs in eval mode, on the example with other numbers in the place of its zeros."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        example = lowered.example.filled()
        try:
            wanted = _with_seed(0, model, example)
        except Exception:  # not every integer input may be 1
            example = lowered.example.filled(integers=False)
            wanted = _with_seed(0, model, example)
        other = _with_seed(1, model, example)
        named = Example((), named_inputs(model, lowered, example.args, example.kwargs))
        found, another = (_with_seed(seed, again, named) for seed in (0, 1))
    if _alike(wanted, other) and not _alike(found, another):
        raise ExportError(
            "in eval mode the exported file draws random numbers, and the model does not",
            todo="please report it with this model",
        )
    for a, b in zip(wanted, found, strict=False):
        largest = float(a.float().nan_to_num(0, 0, 0).abs().max()) if a.numel() else 0.0
        same = a.shape == b.shape
        if not same or not torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5 * largest, equal_nan=True):
            raise ExportError("the exported file computes something else", todo="please report it with this model")
    if len(wanted) != len(found):
        raise ExportError(f"the exported file gives {len(found)} tensors, the model {len(wanted)}")


def _with_seed(seed: int, model: nn.Module, example: Example) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return outputs(model, example)


def _alike(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(0), y.nan_to_num(0)) for x, y in zip(a, b, strict=True))


def _keys(program: Program, ids: dict[Any, int]) -> list[int]:
    """Outputs as numbers that are equal where all that they are computed by is."""
    names: dict[str, Any] = {p.node: ("parameter", p.names[0]) for p in program.parameters if p.node is not None}
    names |= {node: ("buffer", name) for node, name in program.buffers.items()}
    held = {n.name for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    order = [n for n in program.inputs if n not in names and n in held]
    known: dict[fx.Node, int] = {}

    def number(key: Any) -> int:
        return ids.setdefault(key, len(ids))

    def plain(node: fx.Node) -> fx.Node:
        while node.op == "call_function" and (op_name(node) in COPYING or does_nothing(node)):
            node = node.all_input_nodes[0]
        return node

    def seen(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return known[plain(value)]
        if isinstance(value, list | tuple):
            return tuple(map(seen, value))
        return float(f"{value:.6g}") if isinstance(value, float) else str(value)

    found: list[int] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            known[node] = number(names.get(node.name, ("input", order.index(node.name) if node.name in order else -1)))
        elif node.op == "output":
            fx.node.map_arg(node.args, lambda n: found.append(known[plain(n)]))
        else:
            value = node.meta.get("val")
            name = op_name(node)
            sized = name.removeprefix("aten.") in (*SHAPED, "slice")
            shape = tuple(value.shape) if sized and isinstance(value, torch.Tensor) else ()
            given = _given(node)
            if name in CASTS:
                given = {"self": given.get("self"), "dtype": str(getattr(value, "dtype", None))}
            if sized:
                given = {k: v for k, v in given.items() if isinstance(v, fx.Node) or k == "start"}
            known[node] = number((name, shape, tuple((k, seen(v)) for k, v in sorted(given.items()))))
    return found


def _given(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): a for i, a in enumerate(node.args)} | dict(node.kwargs)
    found = {}
    for i, a in enumerate(schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
        if a.name not in (*SKIPPED, "dtype", "memory_format") and value is not None:
            found[a.name] = value
    if "factor" in node.meta:
        own = "scale" if "scale" in found or "scaled_dot" in op_name(node) else "alpha"
        default = node.all_input_nodes[0].meta["val"].shape[-1] ** -0.5 if own == "scale" else 1
        found[own] = found.get(own, default) * node.meta["factor"]
    return found
