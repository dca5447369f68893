"""autofit: Maximal Update Parametrization (muP) for any PyTorch model, without hand edits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autofit.api import Analysis, analyze, muify
    from autofit.checking import Check, check
    from autofit.coordinates import CoordCheck, coord_check
    from autofit.deferred import deferred_init
    from autofit.errors import (
        AutofitError,
        BaseError,
        CaptureError,
        DimensionError,
        ExampleError,
        ExportError,
        LoweringError,
        OptimizerError,
        PlanError,
        TargetError,
        VerificationError,
    )
    from autofit.exponents import measure_optimizer
    from autofit.narrow import Proxy, family, proxy
    from autofit.parts import Part, apply
    from autofit.plan import Plan
    from autofit.searching import Sweep, sweep
    from autofit.tunables import Knob, Tunables

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("Analysis", "analyze", "muify"), "autofit.api"),
    **dict.fromkeys(
        (
            "AutofitError",
            "BaseError",
            "CaptureError",
            "DimensionError",
            "ExampleError",
            "ExportError",
            "LoweringError",
            "OptimizerError",
            "PlanError",
            "TargetError",
            "VerificationError",
        ),
        "autofit.errors",
    ),
    "Check": "autofit.checking",
    "CoordCheck": "autofit.coordinates",
    "coord_check": "autofit.coordinates",
    "check": "autofit.checking",
    "Knob": "autofit.tunables",
    "Part": "autofit.parts",
    "Plan": "autofit.plan",
    "Tunables": "autofit.tunables",
    "Sweep": "autofit.searching",
    "sweep": "autofit.searching",
    "apply": "autofit.parts",
    "Proxy": "autofit.narrow",
    "deferred_init": "autofit.deferred",
    "family": "autofit.narrow",
    "measure_optimizer": "autofit.exponents",
    "proxy": "autofit.narrow",
}

__all__ = [
    "Analysis",
    "AutofitError",
    "BaseError",
    "CaptureError",
    "Check",
    "CoordCheck",
    "DimensionError",
    "ExampleError",
    "ExportError",
    "Knob",
    "LoweringError",
    "OptimizerError",
    "Part",
    "Plan",
    "PlanError",
    "Proxy",
    "Sweep",
    "TargetError",
    "Tunables",
    "VerificationError",
    "analyze",
    "apply",
    "check",
    "coord_check",
    "deferred_init",
    "family",
    "measure_optimizer",
    "muify",
    "proxy",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): ``import autofit`` alone does not load torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'autofit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
