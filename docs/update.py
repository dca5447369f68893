"""Write what commands and blocks print into the documents: ``python docs/update.py``, or with the names of pages.

Between ``<!-- COMMAND -->`` and ``<!-- end -->`` stands what COMMAND prints, as Markdown; ``layers`` are the modules of
the package. A ``text`` block that follows a ``python`` or ``bash`` block is what that prints. Pictures are drawn anew.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import linecache
import os
import re
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from autofit.cli import app

DOCS = Path(__file__).parent
PAGES = (DOCS / "rules.md",)
"""Those with output between marks."""
PLACE = re.compile(r"<!-- autofit (.*?) -->\n.*?<!-- end -->", re.DOTALL)
LAYERS = re.compile(r"<!-- layers -->\n.*?<!-- end -->", re.DOTALL)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: after the fence.
        text: inside.
        output: of the block, as the page has it: the text block right behind; ``None`` if there is none.
        span: of that text in the page.
    """

    language: str
    text: str
    output: str | None
    span: tuple[int, int]


def blocks(page: str) -> list[Block]:
    """All blocks of a page but those that are output, in order."""
    found, fences = [], list(FENCE.finditer(page))
    for at, after in itertools.pairwise([*fences, None]):
        assert at is not None
        if at[1] == "text":
            continue
        behind = after if after and after[1] == "text" and not page[at.end() : after.start()].strip() else None
        found.append(Block(at[1], at[2], behind[2] if behind else None, behind.span(2) if behind else (0, 0)))
    return found


def run(page: str, name: str) -> Iterator[tuple[Block, str]]:
    """Run the Python blocks and the autofit commands of a page, in order, in this directory and process.

    All Python blocks, and the new sides of changes, are one program, ``name.py``, whose lines are known to messages.
    Random numbers begin at a seed.

    Args:
        page: its text.
        name: of the program.

    Yields:
        Each block that was run, and what it printed.
    """
    import torch  # after `main` has said on how many threads

    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": name}
    program, file = "", f"{name}.py"
    for block in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if code := program_text(block):
                before, program = program, program + code
                linecache.cache[file] = (len(program), None, program.splitlines(keepends=True), file)
                exec(compile("\n" * before.count("\n") + code, file, "exec"), names)
            elif block.language == "bash":
                for command in commands(block):
                    app(shlex.split(command)[1:], result_action="return_value")
            else:
                continue
        yield block, re.sub(r" +$", "", printed.getvalue(), flags=re.MULTILINE)


def program_text(block: Block) -> str:
    """What is Python in a block: all, or of the change to a program, which names no file, what comes out."""
    if block.language == "diff" and not block.text.startswith("--- "):
        return "".join(line[1:] for line in block.text.splitlines(keepends=True) if not line.startswith("-"))
    return block.text if block.language == "python" else ""


def commands(block: Block) -> list[str]:
    """The autofit commands of a block."""
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.startswith("autofit ")]


def updated(page: str) -> str:
    """The page with what stands between its marks as of now."""
    page = LAYERS.sub(lambda m: f"<!-- layers -->\n{layers()}<!-- end -->", page)
    return PLACE.sub(lambda m: f"<!-- autofit {m[1]} -->\n{_output(m[1])}<!-- end -->", page)


def layers() -> str:
    """Modules of the package from the top down, as a table; of each the first sentence of its docstring."""
    root = DOCS.parent
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = ["| layer | module | what |", "| --- | --- | --- |"]
    ordered = next(c["layers"] for c in contracts if c.get("containers") == ["autofit"])
    for number, layer in zip(range(len(ordered), 0, -1), ordered, strict=True):
        for name in layer.split(" : "):
            place = root / "autofit" / name
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            text = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ")
            what = text.replace("``", "`").replace("|", r"\|")
            rows.append(f"| {number} | `{name}` | {what} |")
    return "\n".join(rows) + "\n"


def _output(command: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        app(shlex.split(command), result_action="return_value")
    return text.getvalue()


def with_outputs(page: str, name: str) -> str:
    """The page with what its blocks print as of now."""
    shown = [(block.span, printed) for block, printed in run(page, name) if block.output is not None]
    for (start, end), printed in reversed(shown):
        page = page[:start] + printed + page[end:]
    return page


def main(names: list[str]) -> None:
    """Update pages, all that show output if none is named, and pictures."""
    os.environ |= {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
    from pictures import PICTURES

    shown = [p for p in DOCS.glob("*.md") if any(b.output is not None for b in blocks(p.read_text()))]
    for path in [Path(n).resolve() for n in names] or sorted({*PAGES, *shown}):
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            path.write_text(with_outputs(updated(path.read_text()), path.stem))
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw())


if __name__ == "__main__":
    main(sys.argv[1:])
