"""The report on screen and as JSON, and the explanation of a single name."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autofit import optim
from autofit.dims import Cell
from autofit.errors import TargetError
from autofit.growth import Growth
from autofit.plan import Carrier, ParameterPlan, Plan, SitePlan
from autofit.program import LAYER_INDEX, describe, source_line
from autofit.roles import Roles

ROLE_ORDER = ("input", "hidden", "output", "vector", "fixed")
JSON_VERSION = 1
PIECE = re.compile(r"(?:\{[^}]*\}|[^.])+\.?|\.")
"""Of a dotted name, with its dot; those of ``{0..3}`` hold it together."""


def to_json(plan: Plan, roles: Roles) -> dict[str, Any]:
    """Everything the report shows, as plain data with a version."""
    growth = roles.growth
    program = growth.dims.program
    return {
        "format": "autofit report",
        "version": JSON_VERSION,
        "front_end": program.front_end,
        "capture_notes": list(program.notes),
        "base": growth.base_kind,
        "main_dimension": growth.main,
        "dimensions": [
            {
                "name": d.name,
                "label": d.label,
                "size": d.size,
                "base": d.base,
                "ratio": d.ratio,
                "grows": d.grows,
                "reason": d.reason,
            }
            for d in growth.dimensions
        ],
        "ties": [list(p.names) for p in program.parameters if len(p.names) > 1],
        "unruled_ops": [{"where": describe(g.node), "reason": g.reason} for g in growth.dims.unruled],
        "plan": plan.to_dict(),
    }


def fold_names(names: Iterable[str]) -> list[str]:
    """Join names that differ only in layer indices: ``h.0.w``, ``h.1.w`` -> ``h.{0..1}.w``."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        numbers = tuple(int(n) for n in LAYER_INDEX.findall(name))
        groups.setdefault(LAYER_INDEX.sub("\0", name), []).append(numbers)
    return [_unfold(pattern, found) for pattern, found in groups.items()]


def _unfold(pattern: str, found: list[tuple[int, ...]]) -> str:
    for column in zip(*found, strict=True):
        pattern = pattern.replace("\0", _runs(sorted(set(column))), 1)
    return pattern


