"""What a transformers model carries with it: its parametrization in its configuration, and which values were loaded.

``save_pretrained`` writes the configuration beside the weights, so that a base, once chosen, is found again by
``muify`` of what ``from_pretrained`` or ``from_config`` gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from autofit.cleanup import undone_on_failure
from autofit.errors import BaseError
from autofit.tunables import Tunables

FIELD = "autofit"
"""Of a configuration."""
VERSION = 1


@dataclass(frozen=True)
class Parametrization:
    """What decides the groups and the forward of a model in muP, beside the model itself.

    Attributes:
        base: base size by dimension, with the number of residual branches where the scheme asks for it.
        scheme, form: as `autofit.muify` takes them.
        tunables: factors that were tuned at the base.
    """

    base: Mapping[str, float]
    scheme: str
    form: str
    tunables: Tunables

    def keep(self, model: nn.Module) -> None:
        """Write this into the model's configuration, if it has one."""
        config = _config(model)
        if config is not None:
            tuned = {} if self.tunables == Tunables() else {"tunables": asdict(self.tunables)}
            said = {"version": VERSION, "base": dict(self.base), "scheme": self.scheme, "form": self.form, **tuned}
            setattr(config, FIELD, said)


def read_parametrization(model: nn.Module) -> Parametrization | None:
    """What the configuration of a model says; ``None`` if it says nothing.

    Raises:
        BaseError: it is of a later version, or malformed.
    """
    said = getattr(_config(model), FIELD, None)
    if said is None:
        return None
    where, todo = f"the field {FIELD!r} of the configuration", f"del model.config.{FIELD}, and pass base="
    if not isinstance(said, dict) or said.get("version") != VERSION:
        raise BaseError("a parametrization that this version cannot read", where=where, todo=todo)
    base, words = said.get("base"), (said.get("scheme"), said.get("form"))
    if not isinstance(base, dict) or not base or not all(isinstance(word, str) for word in words):
        raise BaseError("a parametrization without a base, scheme or form", where=where, todo=todo)
    return Parametrization(base, *words, Tunables.of(said.get("tunables")))  # type: ignore[arg-type]


def forget_parametrization(model: nn.Module) -> None:
    """Take it out of the configuration: a baked model is in no parametrization of its own."""
    config = _config(model)
    if config is not None and hasattr(config, FIELD):
        delattr(config, FIELD)


@contextmanager
def unsaid_on_failure(model: nn.Module) -> Iterator[None]:
    """If the block fails, or is interrupted: the configuration says what it said before."""
    config = _config(model)
    before = getattr(config, FIELD, None)

    def put_back() -> None:
        if before is not None:
            setattr(config, FIELD, before)
        else:
            forget_parametrization(model)

    with undone_on_failure(put_back):
        yield


def loaded(model: nn.Module) -> frozenset[str]:
    """Names of the parameters whose values `from_pretrained` read from a checkpoint, which marks them so."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, p in named if getattr(p, "_is_hf_initialized", False))


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return config if hasattr(config, "to_json_string") else None
