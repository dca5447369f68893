"""Factors that a user tunes at the base: learning rate, initial values and multiplier, by kind of parameter or name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from autofit.errors import PlanError
from autofit.kinds import KINDS
from autofit.values import is_number, shown

MOST = 2.0**40
SITES = ("attention_logits", "residual_branch")
"""What has a multiplier and no parameter of its own."""
TUNED = tuple(k for k in KINDS if k != "fixed")


@dataclass(frozen=True)
class Knob:
    """Three factors on what the table of rules gives, 1 where nothing is tuned.

    One of them is redundant: a multiplier of ``c`` trains as initial values and a learning rate of their own do
    (Tensor Programs V, Lemma J.1).

    Attributes:
        lr: on the learning rate.
        init: on the initial values.
        multiplier: on what the parameter is in forward.
    """

    lr: float = 1.0
    init: float = 1.0
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "init", "multiplier"):
            value = getattr(self, name)
            least = 0 if name in ("lr", "init") else 1 / MOST
            if not is_number(value) or not least <= value <= MOST:
                raise PlanError(f"{name}={shown(value)} of a knob", todo="give a finite positive number")

    def __mul__(self, other: Knob) -> Knob:
        return Knob(self.lr * other.lr, self.init * other.init, self.multiplier * other.multiplier)


@dataclass(frozen=True)
class Tunables:
    """Knobs by kind of parameter, by site, and by name.

    Values belong to the base, so that what was found on a small model holds for a large one. Each name holds a `Knob`,
    a mapping of its fields, or one number: the multiplier.

    Attributes:
        embedding: tables that are looked up or added to data. The multiplier acts where they are looked up, so that a
            tied readout does not get it.
        input: other weights that contract what does not grow.
        hidden: weights inside, and inner bottlenecks.
        output: readouts. The multiplier acts on what enters them, and so not on a readout's bias.
        norm_gain, norm_bias: of normalizations.
        gain, bias: any other, per element.
        attention_logits: multiplier of products of two activations.
        residual_branch: multiplier of what is added to a residual stream.
        names: by pattern of parameter names (``*`` and ``?``), on top of the knob of their kind.
        folded: multipliers of parameters go into their initial values and learning rates, not into forward.
    """

    embedding: Knob | Mapping[str, float] | float = Knob()
    input: Knob | Mapping[str, float] | float = Knob()
    hidden: Knob | Mapping[str, float] | float = Knob()
    output: Knob | Mapping[str, float] | float = Knob()
    norm_gain: Knob | Mapping[str, float] | float = Knob()
    norm_bias: Knob | Mapping[str, float] | float = Knob()
    gain: Knob | Mapping[str, float] | float = Knob()
    bias: Knob | Mapping[str, float] | float = Knob()
    attention_logits: float = 1.0
    residual_branch: float = 1.0
    names: Mapping[str, Knob | Mapping[str, float] | float] | tuple[()] = ()
    folded: bool = False

    def __post_init__(self) -> None:
        for name in TUNED:
            object.__setattr__(self, name, _knob(name, getattr(self, name)))
        for name in SITES:
            _knob(name, getattr(self, name) if isinstance(getattr(self, name), int | float) else math.nan)
        if not isinstance(self.names, Mapping | tuple) or any(not isinstance(n, str) for n in self.names):
            raise PlanError(f"tunables: names={shown(self.names)}", todo="give a mapping by pattern of parameter names")
        if not isinstance(self.folded, bool):
            raise PlanError(f"tunables: folded={shown(self.folded)}", todo="give True or False")
        object.__setattr__(self, "names", {n: _knob(n, k) for n, k in dict(self.names).items()})

    @classmethod
    def of(cls, given: Tunables | Mapping[str, Any] | None) -> Tunables:
        """From a mapping, whose keys are kinds, sites or patterns of names.

        Raises:
            PlanError: no such kind, or a number that is none.
        """
        if given is None or isinstance(given, Tunables):
            return given or cls()
        if not isinstance(given, Mapping):
            raise PlanError(f"tunables is a {type(given).__name__}", todo="pass autofit.Tunables(...) or a mapping")
        own = {f.name for f in fields(cls)}
        patterns = {k: v for k, v in given.items() if k not in own}
        listed = given.get("names", {})
        names = {**listed, **patterns} if isinstance(listed, Mapping) else listed
        return cls(**{**{k: v for k, v in given.items() if k in own}, "names": names})

    def of_parameter(self, kind: str, names: tuple[str, ...], at_site: bool = False) -> Knob:
        """All that is tuned for one parameter; where a site has its kind's multiplier, without that."""
        knob: Knob = getattr(self, kind) if kind in TUNED else Knob()
        knob = replace(knob, multiplier=1.0) if at_site and not self.folded else knob
        for own in self._matching(names):
            knob *= own
        return knob

    def _matching(self, names: tuple[str, ...]) -> Iterator[Knob]:
        for pattern, knob in dict(self.names).items():
            if any(fnmatchcase(name, pattern) for name in names):
                yield knob  # type: ignore[misc]

    def check_used(self, names: Mapping[str, tuple[str, ...]]) -> None:
        """Every pattern must match.

        Args:
            names: all names of each parameter.

        Raises:
            PlanError: a pattern matches no parameter.
        """
        for pattern in dict(self.names):
            if not any(fnmatchcase(n, pattern) for all_names in names.values() for n in all_names):
                known = ", ".join((*TUNED, *SITES))
                raise PlanError(
                    f"tunables: {pattern!r} is no kind, and no parameter has such a name",
                    todo=f"give a pattern of parameter names, or one of: {known}",
                )


def _knob(name: str, value: Any) -> Knob:
    if isinstance(value, Knob):
        return value
    if isinstance(value, Mapping):
        if unknown := set(value) - {"lr", "init", "multiplier"}:
            raise PlanError(
                f"tunables: {name} has no {', '.join(sorted(map(str, unknown)))}", todo="lr, init, multiplier"
            )
        return Knob(**value)
    return Knob(multiplier=value)
