"""Read roles and scale sites off the dataflow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torch import fx

from autofit.dims import Cell, Product, Use
from autofit.errors import BaseError, DimensionError, PlanError
from autofit.excess import Forms, Numbers
from autofit.flow import Factor, Flow, Path, behind, reaching_output
from autofit.growth import Growth
from autofit.kinds import kind_of
from autofit.measure import Fan
from autofit.program import Parameter, describe, op_name
from autofit.propagation import SOFTMAX
from autofit.residuals import Residual, residuals
from autofit.roles import Excess, ParameterRole, Role, Roles, Segment, Site, Treatment
from autofit.rules import Table, table
from autofit.scales import Scales, own_factors

FROZEN = "computed by frozen weights, whose scale is kept"


@dataclass(frozen=True)
class AssignRoles:
    """``Growth -> Roles``.

    Attributes:
        scheme: whose scales the sites must have.
        strict: refuse where an answer would be a guess.
        frozen: ``keep`` leaves the scale of what parameters without gradient compute as it is.
        unused: ``freeze`` allows parameters that the example does not reach: they are not trained.
        depth: branches on each residual stream of the base, or the growth of their number, or ``None``: unknown.
        branches: look for residual branches even where the scheme has no use for them.
    """

    scheme: str = "mup"
    strict: bool = True
    frozen: Literal["keep", "plan"] | None = None
    unused: Literal["freeze"] | None = None
    depth: tuple[float, ...] | float | None = None
    branches: bool = False

    def __call__(self, growth: Growth) -> Roles:
        """Assign roles.

        Raises:
            DimensionError: under ``strict``, a parameter depends on an op without a rule.
            PlanError: under ``strict``, a matrix is never used, or an attention site is unsupported; the scheme scales
                with depth, and the base's is not known.
            BaseError: the base has other residual streams.
        """
        reader = _Reader(growth, table(self.scheme), self.branches)
        reader.deepen(self.depth, self.scheme)
        notes = []
        parameters: dict[str, ParameterRole] = {}
        unused = []
        for p in growth.dims.program.parameters:
            uses = list(growth.dims.uses_of(p))
            if not uses and not reader.number(p):
                unused.append(p.name)
            parameters[p.name] = reader.role(p, uses)
        sites = reader.sites()
        excess, scalars = reader.excess(sites)
        if self.frozen == "keep":
            sites = [replace(s, treatment="nothing", reason=FROZEN) if reader.is_frozen(s) else s for s in sites]
        if self.strict:
            _refuse_unruled(growth)
            if self.unused is None:
                _refuse_unused(growth, unused)
            for site in sites:
                if site.treatment == "unsupported":
                    raise PlanError(
                        f"unsupported attention site: {site.reason}",
                        where=site.where,
                        todo="keep the head size fixed (grow='heads'), or pass strict=False to leave it as it is",
                    )
            _refuse_excess(excess)
        if reader.exponents["residual"] is not None and not reader.residuals:
            notes.append(f"scheme {self.scheme} scales residual branches, and no residual stream was found")
        if unused:
            what = "frozen, as this example does not reach them" if self.unused else "never used by forward"
            notes.append(f"{what}: {', '.join(unused)}")
        notes += [f"{s.where}: {s.reason}" for s in sites if s.treatment in ("norm", "unsupported")]
        notes += [
            f"{s.where}: {s.reason}. A base model would tell"
            for s in sites
            if "taken to be the same" in s.reason and s.treatment == "apply" and s.ratio != 1
        ]
        notes += [f"{describe(e.node)}: {e.what}" + (". A base model would tell" if e.judged else "") for e in excess]
        left = tuple(e for e in excess if e.certain)
        return Roles(growth, parameters, tuple(sites), tuple(unused), tuple(notes), reader.branches, left, scalars)


def _refuse_unruled(growth: Growth) -> None:
    """An op without a rule matters if a growing axis, or what a parameter touches, ends there."""
    dims = growth.dims
    for gap in dims.unruled:
        if any(growth.grows(c) for c in gap.cells):
            raise DimensionError(
                f"{gap.reason}, and a growing dimension passes through it",
                where=describe(gap.node),
                todo="pass strict=False to match its axes by size, or report the op so that it gets a rule",
            )


def _refuse_excess(excess: Iterable[Excess]) -> None:
    """A factor of width that no rule takes would stay beside all that is added."""
    for e in (e for e in excess if e.certain):
        raise PlanError(
            e.what,
            where=describe(e.node),
            todo="take the factor out: initial values and multipliers are given their scale without it"
            + (", or pass a base model, which tells whether it depends on width" if e.judged else "")
            + "; strict=False leaves it as it is, and says so",
        )


def _refuse_unused(growth: Growth, unused: Iterable[str]) -> None:
    parameters = [growth.dims.program.parameter(name) for name in unused]
    matrices = [p for p in parameters if p.trainable and sum(s > 1 for s in p.shape) > 1]
    if matrices:
        first, more = matrices[0], len(matrices) - 1
        raise PlanError(
            f"{first.name} {first.shape} is never used by forward on this example, so its role is unknown"
            + (f" (as that of {more} more)" if more else ""),
            todo="pass an example that reaches it, or unused='freeze' to leave all such parameters untrained",
        )


class _Reader:
    def __init__(self, growth: Growth, rules: Table, branches: bool) -> None:
        self.growth, self.dims, self.axes = growth, growth.dims, growth.dims.axes
        self.absolute = rules.absolute
        table_row = rules.rules.get("embedding", rules.rules["input"])
        totals = {
            "readout": (rules.rules["output"].multiplier, "fan_in" if rules.absolute else "r_in"),
            "embedding": (table_row.multiplier, "fan_out" if rules.absolute else "r_out"),
            "attention": (rules.sites["attention"].total, "n" if rules.absolute else "r"),
            "residual": (
                rules.sites["residual"].total if "residual" in rules.sites else None,
                "B" if rules.absolute else "L",
            ),
        }
        self.exponents = {kind: None if total is None else total.exponent(r) for kind, (total, r) in totals.items()}
        self.residuals = residuals(growth.dims) if branches or "residual" in rules.sites else ()
        self.depths: tuple[float, ...] = (1.0,) * (1 + max((r.stream for r in self.residuals), default=-1))
        self.branches: tuple[float, ...] = ()
        self.flow = Flow(growth.dims)
        self.nodes = {n.name: n for n in growth.dims.program.graph.nodes}
        self.at: dict[fx.Node, list[Use]] = {}
        for use in self.dims.uses:
            self.at.setdefault(use.node, []).append(use)
        self.products = {p.node for p in self.dims.products}
        self.scales = Scales(growth, None if rules.absolute else growth.constants)
        self.reaching = reaching_output(growth.dims, growth.grows)
        self.grown = behind(growth.dims, growth.grows)
        self.undone: set[tuple[fx.Node, str]] = set()

    def deepen(self, depth: tuple[float, ...] | float | None, scheme: str) -> None:
        """Growth of the number of branches on each residual stream, if the scheme asks for it.

        Raises:
            PlanError: the base's number is not known, or given to a scheme that has no use for it.
            BaseError: the base has other streams.
        """
        if self.exponents["residual"] is None:
            if isinstance(depth, float) and not self.absolute:
                raise PlanError(f"depth_ratio={depth:g}, and scheme {scheme!r} does not scale with depth")
            return
        own = [sum(r.stream == i for r in self.residuals) for i in range(len(self.depths))]
        if self.absolute:
            self.depths = tuple(n / 2 for n in own)
            return
        if not own:
            return
        if depth is None:
            raise PlanError(
                f"scheme {scheme!r} scales with depth, and this base does not tell how deep it is",
                todo="pass a base model, depth_ratio=, or a base with 'residual_branches', as this scheme saves it",
            )
        self.branches = tuple(n / depth for n in own) if isinstance(depth, float) else depth
        if len(self.branches) != len(own):
            raise BaseError(
                f"the base has {len(self.branches)} residual streams and the model {len(own)}",
                todo="pass a base of the same kind, with fewer or as many layers",
            )
        self.depths = tuple(n / b for n, b in zip(own, self.branches, strict=True))

    # roles ---------------------------------------------------------------------------------------------

    def number(self, p: Parameter) -> fx.Node | None:
        """The first reader of a parameter without axes, of which there is nothing to say but that it is read."""
        node = self.nodes.get(p.node or "") if not p.shape else None
        return next(iter(node.users), None) if node is not None else None

    def role(self, p: Parameter, uses: list[Use]) -> ParameterRole:
        """One role for all uses of a parameter; lookups come first."""
        if not uses:
            op = self.number(p)
            why, where = ("a single number", describe(op)) if op else ("never used by forward", p.name)
            return ParameterRole(p, "fixed", "fixed", 1, 1, 1, 1, 1, False, False, (), 1, 1, (), "", why, where)
        whole = max(len(u.kinds) for u in uses)  # what is computed from it and constants has fewer of its axes
        uses = [u for u in uses if len(u.kinds) == whole]
        found = [self.role_of_use(u) for u in uses]
        order: list[Role] = ["input", "hidden", "output", "vector", "fixed"]
        looked_up = any("index" in u.kinds.values() for u in uses)
        contracted = any("in" in u.kinds.values() for u in uses)
        pick = 0
        if looked_up:
            pick = next(i for i, u in enumerate(uses) if "index" in u.kinds.values())
        else:
            pick = min(range(len(uses)), key=lambda i: order.index(found[i][0]))
        use = uses[pick]
        role, reason = found[pick]
        ins = [c for c, k in use.cells if k == "in"]
        taps = math.prod(c.size for c, k in use.cells if k == "taps")
        outs = [c for c, k in use.cells if k in ("out", "elementwise")]
        bottleneck = role == "output" and not any(
            r == "output" and self.is_true_output(u) for u, (r, _) in zip(uses, found, strict=True)
        )
        if bottleneck:
            reason += "; its result passes a growing dimension again before any output"
        law, r_law = self.law_fan(use) if not ins else (math.prod(c.size for c in ins) * taps, self.ratio(ins))
        return ParameterRole(
            parameter=p,
            role=role,
            kind=kind_of(use, self.at[use.node], role, bottleneck or self.is_inside(use), self.flow),
            r_in=self.ratio(ins),
            r_out=self.ratio([*outs, *(c for c, k in use.cells if k == "stack")]),
            fan_in=math.prod(c.size for c in ins) * taps,
            fan_out=math.prod(c.size for c in outs),
            taps=taps,
            bottleneck=bottleneck,
            tied=looked_up and contracted,
            segments=self.segments(use) if role in ("hidden", "output") else (),
            law_fan=law,
            r_law=r_law,
            sibling_fans=self.sibling_fans(use),
            length_of=self.length_of(use),
            reason=reason,
            where=describe(use.node),
            depth=math.prod(self.depths[r.stream] for r in self.residuals if p.name in r.weights),
            unit_gradient=self.unit_gradient(p.name),
        )

    def unit_gradient(self, name: str) -> float:
        """Growth of gradients in a branch by u-muP's split (arXiv 2407.17465, appendix G), skip factors taken out."""
        found, seen = 1.0, [0] * len(self.depths)
        for r in self.residuals:
            seen[r.stream] += 1
            if name in r.weights:
                found *= math.sqrt(self.depths[r.stream] + seen[r.stream])
        return found

    def is_inside(self, use: Use) -> bool:
        """Whether a weight with fixed input contracts what comes out of a growing dimension."""
        return self.role_of_use(use)[0] == "input" and use.partner is not None and use.partner.name in self.grown

    def length_of(self, use: Use) -> str:
        """The weight that weight normalization divides by its norm before this parameter scales it."""
        if op_name(use.node) != "aten._weight_norm" or use.partner is None:
            return ""
        return next((p.name for p in self.dims.program.parameters if p.node == use.partner.name), "")

    def ratio(self, cells: Iterable[Cell]) -> float:
        """Growth of several axes together."""
        return math.prod(self.growth.ratio(c) for c in cells)

    def role_of_use(self, use: Use) -> tuple[Role, str]:
        """RULES 1: what is contracted, and what survives; independent maps in a stack survive side by side."""
        ins = [c for c, k in use.cells if k == "in"]
        outs = [c for c, k in use.cells if k in ("out", "stack")]
        others = [c for c, k in use.cells if k == "elementwise"]
        grows_in = any(self.growth.grows(c) for c in ins)
        grows_out = any(self.growth.grows(c) for c in outs)
        if "index" in use.kinds.values():
            return (
                ("input", f"looked up, gives {self.name(outs)}") if grows_out else ("fixed", "looked up, nothing grows")
            )
        if grows_in and grows_out:
            return "hidden", f"sums over {self.name(ins)}, gives {self.name(outs)}"
        if grows_in:
            return "output", f"sums over {self.name(ins)}, gives fixed {self.shape(outs)}"
        if grows_out:
            return "input", f"sums over fixed {self.shape(ins)}, gives {self.name(outs)}"
        growing = [c for c in others if self.growth.grows(c)]
        if growing:
            own = [c for c in self.dims.of_parameter[use.parameter] if c.size > 1 and not self.growth.grows(c)]
            table = any(all(a.fixed or a.size == 1 for a in self.axes.atoms(c)) for c in own)
            if table and not any(k == "taps" for _, k in use.cells):
                return "input", f"a table added to data, gives {self.name(growing)}"
            return "vector", f"acts per element of {self.name(growing)}"
        return "fixed", "nothing grows"

    def name(self, cells: Iterable[Cell]) -> str:
        """Names of the growing dimensions of some axes."""
        names = [
            d.name for c in cells for a in self.axes.atoms(c) if (d := self.growth.dimension(a)) is not None and d.grows
        ]
        return " and ".join(dict.fromkeys(names)) or "nothing"

    @staticmethod
    def shape(cells: Iterable[Cell]) -> str:
        """Sizes of some axes."""
        return " x ".join(str(c.size) for c in cells) or "1"

    def is_true_output(self, use: Use) -> bool:
        """Whether the result reaches a model output without passing a growing dimension."""
        return use.node.name in self.reaching

    def law_fan(self, use: Use) -> tuple[int, float]:
        """Contracted size of the op that a bias belongs to."""
        for other in self.at[use.node]:
            if other.parameter != use.parameter and "in" in other.kinds.values():
                ins = [c for c, k in other.cells if k == "in"]
                taps = math.prod(c.size for c, k in other.cells if k == "taps")
                return math.prod(c.size for c in ins) * taps, self.ratio(ins)
        return 1, 1.0

    def sibling_fans(self, use: Use) -> tuple[Fan, ...]:
        """Contracted sizes of the other weights of the same op."""
        found = {}
        for other in self.at[use.node]:
            if other.parameter != use.parameter and "in" in other.kinds.values():
                ins = [c for c, k in other.cells if k == "in"]
                found[math.prod(c.size for c in ins)] = self.ratio(ins)
        return tuple(Fan("fan_in of the same op", float(n), r) for n, r in found.items())

    def segments(self, use: Use) -> tuple[Segment, ...]:
        """Runs of the surviving axis that differ in whether they grow."""
        outs = [c for c, k in use.cells if k == "out"]
        if len(outs) != 1:
            return ()
        found: list[Segment] = []
        at = 0
        for part in self.axes.segments(outs[0]):
            role: Role = "hidden" if self.growth.grows(part) else "output"
            if found and found[-1].role == role:
                found[-1] = Segment(found[-1].start, at + part.size, role)
            else:
                found.append(Segment(at, at + part.size, role))
            at += part.size
        return tuple(found) if len(found) > 1 else ()

    # numbers that depend on width ----------------------------------------------------------------------

    @cached_property
    def known(self) -> Forms:
        """How values depend on width by what their ops do, before any site counts a number."""
        return Forms(Numbers(self.growth, self.flow, self.measure))

    def measure(self, cell: Cell) -> float:
        """Logarithm of what an axis counts for in the scheme: its growth, or its size."""
        return math.log((cell.size if self.absolute else self.growth.ratio(cell)) if self.growth.grows(cell) else 1)

    def counted(self, factors: Iterable[Factor]) -> tuple[Factor, ...]:
        """Factors without those that are undone behind an embedding."""
        return tuple(f for f in factors if (f.node, f.key) not in self.undone)

    def natural(self, path: Path, ratio: float) -> float:
        """Exponent of what a norm by a sum, or shares of one, at the far end of a path grow by."""
        end = path.nodes[-1]
        if ratio == 1 or not (path.normalized or op_name(end) in SOFTMAX):
            return 0.0
        return round(4 * self.known.rest(end) / math.log(ratio)) / 4

    def excess(self, sites: Iterable[Site]) -> tuple[tuple[Excess, ...], dict[tuple[str, str], float]]:
        """Numbers that depend on width, and that no rule takes; growth of all that no site takes."""
        if all(e is None for e in self.exponents.values()):
            return (), {}  # a scheme that leaves the forward pass as it is
        numbers = Numbers(self.growth, self.flow, lambda c: math.log(self.growth.ratio(c)))
        if not numbers.growths:
            return (), {}
        forms = Forms(numbers, sites)
        apart = {k for k, e in forms.found.items() if not e.certain} | forms.behind
        apart |= {(f.node.name, f.key) for s in sites if s.ratio == 1 or s.kind == "embedding" for f in s.factors}
        free = {k: g for k, g in numbers.growths.items() if k not in apart}
        order = self.flow.order
        return tuple(sorted(forms.found.values(), key=lambda e: order[e.node])), free

    # sites ---------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Every place whose scale depends on width."""
        roles = [self.role_of_use(use)[0] for use in self.dims.uses]
        tables = (u for u, role in zip(self.dims.uses, roles, strict=True) if role == "input")
        found = [self.embedding(u) for u in tables if "index" in u.kinds.values()]
        if self.exponents["embedding"] is not None:
            self.undone = {(f.node, f.key) for s in found for f in s.factors}
        found += [self.attention(p) for p in self.dims.products if self.grows_or_heads(p)]
        found += [self.branch(r) for r in self.residuals]
        readouts = {
            u.parameter
            for u, role in zip(self.dims.uses, roles, strict=True)
            if role == "output" and self.is_true_output(u)
        }
        for use, role in zip(self.dims.uses, roles, strict=True):
            if role == "output" and use.parameter in readouts:  # one weight has one scale, inside as at the output
                found.append(self.readout(use))
        order = self.flow.order
        return sorted(found, key=lambda s: order[s.node])

    def is_frozen(self, site: Site) -> bool:
        """Whether weights without gradient give a site's operands, or are its own."""
        frozen = {p.name for p in self.dims.program.parameters if not p.trainable}
        if site.parameter:
            return site.parameter in frozen
        stack, seen = [site.node], {site.node}
        while stack:
            for node in stack.pop().all_input_nodes:
                if node in seen or self.dims.origin.get(node.name) != "data":
                    continue
                seen.add(node)
                weights = {u.parameter for u in self.at.get(node, ()) if "in" in u.kinds.values()}
                if weights & frozen:
                    return True
                if not weights:
                    stack.append(node)
        return False

    def grows_or_heads(self, product: Product) -> bool:
        """Sites worth a line: the contracted axis could grow in some model of this kind."""
        return any(
            self.growth.dimension(a) is not None for pair in product.contracted for a in self.axes.atoms(pair[0])
        )

    def attention(self, product: Product) -> Site:
        """RULES 3: in muP a sum over a product of two activations must end as r^-1."""
        node = product.node
        size = math.prod(a.size for a, _ in product.contracted)
        ratio = float(size) if self.absolute else self.ratio(a for a, _ in product.contracted)
        grows = any(self.growth.grows(a) for a, _ in product.contracted)
        left, right = self.flow.upstream(product.left), self.flow.upstream(product.right)
        _, after = self.flow.downstream(node)
        factors = self.counted((*left.factors, *right.factors, *after, *own_factors(node, size)))
        present, scale, told = self.scales.exponent(factors, size, ratio)
        natural = self.natural(left, ratio) + self.natural(right, ratio)
        present += natural
        treatment, wanted, why = self.treat("attention", present)
        reason = f"{why}sums {size} products of activations{told}"
        if not grows and not self.absolute:
            treatment, reason = "nothing", f"the {size} summed elements do not grow"
        elif left.normalized and right.normalized:
            treatment, reason = (
                "norm",
                "both sides are normalized: their gains set the scale, it is left as it is",
            )
        elif any(n in self.products and n is not node for path in (left, right) for n in path.nodes):
            treatment = "unsupported"
            reason = "one side is itself a sum over products of activations (linear attention)"
        return Site(
            kind="attention",
            parameter="",
            node=node,
            where=describe(node),
            size=size,
            ratio=ratio,
            exponent=wanted,
            present=present,
            scale=scale,
            paths=(left.nodes, right.nodes),
            treatment=treatment,
            reason=reason,
            factors=factors,
            natural=natural,
        )

    def growing_size(self, cells: Iterable[Cell]) -> int:
        """Elements of what grows along some axes: of the factors of a product, of all of any other."""
        axes, size = self.dims.axes, 1
        for root in map(axes.find, cells):
            factors = axes.factors(root) if root.kind == "product" else [root]
            size *= math.prod(f.size for f in factors if self.ratio([f]) != 1)
        return size

    def treat(self, kind: str, present: float) -> tuple[Treatment, float, str]:
        """Whether a site needs anything, the exponent that it must have, and why it needs nothing."""
        wanted = self.exponents[kind]
        if wanted is None:
            return "nothing", present, "left as the model has it: "
        return ("nothing", wanted, "already right: ") if present == wanted else ("apply", wanted, "")

    def branch(self, residual: Residual) -> Site:
        """RULES 8: what a branch adds to its stream."""
        ratio = self.depths[residual.stream]
        path = self.flow.upstream(residual.branch)
        present, scale, told = self.scales.exponent(path.factors, 1, ratio)
        treatment, wanted, _ = self.treat("residual", present)
        total = sum(r.stream == residual.stream for r in self.residuals)
        return Site(
            kind="residual",
            parameter="",
            node=residual.node,
            where=describe(residual.node),
            size=total,
            ratio=ratio,
            exponent=wanted,
            present=present,
            scale=scale,
            paths=(path.nodes,),
            treatment=treatment,
            reason=f"one of {total} branches on its stream{told}",
            factors=path.factors if self.exponents["residual"] is not None and ratio != 1 else (),
        )

    def readout(self, use: Use) -> Site:
        """RULES 2: in muP the output of a readout is multiplied by r_in^-1, counting what is there."""
        assert use.partner is not None
        ins = [c for c, k in use.cells if k == "in"]
        size = math.prod(c.size for c in ins)
        ratio = float(size) if self.absolute else self.ratio(ins)
        path = self.flow.upstream(use.partner)
        _, after = self.flow.downstream(use.node)
        weight = self.flow.upstream(use.operand)
        factors = self.counted((*path.factors, *weight.factors, *after, *own_factors(use.node, size)))
        present, scale, told = self.scales.exponent(factors, size, ratio)
        natural = self.natural(path, ratio) + self.natural(weight, ratio)
        present += natural
        reason = f"sums over {self.name(ins)}" + (f"; scale {scale:.6g}{told}" if scale != 1 else "")
        treatment, wanted, why = self.treat("readout", present)
        return Site(
            kind="readout",
            parameter=use.parameter,
            node=use.node,
            where=describe(use.node),
            size=size,
            ratio=ratio,
            exponent=wanted,
            present=present,
            scale=scale,
            paths=(path.nodes,),
            treatment=treatment,
            reason=why + reason,
            factors=factors,
            natural=natural,
        )

    def embedding(self, use: Use) -> Site:
        """RULES 4: an embedding times sqrt(width) must become width-independent."""
        outs = [c for c, k in use.cells if k == "out"]
        size = math.prod(c.size for c in outs)
        ratio = float(size) if self.absolute else self.ratio(outs)
        nodes, factors = self.flow.downstream(use.node)
        present, scale, told = self.scales.exponent(factors, size, ratio)
        part = self.growing_size(outs)
        if factors and present == 0 and part != size:  # one table for all layers has that of one
            present, scale, told = self.scales.exponent(factors, part, ratio)
        treatment, wanted, _ = self.treat("embedding", present)
        return Site(
            kind="embedding",
            parameter=use.parameter,
            node=use.node,
            where=describe(use.node),
            size=size,
            ratio=ratio,
            exponent=wanted,
            present=present,
            scale=scale,
            paths=(nodes,),
            treatment=treatment,
            reason=f"multiplied by {scale:.6g}{told}",
            factors=factors,
        )
