"""docs/benchmarks.md from the rows of docs/benchmarks.jsonl."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
PEERS = ("autofit", "mup", "unit-scaling")
FAMILIES = {"gpt2": "GPT-2", "llama": "Llama", "bert": "BERT", "vit": "ViT"}
NAMES = {"control": "untouched, again", "eager attention": "untouched, eager attention"}
STEPS = {
    "step": ("training step", 1.01),
    "compiled step": ("compiled training step", 1.00),
    "updating": ("optimizer step", 1.05),
}
"""Goals that are ratios to the untouched model."""
PROCESSES = {"import autofit": ("`import autofit`", 50), "autofit --help": ("`autofit --help`", 300)}
"""Goals in milliseconds."""
EXPORT = 0.5
"""Goal of muify over one whole export."""

FIGURES = """
Figures with an x are ratios to the untouched model in the same round: medians, with an interval of 95% in brackets.
The line *untouched, again* is a second process of the same; by as much as it is off 1, two processes differ that are
equal.
"""
VERDICTS = """\
*Not told from it*: the median is beyond the goal, and its interval reaches it. `import autofit` is what a process
takes that does it, less one that does nothing; `--help` is a whole process. Both are by the wall.
"""
MODELS = """\
*Ready* is the time to a model and its optimizer, the first time in a new process, with what is imported only then, and
later. The *first step* has what is done at the first call. Memory is the whole process's. Steps of the untouched model
are in seconds. Compiled is torch.compile(fullgraph=True) by {backend}, and by `unit-scaling` its own `compile`.
"""
EDITS = """\
Of the program that makes a model and its optimizer (in benchmarks/ready, untouched.py against the others), and of each
family's file in transformers (the patches there). The runs above are of just these. mup is used as its README asks:
readouts, the factor of attention, initial values, base and delta models, its optimizer.
"""
SURVIVES = """\
{models} of one layer: whether the output is the same after each, and, where there is something to train, also after a
step of an optimizer that is made for the result. `prune` and `weight_norm` are on Llama's readout, and on attention in
GPT-2. It is so for the untouched model{but}.
"""
HOW = """
## How it is measured

Each case is a process of its own with one thread. Those of a model stand ready side by side and take turns, a step
each, in an order that is turned round every time; three rounds before do not count. Times are those of the process
itself, without what it waits while others run; seconds by the wall are in docs/benchmarks.jsonl, too. Width 512 at a
base of 256, with heads of 128 and of 64, so that attention has a factor; a vocabulary of 4096; 64 tokens or patches in
a step.

`unit-scaling` is `unit_scale()` on the stock model, with eager attention, since it fails with the other; beside it
stands the untouched model with eager attention. Its AdamW takes the result by `allow_non_unit_scaling_params` alone.
After a copy or a load, mup's README asks for `set_base_shapes` again, which is not done here.

