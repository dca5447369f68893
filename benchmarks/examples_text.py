"""Examples for text models whose inputs no configuration tells."""

from __future__ import annotations

from typing import Any


def example_for(model: Any) -> Any:
    """Arguments for one call, or ``None`` where this module knows none."""
    return None
