"""One Python file from a model and its plan."""

from __future__ import annotations

import ast
import difflib
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from ruff.__main__ import find_ruff_bin  # type: ignore[import-untyped]
from torch import fx, nn

from autofit import lowering
from autofit.growth import Growth
from autofit.measure import Spread
from autofit.monomial import Monomial
from autofit.multiply import multiply
from autofit.plan import Plan
from autofit.program import LAYER_INDEX, op_name
from autofit.roles import Roles
from autofit.source.buffers import Buffers
from autofit.source.calls import CONSTANT, Call, call_tree, mark_leaves
from autofit.source.classes import Classes
from autofit.source.content import Content
from autofit.source.forward import Forward
from autofit.source.names import identifier
from autofit.source.numbers import Solver
from autofit.source.parametrization import (
    OPTIMIZERS,
    RECURRENT_LAYER,
    Entry,
    Factors,
    Parametrization,
    entries,
    name_multipliers,
    require_exportable,
    settle_growths,
)
from autofit.source.proof import prove
from autofit.source.syntax import Plain, Put, class_, doc, method, parse
from autofit.source.tidy import tidy
from autofit.source.worlds import Worlds, hollow, see, twins, without


@dataclass(frozen=True)
class Source:
    """An exported model.

    Attributes:
        text: of the file.
        notes: what is built in, or was not seen.
        fallbacks: blocks that are written op by op, as (module, op).
        classes: how many there are.
        shown: how it was shown that the file is the model (``autofit.source.proof``).
    """

    text: str
    notes: tuple[str, ...]
    fallbacks: tuple[tuple[str, str], ...]
    classes: int
    shown: str = ""


def export(
    model: nn.Module,
    roles: Roles,
    plan: Plan,
    spreads: Mapping[str, Spread],
    constants: Iterable[float],
    *,
    multipliers: bool = True,
) -> Source:
    """Write a model as source that needs torch alone.

    Args:
        model: it is not touched, and may have its multipliers on it.
        roles, plan: what was found, and what follows.
        spreads: initial values before anything was done.
        constants: standard deviations that the model's configuration names.
        multipliers: whether to write those of muP; without, the file is the model as it was.

    Raises:
        LoweringError: a part of the plan that is no function of sizes.
        NoSourceError: an op of another package, a value that is not known.
    """
    if multipliers:
        require_exportable(plan)
    worlds = see(model, roles.growth)
    at = {name: n for n, name in twins(worlds.first, roles.growth.dims.program).items()}
    places = {n: at[n.name] for n in roles.growth.dims.program.graph.nodes if n.name in at}
    tidy(worlds)
    parametrization = name_multipliers(roles, plan)
    if multipliers:
        multiply(worlds.first.program.graph, roles, plan, places, parametrization.label)
    classes, root = _classes(worlds, roles.growth, places, dict(model.named_buffers(remove_duplicate=False)))
    made = _file(model, classes, root, parametrization if multipliers else None, spreads, tuple(constants))
    reference = hollow(model, values=True) if not multipliers else model if lowering.is_muified(model) else None
    return replace(made, shown=prove(made.text, model, worlds.first.program, worlds.inputs, reference))


def _classes(
    worlds: Worlds, growth: Growth, places: Mapping[fx.Node, fx.Node], values: Mapping[str, torch.Tensor]
) -> tuple[Classes, Call]:
    first = worlds.first
    state = state_of(worlds)
    root = call_tree(first.program.graph)
    modules = dict(first.model.named_modules(remove_duplicate=False))
    while True:
        mark_leaves(root, modules, state)
        buffers = Buffers(values, [w.model for w in (first, *worlds.sizes)])
        classes = Classes(worlds, root, state, solver_of(worlds), growth, places, buffers)
        if not classes.unsolved:
            return classes, root
        worlds = without(worlds, classes.unsolved)


def solver_of(worlds: Worlds) -> Solver:
    """What every symbol is in every capture."""
    vectors = {
        name: (size, *(w.changed.get(name, size) for w in worlds.sizes)) for name, size in worlds.symbols.items()
    }
    return Solver(vectors)


def state_of(worlds: Worlds) -> dict[fx.Node, tuple[str, ...]]:
    """Names of what a placeholder holds of the model's state."""
    program, found = worlds.first.program, dict[fx.Node, tuple[str, ...]]()
    nodes = {n.name: n for n in program.graph.nodes}
    for p in program.parameters:
        if p.node is not None and p.node in nodes:
            found[nodes[p.node]] = p.names
    for name, buffer in program.buffers.items():
        if name in nodes:
            found[nodes[name]] = (buffer,)
    return found | {nodes[name]: (CONSTANT,) for name in program.tensors if name in nodes}


