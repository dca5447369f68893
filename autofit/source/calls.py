"""The tree of module calls behind a flat graph, and the modules of torch that stand in it as they are."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from autofit.program import live, module_paths, op_name
from autofit.source.ops import is_number

LITERALS = (int, float, bool, str, type(None))


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        path: of the module, ``""`` for the root.
        key: tells calls of one module apart.
        depth: number of modules around it.
        items: what it runs itself, in order: nodes, and calls of other modules.
        leaf: how torch's own module that this is would be made again, else ``None``.
    """

    path: str
    key: str
    depth: int
    items: list[fx.Node | Call] = field(default_factory=list)
    leaf: Leaf | None = None

    def nodes(self) -> Iterator[fx.Node]:
        """All nodes, those of inner calls too."""
        for item in self.items:
            if isinstance(item, Call):
                yield from item.nodes()
            else:
                yield item

    def calls(self) -> Iterator[Call]:
        """This call and all inside, outermost first; a module of torch has no inside."""
        yield self
        for item in self.items if self.leaf is None else ():
            if isinstance(item, Call):
                yield from item.calls()


@dataclass(frozen=True)
class Leaf:
    """A module of torch, as a call of its class.

    Attributes:
        name: of the class in ``torch.nn``.
        settings: arguments by name; of those that may differ by axis, a tuple.
        defaults: what they are by default.
        brief: whether one number may stand for equal ones by axis, as it may not in ``nn.LayerNorm``.
    """

    name: str
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    brief: bool = False


def simplify(graph: fx.Graph, held: Collection[str] = ()) -> None:
    """Take out checks, what nothing reads, and switches of gradients: what leaves their region is detached; in place.

    Args:
        graph: of a captured program.
        held: names of its buffers and constants.
    """
    _detach(graph, held)
    alive = live(graph)
    for node in reversed(graph.nodes):
        if node not in alive:
            graph.erase_node(node)
    graph.lint()


def _detach(graph: fx.Graph, held: Collection[str]) -> None:
    """Regions without gradients as values that are detached where a parameter or the input could be reached by them."""
    switches = [n for n in graph.nodes if getattr(n.target, "__name__", "") == "_set_grad_enabled"]
    if not switches:
        return
    enabled, off = True, set[fx.Node]()
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if node in switches:
            enabled = bool(node.args[0])
            continue
        value = node.meta.get("val")
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        if (node.op == "placeholder" and floating and node.name not in held) or any(
            i in reached for i in node.all_input_nodes
        ):
            reached.add(node)
        if not enabled:
            off.add(node)
    for node in [n for n in graph.nodes if n in off & reached]:
        readers = [u for u in node.users if u not in off]
        if readers:
            with graph.inserting_after(node):
                cut = graph.call_function(torch.ops.aten.detach.default, (node,))
            cut.meta = dict(node.meta)
            for reader in readers:
                reader.replace_input_with(node, cut)
    for node in switches:
        graph.erase_node(node)


def call_tree(graph: fx.Graph) -> Call:
    """Put every node into the call of the module that ran it."""
    root = Call("", "", 0)
    open_calls = [root]
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        keys = list(node.meta.get("nn_module_stack") or {})
        paths = module_paths(node)
        if not keys:
            open_calls[-1].items.append(node)
            continue
        inner = [(k, p) for k, p in zip(keys, paths, strict=True) if p != ""]
        common = 0
        while common < len(inner) and common + 1 < len(open_calls) and open_calls[common + 1].key == inner[common][0]:
            common += 1
        del open_calls[common + 1 :]
        for key, path in inner[common:]:
            call = Call(path, key, len(open_calls))
            open_calls[-1].items.append(call)
            open_calls.append(call)
        open_calls[-1].items.append(node)
    return root


