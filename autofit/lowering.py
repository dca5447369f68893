"""Apply a plan to the live model: multipliers at module boundaries, initial values rescaled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._subclasses.fake_tensor import is_fake

from autofit.cleanup import undone_on_failure
from autofit.errors import LoweringError
from autofit.plan import Fold, ParameterPlan, Plan
from autofit.program import storage_key
from autofit.unwrap import planned_modules, planned_paths

MARK = "_autofit"
HANDLES = "_autofit_handles"
"""Kept on a module with its hooks: in a process that unpickles it, their numbers are then not given out again."""


def _scale(value: torch.Tensor, factor: float, runs: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """Multiply a tensor, or runs of its last axis."""
    if not runs:
        return value * factor
    parts, at = [], 0
    for start, stop in runs:
        if start > at:
            parts.append(value[..., at:start])
        parts.append(value[..., start:stop] * factor)
        at = stop
    if at < value.shape[-1]:
        parts.append(value[..., at:])
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class ScaleInput:
    """Forward pre-hook: multiplies the first tensor argument."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] * self.factor, *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: kwargs[name] * self.factor}


@dataclass(frozen=True)
class ScaleKey:
    """Forward pre-hook of ``nn.MultiheadAttention``: multiplies the key's input and not the value's."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1:
            return (args[0], args[1] * self.factor, *args[2:]), kwargs
        return args, {**kwargs, "key": kwargs["key"] * self.factor}


@dataclass(frozen=True)
class ScaleOutput:
    """Forward hook: multiplies the output, or runs of its last axis."""

    factor: float
    runs: tuple[tuple[int, int], ...] = ()

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise LoweringError(
                f"{type(module).__name__} returns a {type(output).__name__}, and a tensor was to be multiplied by "
                f"{self.factor:g}",
                todo="put a module of its own around the tensor that goes on, as nn.Identity",
            )
        return _scale(output, self.factor, self.runs)


@dataclass(frozen=True)
class ScaleParameter:
    """Forward pre-hook: the module reads a multiple of one of its parameters, which itself stays as it is."""

    name: str
    factor: float

    def __call__(self, module: nn.Module, args: Any) -> None:
        own = module._parameters.get(self.name)
        if own is None:
            raise LoweringError(
                f"{type(module).__name__} has lost the parameter {self.name}, which is to be multiplied by "
                f"{self.factor:g}: it was replaced after muify",
                todo="change the model first (as weight_norm or prune do), and muify it then",
            )
        module.__dict__[self.name] = own * self.factor  # found before what is in _parameters


@dataclass(frozen=True)
class RestoreParameter:
    """Forward hook: the module reads its parameter again."""

    name: str

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        module.__dict__.pop(self.name, None)


HOOKS = (ScaleInput, ScaleKey, ScaleOutput, ScaleParameter, RestoreParameter)


def is_muified(model: nn.Module) -> bool:
    """Whether a plan has been applied to this model."""
    return MARK in model.__dict__ or any(hook for m in model.modules() for hook in _hooks(m))


def _hooks(module: nn.Module) -> list[Any]:
    every = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [h for h in every if isinstance(h, HOOKS)]


def _have_compilers_look() -> None:
    """Have compiled code look whether a module has hooks; by default it takes those that were there when it was made,
    for every module of the class. What was compiled until now is compiled again.
    """
    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its name, also of TorchScript.

    Raises:
        LoweringError: there is none.
    """
    owner: Any = model
    path, _, own = name.rpartition(".")
    for part in path.split(".") if path else ():
        owner = getattr(owner, part, None)
    found = getattr(owner, own, None)
    if not isinstance(found, torch.Tensor):
        raise LoweringError(f"the model has no parameter {name}: it was changed after muify")
    return found  # type: ignore[return-value]


