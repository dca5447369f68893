"""The table of all rules: how every setting of a parameter scales, by scheme, optimizer and form.

The data are in ``schemes/*.toml``; every cell is a `Monomial` in growth ratios, with its source.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from autofit.errors import OptimizerError, PlanError
from autofit.monomial import ONE, Monomial
from autofit.values import shown

COLUMNS = ("multiplier", "init", "lr", "eps", "weight_decay")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and how its settings enter its update.

    Attributes:
        name: as in the table.
        classes: ``package.Class`` of all that have this rule.
        family: whose column of a scheme's rules holds.
        power: an update is proportional to this power of the gradient's scale.
        decay: ``with lr`` (``w -= lr * wd * w``), ``independent`` (``w -= wd * w``) or ``gradient`` (``g += wd * w``).
        eps: whether it has a small number beside the root mean square of the gradients.
        source: where its rule comes from.
        beside: the optimizer of all but matrices inside the model, if it takes only these.
        by_shape: the setting that names its own factor on lr, a function of a matrix's shape (``BY_SHAPE``).
        one_lr: whether all parameters must have one learning rate.
    """

    name: str
    classes: tuple[str, ...]
    family: str
    power: int
    decay: str
    eps: bool
    source: str
    beside: str = ""
    by_shape: str = ""
    one_lr: bool = False


@dataclass(frozen=True)
class Rule:
    """How the settings of one kind of parameter scale, relative to the base.

    Attributes:
        what: the kind, in words.
        multiplier: forward factor on what the parameter gives; ``None``: whatever the program has.
        init: standard deviation of the initial values; ``None``: whatever the model draws.
        lr: learning rate.
        eps: small number beside the root mean square of the gradients; ``None`` where the optimizer has none.
        weight_decay: in the convention of the optimizer.
        sources: by column; ``all`` for those that are not named.
    """

    what: str
    multiplier: Monomial | None
    init: Monomial | None
    lr: Monomial
    eps: Monomial | None
    weight_decay: Monomial
    sources: Mapping[str, str]

    def source(self, column: str) -> str:
        """Where a cell comes from."""
        return self.sources.get(column, self.sources["all"])

    def cells(self) -> Iterator[tuple[str, Monomial]]:
        """Columns that this rule has, with their values."""
        yield from ((c, v) for c in COLUMNS if (v := getattr(self, c)) is not None)


@dataclass(frozen=True)
class Site:
    """The scale that a sum in the forward pass must have.

    Attributes:
        what: which sums.
        total: scale relative to the base, with the factors that the program already has; ``None``: these alone.
        source: where this comes from.
    """

    what: str
    total: Monomial | None
    source: str


@dataclass(frozen=True)
class Table:
    """All rules of one scheme for one optimizer in one form.

    Attributes:
        scheme, form: names.
        optimizer: whose settings.
        title, source: of the scheme.
        rules: by kind of parameter.
        sites: by kind of site.
        folds: kinds of sites whose multiplier goes into a weight in this form.
        thetas: forward factors that parameters get for this form, by kind.
        absolute: factors are not relative to a base: initial values are of unit scale, times ``init``.
    """

    scheme: str
    form: str
    optimizer: Optimizer
    title: str
    source: str
    rules: Mapping[str, Rule]
    sites: Mapping[str, Site]
    folds: frozenset[str]
    thetas: Mapping[str, Monomial]
    absolute: bool = False

    def own_multiplier(self, row: str) -> Monomial:
        """Factor on a parameter itself: a readout's is at its site, but for what a form moves into it."""
        return self.thetas.get(row, ONE) if row == "output" else self.rules[row].multiplier or ONE


def move(rule: Rule, theta: Monomial, optimizer: Optimizer) -> Rule:
    """The rule by which the same training run is had with a multiplier that is ``theta`` times as large.

    The parameter is then ``1 / theta`` of what it was and its gradient ``theta`` times, so that one step of an
    optimizer whose update goes with the gradient's ``power`` wants lr times ``theta^-(1 + power)``, eps and decay
    moved along (TP5 Lemma J.1).
    """
    moved = factors(optimizer)
    cells = {c: v * theta ** moved[c] for c, v in rule.cells()}
    return replace(rule, **cells)  # type: ignore[arg-type]


def factors(optimizer: Optimizer) -> dict[str, int]:
    """Exponents of theta in the settings of a parameter that stands behind a multiplier ``theta`` times as large."""
    return {
        "multiplier": 1,
        "init": -1,
        "lr": -1 - optimizer.power,
        "eps": 1,
        "weight_decay": {"gradient": 2, "with lr": 1 + optimizer.power, "independent": 0}[optimizer.decay],
    }


OWN = "own"
"""A cell that leaves to the model what it has."""
BRANCH = "residual branch"
"""The row that comes on top of a parameter's own where it is inside a residual branch."""


