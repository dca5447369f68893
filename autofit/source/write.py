"""One Python file from a model and its plan."""

from __future__ import annotations

import ast
import subprocess
from typing import Any

import torch
from torch import fx, nn

from autofit.source.calls import call_tree, mark_leaves
from autofit.source.classes import Classes
from autofit.source.content import Content
from autofit.source.forward import Forward
from autofit.source.names import identifier
from autofit.source.numbers import Solver
from autofit.source.tidy import tidy
from autofit.source.worlds import Worlds, without


def solver_of(worlds: Worlds) -> Solver:
    """What every symbol is in every capture."""
    vectors = {
        name: (size, *(w.changed.get(name, size) for w in worlds.sizes)) for name, size in worlds.symbols.items()
    }
    return Solver(vectors)


def state_of(worlds: Worlds) -> dict[fx.Node, tuple[str, ...]]:
    """Names of what a placeholder holds of the model's state."""
    program, found = worlds.first.program, {}
    nodes = {n.name: n for n in program.graph.nodes}
    for p in program.parameters:
        if p.node is not None and p.node in nodes:
            found[nodes[p.node]] = p.names
    for name, buffer in program.buffers.items():
        if name in nodes:
            found[nodes[name]] = (buffer,)
    return found


def write(worlds: Worlds, model: nn.Module) -> str:
    tidy(worlds)
    first = worlds.first
    state = state_of(worlds)
    root = call_tree(first.program.graph)
    mark_leaves(root, dict(first.model.named_modules(remove_duplicate=False)), state)
    classes = Classes(worlds, root, state, solver_of(worlds))
    while classes.unsolved:
        worlds = without(worlds, classes.unsolved)
        mark_leaves(root, dict(first.model.named_modules(remove_duplicate=False)), state)
        classes = Classes(worlds, root, state, solver_of(worlds))
    stacks = {path: name for name, paths in worlds.stacks.items() for path in paths}
    values = dict(model.named_buffers(remove_duplicate=False))
    body: list[ast.stmt] = []
    output = next(n for n in first.program.graph.nodes if n.op == "output")
    for made in classes.all:
        methods: list[ast.stmt] = []
        for i, program in enumerate(made.calls):
            wanted = _leaves(output.args) if program is root else None
            forward = Forward(classes, made, program, i, wanted, first.program.inputs if program is root else None)
            methods.append(forward.write("forward" if i == 0 else f"forward_{i + 1}"))
        init = Content(classes, made, values, stacks).write()
        body.append(ast.ClassDef(made.name, [ast.parse("nn.Module", mode="eval").body], [], [init, *methods], [], type_params=[]))
    fields = [ast.parse(f"{identifier(n)}: int = {v}").body[0] for n, v in worlds.symbols.items() if not n.startswith("data")]
    fields += [ast.parse(f"{identifier(n)}: int = {len(first.model.get_submodule(p[0]))}").body[0] for n, p in worlds.stacks.items()]
    config = ast.ClassDef("Config", [], [], fields or [ast.Pass()], [ast.Name("dataclass")], type_params=[])
    head = ast.parse("from dataclasses import dataclass\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n").body
    build = ast.parse(f"def build(**overrides):\n    return {classes.by_path[''].name}({'Config(**overrides)' if classes.by_path[''].configured else ''})").body
    module = ast.fix_missing_locations(ast.Module([*head, config, *body, *build], []))
    print("#", worlds.notes)
    return formatted(ast.unparse(module))


def _leaves(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda n: found.append(n))
    return [n for n in found if isinstance(n.meta.get("val"), torch.Tensor)]


def formatted(source: str) -> str:
    """Laid out by ruff."""
    from ruff.__main__ import find_ruff_bin

    command = [find_ruff_bin(), "format", "--isolated", "--line-length", "120", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
