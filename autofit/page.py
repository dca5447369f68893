"""The coordinate check as one HTML page: nothing is loaded from anywhere."""

from __future__ import annotations

import platform
from html import escape

import torch

from autofit.plots import draw
from autofit.report import printed
from autofit.slopes import Line, Slope, Slopes

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.15rem; margin: 1.6rem 0 .4rem; }
.verdict { border-left: .5rem solid; padding: .6rem 1rem; margin: 1rem 0; font-size: 1.2rem; font-weight: 600; }
.right { border-color: #0072b2; background: #eaf3f9; } .wrong { border-color: #d55e00; background: #fbeee5; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; } td.name { overflow-wrap: anywhere; }
tr.fault td { background: #fbeee5; } svg { max-width: 100%; height: auto; } .small { color: #555; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .6rem; font-size: .85rem; }
"""


def page(answer: Slopes) -> str:
    """The page, verdict first.

    Raises:
        AutofitError: matplotlib is not installed.
    """
    picture = draw(answer, ".svg").decode()
    picture = picture[picture.index("<svg") :]
    said, *rest = answer.summary()
    title = escape(answer.title or "coordinate check")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>autofit: {title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<div class="verdict {"right" if answer.ok else "wrong"}" role="status">{escape(said)}</div>',
            *(f"<p>{escape(line)}</p>" for line in rest),
            *_faults(answer),
            *_static(answer),
            "<h2>What training changes, over width</h2>",
            "<p>Flat is right. Each line is one parameter, or the output of one module; thick ones are faults.</p>",
            picture,
            *_table("All slopes", answer.lines, answer),
            *(_table("The same without muP", answer.control, answer) if answer.control else ()),
            f'<p class="small">torch {escape(torch.__version__)}, Python {platform.python_version()}; slopes of log2 '
            "of mean absolute values over log2 of the width with their 95 % intervals; predicted: for one small step, "
            "from exponents of width and the terms measured at the smallest width.</p>",
            "</body></html>",
            "",
        ]
    )


def _faults(answer: Slopes) -> list[str]:
    if not answer.faults:
        return []
    rows = [
        f'<tr><td>{f.what} of</td><td class="name">{escape(f.line.name or "the model")}</td>'
        f'<td class="number">{_slope(f.slope)}</td>'
        f"<td>{escape(f.cause)}</td></tr>"
        for f in answer.faults
    ]
    head = "<tr><th>what</th><th>name</th><th>slope</th><th>likely cause</th></tr>"
    return ["<h2>Worst first</h2>", f'<div class="wide"><table>{head}', *rows, "</table></div>"]


def _static(answer: Slopes) -> list[str]:
    if answer.static is None or not answer.static.findings:
        return []
    return ["<h2>The static check</h2>", f"<pre>{escape(printed(answer.static.renderables(), 100))}</pre>"]


def _table(title: str, lines: tuple[Line, ...], answer: Slopes) -> list[str]:
    wrong = {id(f.line) for f in answer.faults}
    rows = [
        f"<tr{' class=fault' if id(ln) in wrong else ''}><td>{escape(ln.kind)}</td>"
        f'<td class="name">{escape(ln.name or "the model")}</td><td>{escape(ln.role)}</td>'
        f'<td class="number">{_slope(ln.start_slope)}</td><td class="number">{_number(ln.predicted[0])}</td>'
        f'<td class="number">{_slope(ln.change_slope)}</td><td class="number">{_number(ln.predicted[1])}</td></tr>'
        for ln in lines
    ]
    head = "".join(f"<th>{h}</th>" for h in ("", "name", "role", "start", "predicted", "change", "predicted"))
    return [f"<h2>{title}</h2>", f'<div class="wide"><table><tr>{head}</tr>', *rows, "</table></div>"]


def _slope(slope: Slope | None) -> str:
    return "&ndash;" if slope is None else escape(str(slope))


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value + 0.0:+.2f}"