BY_SHAPE: Mapping[str, Callable[[float, float], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: max(rows, columns) ** 0.5,
}
"""Factors of a matrix's shape that `torch.optim.Muon` has on lr, but for constants."""


@cache
def _read(name: str) -> dict[str, Any]:
    data = tomllib.loads((resources.files("autofit") / "schemes" / f"{name}.toml").read_text("utf-8"))
    return _over(_read(data["extends"]), data) if "extends" in data else data


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One scheme's data on top of those that it extends."""
    both = {k: _over(below[k], v) if isinstance(v, Mapping) and k in below else v for k, v in above.items()}
    return {**below, **both}


def _cell(text: str) -> Monomial | None:
    return None if text == OWN else Monomial.parse(text)


@cache
def schemes() -> tuple[str, ...]:
    """Names of all schemes, the default first."""
    files = (f.name.removesuffix(".toml") for f in (resources.files("autofit") / "schemes").iterdir())
    return tuple(sorted((f for f in files if f != "optimizers"), key=lambda name: (name != "mup", name)))


@cache
def _listed() -> Mapping[str, Optimizer]:
    data = _read("optimizers")
    found = {}
    for name, o in data["optimizers"].items():
        power = data["families"][o["family"]]["power"]
        found[name] = Optimizer(**{**o, "name": name, "classes": tuple(o["classes"]), "power": power})
    return found


_MEASURED: dict[str, tuple[Optimizer, Mapping[str, Monomial]]] = {}


def optimizers() -> Mapping[str, Optimizer]:
    """All optimizers with a rule, by name: those of the table, and those that were measured in this process."""
    return {**_listed(), **{name: entry for name, (entry, _) in _MEASURED.items()}}


def register(optimizer: Optimizer, lr: Mapping[str, Monomial]) -> None:
    """Add an optimizer whose learning rates were measured, by role; measured again, the new ones hold.

    Raises:
        OptimizerError: the table has its name or class.
    """
    known = [o for o in _listed().values() if o.name == optimizer.name or {*o.classes} & {*optimizer.classes}]
    if known:
        raise OptimizerError(
            f"{optimizer.name} ({optimizer.classes[0]}) is in the table of rules as {known[0].name}",
            todo="use the rule that is there, or choose another name for a class of your own",
        )
    _MEASURED[optimizer.name] = optimizer, lr
    table.cache_clear()


@cache
def table(scheme: str = "mup", optimizer: str = "adamw", form: str | None = None, decoupled: bool = False) -> Table:
    """The rules of one scheme for one optimizer.

    Args:
        scheme: one of `schemes`.
        optimizer: one of `optimizers`.
        form: where the multipliers are; ``None`` is the scheme's own.
        decoupled: weight decay is told to multiply the weights (``decoupled_weight_decay=True``).

    Raises:
        PlanError: no such scheme or form.
        OptimizerError: no such optimizer.
    """
    listed = ruled(scheme)
    if optimizer not in optimizers():
        raise OptimizerError(f"unknown optimizer {shown(optimizer)}", todo=f"choose one of: {', '.join(optimizers())}")
    data, own = _read(scheme), optimizers()[optimizer]
    if optimizer not in listed:
        raise OptimizerError(f"scheme {scheme!r} has no rule for {optimizer}", todo=f"one of: {', '.join(listed)}")
    own = replace(own, decay="with lr") if decoupled else own
    form = data["form"] if form is None else form
    if form not in data["forms"]:
        raise PlanError(f"unknown form {shown(form)}", todo=f"choose one of: {', '.join(data['forms'])}")
    thetas = {role: Monomial.parse(text) for role, text in data["forms"][form]["theta"].items()}
    return Table(
        scheme,
        form,
        own,
        data["title"],
        data["source"],
        {role: move(_rule(role, row, own), thetas.get(role, ONE), own) for role, row in data["roles"].items()},
        {kind: Site(s["what"], _cell(s["total"]), s["source"]) for kind, s in data["sites"].items()},
        frozenset(data["forms"][form]["folds"]),
        {} if data["forms"][form]["folds"] else thetas,
        data.get("absolute", False),
    )


def ruled(scheme: str) -> tuple[str, ...]:
    """Names of the optimizers that a scheme has rules for.

    Raises:
        PlanError: no such scheme.
    """
    if scheme not in schemes():
        raise PlanError(f"unknown scheme {shown(scheme)}", todo=f"choose one of: {', '.join(schemes())}")
    families = set.intersection(*(set(row["lr"]) for row in _read(scheme)["roles"].values()))
    return tuple(n for n, o in optimizers().items() if n in _MEASURED or o.family in families)


def _rule(role: str, row: Mapping[str, Any], optimizer: Optimizer) -> Rule:
    _, measured = _MEASURED.get(optimizer.name, (None, None))
    family = {0: "adam", 1: "sgd"}.get(optimizer.power, "") if measured else optimizer.family
    lr = measured[role] if measured and role != BRANCH else Monomial.parse(row["lr"][family])
    kept = optimizer.decay == "with lr" or (optimizer.decay == "gradient" and optimizer.power == 1)
    sources = {"lr": optimizer.source} if measured else {}
    return Rule(
        row["what"],
        _cell(row.get("multiplier", OWN)),
        _cell(row.get("init", OWN)),
        lr,
        Monomial.parse(row["eps"][optimizer.family]) if optimizer.eps else None,
        lr**-1 if kept else ONE,
        {"weight_decay": optimizer.source, **row["sources"], **sources},
    )
