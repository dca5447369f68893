"""Sphinx: the pages of this directory, the files beside it that they include, and the API from docstrings."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from pathlib import Path
from typing import Any

import autofit

DOCS = Path(__file__).parent
INCLUDED = {"../README.md": "overview.md", "../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
"""Pages that are files beside this directory."""

project = "autofit"
version = release = autofit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
# reasons of refusals, in tables, have <class 'X'> in them
myst_disable_syntax = ["html_inline"]

default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(torch|os|collections|typing|pathlib|fractions|rich|nx)\..*")]
autodoc_member_order = "bysource"
napoleon_use_ivar = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = "autofit"
html_show_sphinx = html_show_copyright = False
html_extra_path = ["llms.txt"]


def rebase(app: Any, path: Path, page: str, content: list[str]) -> None:
    """Links of an included file are relative to it: make them relative to this directory."""
    home = (DOCS / path).parent

    def moved(link: re.Match[str]) -> str:
        there = os.path.relpath(home / link[1], DOCS)
        return f"]({INCLUDED.get(there, there)}"

    content[0] = re.sub(r"\]\((?!\w+:|#)([^)#\s]+)", moved, content[0])


def split(app: Any, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """An attribute each, where a docstring describes several at once, as Napoleon does with arguments."""
    for i, line in enumerate(lines):
        if names := re.match(r"    (\w+(?:, \w+)+): ", line):
            rest = lines[i + 1 :]
            more = next((n for n, text in enumerate(rest) if not text.startswith(" " * 8)), len(rest))
            text = [line[names.end() :], *rest[:more]]
            each = ([f"    {attribute}: {text[0]}", *text[1:]] for attribute in names[1].split(", "))
            lines[i : i + 1 + more] = itertools.chain.from_iterable(each)


def unsigned(app: Any, what: str, name: str, thing: Any, options: Any, arguments: str, result: str) -> Any:
    """Records are made by the passes: what they hold is in their description, and they need no signature besides."""
    made = what != "class" or not dataclasses.is_dataclass(thing) or thing in (autofit.Knob, autofit.Tunables)
    return None if made else ("", None)


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("include-read", rebase)
    app.connect("autodoc-process-signature", unsigned)
    app.connect("autodoc-process-docstring", split, priority=400)  # before Napoleon
