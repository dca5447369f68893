"""The captured program: one FX graph of ATen ops, and where its values come from."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

LAYER_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
"""An index between the dots of a module path."""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_LIBRARY = ("/torch/nn/", "/torch/_", "/torch/functional", "/torch/utils/", "/torch/export/")


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor, however many names it has.

    Attributes:
        name: first of its names in the order of ``model.named_parameters()``.
        names: all names under which the model holds this storage; more than one means a tie.
        shape: sizes of its axes, in elements.
        node: name of its placeholder in the graph, or ``None`` if the forward pass never reads it.
        trainable: whether it requires grad.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    node: str | None
    trainable: bool


@dataclass(frozen=True)
class Captured:
    """What a front end gives.

    Attributes:
        module: the graph; calls ATen ops only, every ``node.meta["val"]`` is a fake tensor.
        parameter_nodes: placeholder of each parameter by one of its names.
        inputs: names of the placeholders that carry data, in order.
        constants: values of one-element tensors that the program holds, by node name.
        front_end: how the graph was obtained, in words for the report.
        unknown: one-element buffers on ``meta``, by node name.
        buffers: name of the buffer behind a node, by node name.
        tensors: what the program itself holds, by node name.
        folded: module calls that are copies of a traced one.
    """

    module: fx.GraphModule
    parameter_nodes: dict[str, fx.Node]
    inputs: tuple[str, ...]
    constants: dict[str, float]
    front_end: str
    unknown: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    folded: int = 0


@dataclass(frozen=True)
class Program:
    """What capture saw.

    Attributes:
        module: the captured graph; calls ATen ops only, every ``node.meta["val"]`` is a fake tensor.
        parameters: every parameter once, ties merged by storage.
        inputs: names of the placeholders that carry data, in order.
        front_end: how the graph was obtained, in words for the report.
        model_name: class of the captured model.
        config: the model's configuration numbers (name -> value), used for readable names only.
        constants: values of scalar tensors that the program holds, by node name.
        notes: remarks for the report.
        inferred: whether the example was made up, so that its sizes mean nothing.
        buffers: name of the buffer behind a node, by node name.
        tensors: what the program itself holds, by node name.
        example: the call that was captured.
        folded: module calls that are copies of a traced one, each found equal to it.
    """

    module: fx.GraphModule
    parameters: tuple[Parameter, ...]
    inputs: tuple[str, ...]
    front_end: str
    model_name: str
    config: dict[str, int] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    inferred: bool = False
    buffers: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    example: Any = field(default=None, repr=False)
    folded: int = 0

    @property
    def recorded(self) -> bool:
        """Whether the program was run, so that it holds one path and the sizes of one input."""
        return not self.front_end.startswith("torch.export")

    @property
    def graph(self) -> fx.Graph:
        """The FX graph."""
        return self.module.graph

    def parameter(self, name: str) -> Parameter:
        """Find a parameter by any of its names.

        Raises:
            KeyError: no parameter has this name.
        """
        for p in self.parameters:
            if name in p.names:
                return p
        raise KeyError(name)

    def calls(self) -> Iterator[fx.Node]:
        """Nodes that compute something, in execution order."""
        return (n for n in self.graph.nodes if n.op == "call_function")

    def __str__(self) -> str:
        return f"Program of {self.model_name} by {self.front_end}\n{self.graph}"


CHECKS = frozenset(
    f"aten.{n}" for n in "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range".split()
)
"""Ops that compute nothing."""


def live(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that an output, or a write into a tensor, depends on."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        kept = node.op != "call_function" or (schema is not None and schema.is_mutable and op_name(node) not in CHECKS)
        if kept or any(u in found for u in node.users):
            found.add(node)
    return found


def shape_of(value: Any) -> tuple[int, ...]:
    """Sizes of a fake value, in elements; ``()`` for anything that is not a tensor."""
    return tuple(int(s) for s in value.shape) if isinstance(value, torch.Tensor) else ()


def fold_layers(path: str) -> str:
    """A path with its layer indices as ``*``; a bare index, as in ``nn.Sequential``, is no layer of a stack."""
    return path if not any(c.isalpha() for c in path) else LAYER_INDEX.sub("*", path)


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that ran this node; ``""`` is the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return re.sub(r"@\d+$", "", str(list(stack.values())[-1][0]))


def module_paths(node: fx.Node) -> tuple[str, ...]:
    """Dotted paths of all modules around this node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(re.sub(r"@\d+$", "", str(entry[0])) for entry in stack.values())


def source_line(node: fx.Node) -> str:
    """The user's source line behind a node, as ``file.py:12: code``; ``""`` if unknown.

    The innermost frame outside of torch is taken.
    """
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    if not frames:
        return ""
    outside = [f for f in frames if not any(part in f["file"] for part in _LIBRARY)]
    frame = (outside or frames)[-1]
    code = linecache.getline(frame["file"], int(frame["line"])).strip()
    file = "/".join(frame["file"].split("/")[-2:])
    return f"{file}:{frame['line']}: {code}"


def describe(node: fx.Node) -> str:
    """Where a node comes from: module path, op and source line, for messages."""
    path = module_path(node) or "the root module"
    line = source_line(node)
    return f"{path} ({op_name(node)})" + (f" at {line}" if line else "")


def op_name(node: fx.Node) -> str:
    """Name of the op without overload and without in-place underscore, e.g. ``aten.add``."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    name = str(schema.name).replace("::", ".")
    return name.rstrip("_") if not name.endswith("__") else name


def storage_key(p: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors exactly if they are the same view of the same memory."""
    try:
        storage: Any = p.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        storage = id(p)
    return storage, *((p.storage_offset(), p.stride()) if p.layout == torch.strided else (0, ())), tuple(p.shape)