The export beside `muify` is one torch.export.export of the same model, which traces every layer.
`python benchmarks/peers.py write` makes this page from the rows."""


@dataclass(frozen=True)
class Figure:
    """A median and its interval of 95%, from the order of what was measured."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """From the smallest to the largest at fewer than 6 values, which have no such interval."""
        ordered = sorted(values)
        n, k = len(ordered), 0
        while 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n <= 0.05:
            k += 1
        k = max(k - 1, 0)
        return cls(statistics.median(ordered), ordered[k], ordered[n - 1 - k])

    def __str__(self) -> str:
        return f"{self.median:.3f}x [{self.low:.3f}, {self.high:.3f}]"

    def against(self, goal: float) -> str:
        """Whether a goal is met."""
        if self.median <= goal:
            return "met"
        return "not told from it" if self.low <= goal else "**not met**"


@dataclass(frozen=True)
class Rows:
    """What was measured.

    Attributes:
        rows: of the file.
    """

    rows: Sequence[Row]

    def one(self, what: str, **keys: str) -> Row | None:
        """The row of that kind."""
        found = [r for r in self.rows if r["what"] == what and all(r.get(k) == v for k, v in keys.items())]
        return found[0] if found else None

    @property
    def run(self) -> Row:
        """Where and when."""
        return next(r for r in self.rows if r["what"] == "run")

    @property
    def models(self) -> list[str]:
        """Families that were measured."""
        return [m for m in FAMILIES if self.one("ready", model=m)]

    def seconds(self, what: str, model: str, case: str) -> list[float]:
        """Of every round, its own; of a training step both halves of it."""
        if what.endswith("step"):
            halves = [self.seconds(what[:-4] + half, model, case) for half in ("computing", "updating")]
            return [a + b for a, b in zip(*halves, strict=True)]
        found: list[float] = (self.one(what, model=model, case=case) or {}).get("cpu", [])
        return found

    def ratio(self, what: str, model: str, case: str) -> Figure | None:
        """To the untouched model in the same round."""
        own, plain = (self.seconds(what, model, c) for c in (case, "untouched"))
        return Figure.of(a / b for a, b in zip(own, plain, strict=True)) if own and plain else None

    def analysis(self, model: str) -> Figure | None:
        """`muify` over one export."""
        export, muify = (self.seconds(what, model, "autofit") for what in ("export", "muify"))
        return Figure.of(a / b for a, b in zip(muify, export, strict=True)) if export and muify else None

    def process(self, case: str, unit: str) -> Figure:
        """Milliseconds of a program; of an import without the interpreter's own."""
        own, nothing = ((self.one("process", case=c) or {})[unit] for c in (case, "nothing"))
        less = nothing if case.startswith("import") else [0.0] * len(own)
        return Figure.of(1000 * (a - b) for a, b in zip(own, less, strict=True))

    def errors(self, model: str, case: str) -> list[str]:
        """What it raised, each once."""
        found = [r["error"] for r in self.rows if (r.get("model"), r.get("case")) == (model, case) and "error" in r]
        return list(dict.fromkeys(found))


