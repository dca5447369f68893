"""The rules of muP as data: exponents of the width multipliers, per role."""

from __future__ import annotations

from dataclasses import dataclass

from autofit.errors import PlanError

Exponents = tuple[float, float]
"""Exponents of ``(r_in, r_out)``."""


@dataclass(frozen=True)
class Rule:
    """How everything about a parameter scales with width, relative to the base.

    Attributes:
        multiplier: forward factor on the weight's output.
        init: std of the initial values.
        adam_lr, sgd_lr: learning rates.
        adam_eps: epsilon of Adam-like optimizers.
        source: where the row comes from.
    """

    multiplier: Exponents
    init: Exponents
    adam_lr: Exponents
    sgd_lr: Exponents
    adam_eps: Exponents
    source: str


MUP: dict[str, Rule] = {
    "input": Rule((0, 0), (0, 0), (0, 0), (0, 1), (0, -1), "TP5 Table 8"),
    "hidden": Rule((0, 0), (-0.5, 0), (-1, 0), (-1, 1), (0, -1), "TP5 Table 8"),
    "output": Rule((-1, 0), (0, 0), (0, 0), (1, 0), (-1, 0), "TP5 Table 8"),
    "bottleneck": Rule((0, 0), (-0.5, 0), (-1, 0), (-1, 0), (-0.5, 0), "measured; 2310.17813"),
    "bottleneck as output": Rule((0, 0), (-1, 0), (-1, 0), (-1, 0), (-0.5, 0), "2310.17813; TP5 Table 3"),
    "vector": Rule((0, 0), (0, 0), (0, 0), (0, 1), (0, -1), "TP5 Table 8"),
    "fixed": Rule((0, 0), (0, 0), (0, 0), (0, 0), (0, 0), "nothing grows"),
}

SCHEMES: dict[str, dict[str, Rule]] = {"mup": MUP}


def rules(scheme: str) -> dict[str, Rule]:
    """Rows of one scheme.

    Raises:
        PlanError: no such scheme.
    """
    if scheme not in SCHEMES:
        raise PlanError(f"unknown scheme {scheme!r}", todo=f"choose one of: {', '.join(SCHEMES)}")
    return SCHEMES[scheme]


def power(exponents: Exponents, r_in: float, r_out: float) -> float:
    """``r_in^a * r_out^b``; exactly 1.0 at the base."""
    return float(r_in ** exponents[0] * r_out ** exponents[1])
