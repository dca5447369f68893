"""A plan for a whole model, applied by each process to the part that it holds."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from autofit import lowering, optim
from autofit.bases import read_text
from autofit.deferred import Recipe, draw_all, find_recipe, forget
from autofit.errors import PlanError
from autofit.plan import ParameterPlan, ParameterTable, Plan, SitePlan

Names = Callable[[str], str] | Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """A part of a model, in muP.

    Attributes:
        model: the module that was given.
        plan: what of the whole plan is its own, under its own names.
        whole: name in the whole model, by parameter.
        order: place of each of them among all parameters of the whole model.
    """

    model: nn.Module = field(repr=False)
    plan: Plan
    whole: Mapping[str, str] = field(repr=False)
    order: Mapping[str, int] = field(repr=False)
    recipe: Recipe | None = field(default=None, repr=False)

    def param_groups(self, optimizer: str | type, lr: float | torch.Tensor, **options: Any) -> list[dict[str, Any]]:
        """Optimizer groups of this part; arguments and errors as `Analysis.param_groups`."""
        lowering.require_installed(self.model, self.plan)
        known, settings = _apart(options)
        return optim.param_groups(self.model, self.plan, optimizer, lr, settings=settings, **known)

    def optimizer(self, optimizer: str | type, lr: float | torch.Tensor, **options: Any) -> torch.optim.Optimizer:
        """An optimizer of this part's parameters; arguments and errors as `Analysis.optimizer`."""
        lowering.require_installed(self.model, self.plan)
        known, settings = _apart(options)
        return optim.make_optimizer(self.model, self.plan, optimizer, lr, settings=settings, **known)

    def init_(self, generator: torch.Generator | None = None) -> None:
        """Draw initial values of a part that was on ``meta``: those that the whole model would get.

        Args:
            generator: of the seeds; give every process one of the same seed.

        Raises:
            PlanError: the part was not made by `deferred_init`, is still on ``meta``, or has no known values.
        """
        if self.recipe is None:
            raise PlanError(
                "how this part's values come about was not seen",
                todo="build it by autofit.deferred_init(factory), then apply the plan to it",
            )
        draw_all(self.recipe, self.model, self.plan, generator, self.order)


_OPTIONS = frozenset(inspect.signature(optim.param_groups).parameters) - {"settings"}


def _apart(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of muP's groups, and settings of the optimizer."""
    known = {k: v for k, v in options.items() if k in _OPTIONS}
    return known, {k: v for k, v in options.items() if k not in known}


def apply(
    plan: Plan | str | os.PathLike[str],
    part: nn.Module,
    names: Names | None = None,
    *,
    init: Literal["auto", "keep"] = "auto",
) -> Part:
    """Apply a plan, made once for a whole model, to a module that holds a part of it: a stage of a pipeline.

    Nothing is captured: multipliers, initial values and groups are those of the plan, for what is here.

    Args:
        plan: of the whole model, or the path of a JSON file of ``plan.to_dict()``.
        part: a module with some of its modules, of the same sizes; on any device.
        names: name in the whole model of what has another name here: a function of a name, or path by path in the part
            (``{"layers.0": "model.layers.10"}``), of which the longest counts. ``None`` where the names are the same.
        init: ``"auto"`` rescales initial values in place, ``"keep"`` touches none.

    Returns:
        The part, with optimizer groups of its own.

    Raises:
        PlanError: a parameter that the plan does not have, or has in another shape.
        LoweringError: the module is muified already.
    """
    if not isinstance(plan, Plan):
        plan = _read(Path(plan))
    title = _renaming(names)
    whole = {own: title(own) for own, _ in part.named_parameters(remove_duplicate=False)}
    owners = _owners(plan)
    # a module that holds nothing here and something there stands for one that another process has
    here = {own for own, m in part.named_modules(remove_duplicate=False) if own and any(True for _ in m.parameters())}
    paths = {title(own): own for own, _ in part.named_modules(remove_duplicate=False) if own}
    paths = {there: own for there, own in paths.items() if own in here or there not in owners}
    place = {name: i for i, p in enumerate(plan.parameters.values()) for name in p.names}
    tensors = dict(part.named_parameters(remove_duplicate=False))
    own = {}
    for name, there in whole.items():
        if there not in plan.parameters:
            raise PlanError(
                f"the plan has no parameter {there}" + (f", which is {name} here" if there != name else ""),
                todo="pass names=, which gives the name in the whole model",
            )
        planned = plan.parameters[there]
        if tuple(tensors[name].shape) != planned.shape:
            raise PlanError(f"{name} is {tuple(tensors[name].shape)}, and {there} {planned.shape} in the plan")
        own[name] = planned
    mine = replace(
        plan,
        parameters=ParameterTable(tuple(_parameters(own))),
        sites=tuple(s for site in plan.sites if (s := _site(site, paths, whole))),
        frozen=tuple(name for name in own if whole[name] in plan.frozen),
    )
    recipe = find_recipe(part)
    with lowering.all_or_nothing(part, mine):
        lowering.install(part, mine)
        if init == "auto":
            lowering.rescale(part, mine)
        forget(part)
        return Part(part, mine, whole, {name: place[there] for name, there in whole.items()}, recipe)


def _owners(plan: Plan) -> set[str]:
    """Paths of all modules that hold a parameter, themselves or in a module of theirs."""
    found: set[str] = set()
    for name in (name for p in plan.parameters.values() for name in p.names):
        while (name := name.rpartition(".")[0]) and name not in found:
            found.add(name)
    return found


def _read(path: Path) -> Plan:
    text = read_text(path, "plan", PlanError)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path} cannot be read as a plan: {error}") from None
    return Plan.from_dict(data)


def _renaming(names: Names | None) -> Callable[[str], str]:
    if names is None:
        return lambda name: name
    if not isinstance(names, Mapping):
        return names
    prefixes = sorted(names, key=len, reverse=True)

    def title(name: str) -> str:
        for prefix in prefixes:
            if name == prefix:
                return names[prefix]
            if name.startswith(f"{prefix}.") or not prefix:
                return f"{names[prefix]}.{name[len(prefix) :].lstrip('.')}".lstrip(".")
        return name

    return title


def _parameters(own: Mapping[str, ParameterPlan]) -> Iterable[ParameterPlan]:
    """Each once, under the names that it has here."""
    alike: dict[str, list[str]] = {}
    for name, planned in own.items():
        alike.setdefault(planned.name, []).append(name)
    for found in alike.values():
        yield replace(own[found[0]], name=found[0], names=tuple(found))


def _site(site: SitePlan, paths: Mapping[str, str], whole: Mapping[str, str]) -> SitePlan | None:
    """A site whose multiplier is here; its other carriers are with other processes."""
    if site.carrier.place == "none":
        return None
    here = {there: name for name, there in whole.items()} if site.carrier.place == "weight" else paths
    found = [here[path] for path in (site.carrier.path, *site.carrier.also) if path in here]
    if not found:
        return None
    first, *also = found
    parameter = {there: name for name, there in whole.items()}.get(site.parameter, site.parameter)
    return replace(site, parameter=parameter, carrier=replace(site.carrier, path=first, also=tuple(also)))
