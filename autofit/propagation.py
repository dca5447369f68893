"""Exponents of width through a captured graph: of values at the start, of gradients, and of what a step changes.

Every quantity is the natural logarithm of how its root mean square grows from the base to this model; ``ZERO`` is that
of what is zero. Sums of random terms grow like the root of their number (central limit), sums of aligned ones like
their number (law of large numbers): the first hold at the start, the second for what training has changed (Tensor
Programs V, appendix J; spectral condition, arXiv 2310.17813).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from autofit.dims import Cell, Product, Use
from autofit.flow import CASTS, STRUCTURAL, flat_cells, is_float
from autofit.growth import Growth
from autofit.program import op_name

ZERO = -math.inf
NORM_OPS = frozenset(
    f"aten.{n}"
    for n in "layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm batch_norm instance_norm "
    "normalize".split()
)
"""Ops that divide a value by its own size."""
MEANS = frozenset(f"aten.{n}" for n in "mean avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d".split())
LENGTHS = frozenset(f"aten.{n}" for n in "norm linalg_vector_norm".split())
VARIANCES = frozenset(f"aten.{n}" for n in "var".split())
POWERS = {"aten.square": 2.0, "aten.sqrt": 0.5, "aten.rsqrt": -0.5, "aten.reciprocal": -1.0}
SOFTMAX = frozenset(f"aten.{n}" for n in "softmax _softmax _safe_softmax".split())
BOUNDED = frozenset(f"aten.{n}" for n in "tanh erf sin hardtanh atan".split())
"""Odd functions that end somewhere."""
UNIT = frozenset(
    f"aten.{n}" for n in "softmax _softmax sigmoid exp cos softplus log_softmax _log_softmax hardsigmoid".split()
)
"""Functions that are of unit size where their argument is small."""
POSITIVE = frozenset(f"aten.{n}" for n in "relu gelu silu elu leaky_relu mish relu6 abs square max amax".split()) | UNIT
"""Functions whose results have a mean, so that a sum of many adds up."""
RECURRENT = frozenset(f"aten.{n}" for n in "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell".split())


@dataclass(frozen=True)
class Laws:
    """How what a program is given grows.

    Attributes:
        parameters: initial root mean square, with what multiplies the parameter itself, by name of its placeholder.
        scalars: factors that the program's own numbers are, by (node, argument).
        products: all factors of a product of two activations, inside its op and elsewhere, by name of its node.
        nodes: further factors on what a node gives, by its name.
        edges: further factors on what enters a node, by its name and that of the operand.
    """

    parameters: Mapping[str, float]
    scalars: Mapping[tuple[str, str], float] = field(default_factory=dict)
    products: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, float] = field(default_factory=dict)
    edges: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """How a value depends on one of its operands.

    Attributes:
        operand: it.
        gain: growth of the derivative of one element by one.
        changed: growth of the number of aligned terms by which a change of it comes through.
        noise: the same for a change that is aligned with nothing.
        back: growth of the number of terms in its gradient that are random at the start, and aligned later.
    """

    operand: fx.Node
    gain: float
    changed: float = 0.0
    back: float = 0.0
    noise: float | None = None


Sizes = Mapping[tuple[str, str], tuple[float, float, float]]
"""By node and operand: what the operand alone gives there, what its change alone changes, and what that would change if
it were not aligned with the weights that it meets."""
NOT_KNOWN = (0.0, 0.0, 0.0)
Repair = Callable[[Use, float], float]
"""Given the use of a weight and the growth of what it gives: what should have been, for all that follows."""


class Propagation:
    """Growth of everything in one program."""

    def __init__(self, growth: Growth, laws: Laws, sizes: Sizes | None = None) -> None:
        """For one program.

        Args:
            growth: its dimensions.
            laws: growth of what it is given.
            sizes: measured at the base. Where they are known, sums are those of the base's terms, each grown; else
                they grow like the term that grows most, as in the limit.
        """
        self.growth, self.dims, self.laws, self.sizes = growth, growth.dims, laws, sizes or {}
        self.at: dict[fx.Node, list[Use]] = {}
        for use in self.dims.uses:
            if use.node.op == "call_function" and {"in", "index"} & set(use.kinds.values()):
                self.at.setdefault(use.node, []).append(use)
        self.products: dict[fx.Node, Product] = {p.node: p for p in self.dims.products}

    # counting ------------------------------------------------------------------------------------------

    def count(self, cells: Iterable[Cell]) -> float:
        """Growth of a number of elements."""
        return sum(math.log(self.growth.ratio(c)) for c in cells)

    def elements(self, node: fx.Node) -> float:
        """Growth of the number of elements of a value."""
        return self.count(flat_cells(self.dims.of.get(node.name, ())))

    def summed(self, use: Use) -> float:
        """Growth of the number of terms that a weight contracts."""
        return self.count(c for c, k in use.cells if k == "in")

    def given(self, use: Use) -> float:
        """Growth of the number of elements that a weight gives."""
        return self.count(c for c, k in use.cells if k == "out")

    def is_mixed(self, use: Use) -> bool:
        """Whether some of what a weight gives is fixed, as shared heads beside others are: their gradients are those
        that count behind it."""
        outs = [c for c, k in use.cells if k == "out"]
        grows = {self.growth.ratio(part) != 1 for c in outs for part in self.dims.axes.segments(c)}
        return len(outs) == 1 and len(grows) == 2

    def reduced(self, node: fx.Node) -> float:
        """Growth of the number of elements that a reduction makes one of."""
        return self.elements(node.all_input_nodes[0]) - self.elements(node)

    def normed(self, node: fx.Node) -> float:
        """Growth of the number of elements of a weight that share one learned length."""
        whole, lengths = self.operands(node)
        return self.elements(whole) - self.elements(lengths)

    def length(self, node: fx.Node, v: Values) -> float:
        """Growth of the lengths by which weight normalization divides."""
        return v.of[next(self.operands(node))] + self.normed(node) / 2

    def shared(self, node: fx.Node) -> float:
        """Growth of the number of elements among which a softmax gives shares of one."""
        cells, axis = self.dims.of.get(node.name), node.args[1]
        return self.count(flat_cells(cells[axis])) if cells and isinstance(axis, int) else 0.0

    # values --------------------------------------------------------------------------------------------

    def values(self, repair: Repair | None = None, weights: Values | None = None) -> Values:
        """Growth of every value at the start.

        Args:
            repair: told of every weight's use; what it returns stands for what the weight gives.
            weights: whose repaired weights to take, where ``repair`` tells only of values.
        """
        found = Values({}, set(), {}, dict(weights.weights) if weights else {})
        for node in self.dims.program.graph.nodes:
            if node.op == "placeholder":
                found.of[node] = self.laws.parameters.get(node.name, 0.0)
            elif node.op == "get_attr":
                found.of[node] = 0.0
                found.coherent.add(node)
            elif node.op == "call_function":
                found.of[node] = self._value(node, found, repair) + self.laws.nodes.get(node.name, 0.0)
                if self._is_coherent(node, found):
                    found.coherent.add(node)
        return found

    def _value(self, node: fx.Node, v: Values, repair: Repair | None) -> float:
        name, operands = op_name(node), list(self.operands(node))
        if node in self.at:
            parts: list[tuple[fx.Node, float]] = []
            weights = {u.operand for u in self.at[node]}
            for use in self.at[node]:
                own = v.of[use.operand] + self.summed(use) / 2
                if use.partner is not None:
                    own += self.entering(node, use.partner, v)
                if repair is not None:
                    before, own = own, repair(use, own)
                    if (node, use.operand) in v.weights:
                        pass
                    elif math.isfinite(before):
                        v.weights[(node, use.operand)] = v.of[use.operand] + own - before
                    elif use.partner is not None and math.isfinite(entered := self.entering(node, use.partner, v)):
                        v.weights[(node, use.operand)] = own - entered - self.summed(use) / 2
                v.uses[(use.parameter, node)] = own
                parts.append((use.operand, own))
            partners = {u.partner for u in self.at[node]}
            parts += [(o, v.of[o]) for o in operands if o not in weights and o not in partners]
            total = self.together(node, parts, 0)
            return min(total, 0.0) if name in RECURRENT else total
        if node in self.products:
            p = self.products[node]
            if name == "aten.scaled_dot_product_attention":
                return self.entering(node, attended(node), v)
            logits = self.logits(p, v)
            others = [self.entering(node, o, v) for o in operands if o not in (p.left, p.right)]
            return max([logits, *others])
        entering = [self.entering(node, o, v) for o in operands]
        if not entering:
            return 0.0
        if name in NORM_OPS:
            return entering[1] if len(entering) > 1 else 0.0
        if name == WEIGHT_NORM:
            return entering[1] - self.normed(node) / 2
        if name in ("aten.mul", "aten.div", "aten.true_divide"):
            return self._product(node, v)
        if name in MEANS or name in ("aten.sum", "aten.cumsum"):
            terms = self.reduced(node) if name != "aten.cumsum" else 0.0
            added = terms if operands[0] in v.coherent else terms / 2
            return entering[0] + added - (terms if name in MEANS else 0.0)
        if name in LENGTHS:
            return entering[0] + self.reduced(node) / 2
        if name in VARIANCES:
            return 2 * entering[0]
        power = power_of(node)
        if power is not None:
            return power * entering[0] if math.isfinite(entering[0]) or power > 0 else 0.0
        if name in BOUNDED:
            return min(entering[0], 0.0)
        if name in SOFTMAX:
            return -self.shared(node)
        if name in UNIT:
            return 0.0
        if name in STRUCTURAL | CASTS or name in POSITIVE or name == "getitem":
            return entering[0]
        return self.together(node, zip(operands, entering, strict=True), 0)

    def _through(self, node: fx.Node, term: Term) -> float:
        """Growth of the number of terms by which a change comes through: some are aligned, as measured at the base."""
        _, whole, noise = self.sizes.get((node.name, term.operand.name), NOT_KNOWN)
        if term.noise is None or not whole:
            return term.changed
        apart = min(noise / whole, 1.0) ** 2
        return math.log(apart * math.exp(2 * term.noise) + (1 - apart) * math.exp(2 * term.changed)) / 2

    def together(self, node: fx.Node, terms: Iterable[tuple[fx.Node, float]], which: int) -> float:
        """Growth of a sum of independent terms: of values (0) or of changes (1)."""
        grown = list(terms)
        sizes = [self.sizes.get((node.name, o.name), NOT_KNOWN)[which] for o, _ in grown]
        top = max((g for _, g in grown), default=ZERO)
        if not any(sizes) or not math.isfinite(top):
            return top
        total = sum(s**2 * math.exp(2 * (g - top)) for s, (_, g) in zip(sizes, grown, strict=True) if s)
        return top + math.log(total / sum(s**2 for s in sizes)) / 2 if total else ZERO

    def entering(self, node: fx.Node, operand: fx.Node, v: Values) -> float:
        """Growth of an operand as it enters a node."""
        return v.of[operand] + self.laws.edges.get((node.name, operand.name), 0.0)

    def logits(self, p: Product, v: Values, late: bool = False) -> float:
        """Growth of a sum over products of two activations, with the scale of its op; ``late``: of aligned ones."""
        terms = self.count(a for a, _ in p.contracted)
        same = p.left is p.right or (p.left in v.coherent and p.right in v.coherent)
        sides = self.entering(p.node, p.left, v) + self.entering(p.node, p.right, v)
        return sides + (terms if late or same else terms / 2) + self.own_scale(p)

    def own_scale(self, p: Product) -> float:
        """Growth of the scale inside an op."""
        if p.node.name in self.laws.products:
            return self.laws.products[p.node.name]
        if op_name(p.node) != "aten.scaled_dot_product_attention":
            return self.laws.scalars.get((p.node.name, "alpha"), 0.0)
        if p.node.kwargs.get("scale") is None:
            return -self.count(a for a, _ in p.contracted) / 2
        return self.laws.scalars.get((p.node.name, "scale"), 0.0)

    def _product(self, node: fx.Node, v: Values, without: int | None = None) -> float:
        """Growth of a product or quotient, or of what stands in it beside one argument."""
        sign = 1.0 if op_name(node) == "aten.mul" else -1.0
        total = 0.0
        for i, arg in enumerate(node.args[:2]):
            if i != without and isinstance(arg, fx.Node) and is_float(arg):
                own = self.entering(node, arg, v)
                total += own if i == 0 else sign * (own if math.isfinite(own) or sign > 0 else 0.0)
            total += self._scalar(node, i)
        return total

    def _scalar(self, node: fx.Node, argument: int) -> float:
        """Growth that the number in an argument gives a product or quotient."""
        found = self.laws.scalars.get((node.name, str(argument)), 0.0)
        return found if argument == 0 or op_name(node) == "aten.mul" else -found

    def _is_coherent(self, node: fx.Node, v: Values) -> bool:
        """Whether the mean of a value's elements is of the size of the value."""
        name, operands = op_name(node), list(self.operands(node))
        if node in self.at or node in self.products or name in NORM_OPS:
            return False
        if self.dims.origin.get(node.name) == "constant" or not operands:
            return True
        if name in POSITIVE or name in LENGTHS or name in VARIANCES:
            return True
        if (power := power_of(node)) is not None:
            return (power == round(power) and round(power) % 2 == 0) or operands[0] in v.coherent
        if name in ("aten.mul", "aten.div"):
            both = [a for a in node.args[:2] if isinstance(a, fx.Node)]
            same = len(both) == 2 and both[0] is both[1]
            return same or all(o in v.coherent for o in operands)
        if name in STRUCTURAL | CASTS | MEANS or name == "getitem":
            return operands[0] in v.coherent
        largest = max(v.of[o] for o in operands)
        return any(o in v.coherent for o in operands if v.of[o] == largest)

    def operands(self, node: fx.Node) -> Iterator[fx.Node]:
        """What a node computes with: tensors of real or complex numbers."""
        return (o for o in node.all_input_nodes if is_float(o))

    # derivatives ---------------------------------------------------------------------------------------

    def terms(self, node: fx.Node, v: Values) -> Iterator[Term]:
        """How a value depends on its operands."""
        factor = self.laws.nodes.get(node.name, 0.0)
        for term in self._terms(node, v):
            more = factor + self.laws.edges.get((node.name, term.operand.name), 0.0)
            yield replace(term, gain=term.gain + more)

    def _terms(self, node: fx.Node, v: Values) -> Iterator[Term]:
        name, operands = op_name(node), list(self.operands(node))
        if node in self.at:
            named = set()
            for use in self.at[node]:
                named |= {use.operand, use.partner}
                into, out = self.summed(use), self.given(use)
                if use.partner is not None:
                    spread = into / 2 + max(0.0, (into - out) / 2)
                    yield Term(
                        use.partner,
                        v.weights.get((node, use.operand), v.of[use.operand]),
                        spread,
                        0.0 if self.is_mixed(use) else out,
                        into / 2,
                    )
                    edge = self.laws.edges.get((node.name, use.partner.name), 0.0)
                    # with a value that has a mean, terms of a change that has one, too, add up in any order
                    noise = None if use.partner in v.coherent else into / 2
                    yield Term(use.operand, v.of[use.partner] + edge, into, 0.0, noise)
                else:
                    yield Term(use.operand, 0.0)
            yield from (Term(o, 0.0) for o in operands if o not in named)
            return
        if node in self.products:
            yield from self._of_product(self.products[node], operands, v)
            return
        if name in NORM_OPS:
            own = v.of[operands[1]] if len(operands) > 1 else 0.0
            yield Term(operands[0], own - (v.of[operands[0]] if math.isfinite(v.of[operands[0]]) else 0.0))
            yield from (Term(o, 0.0) for o in operands[1:])
            return
        if name == WEIGHT_NORM:
            whole, lengths = operands
            scale = v.of[lengths] - self.length(node, v)
            yield Term(whole, scale if math.isfinite(scale) else 0.0)
            yield Term(lengths, -self.normed(node) / 2, 0.0, self.normed(node))
            return
        if name in ("aten.mul", "aten.div", "aten.true_divide"):
            for i, o in enumerate(node.args[:2]):
                if isinstance(o, fx.Node) and is_float(o):
                    slope = self._product(node, v, i) - (2 * v.of[o] if i and name != "aten.mul" else 0.0)
                    yield Term(o, slope, 0.0, max(0.0, self.elements(node) - self.elements(o)))
            return
        if name in MEANS or name == "aten.sum":
            terms = self.reduced(node)
            yield Term(operands[0], -terms if name in MEANS else 0.0, terms)
            return
        if (power := power_of(node)) is not None:
            yield Term(operands[0], (power - 1) * v.of[operands[0]] if math.isfinite(v.of[operands[0]]) else 0.0)
            return
        if name in SOFTMAX:
            yield Term(operands[0], -self.shared(node))
            return
        if name in LENGTHS:
            yield Term(operands[0], -self.reduced(node) / 2, self.reduced(node))
            return
        chosen = operands[:1] if name in STRUCTURAL | CASTS and name != "aten.stack" else operands
        for o in chosen:
            yield Term(o, 0.0, 0.0, max(0.0, self.elements(node) - self.elements(o)) if name in BROADCASTS else 0.0)

    def _of_product(self, p: Product, operands: list[fx.Node], v: Values) -> Iterator[Term]:
        terms, scale = self.count(a for a, _ in p.contracted), self.own_scale(p)
        fused = op_name(p.node) == "aten.scaled_dot_product_attention"
        behind = v.of[attended(p.node)] if fused else 0.0
        for mine, other in ((p.left, p.right), (p.right, p.left)):
            whole, own = self.elements(operands[0] if fused else p.node), self.elements(mine)
            alone = max(0.0, whole - own + (0.0 if fused else terms))
            if fused:  # a gradient of weights is a sum over what they weigh
                alone += self.count(flat_cells(self.dims.of[attended(p.node).name][-1]))
            yield Term(mine, self.entering(p.node, other, v) + scale + behind, terms, alone)
        for o in (o for o in operands if o not in (p.left, p.right)):
            yield Term(o, 0.0, 0.0, max(0.0, self.elements(p.node) - self.elements(o)) if fused else 0.0)

    def gradients(self, v: Values, early: Mapping[fx.Node, float] | None = None) -> dict[fx.Node, float]:
        """Growth of the gradient at every value, for a loss that is a mean over what the model gives.

        Args:
            v: the values.
            early: gradients at the start; given, gradients of heads, samples of a table or copies that meet are
                counted as aligned, as they are later, from one weight to the next and no further.
        """
        found: dict[fx.Node, float] = {}
        for node in reversed(list(self.dims.program.graph.nodes)):
            if node.op == "output":
                found |= {n: -self.elements(n) for n in node.all_input_nodes if is_float(n)}
            elif node.op == "call_function" and node in found and op_name(node) != "aten.detach":
                behind = early[node] if early is not None and node in self.at else found[node]
                for term in self.terms(node, v):
                    own = found[node] if term.operand in self._weights(node) else behind
                    own += term.gain + (term.back if early is not None and node not in self.at else term.back / 2)
                    found[term.operand] = max(found.get(term.operand, ZERO), own)
        return found

    def _weights(self, node: fx.Node) -> set[fx.Node]:
        return {u.operand for u in self.at.get(node, ())}

    def own_change(self, use: Use, v: Values, changes: Values) -> float:
        """Growth of how much a parameter's own change changes at one of its uses."""
        if op_name(use.node) == WEIGHT_NORM:
            return changes.of[use.operand]  # a length gives a length
        term = next((t for t in self.terms(use.node, v) if t.operand is use.operand), None)
        return changes.of[use.operand] + (term.gain + self._through(use.node, term) if term else 0.0)

    def changes(self, v: Values, updates: Mapping[str, float]) -> Values:
        """Growth of how much every value changes, to first order, when parameters do.

        Args:
            v: the values before.
            updates: growth of the change of parameters, by name of the placeholder.
        """
        found = Values({}, set(), {})
        for node in self.dims.program.graph.nodes:
            if node.op != "call_function":
                found.of[node] = updates.get(node.name, ZERO)
                continue
            parts: list[tuple[fx.Node, float]] = []
            for term in self.terms(node, v):
                if op_name(node) == WEIGHT_NORM and term.operand is node.args[1]:
                    continue  # longer rows give more of what they gave: nothing in that is aligned
                change = found.of[term.operand] + term.gain + self._through(node, term)
                parts.append((term.operand, change))
            found.of[node] = self.together(node, parts, 1)
        return found


WEIGHT_NORM = "aten._weight_norm"
BROADCASTS = frozenset(
    f"aten.{n}"
    for n in "add sub rsub where maximum minimum expand expand_as broadcast_to repeat repeat_interleave".split()
)


@dataclass(frozen=True)
class Values:
    """Growth by node.

    Attributes:
        of: by node.
        coherent: nodes whose elements have a mean.
        uses: what each weight gives alone, by its name and the op.
        weights: of a weight as it stands in an op, by that and the weight, with what was repaired.
    """

    of: dict[fx.Node, float]
    coherent: set[fx.Node]
    uses: dict[tuple[str, fx.Node], float]
    weights: dict[tuple[fx.Node, fx.Node], float] = field(default_factory=dict)


def attended(node: fx.Node) -> fx.Node:
    """The values of a fused attention, of which one may be its queries and keys, too."""
    found = node.args[2] if len(node.args) > 2 else node.kwargs["value"]
    assert isinstance(found, fx.Node)
    return found


def power_of(node: fx.Node) -> float | None:
    """The exponent of an op that is a power."""
    name = op_name(node)
    if name == "aten.pow" and len(node.args) > 1 and isinstance(node.args[1], int | float):
        return float(node.args[1])
    return POWERS.get(name)
