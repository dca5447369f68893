"""Apply a plan to the live model: multipliers at module boundaries, initial values rescaled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autofit.errors import LoweringError
from autofit.plan import Fold, ParameterPlan, Plan
from autofit.program import storage_key

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
    frozen = [name for name in plan.frozen if model.get_parameter(name).requires_grad]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model.__dict__[MARK] = {"scheme": plan.scheme, "base": dict(plan.base), "frozen": frozen}


def require_installed(model: nn.Module, plan: Plan) -> None:
    """Check that the plan's multipliers are still where `install` put them.

    Raises:
        LoweringError: a module was replaced after that, as ``resize_token_embeddings`` replaces a readout.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
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
                del registry[key]
                flags.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)
        module.__dict__.pop(HANDLES, None)
    for name in model.__dict__.pop(MARK, {}).get("frozen", ()):
        model.get_parameter(name).requires_grad_(True)


def draw(values: torch.Tensor, planned: ParameterPlan) -> torch.Tensor:
    """Initial values as planned, in place of those that the model draws."""
    if planned.init_factor != 1.0:
        values.mul_(planned.init_factor)
    axis, runs = planned.zeros or (0, ())
    for start, stop in runs:
        values.narrow(axis, start, stop - start).zero_()
    return values


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
        if model.get_parameter(fold.parameter).is_meta:
            raise LoweringError(f"{fold.parameter} is on meta: it has no values to multiply")
    frozen = model.__dict__[MARK].get("frozen", ())
    uninstall(model)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    for fold in todo:
        p = model.get_parameter(fold.parameter)
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
def untied(model: nn.Module, plan: Plan, folds: Iterable[Fold]) -> Iterator[None]:
    """If the block, which bakes and unties, fails: put back parameters, their values, ties and multipliers."""
    names = {fold.parameter for fold in every_fold(plan, folds)}
    kept = {name: (p := model.get_parameter(name), p.detach().clone()) for name in names}
    configs = _tying(model)
    try:
        yield
    except BaseException:
        for name, (p, values) in kept.items():
            with torch.no_grad():
                p.copy_(values)
            _put(model, name, p)
        for config in configs:
            config.tie_word_embeddings = True
        if not is_muified(model):
            install(model, plan)
        raise


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
        multiply(model.get_parameter(fold.parameter), fold, 1 / fold.factor)


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
        tied = [n for n in names[storage_key(model.get_parameter(fold.parameter))] if n in state]
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
    """If the block fails, or is interrupted, put back values, multipliers and mark.

    Only tensors that the plan rescales are kept aside.
    """
    was_muified = is_muified(model)
    rescaled = plan.rescaled()
    kept = [
        (p, p.detach().clone()) for name, p in model.named_parameters() if name in rescaled and p.device.type != "meta"
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, values in kept:
                p.copy_(values)
        if not was_muified:
            uninstall(model)
        raise