def install(model: nn.Module, plan: Plan) -> None:
    """Put the plan's multipliers on the model's modules, each once, freeze what is not to be trained, mark the model.

    Raises:
        LoweringError: the model is already muified, or lacks a module of the plan.
    """
    if is_muified(model):
        raise LoweringError(
            "this model is already muified: a second application would square every multiplier",
            todo="use the object that the first muify returned, or start from a fresh model",
        )
    _have_compilers_look()
    modules = dict(model.named_modules(remove_duplicate=False))
    done: set[tuple[str, str]] = set()
    for site in plan.sites:
        place, path = site.carrier.place, site.carrier.path
        if place in ("none", "weight") or site.multiplier == 1 or (place, path) in done:
            continue
        done.add((place, path))
        factor = site.multiplier**site.carrier.power
        for each in (path, *site.carrier.also):
            if each not in modules:
                raise LoweringError(f"the plan has a multiplier on {each}, which this model lacks")
            module = modules[each]
            if place == "input":
                handle = module.register_forward_pre_hook(ScaleInput(factor), with_kwargs=True)
            elif place == "key":
                handle = module.register_forward_pre_hook(ScaleKey(factor), with_kwargs=True)
            else:
                handle = module.register_forward_hook(ScaleOutput(factor, site.carrier.indices))
            module.__dict__.setdefault(HANDLES, []).append(handle)
    for p in plan.multiplied().values():
        for owner, _, name in (n.rpartition(".") for n in p.names):
            module = modules[owner]
            scale = module.register_forward_pre_hook(ScaleParameter(name, p.multiplier))
            restore = module.register_forward_hook(RestoreParameter(name), always_call=True)
            module.__dict__.setdefault(HANDLES, []).extend((scale, restore))
    frozen = [name for name in plan.frozen if parameter(model, name).requires_grad]
    model.__dict__[MARK] = {"scheme": plan.scheme, "base": dict(plan.base), "frozen": frozen}
    for name in frozen:
        parameter(model, name).requires_grad_(False)


def require_installed(model: nn.Module, plan: Plan) -> None:
    """Check that the plan's multipliers are still where `install` put them.

    Raises:
        LoweringError: a module was replaced after that, as ``resize_token_embeddings`` replaces a readout.
    """
    modules = planned_modules(model, planned_paths(model, plan))
    for p in plan.multiplied().values():
        for owner, _, name in (n.rpartition(".") for n in p.names):
            module = modules.get(owner)
            if module is None or not any(isinstance(h, ScaleParameter) and h.name == name for h in _hooks(module)):
                raise LoweringError(
                    f"{owner}.{name} has lost its multiplier {p.multiplier:g}: the module was replaced after muify",
                    where=p.where,
                    todo="change the model first (as resize_token_embeddings does), and muify it then",
                )
    for site in plan.sites:
        if site.multiplier == 1 or site.carrier.place in ("none", "weight"):
            continue
        for path in (site.carrier.path, *site.carrier.also):
            module = modules.get(path)
            if module is None or not _hooks(module):
                raise LoweringError(
                    f"{path} has lost its multiplier {site.multiplier:g}: the module was replaced after muify",
                    where=site.where,
                    todo="change the model first (as resize_token_embeddings does), and muify it then",
                )


def uninstall(model: nn.Module) -> None:
    """Take all multipliers and the mark off again; what was frozen is trained again."""
    for module in model.modules():
        for registry, flags in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for key in [k for k, h in registry.items() if isinstance(h, HOOKS)]:
                flags.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)
                del registry[key]
        module.__dict__.pop(HANDLES, None)
    for name in model.__dict__.get(MARK, {}).get("frozen", ()):
        parameter(model, name).requires_grad_(True)
    model.__dict__.pop(MARK, None)


def draw(values: torch.Tensor, planned: ParameterPlan) -> torch.Tensor:
    """Initial values as planned, in place of those that the model draws."""
    if planned.init_factor != 1.0:
        values.mul_(planned.init_factor)
    axis, runs = planned.zeros or (0, ())
    for start, stop in runs:
        values.narrow(axis, start, stop - start).zero_()
    return values


