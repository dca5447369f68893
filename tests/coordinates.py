"""A coordinate check for tests: train a few steps over widths and fit slopes (TP5 section D.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

Inputs = Mapping[str, torch.Tensor] | torch.Tensor


@dataclass(frozen=True)
class Slopes:
    """Least-squares slopes of log2 against log2 width.

    Attributes:
        delta: by module, slope of mean |x after training - x before|.
        output: slope of the model output's change.
    """

    delta: dict[str, float]
    output: float

    @property
    def worst(self) -> tuple[str, float]:
        """The module whose change grows fastest."""
        return max(self.delta.items(), key=lambda kv: kv[1])


def call(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The model's first output tensor."""
    result = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    if hasattr(result, "logits"):
        result = result.logits
    return result[0] if isinstance(result, tuple) else result


def activations(model: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Outputs of all leaf modules, without gradients."""
    seen: dict[str, torch.Tensor] = {}
    handles = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                seen[name] = first.detach().clone()

        return hook

    for name, module in model.named_modules():
        if name and not list(module.children()):
            handles.append(module.register_forward_hook(keep(name)))
    with torch.no_grad():
        seen[""] = call(model, inputs).detach().clone()
    for handle in handles:
        handle.remove()
    return seen


def measure(
    make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]],
    inputs: Inputs,
    targets: torch.Tensor,
    widths: Sequence[int] = (32, 64, 128, 256),
    seeds: Sequence[int] = (0, 1),
    steps: int = 4,
) -> Slopes:
    """Train every width from every seed and fit the slopes of the mean change."""
    changes: dict[str, list[float]] = {}
    for width in widths:
        totals: dict[str, float] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            model, optimizer = make(width)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            before = activations(model, inputs)
            for _ in range(steps):
                logits = call(model, inputs)
                loss = nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            after = activations(model, inputs)
            for name, value in after.items():
                change = (value - before[name]).abs().mean().item()
                totals[name] = totals.get(name, 0.0) + change / len(seeds)
        for name, total in totals.items():
            changes.setdefault(name, []).append(total)
    x = [math.log2(w) for w in widths]
    slopes = {n: slope(x, [math.log2(v) for v in ys]) for n, ys in changes.items() if min(ys) > 1e-9}
    output = slopes.pop("")
    return Slopes(slopes, output)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
