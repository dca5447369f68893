"""Write the output of commands into the documents: ``python docs/update.py``.

Between ``<!-- COMMAND -->`` and ``<!-- end -->`` stands what COMMAND prints.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

from autofit.cli import app

PAGES = (Path(__file__).parent / "rules.md",)
PLACE = re.compile(r"<!-- autofit (.*?) -->\n.*?<!-- end -->", re.DOTALL)


def updated(page: str) -> str:
    """The page with the output of its commands as of now."""
    return PLACE.sub(lambda m: f"<!-- autofit {m[1]} -->\n{_output(m[1])}<!-- end -->", page)


def _output(command: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        app(shlex.split(command), result_action="return_value")
    return text.getvalue()


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(updated(path.read_text()))
