"""Numbers of a program as formulas in its sizes, found from what they are in several programs."""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

Vector = tuple[float | int | None, ...]
"""A number in each of several programs; ``None`` where it is not known."""


@dataclass(frozen=True)
class Term:
    """``factor * prod(symbol ** power)``."""

    factor: Fraction | float
    powers: tuple[tuple[str, Fraction], ...] = ()


@dataclass(frozen=True)
class Formula:
    """A sum of products of powers of sizes.

    Attributes:
        terms: what is added.
        whole: whether the number is an integer.
        in_eval: what it is in eval mode, where that differs from training.
        over: what the sum is divided by, of a number that is no integer.
    """

    terms: tuple[Term, ...]
    whole: bool
    in_eval: float | int | bool | None = None
    over: Formula | None = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """Sizes that it depends on."""
        own = (name for t in self.terms for name, _ in t.powers)
        return tuple(dict.fromkeys((*own, *(self.over.symbols if self.over is not None else ()))))

    def to_ast(self, symbol: Callable[[str], ast.expr]) -> ast.expr:
        """Python for it: ``4 * n``, ``n // h``, ``(n / h) ** -0.5``."""
        parts = [self._term(t, symbol) for t in self.terms]
        made = parts[0]
        for term, part in zip(self.terms[1:], parts[1:], strict=True):
            if term.factor < 0:
                made = ast.BinOp(made, ast.Sub(), self._term(Term(-term.factor, term.powers), symbol))
            else:
                made = ast.BinOp(made, ast.Add(), part)
        if self.over is not None:
            made = ast.BinOp(made, ast.Div(), self.over.to_ast(symbol))
        if self.in_eval is not None:
            test = ast.Attribute(ast.Name("self"), "training")
            if self.in_eval is False and self.terms == (Term(Fraction(1)),):
                return test
            return ast.IfExp(test, made, ast.Constant(self.in_eval))
        return made

    def _term(self, term: Term, symbol: Callable[[str], ast.expr]) -> ast.expr:
        if not term.powers:
            return number(int(term.factor) if self.whole else float(term.factor))
        above = [(n, p) for n, p in term.powers if p > 0]
        below = [(n, -p) for n, p in term.powers if p < 0]
        factor = term.factor
        if self.whole:
            assert isinstance(factor, Fraction)
            numerator = _product(
                [
                    *([number(factor.numerator)] if factor.numerator != 1 or not above else []),
                    *(_power(symbol(n), p) for n, p in above),
                ]
            )
            denominator = [
                *([number(factor.denominator)] if factor.denominator != 1 else []),
                *(_power(symbol(n), p) for n, p in below),
            ]
            return ast.BinOp(numerator, ast.FloorDiv(), _product(denominator)) if denominator else numerator
        shared = {abs(p) for _, p in term.powers}
        if len(shared) == 1 and len(term.powers) > 1 and (power := shared.pop()) != 1:
            sign = 1 if term.powers[0][1] > 0 else -1
            top, bottom = ([symbol(n) for n, p in term.powers if p * sign * side > 0] for side in (1, -1))
            inner = ast.BinOp(_product(top), ast.Div(), _product(bottom)) if bottom else _product(top)
            body = _power(inner, power * sign)
        else:
            body = _product([_power(symbol(n), p) for n, p in term.powers])
        return body if factor == 1 else ast.BinOp(number(float(factor)), ast.Mult(), body)

    def __call__(self, values: Mapping[str, float]) -> float:
        total = 0.0
        for t in self.terms:
            total += float(t.factor) * math.prod(values[n] ** float(p) for n, p in t.powers)
        if self.over is not None:
            total /= self.over(values)
        return round(total) if self.whole else total


def constant(value: float | int) -> Formula:
    """A number that depends on nothing."""
    whole = isinstance(value, int)
    return Formula((Term(Fraction(value) if whole else value),), whole)