def _file(
    model: nn.Module,
    classes: Classes,
    root: Call,
    parametrization: Parametrization | None,
    spreads: Mapping[str, Spread],
    constants: tuple[float, ...],
) -> Source:
    worlds = classes.worlds
    stacks = {path: name for name, paths in worlds.stacks.items() for path in paths}
    output = next(n for n in worlds.first.program.graph.nodes if n.op == "output")
    body: list[ast.stmt] = []
    fallbacks: list[tuple[str, str]] = []
    for made in classes.all:
        methods: list[ast.stmt] = []
        made.is_root = "" in made.paths
        for i, program in enumerate(made.calls):
            wanted = _tensors(output.args) if program is root else None
            forward = Forward(classes, made, program, i, wanted)
            methods.append(forward.write("forward" if i == 0 else f"forward_{i + 1}"))
            fallbacks += [(made.name, op_name(n)) for n in forward.writer.raw]
        init = Content(classes, made, stacks).write()
        if made.is_root and parametrization is not None:
            settle_growths(parametrization, classes)
            methods.append(_at_base(parametrization, made.name, classes.config))
        body.append(class_(made.name, [parse("nn.Module")], [init, *methods]))
    name = classes.by_path[""].name
    head = _head(parametrization, classes, name)
    config = _config(classes, parametrization)
    drawn = ", with initial values in muP" if parametrization else ""
    build = ast.parse(
        f"def build(**overrides) -> {name}:\n"
        f'    """The model{drawn}; overrides are fields of Config."""\n'
        f"    model = {name}(Config(**overrides))\n"
        + ("    init_weights(model)\n" if parametrization else "")
        + "    return model\n"
    ).body
    tail: list[ast.stmt] = []
    if parametrization is not None:
        state = dict(model.named_parameters())
        listed, factors = entries(parametrization, classes, spreads, state, constants)
        tail = _training(listed, factors, name, classes)
    read = {n.attr for part in (config, *body, *tail) for n in ast.walk(part) if isinstance(n, ast.Attribute)}
    config.body = [f for f in config.body if not isinstance(f, ast.AnnAssign) or getattr(f.target, "id", "") in read]
    parts = [*head, config, *classes.functions.values(), *body, *build, *tail]
    module = Plain().visit(ast.fix_missing_locations(ast.Module(parts, [])))
    text = formatted(ast.unparse(module))
    fixed = [n for n in worlds.stacks if n not in classes.deep]
    notes = (*worlds.notes, *(f"{n} is built in: its layers are not one loop over equal ones" for n in fixed))
    notes += tuple(f"{n} comes with a checkpoint alone: it starts as NaN" for n in classes.loaded)
    notes += tuple(
        f"the values of {n} are written as they are: how they come about was not seen" for n in classes.packed
    )
    return Source(text, notes, tuple(fallbacks), len(classes.all))


def _tensors(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda n: found.append(n))
    return [n for n in found if isinstance(n.meta.get("val"), torch.Tensor)]


def _head(parametrization: Parametrization | None, classes: Classes, name: str) -> list[ast.stmt]:
    lines = [f"{name}, exported by autofit; needs torch alone."]
    if parametrization is not None:
        plan, roles = parametrization.plan, parametrization.roles
        lines[0] = f"{name} in {plan.scheme}, exported by autofit; needs torch alone."
        lines += ["", "Dimensions (here, at the base):"]
        lines += [f"    {d.name}: {d.size}, {d.base:g}" for d in roles.growth.dimensions if d.grows]
        lines += ["", "Multipliers:"] if parametrization.multipliers else []
        for key, m in parametrization.multipliers.items():
            where = next(s for s in roles.sites if parametrization.by_site.get(id(s)) == key)
            lines.append(
                f"    {key} = {ast.unparse(m.value).replace('self.', '')}: {where.kind} {where.parameter}".rstrip()
            )
    lines += ["", *classes.worlds.notes] if classes.worlds.notes else []
    return [doc("\n".join(lines) + ("\n" if len(lines) > 1 else "")), *ast.parse(IMPORTS).body]


