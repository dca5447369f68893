"""Random inputs of the shapes that autofit infers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autofit.examples import candidate_examples


def example_for(model: nn.Module, seed: int = 0) -> dict[str, Any]:
    """Random values in the shapes of the inferred example."""
    inferred = next(iter(candidate_examples(model))).kwargs
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for name, value in inferred.items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.long:
            made[name] = torch.randint(3, 90, value.shape, generator=generator)
        elif isinstance(value, torch.Tensor):
            made[name] = torch.randn(value.shape, generator=generator)
        else:
            made[name] = value
    return made


def logits(model: nn.Module, inputs: Any) -> torch.Tensor:
    """The tensor that training would put into a loss."""
    result = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if hasattr(result, name):
            return getattr(result, name)
    return result
