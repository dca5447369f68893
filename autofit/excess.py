"""Factors of a program that depend on width, followed to where they matter.

A value that is a homogeneous function of others is scaled with them, and a normalization undoes every scale. What is
left where a value meets something that is neither, as a bounded function, a sum with other values or an output, is an
excess: no rule asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from autofit.dims import Cell, Use
from autofit.flow import BLANKS, CASTS, LENGTHS, STRUCTURAL, WRITES, Flow, flat_cells, is_float
from autofit.growth import Growth
from autofit.program import op_name, shape_of
from autofit.propagation import MEANS, NORM_OPS, SOFTMAX, VARIANCES, attended, power_of
from autofit.roles import Excess, Site

Key = tuple[str, str]
"""A number in a program: the node that takes it, and which of its arguments."""
PRODUCTS = frozenset(f"aten.{n}" for n in "mul div true_divide".split())
SUMS = frozenset(f"aten.{n}" for n in "add sub rsub cat stack where masked_fill maximum minimum lerp".split()) | WRITES
SUMS |= frozenset(f"aten.{n}" for n in "index_put index_add index_copy scatter scatter_add masked_scatter".split())
BOUNDS = frozenset(f"aten.{n}" for n in "clamp clamp_min clamp_max".split())
HOMOGENEOUS = (
    STRUCTURAL
    | CASTS
    | MEANS
    | frozenset(
        f"aten.{n}"
        for n in "neg relu leaky_relu abs max amax min amin topk sort cumsum std tril triu real imag view_as_real "
        "view_as_complex conj constant_pad_nd pad unfold im2col max_pool1d max_pool2d max_pool3d "
        "max_pool2d_with_indices adaptive_max_pool1d adaptive_max_pool2d avg_pool3d adaptive_avg_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d pixel_shuffle "
        "pixel_unshuffle fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn "
        "masked_select alpha_dropout feature_dropout".split()
    )
    | {"getitem"}
)
"""Ops that are as much larger as their first operand is."""
EXPONENTS = (-1.0, -0.5, 0.5, 1.0)
SMALLEST = 8
"""Powers of sizes below are numbers that stand everywhere."""
TOLERANCE = 0.1
"""Of an exponent of width."""


@dataclass(frozen=True)
class Form:
    """How the size of a value depends on width.

    Attributes:
        natural: growth by what the ops do: an L2 norm divides by the root of a number of elements.
        powers: of numbers that depend on width, by key.
    """

    natural: float = 0.0
    powers: Mapping[Key, float] = field(default_factory=dict)

    def times(self, other: Form, power: float = 1.0) -> Form:
        """That of a product with a power of another value."""
        powers = {k: self.powers.get(k, 0.0) + power * other.powers.get(k, 0.0) for k in {*self.powers, *other.powers}}
        return Form(self.natural + power * other.natural, {k: p for k, p in powers.items() if abs(p) > 1e-9})


ONE = Form()


class Numbers:
    """Growth of the numbers by which a program multiplies: measured against a base model, or judged by their values."""

    def __init__(self, growth: Growth, flow: Flow, measure: Callable[[Cell], float]) -> None:
        """For one program.

        Args:
            growth: its dimensions.
            flow: its paths.
            measure: natural logarithm of the growth of an axis.
        """
        self.growth, self.dims, self.flow, self.measure = growth, growth.dims, flow, measure
        self.values: dict[Key, tuple[float, float | None, str, bool]] = {}
        self.growths: dict[Key, float] = {}
        for node in self.dims.program.calls():
            for key, argument in _numbers(node):
                value = flow.scalar(argument)
                if value and math.isfinite(value):
                    self._know(node, key, value)

    def _know(self, node: fx.Node, key: str, value: float) -> None:
        constants = self.growth.constants
        if constants is not None and (pair := constants.get((node.name, key))) is not None:
            if pair[0] != pair[1] and all(pair):
                self.values[node.name, key] = (value, pair[1], "", self._is_of_width(*pair))
                self.growths[node.name, key] = math.log(abs(pair[0] / pair[1]))
            return
        if _near(abs(value), 1) or key not in ("0", "1"):
            return
        for size, grown in self._sizes(node):
            likely = EXPONENTS if size >= 4 * SMALLEST else (-0.5, 0.5)
            e = next((e for e in likely if _near(value, size**e)), None)
            if e is not None and grown:
                self.values[node.name, key] = (value, None, f"{size}^{e:g}", not self._is_common(value))
                self.growths[node.name, key] = e * grown
                return

    def _is_of_width(self, value: float, base: float) -> bool:
        """Whether a number differs as a power of a width does, and not by depth, by a length or by chance."""
        deeper = self.growth.deeper
        return any(
            _near(value / base, d.ratio**e) and (not deeper or _near(value, d.size**e))
            for d in self.growth.dimensions
            for e in (*EXPONENTS, -0.25, 0.25)  # queries and keys share a root
            if d.grows
        )

    def _sizes(self, node: fx.Node) -> Iterator[tuple[int, float]]:
        """Sizes of what grows in the value that a number multiplies, or was summed to make it."""
        nodes = self.flow.upstream(node).nodes
        for cell in (c for n in (*nodes, *nodes[-1].all_input_nodes) for c in flat_cells(self.dims.of.get(n.name, ()))):
            root = self.dims.axes.find(cell)
            for c in (root, *self.dims.axes.atoms(root)):
                if c.size >= SMALLEST and self.growth.grows(c):
                    yield c.size, self.measure(c)

    def _is_common(self, value: float) -> bool:
        """Whether people write such a number, or an axis that is fixed has it."""
        fixed = (a.size for p in self.dims.products for a, _ in p.contracted if not self.growth.grows(a))
        short = any(_near(float(f"{v:.3g}"), v) for v in (value, 1 / value))
        return short or any(_near(value, size**e) for size in fixed for e in EXPONENTS)


class Forms:
    """Forms of all values of a program."""

    def __init__(self, numbers: Numbers, sites: Iterable[Site] = ()) -> None:
        """For one program.

        Args:
            numbers: of the program.
            sites: what counts factors, as far as it is known.
        """
        self.numbers, self.dims, self.flow = numbers, numbers.dims, numbers.flow
        growing = [abs(math.log(d.ratio)) for d in numbers.growth.dimensions if d.grows and d.ratio != 1]
        self.tolerance = TOLERANCE * min(growing, default=1.0)
        self.of: dict[fx.Node, Form] = {}
        self.found: dict[Key, Excess] = {}
        measured, order = numbers.growth.constants is not None, self.flow.order
        self.sites: dict[fx.Node, list[Site]] = {}
        for site in sites:  # against a base, what does not grow counts nothing
            if site.ratio != 1 or not measured or site.treatment in ("norm", "unsupported"):
                self.sites.setdefault(site.node, []).append(site)
        self.behind = {
            (f.node.name, f.key)
            for n, found in self.sites.items()
            for s in found
            for f in s.factors
            if order[f.node] > order[n] and s.kind != "embedding"
        }
        self.uses: dict[fx.Node, list[Use]] = {}
        for use in self.dims.uses:
            if {"in", "index", "taps"} & set(use.kinds.values()) and op_name(use.node) not in PRODUCTS | NORM_OPS:
                self.uses.setdefault(use.node, []).append(use)
        self.products = {p.node: p for p in self.dims.products}
        for node in order:
            self.of[node] = self._form(node)

    def growth(self, form: Form) -> float:
        """All of it, as a natural logarithm; near zero, zero."""
        total = form.natural + sum(p * self.numbers.growths[k] for k, p in form.powers.items())
        return total if abs(total) > self.tolerance else 0.0

    def rest(self, node: fx.Node) -> float:
        """Growth that the ops behind a value give it, where no number is left without a counterpart."""
        total = self.growth(self.of[node])
        return 0.0 if self.of[node].powers and total else total

    def _meets(self, form: Form, at: fx.Node) -> None:
        """Note the numbers that are left in a value where they matter."""
        if form.powers and self.growth(form):
            named = {n.name: n for n in self.flow.order}
            for key in form.powers:
                value, base, judged, certain = self.numbers.values[key]
                self.found.setdefault(key, Excess(named[key[0]], value, base, judged, at, certain))

    def _ends(self, operands: Iterable[fx.Node], at: fx.Node) -> Form:
        for o in operands:
            self._meets(self.of[o], at)
        return ONE

    def _number(self, node: fx.Node, key: str, power: float = 1.0) -> Form:
        known = (node.name, key) in self.numbers.growths and (node.name, key) not in self.behind
        return Form(0.0, {(node.name, key): power}) if known else ONE

    def _form(self, node: fx.Node) -> Form:
        if node.op == "output":
            return self._ends((n for n in node.all_input_nodes if is_float(n) and not self._grows(n)), node)
        if node.op != "call_function" or not is_float(node) or self.dims.origin.get(node.name) == "constant":
            return ONE
        name, operands = op_name(node), [n for n in node.all_input_nodes if is_float(n)]
        if not operands or name in NORM_OPS:
            return ONE
        if node in self.products:
            return self._of_product(node, operands)
        if node in self.uses:
            return self._of_weights(node, operands)
        if name in PRODUCTS:
            return self._product(node)
        if name in SUMS:
            branches = {s.paths[0][0]: self._taken(s) for s in self.sites.get(node, ()) if s.kind == "residual"}
            parts = {o: self.of[o].times(branches.get(o, ONE), -1.0) for o in operands if not self._is_blank(o)}
            if node.kwargs.get("alpha") is not None and len(parts) > 1:
                parts[operands[-1]] = parts[operands[-1]].times(self._number(node, "alpha"))
            return self._together(node, list(parts.values()))
        first = self.of[operands[0]]
        if name in LENGTHS - {"aten.sqrt"}:
            order = node.args[1] if len(node.args) > 1 else 2
            reduced = self._reduced(node) / order if isinstance(order, int | float) and order > 0 else 0.0
            return Form(first.natural + reduced, first.powers)
        if name == "aten.sum":
            return Form(first.natural + self._reduced(node), first.powers)
        if name in HOMOGENEOUS:
            return first
        if name in BOUNDS and (not first.powers or self.flow._is_length(operands[0])):
            return first
        power = 2.0 if name in VARIANCES else power_of(node)
        if power is not None:
            return ONE.times(first, power)
        self._ends(operands, node)
        if name in SOFTMAX and isinstance(axis := node.args[1], int):  # shares of what grows
            cells = list(flat_cells(self.dims.of.get(node.name, ())))
            return Form(-self.numbers.measure(cells[axis]))
        return ONE

    def _taken(self, site: Site) -> Form:
        """Numbers that a site counts, but for those behind it that nothing else meets first."""
        found = ONE
        for f in site.factors:
            key = (f.node.name, f.key)
            if key in self.numbers.growths and key not in self.behind:
                found = found.times(Form(0.0, {key: -1.0 if f.inverse else 1.0}))
        return found

    def _own(self, node: fx.Node) -> Form:
        return self._number(node, "alpha").times(self._number(node, "scale"))

    def _of_product(self, node: fx.Node, operands: list[fx.Node]) -> Form:
        """Sums over products of two values: at a site, what it does not count is left."""
        p, sites = self.products[node], self.sites.get(node, ())
        whole = self.of[p.left].times(self.of[p.right]).times(self._own(node))
        for site in sites:
            whole = whole.times(self._taken(site), -1.0)
        fused = op_name(node) == "aten.scaled_dot_product_attention"
        if sites or fused:
            if not any(s.treatment in ("norm", "unsupported") for s in sites):
                self._meets(whole, node)
            whole = ONE
        if fused:
            return self.of[attended(node)]
        return self._together(node, [whole, *(self.of[o] for o in operands if o not in (p.left, p.right))])

    def _of_weights(self, node: fx.Node, operands: list[fx.Node]) -> Form:
        """Sums over weights and lookups in them: what a weight and its partner are scaled by, scales the result."""
        uses, parts = self.uses[node], []
        for use in uses:
            entering = self.of[use.operand].times(self.of[use.partner] if use.partner is not None else ONE)
            entering = entering.times(self._own(node))
            for site in (s for s in self.sites.get(node, ()) if s.parameter == use.parameter):
                entering = entering.times(self._taken(site), -1.0)
                if site.kind != "embedding":  # one is counted in front of its factors, and what it is added to is not
                    self._meets(entering, node)
                    entering = ONE
            parts.append(entering)
        named = {o for u in uses for o in (u.operand, u.partner)}
        return self._together(node, [*parts, *(self.of[o] for o in operands if o not in named)])

    def _product(self, node: fx.Node) -> Form:
        found, sign = ONE, 1.0 if op_name(node) == "aten.mul" else -1.0
        for i, argument in enumerate(node.args[:2]):
            power = sign if i else 1.0
            if isinstance(argument, fx.Node) and argument in self.of and self.flow.scalar(argument) is None:
                found = found.times(self.of[argument], power)
            found = found.times(self._number(node, str(i), power))
        return found

    def _together(self, node: fx.Node, parts: list[Form]) -> Form:
        """Values that meet in one: what all have in common is that of the result."""
        totals = [self.growth(p) for p in parts]
        if not parts or all(p == parts[0] for p in parts):
            return parts[0] if parts else ONE
        if max(totals) - min(totals) <= self.tolerance:
            return Form(totals[0]) if not totals[0] else parts[0]
        for part in parts:
            self._meets(part, node)
        plain = [t for t, p in zip(totals, parts, strict=True) if not p.powers]
        return Form(max(plain, default=0.0))

    def _is_blank(self, node: fx.Node) -> bool:
        """Zeros to write into, or one number."""
        while node.op == "call_function" and op_name(node) in STRUCTURAL | CASTS:
            node = node.all_input_nodes[0]
        scalar = self.dims.origin.get(node.name) == "constant" and math.prod(shape_of(node.meta.get("val"))) == 1
        return scalar or (node.op == "call_function" and op_name(node) in BLANKS)

    def _grows(self, node: fx.Node) -> bool:
        return any(self.numbers.growth.grows(c) for c in flat_cells(self.dims.of.get(node.name, ())))

    def _reduced(self, node: fx.Node) -> float:
        """Growth of the number of elements that a reduction makes one of."""
        before, after = (
            sum(self.numbers.measure(c) for c in flat_cells(self.dims.of.get(n.name, ())))
            for n in (node.all_input_nodes[0], node)
        )
        return before - after


def _numbers(node: fx.Node) -> Iterator[tuple[str, object]]:
    """Arguments by which an op multiplies."""
    name = op_name(node)
    if name in PRODUCTS:
        yield from ((str(i), a) for i, a in enumerate(node.args[:2]))
    elif name in ("aten.baddbmm", "aten.addmm", "aten.scaled_dot_product_attention", "aten.add", "aten.sub"):
        yield from ((k, node.kwargs[k]) for k in ("alpha", "scale") if node.kwargs.get(k) is not None)


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5)