def _config(classes: Classes, parametrization: Parametrization | None) -> ast.ClassDef:
    worlds = classes.worlds
    body: list[ast.stmt] = [doc("Sizes, and what follows from them." if parametrization else "Sizes.")]
    for name, size in worlds.symbols.items():
        if not name.startswith("data"):
            body.append(ast.parse(f"{identifier(name)}: int = {size}").body[0])
    for name, paths in worlds.stacks.items():
        if name not in classes.deep:
            continue
        length = len(worlds.first.model.get_submodule(paths[0]))  # type: ignore[arg-type]
        body.append(ast.parse(f"{identifier(name)}: int = {length}").body[0])
    if parametrization is not None:
        for name, base in parametrization.bases.items():
            shown = int(base) if float(base).is_integer() else base
            body.append(ast.parse(f"{name}: float = {shown!r}").body[0])
        for name, (formula, base_field, why) in parametrization.growths.items():
            whole = formula.to_ast(lambda n: parse(f"self.{identifier(n)}"))
            value = ast.BinOp(whole, ast.Div(), parse(f"self.{base_field}"))
            body.append(_property(name, value, f"{why[0].upper()}{why[1:]}."))
        for m in parametrization.multipliers.values():
            body.append(_property(m.name, m.value, m.why))
    return class_("Config", [], body, [ast.Name("dataclass")])


def _at_base(parametrization: Parametrization, name: str, config: str) -> ast.stmt:
    """The method by which autofit sees that the model is in muP."""
    sizes = ", ".join(f"{identifier(n)!r}: self.{config}.{g}" for n, g in parametrization.widths.items())
    return ast.parse(
        f"def mup_base(self) -> '{name}':\n"
        '    """This model at the base; beside it autofit sees that it is in muP already."""\n'
        f"    sizes = {{n: getattr(self.{config}, n) / growth for n, growth in {{{sizes}}}.items()}}\n"
        "    if any(size % 1 for size in sizes.values()):\n"
        "        raise ValueError(f'no whole sizes at the base: {sizes}')\n"
        f"    return build(**{{**vars(self.{config}), **{{n: int(size) for n, size in sizes.items()}}}})\n"
    ).body[0]


def _property(name: str, value: ast.expr, why: str) -> ast.FunctionDef:
    made = method(name, [], [doc(why), ast.Return(value)], ast.Name("float"))
    made.decorator_list = [ast.Name("property")]
    return made


def _monomial(monomial: Monomial) -> str:
    """``r_out / r_in``, ``r_in ** -0.5``."""
    above: list[str] = []
    below: list[str] = []
    for name, power in monomial.powers:
        whole = power.denominator == 1
        text = {"L": "depth"}.get(name, name)
        shown = text if abs(power) == 1 else f"{text} ** {abs(float(power)) if whole else float(power):g}"
        (below if whole and power < 0 else above).append(shown)
    top = " * ".join(above) or "1"
    return f"{top} / {' / '.join(below)}" if below else top


