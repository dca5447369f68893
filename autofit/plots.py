"""The coordinate check as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

from autofit.errors import AutofitError
from autofit.slopes import Line, Slopes

# Okabe and Ito's colours, told apart by people who do not see red or green, and a marker each
STYLES = {
    "input": ("#0072B2", "o"),
    "hidden": ("#D55E00", "s"),
    "output": ("#009E73", "^"),
    "bottleneck": ("#CC79A7", "D"),
    "vector": ("#56B4E9", "v"),
    "fixed": ("#999999", "x"),
    "module": ("#333333", "."),
}


def draw(answer: Slopes, ending: str) -> bytes:
    """Sizes of what training changes over width, each relative to the smallest width, in muP and without.

    Args:
        answer: what was measured.
        ending: ``.png`` or ``.svg``.

    Raises:
        AutofitError: matplotlib is not installed, or another ending.
    """
    if ending not in (".png", ".svg"):
        raise AutofitError(f"a plot is .png or .svg, not {ending!r}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise AutofitError("plots need matplotlib", todo="pip install 'autofit[plot]'") from None
    ways = [("with muP" if answer.control else "as checked", answer.lines)]
    ways += [("the same without muP", answer.control)] if answer.control else []
    figure = Figure(figsize=(5.2 * len(ways), 8.4), layout="constrained")
    axes = figure.subplots(2, len(ways), sharey="row", squeeze=False)
    verdict = "right" if answer.ok else f"wrong: {len(answer.faults)} slopes"
    figure.suptitle(f"Coordinate check: {verdict}" + (f" ({answer.title})" if answer.title else ""), fontsize=13)
    for column, (way, lines) in enumerate(ways):
        for row, (kind, what) in enumerate((("parameter", "one parameter's update"), ("module", "a module's output"))):
            shown = [ln for ln in lines if ln.kind == kind and ln.change_slope is not None]
            _panel(axes[row][column], shown, answer)
            axes[row][column].set_title(f"{what}, {way}", fontsize=11)
        axes[1][column].set_xlabel("width")
    for row in range(2):
        axes[row][0].set_ylabel("mean |change|, over that of the smallest width")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "autofit", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=ending[1:], dpi=150, metadata={"Date": None} if ending == ".svg" else None)
    return buffer.getvalue()


def _panel(axes: Any, lines: Iterable[Line], answer: Slopes) -> None:
    seen: set[str] = set()
    for ln in lines:
        role = ln.role if ln.kind == "parameter" and ln.role in STYLES else "module"
        colour, marker = STYLES[role]
        means = {w: math.exp(sum(map(math.log, v)) / len(v)) for w, v in ln.change.items()}
        first = means[min(means)]
        wrong = any(f.line is ln for f in answer.faults)
        label = None if role in seen or role == "module" else role
        seen.add(role)
        axes.plot(
            list(means),
            [m / first for m in means.values()],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=2.2 if wrong else 1.1,
            alpha=1.0 if wrong else 0.75,
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(answer.widths, [str(w) for w in answer.widths])
    axes.minorticks_off()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.axhline(1, color="black", linewidth=0.8)
    if seen - {"module"}:
        axes.legend(fontsize=9, frameon=False, loc="upper left")
