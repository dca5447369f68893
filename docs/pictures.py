"""Pictures of the documents, drawn from what they show: a report, and the pipeline of passes and records."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape

from rich.console import Console

import autofit.passes
from autofit import dims, growth, lowering, optim, plan, program, roles
from autofit.cli import Options
from autofit.report import renderables
from autofit.source import write

REPORT = "autofit report hf:llama --set hidden_size=512 --set intermediate_size=1024 ..."
LLAMA = (
    "hidden_size=512 intermediate_size=1024 num_attention_heads=8 num_key_value_heads=4 num_hidden_layers=2 "
    "vocab_size=1000"
).split()

TERMINAL = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 16px; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">
{matrix}
</g></g>
</svg>
"""
"""As rich has it, without a font from the network."""


def report() -> str:
    """What ``autofit report`` shows of a small Llama."""
    found = Options(settings=LLAMA).analyze("hf:llama")
    console = Console(record=True, file=io.StringIO(), width=88, markup=False, highlight=False)
    for piece in renderables(found.plan, found.roles):
        console.print(piece)
    return console.export_svg(title=REPORT, code_format=TERMINAL, unique_id="report")


# the pipeline -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """A pass, from its class.

    Attributes:
        name: of the class.
        takes, gives: records, as its docstring has them.
        what: first line of its module's docstring.
    """

    name: str
    takes: str
    gives: str
    what: str


def passes() -> list[Pass]:
    """All passes, those that give a record ahead of the one after it, in order of the pipeline."""
    found = []
    for info in pkgutil.iter_modules(autofit.passes.__path__, "autofit.passes."):
        module = importlib.import_module(info.name)
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == info.name and (ends := re.match(r"``(.+) -> (.+)``", cls.__doc__ or "")):
                found.append(Pass(name, ends[1], ends[2], first_line(module)))
    order = ["Program", "Dims", "Growth", "Roles", "Plan"]
    rank = {name: i for i, name in enumerate(order)}
    return sorted(found, key=lambda p: (rank[p.takes], p.gives == "Plan", p.gives != p.takes))


def first_line(thing: object) -> str:
    """Of a docstring, as far as it is a sentence of its own, without its marks of code."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].split(":")[0].replace("`", "").replace("\n", " ").rstrip(".")


RECORDS = (program.Program, dims.Dims, growth.Growth, roles.Roles, plan.Plan)
RESULTS = ((lowering, "the live model"), (optim, "optimizer groups"), (write, "a Python file"))
WIDTH, MARGIN, LINE = 560, 16, 19
BLUE, PALE_BLUE, ORANGE, PALE_ORANGE, INK = "#0072B2", "#E3F0F9", "#B34700", "#FCEEE2", "#1A1A1A"
"""Of the palette of Okabe and Ito; shapes say the same: records are boxes, results have two lines, passes none."""


@dataclass
class Drawing:
    """Shapes from top to bottom.

    Attributes:
        shapes: SVG elements.
        y: where the next one begins.
    """

    shapes: list[str] = field(default_factory=list)
    y: float = MARGIN

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """One line."""
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>')

    def box(self, x: float, width: float, title: str, what: Iterable[str], result: bool = False) -> float:
        """A record or a result, at the present height; gives its own height."""
        lines = list(what)
        height, y = 32.0 + LINE * len(lines), self.y
        kind = "result" if result else "record"
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>')
        if result:
            inner = f'x="{x + 4:g}" y="{y + 4:g}" width="{width - 8:g}" height="{height - 8:g}"'
            self.shapes.append(f'<rect {inner} rx="3" class="inner"/>')
        self.text(x + width / 2, y + 22, title, "name", "middle")
        for i, line in enumerate(lines):
            self.text(x + width / 2, y + 22 + LINE * (i + 1), line, "", "middle")
        return height

    def arrow(self, points: Iterable[tuple[float, float]]) -> None:
        """A line with a head at its end."""
        self.shapes.append(f'<polyline points="{" ".join(f"{x:g},{y:g}" for x, y in points)}" class="arrow"/>')

    def svg(self) -> str:
        """The file."""
        height = self.y + MARGIN
        body = "\n".join(self.shapes)
        return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">
<title>The pipeline: passes between records, and what a plan becomes</title>
<style>
text {{ font: 14px sans-serif; fill: {INK}; }}
.name {{ font-weight: bold; font-size: 16px; }}
.record {{ fill: {PALE_BLUE}; stroke: {BLUE}; stroke-width: 2; }}
.result {{ fill: {PALE_ORANGE}; stroke: {ORANGE}; stroke-width: 2; }}
.inner {{ fill: none; stroke: {ORANGE}; }}
.arrow {{ fill: none; stroke: {INK}; stroke-width: 1.5; marker-end: url(#head); }}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>
<rect width="100%" height="100%" rx="8" fill="white"/>
{body}
</svg>
"""


def pipeline() -> str:
    """Records as boxes, passes beside the arrows between them, results at the end, and the way back to be checked."""
    drawing, chain = Drawing(), passes()
    left, width, arrow = MARGIN + 40.0, WIDTH - 2 * MARGIN - 40.0, 96.0
    drawing.y += drawing.box(left, width, "a module, and an example of its input", ())
    steps = {
        "Program": [("capture", "torch.export, or a recorder of one run where that fails")],
        **{r.__name__: [(p.name, p.what) for p in chain if _record_after(p, chain) == r.__name__] for r in RECORDS[1:]},
    }
    captured = 0.0
    for record in RECORDS:
        top = drawing.y
        at = top + 12
        for name, what in steps[record.__name__]:
            drawing.text(arrow + 16, at + 10, name, "name")
            for line in textwrap.wrap(what, 58):
                at += LINE
                drawing.text(arrow + 16, at + 10, line)
            at += LINE + 5
        drawing.y = at + 4
        drawing.arrow([(arrow, top), (arrow, drawing.y - 1)])
        if record is program.Program:
            captured = top + 22
        drawing.y += drawing.box(left, width, record.__name__, [first_line(record)])
    top, each = drawing.y, (width - 24) / len(RESULTS)
    drawing.y += 40
    heights = []
    for i, (module, title) in enumerate(RESULTS):
        x = left + i * (each + 12)
        drawing.arrow([(x + each / 2, top), (x + each / 2, drawing.y - 1)])
        lines = textwrap.wrap(first_line(module), 19)
        heights.append(drawing.box(x, each, title, [module.__name__.removeprefix("autofit."), *lines], result=True))
    middle = drawing.y + heights[0] / 2
    drawing.arrow([(left, middle), (MARGIN + 10, middle), (MARGIN + 10, captured), (arrow - 6, captured)])
    drawing.y += max(heights) + 24
    drawing.text(MARGIN, drawing.y, "The rewritten model is captured again, and verify compares both programs.")
    return drawing.svg()


def _record_after(step: Pass, chain: Iterable[Pass]) -> str:
    """The record on the way to which a pass runs: its own, or the next one, if it gives a part of that."""
    names = [r.__name__ for r in RECORDS]
    if step.gives in names and step.gives != step.takes:
        return step.gives
    return names[names.index(step.takes) + 1] if step.gives not in names else step.gives


PICTURES: dict[str, Callable[[], str]] = {"report.svg": report, "pipeline.svg": pipeline}
