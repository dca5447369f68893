"""Capture a stack of equal blocks once: a copy whose run is that of an earlier one is not traced but copied.

Nothing is assumed of a copy. Its own forward runs on ``meta``, where it costs little, and every op, argument and
operand of it is compared with those of the block that was traced. What differs, or cannot be told so, is traced.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from autofit.cleanup import within

Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
"""Size, strides, type and device of a tensor."""
Step = tuple[Any, Hashable, Hashable, bool, Hashable]
"""An op, its arguments, whether gradients were on, and what it gave."""
Steps = tuple[Step, ...]
COPIES = 4
"""Fewer equal siblings are traced each."""
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)
_LITERAL = 64
"""Values in a tensor that a block makes from numbers of its source."""


@dataclass(frozen=True)
class Block:
    """One of several siblings that look alike.

    Attributes:
        module: the module, and its path in the model.
        first: path of the first of them.
        runs: of all of them, so far.
        slots: attributes of a module, a name among them, and the stand-in on ``meta`` for the parameter or buffer of
            that name; all siblings have the same stand-ins.
        attributes: of all modules in it.
    """

    module: nn.Module
    path: str
    first: str
    runs: list[Steps]
    slots: list[tuple[dict[str, Any], str, torch.Tensor]]
    attributes: list[dict[str, Any]]


@dataclass(frozen=True)
class _At:
    """The place of a tensor among those that a block gives."""

    index: int


@dataclass(frozen=True)
class Traced:
    """A call of a block that is in the graph, between two marks.

    Attributes:
        number: of its marks.
        path: of the module.
        outputs: form of each tensor that it gave.
        values: what it gave, flat, with `_At` in place of tensors; ``structure`` of it.
    """

    number: int
    path: str
    outputs: list[Form]
    values: list[Any]
    structure: _pytree.TreeSpec

    def filled(self, tensors: list[torch.Tensor]) -> Any:
        """What it gave, with tensors in their places."""
        values = [tensors[v.index] if isinstance(v, _At) else v for v in self.values]
        return _pytree.tree_unflatten(values, self.structure)


@dataclass(frozen=True)
class Copied:
    """A call of a block that is one node in the graph, and which call it equals."""

    number: int
    path: str
    like: Traced


class _NotTold(Exception):
    """A run of which it cannot be told whether another one is the same."""


class _Again(Exception):
    """What was traced so far is of no use."""


def equal_siblings(model: nn.Module) -> list[Block]:
    """Outermost modules that have at least `COPIES` siblings of their class, structure and sizes, themselves counted.

    None, where a module has two names: the tracer then follows by which name it is reached.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    if len({id(m) for m in named.values()}) < len(named):
        return []
    kinds: dict[Hashable, int] = {}
    kind_of: dict[int, int] = {}
    for module in reversed(named.values()):  # children before their parents
        own = [(name, _kind(t)) for held in (module._parameters, module._buffers) for name, t in held.items()]
        within = [(name, kind_of[id(child)]) for name, child in module._modules.items() if child is not None]
        kind_of[id(module)] = kinds.setdefault((type(module), tuple(own), tuple(within)), len(kinds))
    return list(_siblings(model, "", kind_of))


def _siblings(module: nn.Module, path: str, kind_of: Mapping[int, int]) -> Iterator[Block]:
    groups: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, child in module.named_children():
        groups[kind_of[id(child)]].append((f"{path}.{name}" if path else name, child))
    for group in groups.values():
        if len(group) < COPIES or not _is_block(group[0][1]):
            for name, child in group:
                yield from _siblings(child, name, kind_of)
            continue
        stand_ins = [_stand_in(t) for m in group[0][1].modules() for _, t in _tensors(m)]
        runs: list[Steps] = []
        for name, child in group:
            modules = list(child.modules())
            places = [(m.__dict__, leaf) for m in modules for leaf, _ in _tensors(m)]
            slots = [(*place, stand_in) for place, stand_in in zip(places, stand_ins, strict=True)]
            yield Block(child, name, group[0][0], runs, slots, [m.__dict__ for m in modules])


