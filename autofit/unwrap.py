"""Names of a plan in a model that was wrapped since: compiled block by block, checkpointed, sharded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import nn

from autofit.errors import LoweringError
from autofit.plan import Plan


def planned_paths(model: nn.Module, plan: Plan) -> dict[str, str]:
    """The plan's path of every module, by its path now, parents first.

    What wrappers are called does not matter: where a module lacks what the plan has there, holds no parameter and has
    one module only, that one is looked at, and so on; if what is missing is there, all of them have that path.
    """
    modules, parameters = _wanted(plan)
    found: dict[str, str] = {}
    stack = [("", "", model)]
    while stack:
        here, there, module = stack.pop()
        found[here] = there
        for inner, inside in _within(here, module):
            if _has(inside._parameters, parameters.get(there)) and _has(inside._modules, modules.get(there)):
                found |= dict.fromkeys(_passed(here, inner), there)
                here, module = inner, inside
                break
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        stack += [(_joined(here, name), _joined(there, name), child) for name, child in reversed(children)]
    return found


def planned_modules(model: nn.Module, paths: Mapping[str, str]) -> dict[str, nn.Module]:
    """Modules by their paths in the plan, from `planned_paths`; of a wrapped one the module that is in the wrapper."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {there: modules[here] for here, there in paths.items()}


def require_unwrapped(model: nn.Module, plan: Plan) -> None:
    """Check that every module is where it was when the plan was made.

    Raises:
        LoweringError: one was wrapped.
    """
    for here, there in planned_paths(model, plan).items():
        if here != there:
            raise LoweringError(
                f"{there or 'the model'} was wrapped after muify, and is {here} now",
                todo="do this before wrapping, or on a model that is not wrapped",
            )


def planned_name(name: str, paths: Mapping[str, str]) -> str:
    """Name in the plan of a parameter or buffer, by its name now and `planned_paths`."""
    owner, _, own = name.rpartition(".")
    return _joined(paths.get(owner, owner), own)


def _wanted(plan: Plan) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Names of modules and of parameters that the plan has in a module, by its path."""
    modules: dict[str, set[str]] = defaultdict(set)
    parameters: dict[str, set[str]] = defaultdict(set)
    paths = [c.path for c in (s.carrier for s in plan.sites) if c.place in ("input", "output", "key")]
    for name in (name for p in plan.parameters.values() for name in p.names):
        owner, _, own = name.rpartition(".")
        parameters[owner].add(own)
        paths.append(owner)
    for path in dict.fromkeys(paths):
        while path:
            owner, _, own = path.rpartition(".")
            if own in modules[owner]:
                break
            modules[owner].add(own)
            path = owner
    return modules, parameters


def _within(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module, what it wraps, what that wraps, and so on."""
    yield path, module
    while len(module._modules) == 1 and not len(module._parameters):
        ((name, inner),) = module._modules.items()
        if inner is None:
            return
        path, module = _joined(path, name), inner
        yield path, module


def _passed(outer: str, inner: str) -> list[str]:
    """Paths from one to another."""
    found = []
    while inner != outer:
        found.append(inner)
        inner = inner.rpartition(".")[0]
    return found[::-1]


def _has(own: Mapping[str, object], names: set[str] | None) -> bool:
    return all(name in own for name in names or ())


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