def number(value: float | int | bool | None) -> ast.expr:
    """A literal; negative ones and infinities as Python writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return ast.Call(ast.Name("float"), [ast.Constant(str(value))], [])
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)


def listed(value: Any) -> ast.expr:
    """Numbers in nested lists."""
    return ast.List([listed(v) for v in value]) if isinstance(value, list) else number(value)


def _power(base: ast.expr, power: Fraction) -> ast.expr:
    if power == 1:
        return base
    return ast.BinOp(base, ast.Pow(), ast.Constant(int(power) if power.denominator == 1 else float(power)))


def _product(parts: Sequence[ast.expr]) -> ast.expr:
    made = parts[0] if parts else ast.Constant(1)
    for part in parts[1:]:
        made = ast.BinOp(made, ast.Mult(), part)
    return made


class Solver:
    """Finds formulas: every symbol was changed alone in one program at least."""

    def __init__(self, symbols: Mapping[str, Vector]) -> None:
        """``symbols``: the value of each size in every program, that of the first first."""
        self.symbols = dict(symbols)
        self.known: dict[tuple[type, Vector], Formula] = {}
        self.failed: dict[tuple[type, Vector], int] = {}
        self.sizes: list[Formula] = []
        self.changed = {
            name: next(i for i, v in enumerate(vector) if v != vector[0]) for name, vector in symbols.items()
        }

    def __call__(self, vector: Vector) -> Formula | None:
        """The formula of a number, or ``None`` if none was found."""
        key = type(vector[0]), vector  # 1 and 1.0 are one key else
        if key not in self.known:
            if self.failed.get(key) == len(self.sizes):
                return None
            found = self._find(vector)
            if found is None:
                self.failed[key] = len(self.sizes)
                return None
            self.known[key] = found
            if found.whole and found.symbols and len(found.terms) == 1:
                self.sizes.append(found)
        return self.known[key]

    def _find(self, vector: Vector) -> Formula | None:
        first = vector[0]
        assert first is not None
        if all(v is None or v == first for v in vector):
            return constant(first)
        for candidate in self._candidates(vector):
            if candidate is not None and self._fits(candidate, vector):
                return candidate
        return None

    def _candidates(self, vector: Vector) -> Iterable[Formula | None]:
        yield self._monomial(vector)
        if isinstance(vector[0], float):
            yield self._quotient(vector)
        if isinstance(vector[0], int):
            yield self._affine(vector)
            yield from self._sums(vector)

    def _sums(self, vector: Vector) -> Iterator[Formula]:
        """Sizes that are known, added and subtracted."""
        sizes = [*self.sizes, *(Formula((Term(Fraction(1), ((n, Fraction(1)),)),), True) for n in self.symbols)]
        seen = [i for i, v in enumerate(vector) if v is not None]
        values = [tuple(self._value(f, i) for i in seen) for f in sizes]
        wanted = [int(vector[i] or 0) for i in seen]
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for b, value in enumerate(values):
            places[value].append(b)

        def plus(a: int, b: int, times: int) -> Formula:
            return Formula((*sizes[a].terms, *(Term(times * t.factor, t.powers) for t in sizes[b].terms)), True)

        rests = [[v - o for v, o in zip(wanted, value, strict=True)] for value in values]
        for a, rest in enumerate(rests):
            yield from (plus(a, b, 1) for b in places.get(tuple(rest), ()) if b > a)
        for a, rest in enumerate(rests):
            hits: list[tuple[int, int]] = []
            for k in (-1, 2, 3):
                if all(r % k == 0 for r in rest):
                    hits += [(b, k) for b in places.get(tuple(r // k for r in rest), ())]
            yield from (plus(a, b, k) for b, k in sorted(hits, key=lambda hit: hit[0]))
        for a, b, c in combinations(range(min(12, len(sizes))), 3):
            if all(rests[a][i] == values[b][i] + values[c][i] for i in range(len(seen))):
                yield Formula((*sizes[a].terms, *sizes[b].terms, *sizes[c].terms), True)

    def _value(self, formula: Formula, world: int) -> int:
        return round(formula({n: float(self.symbols[n][world] or 0) for n in formula.symbols}))

    def _fits(self, formula: Formula, vector: Vector) -> bool:
        for i, v in enumerate(vector):
            if v is None:
                continue
            values = {n: float(s) for n in formula.symbols if (s := self.symbols[n][i]) is not None}
            if len(values) < len(formula.symbols):
                return False
            try:
                exact = replace(formula, whole=False)(values)
            except (ZeroDivisionError, OverflowError):
                return False
            if not math.isclose(exact, float(v), rel_tol=1e-9 if formula.whole else 1e-6):
                return False
        return True

    def _monomial(self, vector: Vector) -> Formula | None:
        first = vector[0]
        assert first is not None
        if first == 0:
            return None
        powers = []
        for name, at in self.changed.items():
            value, old, new = vector[at], self.symbols[name][0], self.symbols[name][at]
            if value is None or not old or not new or value / first <= 0:
                return None
            power = math.log(value / first) / math.log(new / old)
            exact = Fraction(round(power * 4), 4)
            if abs(power - exact) > 1e-4 or (isinstance(first, int) and exact.denominator != 1):
                return None
            if exact:
                powers.append((name, exact))
        if isinstance(first, float):  # a quotient reads, and rounds, as that of the larger by the smaller
            powers.sort(key=lambda item: -float(self.symbols[item[0]][0] or 0))
        rest = first / math.prod(float(self.symbols[n][0] or 1) ** float(p) for n, p in powers)
        if isinstance(first, int):
            factor = Fraction(rest).limit_denominator(64)
            return Formula((Term(factor, tuple(powers)),), True)
        nice = Fraction(rest).limit_denominator(16)
        return Formula((Term(nice if math.isclose(nice, rest, rel_tol=1e-9) else rest, tuple(powers)),), False)

    def _quotient(self, vector: Vector) -> Formula | None:
        """``c / (n // k + b)`` with one size, as in ``log(10000) / (n // 2 - 1)``; to the last bit."""
        first = vector[0]
        moved = [n for n, at in self.changed.items() if vector[at] not in (None, first)]
        if len(moved) != 1 or not first:
            return None
        at, symbol = self.changed[moved[0]], self.symbols[moved[0]]
        if not vector[at]:
            return None
        for k in (4, 2, 1):
            a, b = (int(symbol[i] or 0) // k for i in (0, at))
            # first * (a + rest) == vector[at] * (b + rest)
            rest = (vector[at] * b - first * a) / (first - vector[at])  # type: ignore[operator]
            if abs(rest) > 4.1 or abs(rest - round(rest)) > 1e-6 or not round(rest) or not a + round(rest):
                continue
            terms = Term(Fraction(1, k), ((moved[0], Fraction(1)),)), Term(Fraction(round(rest)))
            over = Formula(terms, True)
            for factor in _near(first * (a + round(rest))):
                made = Formula((Term(factor),), False, over=over)
                if all(v is None or made({moved[0]: float(s or 0)}) == v for v, s in zip(vector, symbol, strict=True)):
                    return made
        return None

    def _affine(self, vector: Vector) -> Formula | None:
        """``a * n + b`` with one size."""
        first = vector[0]
        moved = [n for n, at in self.changed.items() if vector[at] not in (None, first)]
        if len(moved) != 1:
            return None
        at, symbol = self.changed[moved[0]], self.symbols[moved[0]]
        slope = Fraction(int(vector[at] - first), int(symbol[at] - symbol[0]))  # type: ignore[operator]
        rest = Fraction(int(first)) - slope * int(symbol[0])  # type: ignore[arg-type]
        whole = rest.denominator == 1 and all(s is None or (slope * int(s)).denominator == 1 for s in symbol)
        return Formula((Term(slope, ((moved[0], Fraction(1)),)), Term(rest)), True) if slope and whole else None


def _near(value: float) -> Iterator[float]:
    """Floats within a few of a value, the nearest first."""
    below = above = value
    yield value
    for _ in range(4):
        below, above = math.nextafter(below, -math.inf), math.nextafter(above, math.inf)
        yield below
        yield above