def _is_block(module: nn.Module) -> bool:
    """Whether a module has a forward, of more than a weight and a bias: a single op is traced as fast as compared."""
    inner = list(module.modules())
    tensors = [t for m in inner for _, t in _tensors(m)]
    runs = type(module).forward is not nn.Module.forward and not any(
        isinstance(m, torch.jit.ScriptModule) for m in inner
    )
    return runs and len(tensors) > 2 and all(_kind(t) is not None for t in tensors)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own parameters and buffers."""
    for held in (module._parameters, module._buffers):
        yield from ((name, t) for name, t in held.items() if t is not None)


def _kind(t: torch.Tensor | None) -> Hashable:
    """What a stand-in has of a tensor; ``None`` where it can have none."""
    if t is None:
        return "nothing"
    if t.layout != torch.strided or t.is_quantized or nn.parameter.is_lazy(t):
        return None
    return type(t), tuple(t.shape), t.stride(), t.dtype


def _stand_in(t: torch.Tensor) -> torch.Tensor:
    if _kind(t) is None:
        raise _NotTold
    return torch.empty_strided(tuple(t.shape), t.stride(), dtype=t.dtype, device="meta")


_LIBRARY: Any = torch.library.Library("autofit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("fold(Tensor[] tensors, int number) -> Tensor[]")
_GIVEN: dict[int, list[Form]] = {}
"""What a mark gives, by its number, while a graph is captured."""
_NUMBERS = itertools.count()


def _given(tensors: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    return [torch.empty_strided(size, stride, dtype=dtype, device=dev) for size, stride, dtype, dev in _GIVEN[number]]


torch.library.register_fake("autofit::fold", _given, lib=_LIBRARY)


def _form(t: torch.Tensor) -> Form:
    return tuple(t.shape), tuple(t.stride()), t.dtype, t.device


@dataclass
class Folding:
    """What was folded while a model was traced.

    Attributes:
        model: the model.
        traced: calls that are in the graph, by number.
        copied: calls that are one node each.
        without: parameters that the tracer did not see, as one takes as long as an op, and that of the first sibling.
        found: whether there is anything to fold.
    """

    model: nn.Module
    traced: dict[int, Traced] = field(default_factory=dict)
    copied: list[Copied] = field(default_factory=list)
    without: dict[str, str] = field(default_factory=dict)
    found: bool = False
    _known: dict[Hashable, Traced] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    _apart: set[str] = field(default_factory=set)
    _numbers: list[int] = field(default_factory=list)
    _inside: bool = False
    _again: bool = False

    def again(self) -> bool:
        """After an export that failed: whether another one, with less folded, may do better."""
        again = self._again and len(self._whole) + len(self._apart) < COPIES
        self.traced, self.copied, self.without, self._known, self._again = {}, [], {}, {}, False
        return again

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let equal siblings run through this."""
        blocks = [block for block in equal_siblings(self.model) if block.first not in self._apart]
        self.found = bool(blocks)
        before = [(attributes, dict(attributes)) for block in blocks for attributes in block.attributes]
        try:
            for block in blocks:
                original = block.module.forward
                run = functools.partial(self._run, block, original)
                block.module.__dict__["forward"] = functools.update_wrapper(run, original)
                if not self._is_whole(block):
                    names = [name for name, _ in block.module.named_parameters()]
                    self.without |= {f"{block.path}.{name}": f"{block.first}.{name}" for name in names}
                    for attributes in block.attributes:
                        attributes["_parameters"] = dict.fromkeys(attributes["_parameters"])
            yield
        finally:
            for attributes, saved in before:
                attributes.clear()
                attributes.update(saved)
            for number in self._numbers:
                _GIVEN.pop(number, None)
        if self._again:  # a forward that goes on whatever happens
            raise _Again

    def _is_whole(self, block: Block) -> bool:
        return block.path == block.first or block.path in self._whole

    def _run(self, block: Block, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return original(*args, **kwargs)
        leaves, structure = _pytree.tree_flatten((args, kwargs))
        try:
            key = self._run_of(block, original, leaves, structure)
        except Exception as error:  # whatever a forward raises on meta: next time it is traced, and says it there
            self._again = True
            self._apart.add(block.first)
            raise _Again from error
        tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
        like = self._known.get(key)
        if like is not None:
            number = self._mark(like.outputs)
            self.copied.append(Copied(number, block.path, like))
            return like.filled(torch.ops.autofit.fold.default(tensors, number))
        if not self._is_whole(block):
            self._again = True
            self._whole.add(block.path)
            raise _Again
        block.runs.append(key[-1])
        number = self._mark([_form(t) for t in tensors])
        entered = iter(torch.ops.autofit.fold.default(tensors, number))
        args, kwargs = _pytree.tree_unflatten(
            [next(entered) if isinstance(v, torch.Tensor) else v for v in leaves], structure
        )
        self._inside = True
        try:
            values, shape = _pytree.tree_flatten(original(*args, **kwargs))
        finally:
            self._inside = False
        given = [v for v in values if isinstance(v, torch.Tensor)]
        forms, count = [_form(t) for t in given], iter(range(len(given)))
        places = [_At(next(count)) if isinstance(v, torch.Tensor) else v for v in values]
        traced = self.traced[number] = self._known[key] = Traced(number, block.path, forms, places, shape)
        return traced.filled(torch.ops.autofit.fold.default(given, self._mark(forms)))

    def _mark(self, forms: list[Form]) -> int:
        number = next(_NUMBERS)
        self._numbers.append(number)
        _GIVEN[number] = forms
        return number

    def _run_of(self, block: Block, original: Callable[..., Any], leaves: list[Any], structure: Any) -> tuple[Any, ...]:
        """Everything that a call computes, so that equal answers are equal programs; the last of it are its steps.

        Raises:
            _NotTold: something in it is not seen from here, or it leaves something behind.
        """
        # no mode of the tracer's, and kernels of C++ where there are some
        with within(_disable_current_modes(), torch._C.DisableTorchFunction(), torch._C._DisablePythonDispatcher()):
            stand_ins = {id(v): _stand_in(v) for v in leaves if isinstance(v, torch.Tensor)}
            given = [stand_ins[id(v)] if isinstance(v, torch.Tensor) else v for v in leaves]
            stream = _Stream([*stand_ins.values(), *(t for _, _, t in block.slots)], block.runs)
            said = tuple(stream.token(v) for v in given)
            passed = _pytree.tree_unflatten(given, structure)
            before = [dict(attributes) for attributes in block.attributes]
            for attributes, name, stand_in in block.slots:
                attributes[name] = stand_in
            try:
                with within(stream):
                    result = original(*passed[0], **passed[1])
            finally:
                for attributes, name, _ in block.slots:
                    attributes.pop(name, None)
            values, shape = _pytree.tree_flatten(result)
            gives = tuple(stream.token(v) for v in values)
            after, structure_after = _pytree.tree_flatten(passed)
            same = structure_after == structure and all(a is b for a, b in zip(after, given, strict=True))
            unchanged = all(_same(a, b) for a, b in zip(before, block.attributes, strict=True))
            del passed, given, after, result
            if not (same and unchanged and stream.leaves_nothing(values)):
                raise _NotTold
        return type(block.module), repr(structure), said, gives, repr(shape), tuple(stream.steps)


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(b[name] is value for name, value in a.items())


class _Stream(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ops with their arguments; a tensor is a place in a storage, and storages are numbered as they come.

    Args:
        tensors: what is there before the first op.
        runs: earlier ones; as long as this one does as one of them did, results have the sizes that they had there.
    """

    def __init__(self, tensors: list[torch.Tensor], runs: list[Steps]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._runs = runs
        self._number: dict[int, int] = {}
        self._alive: list[torch.UntypedStorage] = []  # a storage's address is its own only while it lives
        for t in tensors:
            self._enter(t)
        self._given = len(self._alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        said = func, self.token(args), self.token(tuple(kwargs.items())) if kwargs else (), torch.is_grad_enabled()
        at = len(self.steps)
        self._runs = [run for run in self._runs if len(run) > at and run[at][:4] == said]
        result = self._as_before(func, self._runs[0][at][4]) if self._runs and not func._schema.is_mutable else None
        if result is None:
            if func._schema.is_mutable and any(n < self._given for n in self._writes(func, args, kwargs)):
                raise _NotTold
            result = func(*args, **kwargs)
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, torch.Tensor):
                self._enter(t)
        self.steps.append((*said, self.token(result)))
        return result

    def _as_before(self, func: Any, places: Any) -> Any:
        """Tensors at places, without running what gives them; ``None`` where one is none, or not all of its memory."""
        several = len(func._schema.returns) > 1
        found, fresh = [], len(self._alive)
        for place in places if several else (places,):
            if not (isinstance(place, tuple) and len(place) == 5 and isinstance(place[4], torch.dtype)):
                return None
            number, offset, size, stride, dtype = place
            if number < len(self._alive):
                whole = torch.empty(0, dtype=dtype, device="meta")
                found.append(whole.set_(self._alive[number], offset, size, stride))
            elif number == fresh and offset == 0:
                found.append(torch.empty_strided(size, stride, dtype=dtype, device="meta"))
                fresh += 1
            else:
                return None
        return tuple(found) if several else found[0]

    def token(self, value: Any) -> Hashable:
        """What a value is, without its identity."""
        if isinstance(value, torch.Tensor):
            number = self._number.get(value.untyped_storage()._cdata)
            if number is not None:
                return number, value.storage_offset(), tuple(value.shape), value.stride(), value.dtype
            if value.is_meta or type(value) is not torch.Tensor or value.numel() > _LITERAL:
                raise _NotTold
            return "literal", value.dtype, str(value.tolist())
        if isinstance(value, tuple | list):
            return tuple(self.token(v) for v in value)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, torch.layout | torch.memory_format | slice):
            return str(value)
        raise _NotTold

    def leaves_nothing(self, values: list[Any]) -> bool:
        """Whether nothing that was made is left but what a call gives; this forgets what was made."""
        given = {v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)}
        kept = self._alive[self._given :]
        made: list[Any] = [StorageWeakRef(s) for s in kept if s._cdata not in given]  # type: ignore[no-untyped-call]
        del kept
        self._alive.clear()
        return all(ref.expired() for ref in made)

    def _enter(self, t: torch.Tensor) -> None:
        storage = t.untyped_storage()
        if storage._cdata not in self._number:
            self._number[storage._cdata] = len(self._alive)
            self._alive.append(storage)

    def _writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[int]:
        for i, argument in enumerate(func._schema.arguments):
            value = kwargs[argument.name] if argument.name in kwargs else args[i] if i < len(args) else None
            if argument.alias_info is not None and argument.alias_info.is_write:
                for t in value if isinstance(value, tuple | list) else (value,):
                    yield self._number.get(t.untyped_storage()._cdata, 0) if isinstance(t, torch.Tensor) else 0


def unfold(module: fx.GraphModule, folding: Folding, nodes: dict[str, fx.Node]) -> None:
    """Put into a graph, in place, what its folded calls stand for, and take the marks away.

    Args:
        module: captured while ``folding`` was on.
        folding: what was folded.
        nodes: of every parameter and buffer, by one of its names; those that the tracer did not see are added.

    Raises:
        KeyError: a copy reads a tensor that has no node.
    """
    if not folding.traced:
        return
    graph = module.graph
    _add_placeholders(graph, folding, nodes)
    every = _by_every_name(folding.model, nodes)
    marks = {int(str(n.args[1])): n for n in graph.nodes if n.target == torch.ops.autofit.fold.default}
    for traced in folding.traced.values():
        region = _Region(traced, marks[traced.number], marks[traced.number + 1], every)
        for copied in (c for c in folding.copied if c.like is traced):
            region.write(marks[copied.number], copied.path)
    for traced in folding.traced.values():
        for mark in (marks[traced.number], marks[traced.number + 1]):
            _replace(mark, list(mark.args[0]))
    _renumber(graph)
    graph.lint()  # its code is not made anew: nobody runs it, and it would take as long as all this


def _add_placeholders(graph: fx.Graph, folding: Folding, nodes: dict[str, fx.Node]) -> None:
    """Placeholders of the parameters of copies, in the model's order, as those of the call that was traced."""
    last: fx.Node | None = None
    for name, _ in folding.model.named_parameters():
        if name in folding.without and name not in nodes:
            like = nodes[folding.without[name]]
            assert last is not None  # the first sibling comes before
            with graph.inserting_after(last):
                nodes[name] = graph.placeholder(f"p_{name.replace('.', '_')}".lower())
            nodes[name].meta = dict(like.meta)
        last = nodes.get(name, last)


def _by_every_name(model: nn.Module, nodes: Mapping[str, fx.Node]) -> dict[str, fx.Node]:
    """Node of each parameter and buffer by all its names, of which an exported program has one."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    of = {id(t): nodes[name] for name, t in reversed(named) if name in nodes}
    return {name: nodes.get(name, of[id(t)]) for name, t in named if id(t) in of}


class _Region:
    """The nodes of a traced call."""

    def __init__(self, traced: Traced, begin: fx.Node, end: fx.Node, placeholders: Mapping[str, fx.Node]) -> None:
        self.path, self.begin, self.end, self.placeholders = traced.path, begin, end, placeholders
        self.entries = {user: int(str(user.args[1])) for user in begin.users}
        self.own = {n: name for name, n in placeholders.items() if name.startswith(f"{traced.path}.")}
        self.nodes: list[fx.Node] = []
        node = begin.next
        while node is not end:
            if node not in self.entries:
                self.nodes.append(node)
            node = node.next
        stacks = {n: tuple(n.meta["nn_module_stack"].items()) for n in self.nodes if "nn_module_stack" in n.meta}
        self.stacks = list(dict.fromkeys(stacks.values()))
        places = {stack: i for i, stack in enumerate(self.stacks)}
        self.stack_of = {n: places[stack] for n, stack in stacks.items()}

    def write(self, mark: fx.Node, path: str) -> None:
        """Put a copy in the place of a mark, with the tensors of the module at a path."""
        given: Any = mark.args[0]
        mapping = {entry: given[i] for entry, i in self.entries.items()}
        mapping |= {n: self.placeholders[path + name[len(self.path) :]] for n, name in self.own.items()}
        stacks = [self._moved(stack, path) for stack in self.stacks]
        graph, there, here = mark.graph, self.begin.stack_trace or "", mark.stack_trace or ""
        with graph.inserting_before(mark):
            for node in self.nodes:
                made = mapping[node] = graph.node_copy(node, lambda n: mapping.get(n, n))
                if node in self.stack_of:
                    made.meta["nn_module_stack"] = stacks[self.stack_of[node]]
                if there != here and node.stack_trace and node.stack_trace.startswith(there):
                    made.stack_trace = here + node.stack_trace[len(there) :]
        results: Any = self.end.args[0]
        _replace(mark, [mapping.get(n, n) for n in results])

    def _moved(self, stack: tuple[tuple[str, Any], ...], path: str) -> dict[str, Any]:
        """A stack of modules with those of the traced call as those of a copy."""
        found = {}
        for key, (name, kind) in stack:
            inside = re.match(rf"{re.escape(self.path)}(?=[.@]|$)", name)
            moved = path + name[len(self.path) :] if inside else name
            found[moved if inside else key] = (moved, kind)
        return found


def _replace(mark: fx.Node, results: list[fx.Node]) -> None:
    for user in list(mark.users):
        user.replace_all_uses_with(results[int(str(user.args[1]))])
        user.graph.erase_node(user)
    mark.graph.erase_node(mark)


def _renumber(graph: fx.Graph) -> None:
    """Names as a graph has them that was traced whole: counted in its order."""
    names, counts = fx.graph._Namespace(), re.compile(r"(_\d+)+$")
    for node in graph.nodes:
        base = node.name if node.op != "call_function" else counts.sub("", node.name)
        node.name = names.create_name(base, node)
    graph._graph_namespace = names
