"""Initial values of models on ``meta``: the ops that would write them are recorded, and run when there is memory.

Building a module on ``meta`` runs its whole initialization without storing a number. `Recorder` keeps those ops;
`Recipe` replays what one tensor needs, on any device, so that its spread can be measured before the model exists
and its values drawn after `torch.nn.Module.to_empty`.
"""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autofit.cleanup import one_at_a_time, undone, within
from autofit.errors import PlanError
from autofit.lowering import draw
from autofit.measure import Spread, spread
from autofit.plan import Plan
from autofit.program import storage_key
from autofit.unwrap import planned_modules, planned_name, planned_paths

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
SAMPLE = 2**20
"""Values that are enough to know a spread: to 0.07 %."""
ATTRIBUTE = "_autofit_init"
"""Where `deferred_init` leaves the recipe on the root module."""


@dataclass(frozen=True)
class View:
    """A tensor of the recording: geometry over a numbered storage, or the values of one that nothing wrote."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    nbytes: int
    value: torch.Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Step:
    """An op that ran.

    Attributes:
        func: the op.
        args, kwargs, result: what it took and gave, with tensors as views.
        reads, writes: numbers of storages.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    reads: frozenset[int]
    writes: frozenset[int]

    @property
    def allocates(self) -> bool:
        """Whether this only reserves memory."""
        return str(self.func).startswith(("aten.empty", "aten.new_empty", "aten.detach", "aten.alias"))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps every op that runs inside it, with tensors as views of numbered storages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._alive: list[Any] = []  # a storage's number is unique only while it lives
        self._written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seen_args, seen_kwargs = _pytree.tree_map_only(torch.Tensor, self.view, (args, kwargs))
        nothing = args and isinstance(args[0], torch.Tensor) and args[0].is_meta and _overwrites(func)
        result = args[0] if nothing else func(*args, **kwargs)
        reads, writes = set(), set()
        for argument, value in _arguments(func, args, kwargs):
            touched = {_number(t) for t in _tensors(value)}
            reads |= touched
            if argument.alias_info is not None and argument.alias_info.is_write:
                writes |= touched
        writes |= {_number(t) for t in _tensors(result)} - reads
        self._written |= writes
        seen = _pytree.tree_map_only(torch.Tensor, self.view, result)
        self.steps.append(Step(func, seen_args, seen_kwargs, seen, frozenset(reads), frozenset(writes)))
        return result

    def skipped(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Keep a call that writes its first argument."""
        seen = _pytree.tree_map_only(torch.Tensor, self.view, args)
        touched = frozenset({_number(args[0])})
        self.steps.append(Step(func, seen, {}, seen[0], touched, touched))

    def view(self, t: torch.Tensor) -> View:
        """A tensor as geometry; one with values that no recorded op wrote is kept as it is now."""
        storage = t.untyped_storage()
        self._alive.append(storage)
        own = None if t.is_meta or _number(t) in self._written else t.detach().clone()
        return View(
            _number(t), t.dtype, tuple(t.shape), tuple(t.stride()), int(t.storage_offset()), int(storage.nbytes()), own
        )


class _Skipped(TorchFunctionMode):
    """Records the functions of ``torch.nn.init`` that return at once when they find a tensor on ``meta``, whole."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == _IS_META and result:
            caller: FrameType | None = sys._getframe(1)
            while caller is not None and caller.f_code.co_name == "__torch_function__":  # of a mode inside this one
                caller = caller.f_back
            if caller is not None and caller.f_globals is vars(torch.nn.init):
                code = caller.f_code
                given = tuple(caller.f_locals[name] for name in code.co_varnames[: code.co_argcount])
                self.recorder.skipped(caller.f_globals[code.co_name], given)
        return result


_IS_META: Any = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in kwargs:
            yield argument, kwargs[argument.name]
        elif i < len(args):
            yield argument, args[i]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (t for t in _pytree.tree_leaves(value) if isinstance(t, torch.Tensor))


def _number(t: torch.Tensor) -> int:
    return int(t.untyped_storage()._cdata)


class Recipe:
    """How the values of a model's parameters and buffers come about.

    Args:
        recorder: the ops that ran.
        model: the model as it stood after them.
    """

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        self._steps = recorder.steps
        self._targets = {name: recorder.view(t) for name, t in _named_tensors(model)}
        self._writers: dict[int, list[int]] = defaultdict(list)
        for i, step in enumerate(self._steps):
            for number in step.writes:
                self._writers[number].append(i)

    def knows(self, name: str) -> bool:
        """Whether a recorded op gives this tensor values."""
        target = self._targets.get(name)
        if target is None:
            return False
        return target.value is not None or any(not self._steps[i].allocates for i in self._writers[target.storage])

    def draw(self, name: str, device: torch.device, seed: int) -> torch.Tensor:
        """The values of one tensor, anew: of its recorded shape and type, on a device.

        Args:
            name: parameter or buffer.
            device: where the ops run.
            seed: of the device's random numbers; the generators outside are left as they were.
        """
        devices = [device] if device.type != "cpu" else []
        forked = torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
        with within(torch.no_grad(), forked):
            torch.manual_seed(seed)
            return self._run(self._targets[name], device)

    def spreads(self, model: nn.Module) -> dict[str, Spread]:
        """Spread of every parameter on ``meta`` whose values are known; those that equal ops write share a sample."""
        found: dict[str, Spread] = {}
        samples: dict[Any, Spread] = {}
        for name, p in model.named_parameters():
            if not (p.is_meta and p.is_floating_point() and p.numel() and self.knows(name)):
                continue
            key = self._signature(self._targets[name])
            if key not in samples:
                samples[key] = spread(self._sample(name, seed=len(samples)))
            found[name] = samples[key]
        return found

    def _sample(self, name: str, seed: int) -> torch.Tensor:
        """Values as `draw` gives them; some of them, where each is drawn without a look at the others."""
        target = self._targets[name]
        filling = self._filling(target) if prod(target.size) > SAMPLE else None
        if filling is None:
            return self.draw(name, torch.device("cpu"), seed)
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(seed)
            values = torch.empty(SAMPLE, dtype=target.dtype)
            for func, args, kwargs in filling:
                func(values, *args, **kwargs)
        return values

    def _filling(self, target: View) -> list[Call] | None:
        """The calls that fill a whole tensor value by value, in order; ``None`` where there is another one.

        What writes fewer values than a sample's error shows, as the row of a padding token, is left out.
        """
        found: list[Call] = []
        for i in reversed(self._needed(target.storage)):
            step = self._steps[i]
            if step.allocates:
                continue
            for func, (written, *args), kwargs in reversed(_elementary(step)):
                if not isinstance(written, View) or written.storage != target.storage:
                    return None
                if any(isinstance(v, View) for v in _pytree.tree_leaves((args, kwargs))):
                    return None
                if prod(written.size) < prod(target.size) / SAMPLE**0.5:
                    continue
                overwrites = _overwrites(func)
                if prod(written.size) != prod(target.size) or not (overwrites or _is_pointwise(func)):
                    return None
                found.append((func, tuple(args), {k: v for k, v in kwargs.items() if k != "generator"}))
                if overwrites:
                    return found[::-1]
        return None

    def scalars(self, model: nn.Module) -> dict[str, float]:
        """Values of the one-element buffers on ``meta`` that are known."""
        return {
            name: float(self.draw(name, torch.device("cpu"), seed=0))
            for name, b in model.named_buffers()
            if b.is_meta and b.is_floating_point() and b.numel() == 1 and self.knows(name)
        }

    def _run(self, target: View, device: torch.device) -> torch.Tensor:
        storages: dict[int, torch.UntypedStorage] = {}

        def real(view: View) -> torch.Tensor:
            if view.value is not None:
                return view.value.to(device)
            if view.storage not in storages:
                storages[view.storage] = torch.UntypedStorage(view.nbytes, device=device)  # type: ignore[no-untyped-call]
            empty = torch.empty(0, dtype=view.dtype, device=device)
            return empty.set_(storages[view.storage], view.offset, view.size, view.stride)

        for i in self._needed(target.storage):
            step = self._steps[i]
            args, kwargs = _pytree.tree_map_only(View, real, (step.args, step.kwargs))
            if "device" in kwargs:
                kwargs["device"] = device
            result = step.func(*args, **kwargs)
            for made, view in zip(_pytree.tree_leaves(result), _pytree.tree_leaves(step.result), strict=True):
                if isinstance(view, View):
                    storages.setdefault(view.storage, made.untyped_storage())
        return real(target)

    def steps(self, name: str) -> tuple[list[Step], View] | None:
        """The ops that a tensor's last values depend on, in order, and where they leave them; ``None`` if unknown.

        Values that another tensor held, and that are copied here as they are, are found there.
        """
        target = self._targets.get(name)
        if target is None:
            return None
        last = max((i for i in self._writers[target.storage] if not self._steps[i].allocates), default=None)
        if last is not None and str(self._steps[last].func) == "aten.copy_.default":
            written, source = self._steps[last].args[:2]
            if written == target and (source.size, source.dtype) == (target.size, target.dtype):
                return self._with_views(self._needed(source.storage, last), source), source
        return self._with_views(self._needed(target.storage), target), target

    def _with_views(self, needed: list[int], target: View) -> list[Step]:
        """Steps, and between them the ops that only give another view of a storage."""
        kept = set(needed)
        wanted = {target} if target.value is None else set()
        found: list[Step] = []
        for i in range(max(kept, default=-1) if not wanted else len(self._steps) - 1, -1, -1):
            step = self._steps[i]
            made = [v for v in _pytree.tree_leaves(step.result) if isinstance(v, View) and v.value is None]
            if i in kept or (not step.writes and wanted.intersection(made)):
                found.append(step)
                wanted.difference_update(made)
                wanted |= {v for v in _pytree.tree_leaves((step.args, step.kwargs)) if isinstance(v, View)}
        return found[::-1]

    def _needed(self, storage: int, before: int = sys.maxsize) -> list[int]:
        """Numbers of the steps that the last values of a storage depend on, in order."""
        waiting, found = [-i for i in self._writers[storage] if i < before], set()
        wanted = {storage}
        heapq.heapify(waiting)
        while waiting:
            i = -heapq.heappop(waiting)
            if i in found:
                continue
            found.add(i)
            for number in self._steps[i].reads - wanted:
                wanted.add(number)
                for j in self._writers[number]:
                    if j < i:
                        heapq.heappush(waiting, -j)
        return sorted(found)

    def _signature(self, target: View) -> Any:
        """Equal for tensors that equal ops write, whatever their storages."""
        numbers: dict[int, int] = {}

        def plain(value: Any) -> str:
            if not isinstance(value, View):
                return repr(value)
            number = numbers.setdefault(value.storage, len(numbers))
            held = id(value.value) if value.value is not None else None
            return f"{number} {value.dtype} {value.size} {value.stride} {value.offset} {held}"

        steps = [self._steps[i] for i in self._needed(target.storage)]
        leaves = [[plain(v) for v in _pytree.tree_leaves((s.args, s.kwargs, s.result))] for s in steps]
        return repr([(str(s.func), part) for s, part in zip(steps, leaves, strict=True)]) + plain(target)


_EACH = frozenset("normal_ uniform_ trunc_normal_ constant_ ones_ zeros_".split())
"""Functions of ``torch.nn.init`` that draw every value alike, whatever the shape."""


def _elementary(step: Step) -> list[Call]:
    """A step as calls of ops; a function of ``torch.nn.init`` that looks at the shape by those it makes."""
    if isinstance(step.func, torch._ops.OpOverload) or _init_name(step.func) in _EACH:
        return [(step.func, step.args, step.kwargs)]
    recorder = Recorder()
    view = step.args[0]
    try:
        with FakeTensorMode(), torch.no_grad():
            tensor = torch.empty_strided(view.size, view.stride, dtype=view.dtype)
            with recorder:
                step.func(tensor, *step.args[1:], **step.kwargs)
    except Exception:  # it looks at values
        return [(step.func, step.args, step.kwargs)]
    return [(s.func, (view, *s.args[1:]), s.kwargs) for s in recorder.steps]


def _init_name(func: Any) -> str:
    return str(getattr(func, "__name__", "")).removeprefix("_no_grad_")


def _overwrites(func: Any) -> bool:
    """Whether a call draws or sets every value of its first argument anew, in place."""
    if not isinstance(func, torch._ops.OpOverload):
        return _init_name(func) in _EACH
    name = func._schema.name
    in_place = name.endswith("_") and "dropout" not in name
    return in_place and (torch.Tag.nondeterministic_seeded in func.tags or name in ("aten::fill_", "aten::zero_"))


def _is_pointwise(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable and torch.Tag.pointwise in func.tags


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def deferred_init(factory: Callable[[], nn.Module]) -> nn.Module:
    """Build a model on ``meta`` and remember how its values are initialized, for `Analysis.init_`.

    Args:
        factory: builds the model and runs whatever initialization it needs, as it would without autofit.

    Returns:
        The model, on ``meta``.
    """
    known = "transformers" in sys.modules
    recorder, model = _recorded(factory)
    if not known and "transformers" in sys.modules:  # came with the factory: what it skipped was not seen
        recorder, model = _recorded(factory)
    model.__dict__[ATTRIBUTE] = Recipe(recorder, model)
    return model


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A model without memory, for its shapes alone."""
    with torch.device("meta"):
        model = build()
    return model.to("meta")  # torch.Tensor(n), an old constructor, heeds no device


def _recorded(factory: Callable[[], nn.Module]) -> tuple[Recorder, nn.Module]:
    recorder = Recorder()
    transformers = _initialization_of_transformers()
    with within(one_at_a_time(), transformers, recorder, _Skipped(recorder), torch.device("meta")):
        return recorder, factory()


@contextmanager
def _initialization_of_transformers() -> Iterator[None]:
    """Let models of transformers initialize themselves on ``meta``, too, where that library skips it.

    At the end of their own construction, as on other devices: a factory may return a part of one.
    """
    library = sys.modules.get("transformers")
    if library is None:
        yield
        return
    base = library.PreTrainedModel
    original = base.init_weights

    def init_weights(self: Any) -> None:
        self.initialize_weights()
        original(self)

    def put_back() -> None:
        base.init_weights = original

    with undone(put_back):
        base.init_weights = init_weights
        yield


def record(factory: Callable[[], nn.Module], device: str) -> Recipe:
    """How the values of a model come about that is built on a device, and forgotten."""
    if device == "meta":
        recipe: Recipe = deferred_init(factory).__dict__[ATTRIBUTE]
        return recipe
    recorder = Recorder()
    with within(recorder, torch.device(device)):
        return Recipe(recorder, factory())


def find_recipe(model: nn.Module) -> Recipe | None:
    """How a model on ``meta`` gets its values: what `deferred_init` kept, or what transformers' own code does."""
    if ATTRIBUTE in model.__dict__:
        recipe: Recipe = model.__dict__[ATTRIBUTE]
        return recipe
    if not any(p.is_meta for p in model.parameters()):
        return None
    library = sys.modules.get("transformers")
    if library is None or not any(isinstance(m, library.PreTrainedModel) for m in model.modules()):
        return None
    copied = deepcopy(model)
    recorder = Recorder()
    with within(recorder, _Skipped(recorder)):
        _initialize_transformers(copied)
    return Recipe(recorder, copied)


def forget(model: nn.Module) -> None:
    """Take what `deferred_init` kept off the model."""
    model.__dict__.pop(ATTRIBUTE, None)


def _initialize_transformers(model: nn.Module) -> None:
    """Run the initialization that transformers skips on ``meta``."""
    library = sys.modules.get("transformers")
    if library is None:
        return
    if isinstance(model, library.PreTrainedModel):
        model.initialize_weights()
        return
    for child in model.children():
        _initialize_transformers(child)


def draw_all(
    recipe: Recipe,
    model: nn.Module,
    plan: Plan,
    generator: torch.Generator | None,
    order: Mapping[str, int] | None = None,
) -> None:
    """Write initial values, each times its planned factor, into a model that has memory but no values.

    Every tensor is drawn whole and with its own seed, and a shard takes its part, so that the values do not depend
    on how many processes hold the model.

    Args:
        recipe: how values come about.
        model: materialized, on any device; parameters may be ``DTensor`` shards.
        plan: factors and ties; a tie that materializing broke is made again.
        generator: of the seeds; torch's default one if ``None``. Shards take the first process's.
        order: place of each parameter in a larger model, whose values these are; ``None`` for all of a model.

    Raises:
        PlanError: a tensor is still on ``meta``, nothing recorded gives it values, or a tie of shards is broken.
    """
    paths = planned_paths(model, plan)
    modules = planned_modules(model, paths)
    for p in plan.parameters.values():
        _tie(modules, p.names)
    targets = list(_distinct((planned_name(name, paths), t) for name, t in _named_tensors(model)))
    for name, t in targets:
        if t.is_meta:
            raise PlanError(f"{name} is on meta: it has no memory", todo="call model.to_empty(device=...) first")
        if not recipe.knows(name):
            raise PlanError(
                f"no recorded op gives {name} its initial values",
                todo="build the model by autofit.deferred_init(factory), so that its whole initialization is seen",
            )
    device = generator.device if generator is not None else torch.device("cpu")
    start = int(torch.randint(2**62, (), generator=generator, device=device))
    if any(_is_sharded(t) for _, t in targets):
        shared = [start]
        torch.distributed.broadcast_object_list(shared)
        start = shared[0]
    for i, (name, t) in enumerate(targets):
        whole = recipe.draw(name, t.device, start + (order or {}).get(name, i))
        _fill(t, draw(whole.clone(), plan.parameters[name]) if name in plan.parameters else whole)


def _tie(modules: Mapping[str, nn.Module], names: tuple[str, ...]) -> None:
    """Give all names of a parameter one tensor again."""
    places = [name.rpartition(".")[::2] for name in names]
    first, *others = (getattr(modules[path], leaf) for path, leaf in places)
    for name, (path, leaf), other in zip(names[1:], places[1:], others, strict=True):
        if storage_key(other) == storage_key(first):
            continue
        if _is_sharded(other):
            raise PlanError(f"{name} was tied to {names[0]} and is not any more", todo="shard both in one group")
        setattr(modules[path], leaf, first)


def _distinct(named: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[Any] = set()
    for name, t in named:
        key = storage_key(t)
        if key not in seen:
            seen.add(key)
            yield name, t


def _is_sharded(t: torch.Tensor) -> bool:
    return hasattr(t, "device_mesh") and hasattr(t, "placements")


@torch.no_grad()
def _fill(t: torch.Tensor, whole: torch.Tensor) -> None:
    if not _is_sharded(t):
        t.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(whole, t.device_mesh, t.placements, src_data_rank=None)  # type: ignore[attr-defined]
    t.to_local().copy_(part.to_local())  # type: ignore[attr-defined]
