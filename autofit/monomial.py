"""Products of powers of growth ratios, exact: the cells of the rule table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

SYMBOLS = {
    "r_in": "growth of the axes that the parameter contracts",
    "r_out": "growth of the axes that survive",
    "r": "growth of the elements that a site sums",
    "L": "growth of the number of branches on a residual stream",
    "fan_in": "elements that the parameter contracts",
    "fan_out": "elements that survive",
    "n": "elements that a site sums",
    "B": "half the number of branches on a residual stream",
    "G": "what takes a gradient to unit scale",
}
_FACTOR = re.compile(r"([*/]?)(1|[A-Za-z_]+)(?:\^(-?\d+(?:/\d+)?))?")


@dataclass(frozen=True)
class Monomial:
    """A product of powers of growth ratios, dimensionless.

    >>> Monomial.parse("r_out/r_in")(r_in=4, r_out=8)
    2.0
    >>> str(Monomial.parse("r_in^-1/2") ** 2)
    '1/r_in'
    """

    powers: tuple[tuple[str, Fraction], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Monomial:
        """Read ``1``, ``r_out/r_in``, ``r_in^-1/2``, ``r_out^1/2*r_in``: what ``str`` writes.

        Raises:
            ValueError: not such a product, or a ratio that is none of ``SYMBOLS``.
        """
        found, at = ONE, 0
        while at < len(text):
            match = _FACTOR.match(text, at)
            if match is None or bool(match[1]) == (at == 0) or (match[2] not in SYMBOLS and match[2] != "1"):
                raise ValueError(f"{text!r} is no product of powers of {', '.join(SYMBOLS)}")
            power = Fraction(match[3] or 1) * (-1 if match[1] == "/" else 1)
            found *= cls(((match[2], power),)) if match[2] != "1" else ONE
            at = match.end()
        return found

    @classmethod
    def of(cls, powers: Mapping[str, Fraction]) -> Monomial:
        """The product of these powers."""
        return cls(tuple((n, powers[n]) for n in SYMBOLS if powers.get(n)))

    def __mul__(self, other: Monomial) -> Monomial:
        total = dict(self.powers)
        for name, power in other.powers:
            total[name] = total.get(name, Fraction(0)) + power
        return Monomial.of(total)

    def __pow__(self, exponent: int | Fraction) -> Monomial:
        return Monomial(tuple((n, p * exponent) for n, p in self.powers if exponent))

    def __truediv__(self, other: Monomial) -> Monomial:
        return self * other**-1

    def exponent(self, name: str) -> float:
        """Power of one ratio."""
        return float(dict(self.powers).get(name, 0))

    def __call__(self, ratios: Mapping[str, float] | None = None, /, **more: float) -> float:
        """Value at these ratios; exactly 1.0 where all are 1."""
        known, value = {**(ratios or {}), **more}, 1.0
        for name, power in self.powers:
            value *= float(known[name]) ** float(power)
        return value

    def __str__(self) -> str:
        above = [f"{n}^{p}" if p != 1 else n for n, p in self.powers if p > 0 or p.denominator > 1]
        below = [f"{n}^{-p}" if p != -1 else n for n, p in self.powers if p < 0 and p.denominator == 1]
        return "/".join(["*".join(above) or "1", *below])


ONE = Monomial()