def written(rows: Sequence[Row]) -> str:
    """The page."""
    r = Rows(rows)
    return "\n".join([*head(r), *goals(r), *families(r), *edits(r), *survival(r), HOW]) + "\n"


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """In Markdown."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    yield from ("| " + " | ".join(row) + " |" for row in body)
    yield ""


def head(r: Rows) -> Iterator[str]:
    """Where and when."""
    run = r.run
    ready = {row["case"]: row["versions"] for row in r.rows if row["what"] == "ready" and row["versions"]}
    versions = run["packages"] | {p: ready[p][p] for p in PEERS if p in ready.get(p, {})}
    before, after = run["load"]
    yield "# Benchmarks\n"
    yield "autofit beside the packages `mup` and `unit-scaling` and the untouched model.\n"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield (
        f"Written by `python benchmarks/peers.py run --peers DIRECTORY` on {run['date']} in {run['minutes']} minutes, "
        f"on {run['cores']} cores ({run['machine']}; load {before} before, {after} after), "
        f"with Python {run['python']}, {packages}." + " **A quick run: its figures mean nothing.**" * run["quick"]
    )
    for peer, reason in run["absent"].items():
        yield f"\n`{peer}` was not measured: {reason}."
    for case, found in ready.items():
        other = [f"{k} {found[k]}" for k, v in run["packages"].items() if found[k] != v]
        if other:
            yield f"\n`{case}` ran with {', '.join(other)}."
    yield FIGURES


def goals(r: Rows) -> Iterator[str]:
    """What was aimed at."""
    body = []
    for what, (name, goal) in STEPS.items():
        for model in r.models:
            if figure := r.ratio(what, model, "autofit"):
                same = r.ratio(what, model, "control")
                told = str(figure), str(same or "-"), figure.against(goal)
                body.append((f"{name} ≤ {goal:.2f}x", FAMILIES[model], *told))
    for model in r.models:
        if figure := r.analysis(model):
            layers = (r.one("muify", model=model) or {})["layers"]
            name = f"`muify` ≤ {EXPORT:.2f}x one whole export, {layers} layers"
            body.append((name, FAMILIES[model], str(figure), "", figure.against(EXPORT)))
    for case, (name, goal) in PROCESSES.items():
        figure, own = r.process(case, "seconds"), r.process(case, "cpu")
        told = f"{figure.median:.0f} ms [{figure.low:.0f}, {figure.high:.0f}]; {own.median:.0f} its own"
        body.append((f"{name} < {goal} ms", "", told, "", figure.against(goal)))
    yield "## Goals\n"
    yield from table(("goal", "model", "autofit", "untouched, again", ""), body)
    yield VERDICTS


COLUMNS = (
    "",
    "ready: first, again (s)",
    "first step (s)",
    "peak memory: ready, step (MiB)",
    "forward and backward",
    "optimizer step",
    "compiled forward and backward",
    "groups",
)


def families(r: Rows) -> Iterator[str]:
    """A table for each model."""
    yield "## Each model\n"
    yield MODELS.format(backend=r.run["backend"])
    for model in r.models:
        ready = [row for row in r.rows if row["what"] == "ready" and row["model"] == model]
        plain = ready[0]
        yield f"### {FAMILIES[model]}: {plain['layers']} layers, {plain['parameters'] / 1e6:.1f} million parameters\n"
        yield from table(COLUMNS, [cells(r, model, row["case"]) for row in ready])
        failed = [f"- `{row['case']}`: {e}" for row in ready for e in r.errors(model, row["case"])]
        yield from [*failed, ""] if failed else []


def cells(r: Rows, model: str, case: str) -> list[str]:
    """One line of a table."""
    ready, first = (r.one(what, model=model, case=case) or {} for what in ("ready", "first step"))
    name = NAMES.get(case, case)
    if "seconds" not in ready or "computing" not in first:
        return [name, *["-"] * (len(COLUMNS) - 1)]

    def steps(what: str) -> str:
        own = r.seconds(what, model, case)
        if case == "untouched":
            return f"{statistics.median(own):.3f} s" if own else "-"
        return str(r.ratio(what, model, case) or "-")

    again = r.seconds("again", model, case)
    return [
        name,
        ", ".join(f"{s:.2f}" for s in (ready["cpu"], *([statistics.median(again)] if again else []))),
        f"{first['computing']['cpu'] + first['updating']['cpu']:.2f}",
        f"{ready['after']['peak']:.0f}, {first['peak']:.0f}",
        *(steps(what) for what in ("computing", "updating", "compiled computing")),
        str(ready["groups"]),
    ]


def edits(r: Rows) -> Iterator[str]:
    """Lines to be changed by hand."""
    names = {"program": "program", **FAMILIES}
    body = [
        [peer, *(f"+{counts[k][0]} −{counts[k][1]}" if any(counts[k]) else "0" for k in names)]
        for peer, counts in r.run["edits"].items()
    ]
    yield "## Lines changed by hand\n"
    yield EDITS
    yield from table(("", *names.values()), body)


def survival(r: Rows) -> Iterator[str]:
    """What is left after transforms."""
    rows = {(row["case"], row["model"]): row["found"] for row in r.rows if row["what"] == "survival"}
    models = [m for m in r.models if ("untouched", m) in rows]
    peers = [p for p in PEERS if any((p, m) in rows for m in models)]
    plain = {t for m in models for t, reason in rows["untouched", m].items() if reason}
    reasons: dict[str, int] = {}

    def cell(peer: str, transform: str) -> str:
        said = []
        for model in models:
            found = rows.get((peer, model), {})
            why = found.get("error") or found.get(transform, "")
            said.append(f"no ({reasons.setdefault(why, len(reasons) + 1)})" if why else "yes")
        if len(set(said)) == 1:
            return said[0]
        return ", ".join(f"{FAMILIES[m]} {s}" for m, s in zip(models, said, strict=True))

    transforms = dict.fromkeys(t for found in rows.values() if "error" not in found for t in found)
    body = [[t + " (*)" * (t in plain), *(cell(p, t) for p in peers)] for t in transforms]
    yield "## What survives\n"
    names = " and ".join(FAMILIES[m] for m in models)
    yield SURVIVES.format(models=names, but=", but for (*)" if plain else " everywhere")
    yield from table(("", *peers), body)
    yield from (f"{n}. {reason}" for reason, n in reasons.items())
