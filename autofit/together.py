"""Several optimizers as one, for those that take only some of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Optimizers of disjoint parameters behind one interface.

    Groups and state are the parts' own, so that schedulers, gradient scalers and checkpoints treat it like any other
    optimizer. Of the hooks, those of the whole and of each part run.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """Join optimizers that were made already.

        Args:
            parts: in the order of their groups here.
        """
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        """One state and the same group objects on both sides."""
        at = 0
        for part in self.parts:
            groups = self.param_groups[at : at + len(part.param_groups)]
            part.__setstate__({"state": self.state, "param_groups": groups})
            at += len(groups)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of each part; ``closure`` is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer; the parts get theirs."""
        super().load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: no part would step them.

        Raises:
            RuntimeError: no part has this group.
        """
        if not any(param_group is group for part in self.parts for group in part.param_groups):
            raise RuntimeError("parameters are added to one of the parts, before they are joined")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"