def _training(listed: list[Entry], factors: Factors, name: str, classes: Classes) -> list[ast.stmt]:
    """``rules``, ``init_weights`` and ``param_groups``."""
    every = [m for each in factors.settings.values() for ms in each.values() for m in ms]
    deep = any("L" in dict(m.powers) for m in (*every, *factors.init.values()))
    args = "r_in, r_out, depth" if deep else "r_in, r_out"
    init = ", ".join(f"{k!r}: lambda {args}: {_monomial(m)}" for k, m in factors.init.items())
    rows = []
    for key, settings in factors.settings.items():
        columns = []
        for optimizer in OPTIMIZERS:
            lr, decay, eps = map(_monomial, settings[optimizer])
            tuned = factors.tuned[key]
            columns.append(f"({lr if tuned == 1 else f'{tuned!r} * {lr}'}, {decay}, {eps})")
        rows.append(f"{key!r}: lambda {args}: ({', '.join(columns)})")
    columns_ = ", ".join(f"{k!r}: ({i}, {v[0]!r}, {v[1]!r})" for i, (k, v) in enumerate(OPTIMIZERS.items()))
    names = sorted({n for e in listed for n in (*e.r_in, *e.r_out)})
    short = {n: "r" if len(names) == 1 else n for n in names}
    growths = "".join(f"    {short[n]} = config.{n}\n" for n in names)
    depth = f", model.{classes.config}.depth_mult" if deep else ""
    modules = classes.worlds.first.model.modules()
    padded = any(isinstance(m, nn.Embedding) and m.padding_idx is not None for m in modules)
    recurrent = any(isinstance(m, nn.RNNBase) for m in classes.worlds.first.model.modules())
    pattern = LAYER_INDEX.pattern + (f"|{RECURRENT_LAYER.pattern}" if recurrent else "")
    made = ast.parse(f'''
INIT = {{{init}}}
"Std of initial values over that at the base, by rule (TP5 Table 8)."
FACTORS = {{{", ".join(rows)}}}
"Factors on (lr, weight decay, eps) under AdamW, Adam and SGD, by rule (TP5 Table 8)."
OPTIMIZERS = {{{columns_}}}
"Columns of FACTORS, and what torch takes for weight decay and eps."


def rules(config: Config) -> dict[str, tuple]:
    """By name, ``*`` for a number: rule, growth of fan_in and fan_out, how it is drawn, std at the base."""
{growths}    return _rows


def rule_of(name: str, config: Config) -> tuple:
    """The row of `rules` that a parameter has."""
    table = rules(config)
    return table[name] if name in table else table[re.sub({pattern!r}, "*", name)]


@torch.no_grad()
def init_weights(model: {name}, generator: torch.Generator | None = None) -> None:
    """Draw initial values."""
    for name, p in model.named_parameters():
        rule, r_in, r_out, kind, value = rule_of(name, model.{classes.config})
        if kind == "normal":
            p.normal_(0, value * INIT[rule](r_in, r_out{depth}), generator=generator)
        elif kind == "uniform":
            bound = 3**0.5 * value * INIT[rule](r_in, r_out{depth})
            p.uniform_(-bound, bound, generator=generator)
        else:
            p.copy_(torch.as_tensor(value).expand_as(p))
{PADDED if padded else ""}

def param_groups(model: {name}, optimizer="adamw", lr=1e-3, weight_decay=None, eps=None) -> list[dict]:
    """Groups for an optimizer, given by name or class; lr, weight_decay and eps are those tuned at the base."""
    optimizer = optimizer if isinstance(optimizer, str) else optimizer.__name__.lower()
    column, own_decay, own_eps = OPTIMIZERS[optimizer]
    decay, eps = own_decay if weight_decay is None else weight_decay, own_eps if eps is None else eps
    groups = {{}}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rule, r_in, r_out, *_ = rule_of(name, model.{classes.config})
            factors = FACTORS[rule](r_in, r_out{depth})[column]
            settings = {{"lr": lr * factors[0], "weight_decay": decay * factors[1]}}
            settings |= {{}} if eps is None else {{"eps": eps * factors[2]}}
            group = groups.setdefault(tuple(settings.values()), {{"params": [], "param_names": [], **settings}})
            group["params"].append(p)
            group["param_names"].append(name)
    return list(groups.values())
''').body
    listed_rows = ast.Dict([ast.Constant(e.pattern) for e in listed], [_row(e, short) for e in listed])
    return [Put({"_rows": listed_rows}).visit(stmt) for stmt in made]


IMPORTS = """
import base64
import re
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
"""
ROOTS = {2.0: "2**0.5", round(1 / 3, 9): "3**-0.5", round(25 / 9, 9): "5 / 3"}
"""Gains by their squares."""
PADDED = """    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0
"""


def _row(e: Entry, short: Mapping[str, str]) -> ast.expr:
    value: ast.expr = ast.Constant(int(e.value) if float(e.value).is_integer() else e.value)
    if e.kind == "unknown":
        value = parse("float('nan')")  # visibly wrong where nobody loads it
    if e.kind == "values":
        assert e.expression is not None
        value = e.expression
    if e.fan is not None:
        formula, names = e.fan
        size = formula.to_ast(lambda n: parse(f"config.{identifier(n)}"))
        if names:
            size = ast.BinOp(size, ast.Div(), parse(f"({' * '.join(short[n] for n in names)})"))
        value = ast.BinOp(size, ast.Pow(), ast.Constant(-0.5))
        if e.value != 1:
            value = ast.BinOp(parse(ROOTS.get(round(e.value**2, 9), repr(e.value))), ast.Mult(), value)
    if e.layers is not None:
        times, name = e.layers
        inner = parse(f"config.{identifier(name)}")
        inner = ast.BinOp(ast.Constant(int(times)), ast.Mult(), inner) if times != 1 else inner
        value = ast.BinOp(value, ast.Div(), ast.BinOp(inner, ast.Pow(), ast.Constant(0.5)))
    growths = [parse(" * ".join(short[n] for n in names) or "1") for names in (e.r_in, e.r_out)]
    return ast.Tuple([ast.Constant(e.rule), *growths, ast.Constant(e.kind), value])


def difference(before: str, after: str) -> str:
    """A patch from one exported file to another."""
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), "model.py", "model_mup.py")
    return "".join(lines)


def formatted(source: str) -> str:
    """Laid out by ruff."""
    run = [find_ruff_bin()]
    for command in (
        ["check", "--isolated", "--fix", "--quiet", "--select", "I,F401,UP034", "-"],
        ["format", "--isolated", "--line-length", "120", "-"],
    ):
        made = subprocess.run([*run, *command], input=source, capture_output=True, text=True, check=True)
        source = made.stdout
    return source
