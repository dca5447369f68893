"""The table of all rules, for people: on a terminal, as Markdown, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from autofit.monomial import SYMBOLS, Monomial
from autofit.rules import COLUMNS, OWN, Optimizer, Rule, Table, ruled, table

TITLES = {"multiplier": "multiplier", "init": "init std", "lr": "lr", "eps": "eps", "weight_decay": "weight decay"}
LEGEND = "Factors on the values tuned at the base, where each is 1."
ABSOLUTE = "Factors from the model's own sizes: there is no base."


@dataclass(frozen=True)
class Sheet:
    """One table of text: a title, a header, rows, and lines below."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: tuple[str, ...] = ()


def overview(scheme: str = "mup", form: str | None = None) -> Iterator[Sheet]:
    """All rules of a scheme: what holds for every optimizer, then one line per optimizer."""
    each = [table(scheme, name, form) for name in ruled(scheme)]
    first, roles = each[0], tuple(each[0].rules)
    title = f"{first.scheme}: {first.title} ({first.source}), form {first.form}"
    scales = tuple((role, _shown(r.multiplier), _shown(r.init), r.what) for role, r in first.rules.items())
    cells = [c for t in each for r in t.rules.values() for _, c in r.cells()]
    cells += [s.total for s in first.sites.values() if s.total is not None]
    used = {name for cell in cells for name, _ in cell.powers}
    ratios = (f"{name}: {meaning}" for name, meaning in SYMBOLS.items() if name in used)
    legend = ABSOLUTE if first.absolute else LEGEND
    yield Sheet(title, ("parameter", "multiplier", "init std", "what"), scales, (legend, *ratios))
    sites = tuple((kind, _shown(s.total), s.what) for kind, s in first.sites.items())
    yield Sheet("Scale of sums, with the factors that the program has", ("site", "total", "what"), sites)
    for column, name in (("lr", "Learning rate"), ("eps", "Epsilon"), ("weight_decay", "Weight decay")):
        alike: dict[tuple[str, ...], list[str]] = {}
        for t in each:
            cells = [getattr(rule, column) for rule in t.rules.values()]
            if cells[0] is not None:
                alike.setdefault(tuple(map(str, cells)), []).append(t.optimizer.name)
        rows = tuple(zip(roles, *alike, strict=True))
        below: tuple[str, ...] = tuple(f"as {first}: {', '.join(rest)}" for first, *rest in alike.values() if rest)
        if column == "lr":
            below += tuple(map(_own_factor, (t.optimizer for t in each if t.optimizer.by_shape)))
        yield Sheet(name, ("parameter", *(names[0] for names in alike.values())), rows, below)


def _own_factor(optimizer: Optimizer) -> str:
    return f"{optimizer.name}: over the growth of its own factor on a matrix's lr ({optimizer.by_shape})"


def detail(chosen: Table) -> Iterator[Sheet]:
    """All rules for one optimizer, each cell with its source."""
    numbers: dict[str, int] = {}
    columns = [c for c in COLUMNS if any(getattr(r, c) is not None for r in chosen.rules.values())]

    def cell(rule: Rule, column: str) -> str:
        number = numbers.setdefault(rule.source(column), len(numbers) + 1)
        return f"{_shown(getattr(rule, column))} [{number}]"

    rows = tuple((role, *(cell(r, c) for c in columns)) for role, r in chosen.rules.items())
    sites = tuple((k, _shown(s.total), s.source) for k, s in chosen.sites.items())
    title = f"{chosen.scheme} for {chosen.optimizer.name} ({', '.join(chosen.optimizer.classes)}), form {chosen.form}"
    header = ("parameter", *(TITLES[c] for c in columns))
    notes: tuple[str, ...] = (_own_factor(chosen.optimizer),) if chosen.optimizer.by_shape else ()
    if chosen.optimizer.beside:
        notes += (f"only matrices inside the model; the rest is {chosen.optimizer.beside}'s",)
    yield Sheet(
        title,
        header,
        rows,
        (ABSOLUTE if chosen.absolute else LEGEND, *notes, *(f"[{n}] {source}" for source, n in numbers.items())),
    )
    yield Sheet("Scale of sums, with the factors that the program has", ("site", "total", "source"), sites)


def _shown(value: Monomial | None) -> str:
    return OWN if value is None else str(value)


def sheets(scheme: str = "mup", optimizer: str | None = None, form: str | None = None) -> Iterator[Sheet]:
    """The overview, or the detail of one optimizer.

    Raises:
        PlanError, OptimizerError: no such scheme, form or optimizer.
    """
    return overview(scheme, form) if optimizer is None else detail(table(scheme, optimizer, form))


def rich(pages: Iterable[Sheet]) -> RenderableType:
    """For a terminal of 80 columns."""
    parts: list[RenderableType] = []
    for page in pages:
        shown = RichTable(box=None, pad_edge=False)
        for column in page.header:
            shown.add_column(column, overflow="fold")
        for row in page.rows:
            shown.add_row(*map(Text, row))
        parts += [Text(page.title, style="bold"), shown, *(Text(line, style="dim") for line in page.below), Text("")]
    return Group(*parts[:-1])


def markdown(pages: Iterable[Sheet]) -> str:
    """As Markdown tables."""
    lines: list[str] = []
    for page in pages:
        lines += [f"### {page.title}", "", _row(page.header), _row("---" for _ in page.header)]
        lines += [*map(_row, page.rows), ""]
        lines += [f"- {line}" for line in page.below] + [""] * bool(page.below)
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_json(scheme: str = "mup", optimizer: str | None = None, form: str | None = None) -> list[dict[str, Any]]:
    """One entry per optimizer: scheme, form, and by role and column the factor and its source.

    Raises:
        PlanError, OptimizerError: no such scheme, form or optimizer.
    """
    names = ruled(scheme) if optimizer is None else [optimizer]
    return [_to_dict(table(scheme, name, form)) for name in names]


def _to_dict(chosen: Table) -> dict[str, Any]:
    return {
        "scheme": chosen.scheme,
        "form": chosen.form,
        "optimizer": chosen.optimizer.name,
        "classes": list(chosen.optimizer.classes),
        "rules": {
            role: {c: {"factor": str(v), "source": rule.source(c)} for c, v in rule.cells()}
            for role, rule in chosen.rules.items()
        },
        "sites": {k: {"total": _shown(s.total), "source": s.source} for k, s in chosen.sites.items()},
    }