def _hooks_as_now(model: nn.Module) -> Callable[[], None]:
    """What puts hooks, marks and which parameters have a gradient back to what they are now."""
    attributes = [(m.__dict__, dict(m.__dict__)) for m in model.modules()]
    registries = [(r, r.copy()) for m in model.modules() for r in _registries(m)]
    gradients = [(p, p.requires_grad) for p in model.parameters()]

    def put_back() -> None:
        for held, before in (*attributes, *registries):
            held.clear()
            held.update(before)
        for p, trained in gradients:
            if p.requires_grad != trained:
                p.requires_grad_(trained)

    return put_back


def _registries(module: nn.Module) -> tuple[Any, ...]:
    pre = module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs
    return *pre, module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called


def require_own_memory(model: nn.Module, names: Iterable[str]) -> None:
    """Check that parameters can be changed in place, and that no other parameter changes with one of them.

    Raises:
        LoweringError: one is expanded, so that its elements share memory, or it shares some with a parameter that is
            not the same view.
    """
    wanted = set(names)
    held: dict[Any, list[tuple[int, int, str, Any]]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.layout != torch.strided or p.is_meta or is_fake(p) or not p.numel():
            continue
        storage, *view = storage_key(p)
        start = int(p.storage_offset())
        stop = start + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)) + 1
        if name in wanted and any(n > 1 and s == 0 for n, s in zip(p.shape, p.stride(), strict=True)):
            raise LoweringError(
                f"{name} is to be multiplied, and its elements share memory: it is expanded",
                todo="give it memory of its own: nn.Parameter(p.detach().clone())",
            )
        for other_start, other_stop, other, other_view in held.setdefault(storage, []):
            if view != other_view and start < other_stop and other_start < stop and {name, other} & wanted:
                raise LoweringError(
                    f"{other} and {name} share memory without being one parameter, and one is to be multiplied",
                    todo="give each memory of its own, or tie them: one parameter, transposed in forward",
                )
        held[storage].append((start, stop, name, view))


@torch.no_grad()
def rescale(model: nn.Module, plan: Plan) -> None:
    """Multiply initial values by the plan's factors, each tensor once; a factor of one touches nothing."""
    by_storage: dict[Any, nn.Parameter] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        key = storage_key(p)
        if key in by_storage or name not in plan.parameters:
            continue
        by_storage[key] = p
        if p.device.type != "meta":
            draw(p, plan.parameters[name])


def every_fold(plan: Plan, folds: Iterable[Fold]) -> list[Fold]:
    """What baking multiplies: for sites as given, and parameters with a multiplier of their own."""
    return [*folds, *(Fold(p.name, p.multiplier) for p in plan.multiplied().values())]


@torch.no_grad()
def bake(model: nn.Module, plan: Plan, folds: Iterable[Fold]) -> None:
    """Multiply parameters by what stood in forward, and take all hooks and the mark off.

    Raises:
        LoweringError: not muified, or a parameter holds no values.
    """
    if MARK not in model.__dict__:
        raise LoweringError("this model has no multipliers: it was not muified, or is baked already")
    require_installed(model, plan)
    todo = every_fold(plan, folds)
    for fold in todo:
        if parameter(model, fold.parameter).is_meta:
            raise LoweringError(f"{fold.parameter} is on meta: it has no values to multiply")
    frozen = model.__dict__[MARK].get("frozen", ())
    uninstall(model)
    for name in frozen:
        parameter(model, name).requires_grad_(False)
    for fold in todo:
        p = parameter(model, fold.parameter)
        if fold.untie:
            p = nn.Parameter(p.detach().clone(), p.requires_grad)
            _put(model, fold.parameter, p)
        multiply(p, fold, fold.factor)
    if any(fold.untie for fold in todo):
        for config in _tying(model):
            config.tie_word_embeddings = False


def _put(model: nn.Module, name: str, p: nn.Parameter) -> None:
    owner, _, own = name.rpartition(".")
    model.get_submodule(owner).register_parameter(own, p)


