"""Scale factors that a program already has, and how they depend on width (rules 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import fx

from autofit.flow import Factor
from autofit.growth import Growth
from autofit.program import LAYER_INDEX, module_path, op_name

EXPONENTS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5)


def _is_bfloat16(value: float) -> bool:
    return float(torch.tensor(value, dtype=torch.bfloat16)) == value


class Scales:
    """Exponents of constants: measured against a base where there is one, else judged by their values."""

    def __init__(self, growth: Growth, measured: Mapping[tuple[str, str], tuple[float, float]] | None) -> None:
        """For one program.

        Args:
            growth: its dimensions.
            measured: constants by (node, argument), here and in the base.
        """
        self.measured = measured or {}
        self.summed = {math.prod(a.size for a, _ in p.contracted) for p in growth.dims.products}

    def exponent(self, factors: Iterable[Factor], size: int, ratio: float) -> tuple[float, float, str]:
        """Exponent of ``ratio`` in a product of constants, their value, and how it is known."""
        total, scale, told, tolerance = 0.0, 1.0, "", 1e-6
        for f in factors:
            scale *= f.value
            if f.key == "default":
                total -= 0.5
                continue
            measured = self.measured.get((f.node.name, f.key))
            if measured and ratio != 1:
                change = measured[0] / measured[1]
                total += math.log(1 / change if f.inverse else change) / math.log(ratio)
                told = ", measured against the base"
                if all(_is_bfloat16(v) for v in measured):  # eight bits of the value are told
                    tolerance = max(tolerance, abs(2**-8 / math.log(ratio)))
                continue
            elsewhere = any(math.isclose(f.value, s**-0.5, rel_tol=1e-5) for s in self.summed - {size})
            for e in EXPONENTS:
                if elsewhere and abs(e) != 0.5:
                    continue  # more likely the usual scale of another sum, whose size is a power of this one
                if size > 1 and math.isclose(f.value, size**e, rel_tol=1e-5):
                    total += e
                    told = f", taken as {size}^{e:g} because it has that value"
                    break
            else:
                layers = () if elsewhere else _layers(f.node)
                layer = next((k for k in layers if size > 1 and _near(f.value * k, size**-0.5)), 0)
                if layer:
                    total -= 0.5
                    told = f", taken as {size}^-0.5 / {layer} because it has that value, in layer {layer}"
                elif not _near(f.value, round(f.value)) or f.value > 2:
                    told = told or f", {f.value:.6g} taken to be the same at any width"
        snapped = round(total * 4) / 4
        return (snapped if abs(total - snapped) < tolerance else total), scale, told


def own_factors(node: fx.Node, size: int) -> list[Factor]:
    """The scale inside an attention or baddbmm op."""
    if op_name(node) == "aten.scaled_dot_product_attention":
        given = node.kwargs.get("scale")
        if given is None:
            return [Factor(node, "default", size**-0.5, False)]
        return [Factor(node, "scale", float(given), False)]  # type: ignore[arg-type]
    if op_name(node) in ("aten.baddbmm", "aten.addmm"):
        return [Factor(node, "alpha", float(node.kwargs.get("alpha", 1)), False)]  # type: ignore[arg-type]
    return []


def _layers(node: fx.Node) -> Iterator[int]:
    """Numbers, from one, of the layers around a node."""
    return (int(i) + 1 for i in LAYER_INDEX.findall(module_path(node)))
