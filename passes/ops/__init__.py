"""Rules that say what each op does to tensor axes. The docstring of a rule is its equation."""

from __future__ import annotations

from autofit.passes.ops import contraction, elementwise, indexing, shape, spatial
from autofit.passes.ops.context import Context, Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shape.RULES,
    **contraction.RULES,
    **indexing.RULES,
    **spatial.RULES,
}

__all__ = ["RULES", "Context", "Rule"]
