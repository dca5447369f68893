"""Fields of a configuration that are the scale of a site: shown by captures in which they have another value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from autofit.errors import AutofitError
from autofit.program import op_name
from autofit.roles import Roles
from autofit.source.ops import literals
from autofit.source.worlds import World, first_world, rebuilt, twins, variant

SCALING = frozenset(f"aten.{n}" for n in "mul div scaled_dot_product_attention baddbmm".split())


def scale_fields(model: nn.Module, roles: Roles, where: str | None) -> tuple[tuple[str, float, float], ...]:
    """What could take a site's multiplier in the place of forward.

    Args:
        model: with a configuration, or none; it is not touched.
        roles: its sites.
        where: place of the site, as in what was refused.

    Returns:
        Of each field its name, its value and the factor on it; a field counts if all that changes with it are factors
        on the way to sites that have this multiplier.
    """
    config: Any = getattr(model, "config", None)
    mine = [s for s in roles.sites if s.where == where and s.multiplier != 1]
    if not mine or not hasattr(config, "to_dict"):
        return ()
    factor = mine[0].multiplier
    try:
        first = first_world(model, roles.growth)
    except AutofitError:  # then no field is shown, and the refusal itself stands
        return ()
    at = {name: n for n, name in twins(first, roles.growth.dims.program).items()}
    alike = [s for s in roles.sites if s.kind == mine[0].kind and s.multiplier == factor]
    paths = {at[n.name] for s in alike for path in s.paths for n in path if n.name in at}
    own = {at[n.name] for s in mine for path in s.paths for n in path if n.name in at}
    found: list[tuple[str, float, float]] = []
    for name, value in config.to_dict().items():
        if not isinstance(value, float) or value == 0:
            continue
        other = rebuilt(model, name, value * factor, first.program.recorded)
        world = None if other is None else variant(other.train(), first, {})
        changed = [] if world is None else list(_changed(first, world))
        nodes = {node for node, _ in changed}
        if nodes & own and nodes <= paths and len({ratio for _, ratio in changed}) == 1:
            (ratio,) = {ratio for _, ratio in changed}
            if ratio in (round(factor, 9), round(1 / factor, 9)):
                found.append((name, value, factor if ratio == round(factor, 9) else 1 / factor))
    return tuple(found)


def _changed(first: World, other: World) -> Iterator[tuple[fx.Node, float]]:
    """Nodes whose factor is another there, with what it grew by; another number has the growth 0, which none has."""
    for node in first.program.calls():
        for where, value in literals(node):
            there = other.number(node, where)
            if there == value:
                continue
            known = op_name(node) in SCALING and isinstance(there, int | float) and value
            ratio = there / value if known else 0.0
            yield node, round(1 / ratio if op_name(node) == "aten.div" and ratio else ratio, 9)