def constructor(module: nn.Module) -> Leaf | None:
    """How a module of torch is made again from its attributes; ``None`` where these do not tell.

    What is made so is compared with the module: the same parameters, and the same description of itself.
    """
    cls = type(module)
    if getattr(nn, cls.__name__, None) is not cls or "forward" in vars(module):
        return None
    found: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, parameter in constructor_arguments(cls).items():
        if name.startswith("_") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(module, name):
            return None
        value = getattr(module, name)
        if name == "bias" and not isinstance(value, bool):
            value = value is not None
        if isinstance(value, torch.Tensor | nn.Module) or not _literal(value):
            return None
        found[name] = tuple(value) if isinstance(value, list) else value
        if parameter.default is not parameter.empty:
            defaults[name] = parameter.default
    leaf = Leaf(cls.__name__, found, defaults)
    if not _alike(leaf, module):
        return None
    brief = replace(leaf, settings={k: shortest(v) for k, v in found.items()}, brief=True)
    return replace(leaf, brief=_alike(brief, module))


def constructor_arguments(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What a module of torch is made with, by name."""
    init = nn.RNNBase.__init__ if issubclass(cls, nn.RNNBase) else cls.__init__
    listed = list(inspect.signature(init).parameters.items())[1:]
    return {n: p for n, p in listed if n not in ("device", "dtype", "mode")}


def shortest(value: Any) -> Any:
    """``(3, 3)`` as 3, which torch takes for every axis."""
    same = isinstance(value, tuple) and len(set(value)) == 1 and type(value[0]) is int
    return value[0] if same else value


def components(value: Any) -> list[int | None]:
    """Which parts of an argument are numbers: ``None`` stands for the argument itself, a number for that of a tuple."""
    if isinstance(value, tuple) and value and all(map(is_number, value)):
        return list(range(len(value)))
    return [None] if is_number(value) else []


def _literal(value: Any) -> bool:
    return isinstance(value, LITERALS) or (isinstance(value, tuple | list) and all(map(_literal, value)))


def _alike(leaf: Leaf, module: nn.Module) -> bool:
    try:
        with torch.device("meta"):
            again = getattr(nn, leaf.name)(**leaf.settings)
    except Exception:
        return False
    own = {k: tuple(v.shape) for k, v in [*module.named_parameters(), *module.named_buffers()]}
    made = {k: tuple(v.shape) for k, v in [*again.named_parameters(), *again.named_buffers()]}
    return own == made and again.extra_repr() == module.extra_repr() and not list(module.children())


def mark_leaves(root: Call, modules: Mapping[str, nn.Module], state: State) -> None:
    """Tell which calls torch's own modules run by themselves, from one value to one value."""
    for call in root.calls():
        if call.path in modules and not any(isinstance(i, Call) for i in call.items):
            call.leaf = _leaf(call, modules[call.path], state)


def _leaf(call: Call, module: nn.Module, state: State) -> Leaf | None:
    given = outputs(call)
    if len(inputs(call, state)) != 1 or any(n.meta.keys() & {"multiplier", "scaled_by"} for n in call.nodes()):
        return None
    if isinstance(module, nn.RNNBase):
        last = next((n for n in call.nodes() if op_name(n) in RECURRENT), None)
        if last is None or any(n.target is not operator.getitem or n.args[0] is not last for n in given):
            return None
    elif len(given) != 1:
        return None
    return constructor(module)


RECURRENT = frozenset(f"aten.{n}" for n in "lstm gru rnn_tanh rnn_relu".split())
State = Mapping[fx.Node, tuple[str, ...]]
"""Names of the parameter or buffer behind a placeholder, or `CONSTANT`."""
SIZES = "sizes_from"
"""Where a node's ``meta`` has values that it reads for their sizes alone."""
CONSTANT = "\0"
"""Stands in the place of a name for a tensor that the program itself holds."""


def inputs(call: Call, state: State) -> list[fx.Node]:
    """Values from outside that a call reads, in the order of their first use, but for what its own module holds."""
    inside = set(call.nodes())
    prefix = f"{call.path}." if call.path else ""
    found: dict[fx.Node, None] = {}
    for node in call.nodes():
        for value in (*node.all_input_nodes, *node.meta.get(SIZES, ())):
            own = any(name.startswith(prefix) or name == CONSTANT for name in state.get(value, ()))
            if value not in inside and not own:
                found.setdefault(value)
    return list(found)


def outputs(call: Call) -> list[fx.Node]:
    """Values of a call that are read outside, in order."""
    inside = set(call.nodes())
    return [n for n in call.nodes() if any(u not in inside for u in n.users)]