def _tying(model: nn.Module) -> list[Any]:
    """Configurations of transformers by which it ties weights whenever a model is made or loaded."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [c for c in configs.values() if getattr(c, "tie_word_embeddings", False)]


@contextmanager
def all_folds_or_none(model: nn.Module, plan: Plan, folds: Iterable[Fold]) -> Iterator[None]:
    """If the block, which bakes or takes that back, fails: put back parameters, their values, ties and multipliers."""
    names = {fold.parameter for fold in every_fold(plan, folds)}
    kept = {name: (p := parameter(model, name), p.detach().clone()) for name in names}
    configs, hooks_as_now = _tying(model), _hooks_as_now(model)

    @torch.no_grad()
    def put_back() -> None:
        for name, (p, values) in kept.items():
            p.copy_(values)
            if parameter(model, name) is not p:
                _put(model, name, p)
        for config in configs:
            config.tie_word_embeddings = True
        hooks_as_now()

    with undone_on_failure(put_back):
        yield


@torch.no_grad()
def unbake(model: nn.Module, plan: Plan, folds: Iterable[Fold]) -> None:
    """Divide parameters by what `bake` multiplied them by, and put the multipliers into forward again.

    Raises:
        LoweringError: the model has its multipliers, or was untied.
    """
    todo = every_fold(plan, folds)
    require_tied(todo)
    install(model, plan)
    for fold in todo:
        multiply(parameter(model, fold.parameter), fold, 1 / fold.factor)


def unbaked(
    state: Mapping[str, torch.Tensor], model: nn.Module, plan: Plan, folds: Iterable[Fold]
) -> dict[str, torch.Tensor]:
    """The state of a baked model as that of the same model with its multipliers in forward.

    Raises:
        LoweringError: a name that a multiplier is in is not there, or the checkpoint was untied.
    """
    made = dict(state)
    todo = every_fold(plan, folds)
    require_tied(todo)
    names: dict[Any, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(storage_key(p), []).append(name)
    for tied in names.values():
        held = [state[n] for n in tied if n in state]
        if any(not torch.equal(held[0], other) for other in held[1:]):
            raise LoweringError(
                f"{tied[0]} and {tied[1]} are one tensor in this model, and two in the checkpoint: it was untied",
                todo="load it into a model that is not tied",
            )
    for fold in todo:
        tied = [n for n in names[storage_key(parameter(model, fold.parameter))] if n in state]
        if not tied:
            raise LoweringError(f"the checkpoint lacks {fold.parameter}, which holds a multiplier")
        for name in tied:
            made[name] = made[name].clone()
            multiply(made[name], fold, 1 / fold.factor)
    return made


def require_tied(folds: Iterable[Fold]) -> None:
    """Check that no module was given a parameter of its own to take a multiplier."""
    for fold in folds:
        if fold.untie:
            raise LoweringError(
                f"{fold.parameter} was untied to be baked, and is trained apart since: its multiplier stays in it",
                todo="keep a checkpoint of the model from before bake(untie=True)",
            )


def multiply(p: torch.Tensor, fold: Fold, factor: float) -> None:
    """Multiply the part of a tensor that a fold speaks of, in place."""
    for start, stop in fold.runs or ((0, p.shape[fold.axis] if p.ndim else 0),):
        (p.narrow(fold.axis, start, stop - start) if p.ndim else p).mul_(factor)


@contextmanager
def all_or_nothing(model: nn.Module, plan: Plan) -> Iterator[None]:
    """If the block fails, or is interrupted, put back values, multipliers, mark and attributes.

    Only tensors that the plan rescales are kept aside.

    Raises:
        LoweringError: one of these has memory that is not its own alone.
    """
    require_own_memory(model, plan.rescaled())
    hooks_as_now = _hooks_as_now(model)
    rescaled = plan.rescaled()
    kept = [
        (p, p.detach().clone()) for name, p in model.named_parameters() if name in rescaled and p.device.type != "meta"
    ]

    @torch.no_grad()
    def put_back() -> None:
        for p, values in kept:
            p.copy_(values)
        hooks_as_now()

    with undone_on_failure(put_back):
        yield