def _runs(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    parts: list[str] = []
    start = last = numbers[0]
    for n in [*numbers[1:], None]:
        if n is not None and n == last + 1:
            last = n
            continue
        parts.append(str(start) if start == last else f"{start}..{last}")
        if n is not None:
            start = last = n
    return "{" + ",".join(parts) + "}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def renderables(plan: Plan, roles: Roles) -> Iterator[RenderableType]:
    """The report piece by piece."""
    growth = roles.growth
    program = growth.dims.program
    count = sum(_elements(p.shape) for p in program.parameters)
    yield Text.assemble(
        (f"{plan.model}", "bold"),
        f": {count:,} parameters in {len(plan.parameters)} tensors, scheme {plan.scheme}, base {growth.base_kind}",
    )
    captured = f"captured by {program.front_end}: {sum(1 for _ in program.calls())} ops"
    yield Text("; ".join((captured, *program.notes)))
    yield Text()
    yield _dimensions(roles)
    yield _parameters(plan)
    yield from _sites(plan)
    ties = [p.names for p in program.parameters if len(p.names) > 1]
    if ties:
        yield Text("Ties: one tensor, input-style init and learning rate", style="bold")
        for names in ties:
            yield Padding(Broken(" = ".join(names)), (0, 0, 0, 2), expand=False)
    yield _groups(plan, roles)
    notes = list(
        dict.fromkeys(
            [*_at_the_base(growth), *plan.notes, *(f"{g.reason} at {describe(g.node)}" for g in growth.dims.unruled)]
        )
    )
    assumed = sorted({n for s in plan.sites for n in re.findall(r"taken as .*", s.reason)})
    if notes or assumed:
        yield Text("Notes", style="bold")
        for note in [*notes, *(f"assumed: constant {a}" for a in assumed)]:
            yield Text(f"  - {note}")


def _at_the_base(growth: Growth) -> Iterator[str]:
    """That the model is its own base, and by what: a number may be of another dimension than the reader has in mind."""
    if all(d.base == d.size for d in growth.dimensions):
        same = f"{growth.base_kind}, its size here" if growth.number is not None else "the sizes of this model"
        yield f"all ratios are 1, so width changes nothing: the base has {same}"


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for s in shape:
        total *= s
    return total


class Broken:
    """Text of which words that are longer than a line break at their dots, and only pieces that are, anywhere."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, Text(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(self.lines(options.max_width)), overflow="fold")

    def lines(self, width: int) -> Iterator[str]:
        """Lines as long as fits."""
        for paragraph in self.text.split("\n"):
            line = ""
            for word in paragraph.split(" "):
                pieces = [word] if cell_len(word) <= width else PIECE.findall(word)
                for at, piece in enumerate(pieces):
                    between = " " if line and at == 0 else ""
                    if line and cell_len(line + between + piece) > width:
                        yield line
                        line, between = "", ""
                    line += between + piece
            yield line


def _titled(title: str, table: Table, *below: str) -> Group:
    return Group(Text(title, style="bold"), table, *(Text(line, style="dim") for line in below if line))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, expand=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in right)
    return table


def _dimensions(roles: Roles) -> Group:
    table = _table("dimension", "size", "base", "ratio", "", right=("size", "base", "ratio"))
    for d in roles.growth.dimensions:
        main = " (main)" if d.name == roles.growth.main else ""
        table.add_row(
            Broken(d.name + main),
            str(d.size),
            _number(d.base),
            f"x{_number(d.ratio)}",
            "grows" if d.grows else "fixed",
        )
    return _titled("Dimensions that can grow", table)


def _parameters(plan: Plan) -> Group:
    times = any(p.multiplier != 1 for p in plan.parameters.values())
    columns = ("in", "out", "init", "lr", *(("times",) if times else ()))
    table = _table("parameter", "role", *columns, right=columns)
    rows: dict[tuple[Any, ...], list[ParameterPlan]] = {}
    for p in plan.parameters.values():
        rule = optim.scaled(plan, p, "adamw")
        key = (p.role, p.rule, p.r_in, p.r_out, round(p.init_factor, 9), rule["lr"], p.segments != (), p.multiplier)
        rows.setdefault(key, []).append(p)
    for role in ROLE_ORDER:
        for key, members in rows.items():
            if key[0] != role:
                continue
            label = f"{role}*" if members[0].rule.startswith("bottleneck") else role
            label += " +runs" if key[6] else ""
            for at, name in enumerate(fold_names(p.name for p in members)):
                init = f"x{_number(key[4])}" if members[0].init_std is not None else "?"
                own = (f"x{_number(key[7])}",) if times else ()
                cells = (f"x{_number(key[2])}", f"x{_number(key[3])}", init, f"x{_number(key[5])}", *own)
                table.add_row(Broken(name), label if at == 0 else "", *(cells if at == 0 else ("",) * len(cells)))
    marks = ["in, out: growth of contracted and surviving axes; init, lr: factors (Adam)"]
    if times:
        marks.append("times: factor on the parameter itself, in forward")
    if any(p.rule.startswith("bottleneck") for p in plan.parameters.values()):
        marks.append("*: inner bottleneck: a growing sum into a fixed dimension inside the model")
    if any(p.segments for p in plan.parameters.values()):
        marks.append("+runs: a fused weight whose runs differ in role; see --json")
    if any(p.init_std is None for p in plan.parameters.values()):
        marks.append("?: the tensor holds no values, its init was not measured")
    return _titled("Parameters", table, *marks)


def _sites(plan: Plan) -> Iterator[RenderableType]:
    rows: dict[tuple[Any, ...], list[SitePlan]] = {}
    for s in plan.sites:
        module = s.where.split(" (")[0]
        path = LAYER_INDEX.sub("*", module)
        rows.setdefault((s.kind, path, s.scale, s.multiplier, s.reason), []).append(s)
    if not rows:
        return
    table = _table("site", "scale", "times", "new", "where and why", right=("scale", "times", "new"))
    for (kind, _, scale, multiplier, reason), members in rows.items():
        where = " ".join(fold_names(dict.fromkeys(s.where.split(" (")[0] for s in members)))
        paths = fold_names(dict.fromkeys(s.carrier.path for s in members))
        carrier = "" if multiplier == 1 else f", on {_carrier(members[0].carrier, ' '.join(paths))}"
        numbers = (_number(scale), f"x{_number(multiplier)}", _number(scale * multiplier))
        table.add_row(kind, *numbers, Broken(f"{where}\n{reason}{carrier}"))
    yield _titled("Scale sites", table)


def _carrier(carrier: Carrier, path: str) -> str:
    part = f" (elements {', '.join(f'{a}:{b}' for a, b in carrier.indices[:3])})" if carrier.indices else ""
    words = {
        "input": "the input of",
        "output": "the output of",
        "key": "the key of",
        "weight": "the init and lr of",
    }
    root = ", its root: both sides are that" if carrier.power != 1 else ""
    return f"{words.get(carrier.place, '')} {path}{part}{root}"


def _groups(plan: Plan, roles: Roles) -> Group:
    table = _table(
        "group",
        "lr",
        "wd",
        "eps",
        "tensors",
        right=("group", "lr", "wd", "eps", "tensors"),
    )
    found: dict[tuple[float, float, float], int] = {}
    trained = [p for p in plan.parameters.values() if roles.parameters[p.name].parameter.trainable]
    for p in (p for p in trained if p.name not in plan.frozen):
        f = optim.scaled(plan, p, "adamw")
        key = (f["lr"], f["weight_decay"], f["eps"])
        found[key] = found.get(key, 0) + 1
    for i, ((lr, wd, eps), n) in enumerate(found.items()):
        table.add_row(str(i), f"x{_number(lr)}", f"x{_number(wd)}", f"x{_number(eps)}", str(n))
    return _titled("AdamW groups: factors on your lr, weight decay and eps", table)


def render(plan: Plan, roles: Roles, width: int | None = None) -> str:
    """The report as plain text."""
    return printed(renderables(plan, roles), width)


def printed(pieces: Iterable[RenderableType], width: int | None = None) -> str:
    """What a terminal would show, as plain text."""
    console = Console(
        file=io.StringIO(), width=width or Console().width, color_system=None, markup=False, highlight=False
    )
    console.print(Group(*pieces))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def explain(plan: Plan, roles: Roles, name: str) -> str:
    """Why a parameter or dimension is what it is: the path through the user's source lines.

    Raises:
        TargetError: no parameter or dimension has this name.
    """
    growth = roles.growth
    dimension = next((d for d in growth.dimensions if name in (d.name, d.label, *d.aliases)), None)
    if name in plan.parameters:
        return "\n".join(_explain_parameter(plan.parameters[name], roles))
    if dimension is None:
        near = [n for n in plan.parameters if name in n][:5]
        hint = f"did you mean {', '.join(near)}?" if near else "the report lists all names"
        raise TargetError(f"{name!r} is neither a parameter nor a dimension", todo=hint)
    lines = [
        f"{dimension.name}: {dimension.size} here, {_number(dimension.base)} in the base, "
        f"x{_number(dimension.ratio)}, {'grows' if dimension.grows else 'fixed'}",
        f"  because: {dimension.reason}",
        "  it is an axis of:",
    ]
    axes = growth.dims.axes
    first: Cell | None = None
    touched: list[str] = []
    for parameter, cells in growth.dims.of_parameter.items():
        for i, cell in enumerate(cells):
            if any(a.serial in dimension.cells for a in axes.atoms(cell)):
                touched.append(f"{parameter}[{i}]")
                if first is None:
                    first = cell
                elif axes.find(cell) is axes.find(first) and len(touched) == 2:
                    lines += [f"    (one dimension because: {step})" for step in _steps(roles, first, cell)]
    lines += [f"    {t}" for t in fold_names(touched)]
    return "\n".join(lines)


def _explain_parameter(p: ParameterPlan, roles: Roles) -> Iterator[str]:
    growth = roles.growth
    yield f"{p.name} {tuple(p.shape)}: {p.role}"
    if len(p.names) > 1:
        yield f"  tied: {' = '.join(p.names)}"
    yield f"  because: {p.reason}"
    yield f"  growth: contracted x{_number(p.r_in)}, surviving x{_number(p.r_out)}"
    if p.init_std is None:
        yield "  init: not measured, the tensor holds no values"
    else:
        yield f"  init: std {_number(p.init_std)} ({p.init_law}), times {_number(p.init_factor)}"
    if p.multiplier != 1:
        yield f"  forward: times {_number(p.multiplier)}"
    if p.depth != 1:
        yield f"  depth: in a branch of a residual stream that has x{_number(p.depth)} as many as in the base"
    for use in growth.dims.uses_of(growth.dims.program.parameter(p.name)):
        kinds = ", ".join(f"axis {i}: {k}" for i, k in sorted(use.kinds.items()))
        yield f"  used in {describe(use.node)}"
        yield f"    {kinds}"
    own = growth.dims.of_parameter.get(p.name, ())
    for i, cell in enumerate(own):
        for atom in dict.fromkeys(growth.dims.axes.atoms(cell)):
            d = growth.dimension(atom)
            if d is None:
                facts = sorted({e.kind for e in growth.dims.evidence if growth.dims.axes.find(e.cell) is atom})
                yield f"  axis {i} has {atom.size} fixed elements ({', '.join(facts) or 'never contracted'})"
                continue
            yield f"  axis {i} has {d.name} = {d.size}: {d.reason}"
            yield from (f"    {step}" for step in _to_evidence(roles, cell, atom))


def _to_evidence(roles: Roles, cell: Cell, atom: Cell) -> list[str]:
    """Shortest way from a parameter's axis to a place where its dimension is contracted."""
    dims = roles.growth.dims
    best: list[str] = []
    for fact in dims.evidence:
        if fact.kind in ("weight", "activations") and dims.axes.find(fact.cell) is atom:
            steps = _steps(roles, cell, fact.cell)
            if steps and (not best or len(steps) < len(best)):
                best = steps
    return best


def _steps(roles: Roles, a: Cell, b: Cell) -> list[str]:
    """Constraints on the shortest path between two axes, by source line, repeats left out."""
    dims = roles.growth.dims
    nodes = {n.name: n for n in dims.program.graph.nodes}
    lines = []
    for _, name, _ in dims.why(a, b):
        node = nodes[name]
        lines.append(source_line(node) or describe(node))
    return list(dict.fromkeys(lines))
