"""The static check: does everything keep its size as width grows? Nothing is trained.

Exponents of width go through the graph (`autofit.propagation`), from how initial values, factors and settings grow
(`autofit.subject`); what every parameter gives at the start, and what a step changes in that, is compared with what muP
asks for. Past a fault, values go on as if it were mended, so that one fault is one finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import fx, nn

from autofit.api import Analysis
from autofit.dims import Use
from autofit.program import describe, fold_layers, op_name
from autofit.propagation import WEIGHT_NORM, ZERO, Propagation, Sizes, Values
from autofit.replay import Key, module_ends, named_uses
from autofit.report import fold_names, printed
from autofit.subject import Groups, Setting, Subject, edited, groups_of, planned

TOLERANCE = 0.15
"""Of exponents."""
AS = {"input": "gives", "hidden": "sums over and gives", "output": "sums over", "vector": "acts on each of"}


@dataclass(frozen=True)
class Finding:
    """Something that grows with width and must not, or the other way round.

    Attributes:
        what: ``init``, ``lr``, ``multiplier``, ``attention``, ``weight decay``, ``eps`` or ``group``.
        name: of the parameter, or of the module at the site.
        where: module path, op and source line.
        exponent, wanted: of the growth of the main width: found, and in muP.
        message: what is wrong.
        todo: what would be right.
        steps: how the exponent comes about.
        severe: whether it breaks muP; a wrong eps does only where it is as large as gradients are.
    """

    what: str
    name: str
    where: str
    exponent: float
    wanted: float
    message: str
    todo: str
    steps: tuple[str, ...] = ()
    severe: bool = True


@dataclass(frozen=True)
class Row:
    """Exponents of one use of a parameter.

    Attributes:
        name: of the parameter.
        use: its name with a number where it has several uses, as of what is measured (``autofit.replay.named_uses``).
        role: of this use: ``input``, ``hidden``, ``output``, ``bottleneck``, ``vector`` or ``fixed``.
        where: module path, op and source line.
        start: of what it gives at the start; ``None`` for nothing.
        step: of what one step of it changes there; ``None`` if it is not trained.
    """

    name: str
    use: str
    role: str
    where: str
    start: float | None
    step: float | None


@dataclass(frozen=True)
class Check:
    """The answer of `check`.

    Attributes:
        findings: what is wrong, in the order of the forward pass.
        rows: exponents of all uses of all parameters.
        notes: what was assumed, and what cannot be told.
        width: the main dimension and how it grows, in words.
    """

    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    width: str

    @property
    def ok(self) -> bool:
        """Whether nothing severe was found."""
        return not any(f.severe for f in self.findings)

    def renderables(self) -> Iterator[RenderableType]:
        """For a terminal: the verdict, every finding, then the exponents."""
        alike: dict[tuple[str, ...], list[Finding]] = {}
        for f in self.findings:
            alike.setdefault((f.what, f.message, f.todo), []).append(f)
        wrong = sum(group[0].severe for group in alike.values())
        said = (
            "right: what every parameter gives, and learns, keeps its size"
            if self.ok
            else f"wrong: {wrong} fault{'s' * (wrong != 1)}"
        )
        yield Text(said, style="bold green" if self.ok else "bold red")
        yield Text(self.width)
        for group in alike.values():
            first = group[0]
            names = ", ".join(fold_names(dict.fromkeys(f.name for f in group)))
            yield Text(f"\n{first.what}: {names}", style="red" if first.severe else "yellow")
            lines = [first.message, *first.steps, f"where: {first.where}", f"to do: {first.todo}"]
            yield Text("\n".join(f"  {line}" for line in lines))
        yield from (Text(f"note: {note}") for note in self.notes)

    def table(self) -> Table:
        """Exponents of all uses, layers folded."""
        shown = Table("parameter", "as", "start", "step", box=None, title="Exponents of width", title_justify="left")
        alike: dict[tuple[str, str, str, str], list[str]] = {}
        for r in self.rows:
            alike.setdefault((fold_layers(r.name), r.role, _shown(r.start), _shown(r.step)), []).append(r.name)
        for (_, *cells), names in alike.items():
            shown.add_row(Text(", ".join(fold_names(dict.fromkeys(names)))), *cells)
        return shown

    def __str__(self) -> str:
        return printed([*self.renderables(), Text(), self.table()])

    def to_json(self) -> dict[str, Any]:
        """The whole answer as plain data."""
        return {"format": "autofit check", "version": 1, "ok": self.ok, **asdict(self)}


def _shown(exponent: float | None) -> str:
    return "-" if exponent is None else f"{exponent + 0.0:+.2f}"


def check(
    model: nn.Module | Analysis,
    example: Any = None,
    *,
    param_groups: torch.optim.Optimizer | Groups | None = None,
    base: Any = None,
    optimizer: str | type = "adamw",
    lr: float | None = None,
) -> Check:
    """Say whether a model and its optimizer's groups are in muP: in seconds, at any size, without training.

    Exponents of width are propagated through the graph: sums of random terms count like the root of their number, as
    at the start, those of aligned terms like their number, as after a step. What each parameter gives, and what a step
    of it changes there, must have the exponents that muP has (Tensor Programs V, arXiv 2203.03466, appendix J; spectral
    condition, arXiv 2310.17813).

    Args:
        model: what `muify` or `analyze` returned, or a model that was edited by hand, with its initial values.
        example: input for one forward pass, as for `muify`; for a model edited by hand.
        param_groups: the optimizer, or its groups; ``None`` takes those of the analysis.
        base: the model edited by hand at the base width, with its initial values: a module, a pair of it and its
            example, or a factory of either.
        optimizer: class or name, where groups alone are given.
        lr: learning rate of the base; ``None`` takes the one that suits most parameters, and says so.

    Returns:
        Whether it is right, findings with the place and what would be right, and all exponents.

    Raises:
        AutofitError: no base, one that does not fit, groups of other parameters, or an optimizer without a law.
    """
    groups: Any = param_groups
    if hasattr(param_groups, "param_groups"):
        optimizer, groups = groups_of(param_groups)
    if isinstance(model, Analysis):
        return _Judge(planned(model, optimizer, groups, lr)).answer()
    return _Judge(edited(model, example, base, optimizer, groups, lr)).answer()


def updates(subject: Subject, propagation: Propagation, gradients: Mapping[fx.Node, float]) -> dict[str, float]:
    """Growth of what one step changes in every parameter, with what multiplies it, by placeholder."""
    found = {}
    nodes = {n.name: n for n in propagation.dims.program.graph.nodes}
    for name, s in subject.settings.items():
        parameter = subject.roles.parameters[name].parameter
        if parameter.node is None:
            continue
        uses = propagation.dims.uses_of(parameter)
        shape = max((propagation.summed(u) + propagation.given(u) for u in uses), default=0.0)
        start = subject.laws.parameters.get(parameter.node, 0.0)
        more = {
            "sgd": gradients.get(nodes[parameter.node], ZERO) + 2 * s.multiplier,
            "adafactor": start if math.isfinite(start) else s.multiplier,
            "orthogonal": s.multiplier - shape / 2,
        }.get(s.optimizer.family, s.multiplier)
        found[parameter.node] = s.rate + more
    return found


def predicted(subject: Subject, sizes: Sizes) -> dict[Key, tuple[float, float]]:
    """Growth from the base, as natural logarithms, of what `autofit.replay.measure` measures after one small step.

    Args:
        subject: the model at its width.
        sizes: terms of sums, measured at the base.
    """
    propagation = Propagation(subject.roles.growth, subject.laws, sizes)
    values = propagation.values()
    changes = propagation.changes(values, updates(subject, propagation, propagation.gradients(values)))
    found: dict[Key, tuple[float, float]] = {
        ("module", path): (values.of[n], changes.of[n]) for path, n in module_ends(propagation.dims.program).items()
    }
    for name, use in named_uses(propagation.dims):
        start = values.uses.get((use.parameter, use.node), values.of[use.operand])
        found["parameter", name] = start, propagation.own_change(use, values, changes)
    return found


class _Judge:
    def __init__(self, subject: Subject) -> None:
        self.subject, self.roles = subject, subject.roles
        self.growth, self.dims = subject.roles.growth, subject.roles.growth.dims
        self.propagation = Propagation(self.growth, subject.laws)
        growing = [d for d in self.growth.dimensions if d.grows and d.ratio != 1]
        main = [d for d in growing if d.name == self.growth.main]
        chosen = next(iter(main or growing), None)
        self.unit = math.log(chosen.ratio) if chosen else 0.0
        self.width = (
            f"r = {chosen.ratio:g}: {chosen.name} {chosen.size} over {chosen.base:g}"
            if chosen
            else "nothing grows: this is the base, where every factor is 1"
        )
        self.readouts = {(s.node, s.parameter) for s in self.roles.sites if s.kind == "readout"}
        self.starts: dict[tuple[str, fx.Node], float] = {}
        self.findings: list[tuple[int, Finding]] = []
        self.order = {n: i for i, n in enumerate(self.dims.program.graph.nodes)}
        self.named = {n.name: n for n in self.order}

    def answer(self) -> Check:
        """Everything that is wrong."""
        for name, message, todo in self.subject.faults:
            what = "group" if name in self.roles.parameters else "multiplier"
            self.findings.append((-1, Finding(what, name, self.where(name), 0.0, 0.0, message, todo)))
        rows: list[Row] = []
        notes = list(self.subject.notes)
        if self.unit:
            values = self.propagation.values(self.repaired)
            trained = self.propagation.values(self.trained, values)
            early = self.propagation.gradients(values)
            late = self.propagation.gradients(trained, self.propagation.gradients(trained))
            changes = self.propagation.changes(values, updates(self.subject, self.propagation, late))
            rows = [self.row(name, use, values, changes) for name, use in named_uses(self.dims)]
            for site in self.roles.sites:
                self.attention(site, trained)
            for name, setting in self.subject.settings.items():
                self.decay(name, setting)
                self.eps(name, setting, early, late)
            notes += [f"{s.where}: {s.reason}" for s in self.roles.sites if s.treatment in ("norm", "unsupported")]
            notes += self.not_seen(rows)
        found = sorted(self.findings, key=lambda item: item[0])
        return Check(tuple(f for _, f in found), tuple(rows), tuple(dict.fromkeys(notes)), self.width)

    def not_seen(self, rows: Iterable[Row]) -> Iterator[str]:
        """Parameters that are trained, and of which nothing can be said."""
        trained = {n for n, s in self.subject.settings.items() if s.group["lr"]}
        numbers = {n for n, r in self.roles.parameters.items() if not r.parameter.shape} - {*self.roles.unused}
        unused = sorted(trained - {r.name for r in rows} - numbers)
        unmoved = sorted({r.name for r in rows if r.step is None} & trained)
        if unused:
            yield f"not checked, as this example does not reach them: {', '.join(fold_names(unused))}"
        if numbers & trained:
            yield f"not checked, as single numbers have no axes: {', '.join(fold_names(sorted(numbers & trained)))}"
        if unmoved:
            yield f"not checked, as no gradient reaches them from any output: {', '.join(fold_names(unmoved))}"

    def where(self, name: str) -> str:
        """Of a parameter."""
        known = self.roles.parameters.get(name)
        return known.where if known else name

    # what each parameter gives ------------------------------------------------------------------------

    def role(self, use: Use) -> str:
        """Of one use, from what it contracts and gives."""
        into, out = self.propagation.summed(use), self.propagation.given(use)
        if (use.node, use.parameter) in self.readouts:
            return "output"
        if into:
            return "hidden" if out else "bottleneck"
        if out:
            return "input"
        grown = self.propagation.count(c for c, k in use.cells if k == "elementwise")
        return self.roles.parameters[use.parameter].role if grown else "fixed"

    def wanted(self, use: Use) -> tuple[float, float]:
        """Growth that muP asks of what a weight gives at the start: the least and the largest."""
        role, noise = self.role(use), -self.propagation.summed(use) / 2
        if role == "output":  # it tends to zero, as it is a sum of random terms under a factor for aligned ones
            return noise, noise
        return (noise, 0.0) if role == "bottleneck" else (0.0, 0.0)

    def repaired(self, use: Use, own: float) -> float:
        """What a weight should give, once what it gives was noted."""
        landing = self.subject.landing(use.node)
        self.starts[(use.parameter, use.node)] = own + landing
        return self.wanted(use)[1] - landing

    def trained(self, use: Use, own: float) -> float:
        """What a weight gives once it was trained: nothing tends to zero any more."""
        return -self.subject.landing(use.node)

    def row(self, name: str, use: Use, v: Values, changes: Values) -> Row:
        """Exponents of one use, and what is wrong with them."""
        role, landing = self.role(use), self.subject.landing(use.node)
        own, moved = v.of[use.operand], changes.of[use.operand]
        start = self.starts.get((use.parameter, use.node), own + landing)
        term = next((t for t in self.propagation.terms(use.node, v) if t.operand is use.operand), None)
        step = self.propagation.own_change(use, v, changes) + landing
        low, high = self.wanted(use)
        if role == "fixed":  # what it acts on may be anything
            alone = term is not None and len(list(self.propagation.operands(use.node))) == 1
            factor = landing + (term.gain if term is not None and alone else 0.0)
            start, step = own + factor, moved + factor
        elif role == "vector":
            low = ZERO if own < 0 else 0.0
        if use.parameter not in self.subject.settings or not self.subject.settings[use.parameter].group["lr"]:
            step = ZERO
        off = 0.0 if start == ZERO else start - min(max(start, low), high)
        if start == ZERO and role == "input" and self.roles.parameters[use.parameter].tied:
            message = "it starts at zero, with the readout that it is tied to: all that is looked up is alike"
            self.add("init", use, 0.0, 0.0, message, "zero the readout only where it has a weight of its own", ())
        if op_name(use.node) == WEIGHT_NORM:  # beside the length of the rows that it is given to
            start, step = start - self.propagation.length(use.node, v), step - self.propagation.length(use.node, v)
            off, step = start, max(step, 0.0)
        self.judge(use, role, off, step, start, (low, high))
        return Row(use.parameter, name, role, describe(use.node), self.exponent(start), self.exponent(step))

    def exponent(self, growth: float) -> float | None:
        """Of the main width."""
        return round(growth / self.unit, 4) + 0.0 if math.isfinite(growth) else None

    def judge(self, use: Use, role: str, off: float, step: float, start: float, wanted: tuple[float, float]) -> None:
        """Findings about one use: both exponents off by the same is a factor in forward, else each its own."""
        wrong_start, wrong_step = self.is_wrong(off), math.isfinite(step) and self.is_wrong(step)
        steps = self.steps(use, role, start, step)
        if wrong_start and wrong_step and not self.is_wrong(off - step):
            e = (off + step) / 2
            self.add(
                "multiplier", use, step, 0.0,
                f"what it gives, and what a step changes there, grow like {self.power(e)}: a factor is missing, or one "
                "is there too often",
                f"multiply what it gives by {math.exp(-e):.4g} at this width ({self.power(-e)})",
                steps,
            )  # fmt: skip
            return
        if wrong_start:
            aim = wanted[1] if start > wanted[1] else wanted[0]
            self.add(
                "init", use, start, aim,
                f"what it gives at the start grows like {self.power(start)}, and should like {self.power(aim)}",
                f"multiply its initial values by {math.exp(-off):.4g} at this width ({self.power(-off)})",
                steps,
            )  # fmt: skip
        if wrong_step:
            now = self.subject.settings[use.parameter].group["lr"]
            self.add(
                "lr", use, step, 0.0,
                f"what a step changes there grows like {self.power(step)}, and must not",
                f"lr {now * math.exp(-step):.4g} instead of {now:.4g} at this width ({self.power(-step)})"
                + (": runs of it differ, and one lr suits only some" if self.propagation.is_mixed(use) else ""),
                steps,
                severe=use.parameter not in self.subject.contested
                and (not self.propagation.is_mixed(use) or abs(step) > abs(self.unit) * (0.5 + TOLERANCE)),
            )  # fmt: skip

    def steps(self, use: Use, role: str, start: float, step: float) -> tuple[str, ...]:
        """How the exponents of a use come about."""
        into = self.propagation.summed(use)
        own = self.propagation.laws.parameters.get(self.roles.parameters[use.parameter].parameter.node or "", 0.0)
        said = []
        if math.isfinite(start):
            sums = f", a sum of {self.power(into)} random terms {self.power(into / 2)}" if into else ""
            rest = start - own - into / 2
            more = f", what it meets and factors {self.power(rest)}" if abs(rest) > 1e-9 else ""
            said.append(f"start: values {self.power(own)}{sums}{more}: {self.power(start)}")
        setting = self.subject.settings.get(use.parameter)
        if setting is not None and math.isfinite(step):
            sums = f", a sum of {self.power(into)} aligned terms {self.power(into)}" if into else ""
            rest = step - setting.rate - into
            more = f", gradient, input and factors {self.power(rest)}" if abs(rest) > 1e-9 else ""
            said.append(f"step: lr {self.power(setting.rate)}{sums}{more}: {self.power(step)}")
        return tuple(said)

    def power(self, growth: float) -> str:
        """As a power of r."""
        if not math.isfinite(growth):
            return "0"
        e = round(growth / self.unit, 2) + 0.0
        return "r" if e == 1 else "1" if e == 0 else f"r^{e:g}"

    def is_wrong(self, growth: float) -> bool:
        """Whether a growth that should be none is one."""
        return abs(growth / self.unit) > TOLERANCE

    def add(
        self,
        what: str,
        use: Use,
        growth: float,
        wanted: float,
        message: str,
        todo: str,
        steps: tuple[str, ...],
        severe: bool = True,
    ) -> None:
        """Note a finding about a use."""
        made = Finding(
            what,
            use.parameter,
            describe(use.node),
            growth / self.unit,
            wanted / self.unit,
            message,
            todo,
            steps,
            severe,
        )
        self.findings.append((self.order[use.node], made))

    # sites and settings ---------------------------------------------------------------------------------

    def attention(self, site: Any, v: Values) -> None:
        """A product of two activations must keep its size once both are aligned."""
        if site.kind != "attention" or site.treatment in ("norm", "unsupported"):
            return
        product = self.propagation.products[site.node]
        total = self.propagation.logits(product, v, late=True) + self.subject.landing(site.node)
        if not self.is_wrong(total):
            return
        terms = self.propagation.count(a for a, _ in product.contracted)
        message = f"these products of activations grow like {self.power(total)} once they are aligned, and must not"
        steps = (
            f"a sum of {self.power(terms)} aligned terms {self.power(terms)}, both sides and all factors "
            f"{self.power(total - terms)}: {self.power(total)}",
        )
        todo = f"multiply them by {math.exp(-total):.4g} at this width ({self.power(-total)})"
        name = site.where.split(" ")[0]
        made = Finding("attention", name, site.where, total / self.unit, 0.0, message, todo, steps)
        self.findings.append((self.order[site.node], made))

    def decay(self, name: str, s: Setting) -> None:
        """Weight decay takes the same share off at any width."""
        if s.decay is None or not math.isfinite(s.decay) or not self.is_wrong(s.decay):
            return
        now = s.group["weight_decay"]
        kept = "weight_decay" if s.optimizer.decay == "independent" else "lr * weight_decay"
        message = f"{kept} grows like {self.power(s.decay)}, and should be kept"
        todo = f"weight_decay {now * math.exp(-s.decay):.4g} instead of {now:.4g}"
        made = Finding("weight decay", name, self.where(name), s.decay / self.unit, 0.0, message, todo)
        self.findings.append((len(self.order), made))

    def eps(self, name: str, s: Setting, early: Mapping[fx.Node, float], late: Mapping[fx.Node, float]) -> None:
        """Epsilon stands beside gradients, and goes with them."""
        p = self.roles.parameters[name].parameter
        node = self.named.get(p.node or "")
        mixed = any(self.propagation.is_mixed(use) for use in self.dims.uses_of(p))
        if s.eps is None or node is None or node not in early or name in self.subject.contested or mixed:
            return
        ends = sorted(g[node] + s.multiplier for g in (early, late))
        off = s.eps - min(max(s.eps, ends[0]), ends[1])
        if not math.isfinite(off) or not self.is_wrong(off):
            return
        now = s.group["eps"]
        message = f"eps grows like {self.power(s.eps)}, and its gradients like {self.power(ends[1])}"
        todo = f"eps {now * math.exp(-off):.4g} instead of {now:.4g}; it matters where eps is as large as gradients"
        made = Finding(
            "eps", name, self.where(name), s.eps / self.unit, ends[1] / self.unit, message, todo, severe=False
        )
        self.findings.append((len(self.order) + 1, made))
