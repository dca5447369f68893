"""Optimizer settings by parameter: learning rate, weight decay and epsilon of each group."""

from __future__ import annotations

import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autofit.errors import OptimizerError
from autofit.plan import ParameterPlan, Plan
from autofit.rules import BRANCH, BY_SHAPE, Optimizer, factors, optimizers, table
from autofit.together import Together
from autofit.unwrap import planned_name, planned_paths
from autofit.values import is_number, shown, text_of

SETTINGS = ("lr", "weight_decay", "eps")
Exception_ = Callable[[str, nn.Parameter], Mapping[str, Any] | None]


def optimizer_class(optimizer: str | type) -> tuple[type, str]:
    """The class and rule name behind a name or class.

    Raises:
        OptimizerError: no rule is known for it, or none of a name's classes is installed.
    """
    if isinstance(optimizer, str) and optimizer.lower() in optimizers():
        return _installed(optimizers()[optimizer.lower()]), optimizer.lower()
    if isinstance(optimizer, type):
        for base in optimizer.__mro__:  # AdamW derives from Adam: the nearest base counts
            mine = (base.__module__.partition(".")[0], base.__name__)
            for name, o in optimizers().items():
                if any((c.partition(".")[0], c.rpartition(".")[2]) == mine for c in o.classes):
                    _require_step(optimizer, base, name)
                    return optimizer, name
    if isinstance(optimizer, torch.optim.Optimizer):
        cls = type(optimizer).__name__
        raise OptimizerError(f"optimizer= is an instance of {cls}", todo=f"pass the class, or its name: {cls}")
    shown = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__qualname__", repr(optimizer))
    raise OptimizerError(
        f"no muP rule is known for the optimizer {shown!r}",
        todo=f"use one of: {', '.join(optimizers())}; or let autofit.measure_optimizer(cls) measure its rule",
    )


def _require_step(cls: type, known: type, rule: str) -> None:
    """A class that steps in another way than the one with the rule is another optimizer; packages may do as they like.

    Raises:
        OptimizerError: it does.
    """
    own, theirs = (inspect.unwrap(c.step) for c in (cls, known))  # type: ignore[attr-defined]  # torch wraps each
    if own is not theirs and own.__module__.partition(".")[0] != known.__module__.partition(".")[0]:
        raise OptimizerError(
            f"{cls.__qualname__} has a step of its own, for which the rule of {known.__name__} need not hold",
            todo="let autofit.measure_optimizer(cls) measure its rule; or, if its updates are those of "
            f"{known.__name__}, make it of the groups that param_groups({rule!r}, ...) gives",
        )


def _installed(optimizer: Optimizer) -> type:
    for path in optimizer.classes:
        try:
            found: type = pkgutil.resolve_name(path)
        except (ImportError, AttributeError):
            continue
        return found
    raise OptimizerError(
        f"{optimizer.name} is not installed", todo=f"install one of: {', '.join(optimizer.classes)}, or pass its class"
    )


def scaled(
    plan: Plan,
    p: ParameterPlan,
    rule: str,
    *,
    scale_eps: bool = True,
    decoupled: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Factors on lr, weight decay and eps of one parameter, relative to the base (TP5 Table 8, Lemma J.1)."""
    chosen = table(plan.scheme, rule, decoupled=decoupled)
    ratios, moved = p.ratios, factors(chosen.optimizer)
    cells = {c: v(ratios) * p.fold ** -moved[c] for c, v in chosen.rules[p.rule].cells() if c in SETTINGS}
    if p.depth != 1 and BRANCH in chosen.rules:
        cells = {c: v * getattr(chosen.rules[BRANCH], c)(ratios) for c, v in cells.items()}
    if chosen.optimizer.by_shape:
        if len(p.base_shape) != 2:
            raise OptimizerError(
                f"{rule} has a factor of its own for {p.name}, and the plan does not hold its shape in the base",
                todo="make the plan again, with this version",
            )
        factor = BY_SHAPE[(settings or {}).get(chosen.optimizer.by_shape) or next(iter(BY_SHAPE))]
        grown = factor(*p.shape) / factor(*p.base_shape)
        cells |= {"lr": cells["lr"] / grown, "weight_decay": cells["weight_decay"] * grown}
    cells["lr"] *= p.lr
    return cells if scale_eps else cells | {"eps": 1.0} if "eps" in cells else cells


def check_number(name: str, value: Any) -> float:
    """A finite, non-negative number.

    Raises:
        OptimizerError: it is not.
    """
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptimizerError(f"{name} is {shown(value)}, not a number")
    if not is_number(value) or value < 0:
        raise OptimizerError(f"{name} is {shown(value)}: it must be finite and not negative")
    return float(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def param_groups(
    model: nn.Module,
    plan: Plan,
    optimizer: str | type,
    lr: float | torch.Tensor,
    weight_decay: float | None = None,
    eps: float | None = None,
    *,
    scale_eps: bool = True,
    decoupled_weight_decay: bool = False,
    beside: Mapping[str, Any] | None = None,
    groups: Iterable[Mapping[str, Any]] | None = None,
    per_parameter: Exception_ | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups: one per distinct setting, in the order of ``model.parameters()``.

    Args:
        model: the muified model.
        plan: its plan.
        optimizer: class or name.
        lr, weight_decay, eps: the values tuned at the base width; ``None`` means the optimizer's default. A learning
            rate that is a tensor stays one, as compiled steps want it, a new one for each group.
        scale_eps: ``False`` keeps eps everywhere, as the ``mup`` package does.
        decoupled_weight_decay: torch's option of that name, for `Adam`, `NAdam` and `RAdam`.
        beside: lr, weight_decay, eps and further settings of the optimizer for what this one does not take.
        groups: the user's own groups; their settings stay and are split where muP needs it.
        per_parameter: ``(name, parameter) -> overrides or None``, e.g. no weight decay on biases.
        settings: further ones of the optimizer, of which rules may depend.

    Returns:
        Groups with ``params``, ``param_names``, ``lr`` and, where the optimizer has them, ``weight_decay``
        and ``eps``; with two optimizers also ``use_NAME``, whether a group is for the first.

    Raises:
        OptimizerError: unknown optimizer, a number that is none, or groups that miss or repeat parameters.
    """
    cls, rule = optimizer_class(optimizer)
    entry = optimizers()[rule]
    for key, value in (("scale_eps", scale_eps), ("decoupled_weight_decay", decoupled_weight_decay)):
        if not isinstance(value, bool):
            raise OptimizerError(f"{key} is {shown(value)}", todo="pass True or False")
    if beside is not None and not isinstance(beside, Mapping):
        raise OptimizerError(f"beside is {shown(beside)}", todo="pass a mapping of settings, as {'lr': 1e-3}")
    if entry.by_shape:
        _check_by_shape(cls, entry.by_shape, (settings or {}).get(entry.by_shape))
    decay = None if decoupled_weight_decay else weight_decay
    first = _settings(cls, rule, lr, weight_decay, eps, decoupled_weight_decay, settings or {})
    second: dict[str, Any] = {}
    if entry.beside:
        first[f"use_{rule}"] = True
        second = {**_beside(entry, lr, weight_decay, beside, settings or {}), f"use_{rule}": False}
    elif beside is not None:
        raise OptimizerError(f"{cls.__name__} takes all parameters: there is nothing for an optimizer beside it")
    for message in warnings_for(plan, rule, decay):
        warnings.warn(message, stacklevel=3)
    named = _unique_named(model, plan)
    names = {id(p): n for n, p in named}
    order = {id(p): i for i, (_, p) in enumerate(named)}
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for own, p in _assigned(groups, named):
        name = names[id(p)]
        if name not in plan.parameters:
            raise OptimizerError(
                f"{name} is not in the plan: it was added after muify", todo="add parameters before muify"
            )
        planned = plan.parameters[name]
        mine = not entry.beside or (planned.kind == "hidden" and p.ndim == 2)
        values = {**(first if mine else second), **own, **_exception(per_parameter, name, p)}
        for key, factor in scaled(
            plan,
            planned,
            rule if mine else entry.beside,
            scale_eps=scale_eps,
            decoupled=decoupled_weight_decay,
            settings=values,
        ).items():
            if key in values:
                value = values[key]
                number = check_number(f"{key} of {name}", value) * factor
                number = check_number(f"{key} of {name}, times {factor:g},", number)
                values[key] = value.detach() * factor if isinstance(value, torch.Tensor) else number
        setting = tuple(sorted((k, repr(_plain(v))) for k, v in values.items()))
        group = merged.setdefault(setting, {"params": [], "param_names": [], **values})
        group["params"].append(p)
        group["param_names"].append(name)
    made = sorted(merged.values(), key=lambda g: order[id(g["params"][0])])
    if entry.one_lr:
        _check_one_lr(cls, made, plan)
    return made


def make_optimizer(
    model: nn.Module,
    plan: Plan,
    optimizer: str | type,
    lr: float | torch.Tensor,
    *,
    settings: Mapping[str, Any],
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer with the groups that `param_groups` makes of ``options``; ``settings`` go to its constructor."""
    cls, rule = optimizer_class(optimizer)
    key = optimizers()[rule].by_shape
    own = {k: v for k, v in settings.items() if k == key}
    made = param_groups(model, plan, optimizer, lr, settings=own, **options)
    return _built(cls, rule, made, lr, settings)


def _built(
    cls: type, rule: str, groups: list[dict[str, Any]], lr: float | torch.Tensor, settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of these groups; two as one, where the class takes only some of them."""
    beside = optimizers()[rule].beside
    if not beside:
        whole: torch.optim.Optimizer = cls(groups, lr=lr, **settings)
        return whole
    other, _ = optimizer_class(beside)
    mine = [g for g in groups if g[f"use_{rule}"]]
    rest = [g for g in groups if not g[f"use_{rule}"]]
    parts = [cls(mine, lr=lr, **settings)] if mine else []
    return Together([*parts, *([other(rest)] if rest else [])])


def _settings(
    cls: type,
    rule: str,
    lr: float | torch.Tensor,
    weight_decay: float | None,
    eps: float | None,
    decoupled: bool,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Settings at the base, with the class's defaults."""
    accepted = inspect.signature(cls).parameters
    if decoupled and "decoupled_weight_decay" not in accepted:
        raise OptimizerError(f"{cls.__name__} has no setting 'decoupled_weight_decay'")
    defaults = {k: v.default for k, v in accepted.items() if v.default is not inspect.Parameter.empty}
    number = check_number("lr", lr)
    settings: dict[str, Any] = {**more, "lr": lr if isinstance(lr, torch.Tensor) else number}
    settings |= {"decoupled_weight_decay": True} if decoupled else {}
    for key, value in (("weight_decay", weight_decay), ("eps", eps)):
        if key in accepted and (key != "eps" or optimizers()[rule].eps):
            settings[key] = check_number(key, defaults.get(key, 0.0) if value is None else value)
        elif value is not None:
            raise OptimizerError(f"{cls.__name__} has no setting {key!r} with a rule")
    return settings


def _beside(
    entry: Optimizer,
    lr: float | torch.Tensor,
    weight_decay: float | None,
    given: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Settings of the optimizer for what another does not take."""
    cls, rule = optimizer_class(entry.beside)
    given = dict(given or {})
    shared = settings.get(entry.by_shape) == "match_rms_adamw"
    if "lr" not in given and not shared:
        raise OptimizerError(
            f"{entry.name} takes matrices inside the model, and {entry.beside} the rest, at another learning rate",
            todo=f"pass beside={{'lr': ...}}, or {entry.by_shape}='match_rms_adamw' for one that suits both",
        )
    own = {"lr": lr, "weight_decay": weight_decay if shared else None, "eps": None} | given
    more = {k: v for k, v in own.items() if k not in SETTINGS}
    if unknown := set(more) - set(inspect.signature(cls).parameters):
        raise OptimizerError(f"{cls.__name__} has no setting {sorted(unknown)[0]!r}")
    return _settings(cls, rule, own["lr"], own["weight_decay"], own["eps"], False, more)


def _check_by_shape(cls: type, key: str, value: Any) -> None:
    if value is not None and value not in BY_SHAPE:
        raise OptimizerError(f"{cls.__name__}: {key}={value!r} has no rule", todo=f"one of: {', '.join(BY_SHAPE)}")


def _check_one_lr(cls: type, groups: Iterable[Mapping[str, Any]], plan: Plan) -> None:
    rates: dict[float, str] = {}
    for group in groups:
        rates.setdefault(float(group["lr"]), group["param_names"][0])
    if len(rates) > 1:
        raise OptimizerError(
            f"{cls.__name__} takes one learning rate for all, and {' and '.join(list(rates.values())[:2])} want two",
            todo="pass form='one_lr' to muify: multipliers in the place of learning rates"
            if plan.form != "one_lr"
            else "leave out what sets their learning rates apart (tunables, groups, or no module that reads them)",
        )


def _exception(per_parameter: Exception_ | None, name: str, p: nn.Parameter) -> Mapping[str, Any]:
    """What the user wants for a single parameter."""
    if per_parameter is None:
        return {}
    if not callable(per_parameter):
        raise OptimizerError(
            f"per_parameter is {shown(per_parameter)}", todo="pass a function (name, parameter) -> settings or None"
        )
    try:
        given = per_parameter(name, p)
    except Exception as error:
        raise OptimizerError(f"per_parameter({name!r}, ...) failed: {text_of(error)}") from error
    if given is not None and not isinstance(given, Mapping):
        raise OptimizerError(
            f"per_parameter({name!r}, ...) gave {shown(given)}", todo="return a dict of settings or None"
        )
    return given or {}


def _unique_named(model: nn.Module, plan: Plan) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters, each once; two over one storage (a tie that was assigned apart) are two, as in torch."""
    paths = planned_paths(model, plan)
    named = [(planned_name(name, paths), p) for name, p in model.named_parameters()]
    return [(name, p) for name, p in named if p.requires_grad and name not in plan.frozen]


def _assigned(
    groups: Iterable[Mapping[str, Any]] | None, named: Sequence[tuple[str, nn.Parameter]]
) -> list[tuple[dict[str, Any], nn.Parameter]]:
    """Every parameter with the settings of the user's group that holds it."""
    if groups is None:
        return [({}, p) for _, p in named]
    known = {id(p): n for n, p in named}
    seen: set[int] = set()
    found: list[tuple[dict[str, Any], Any]] = []
    groups = list(groups) if isinstance(groups, Iterable) and not isinstance(groups, str | Mapping) else [groups]
    for group in groups:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), Iterable):
            raise OptimizerError(
                f"{shown(group)} is no group", todo="pass groups as optimizers take them: [{'params': [...], ...}, ...]"
            )
        own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        params = group["params"]
        for item in [params] if isinstance(params, torch.Tensor) else params:
            p = item[1] if isinstance(item, tuple) else item
            if id(p) not in known:
                raise OptimizerError("a group holds a tensor that is no trainable parameter of the model")
            if id(p) in seen:
                raise OptimizerError(f"{known[id(p)]} is in more than one group")
            seen.add(id(p))
            found.append((own, p))
    missing = [n for n in known if n not in seen]
    if missing:
        raise OptimizerError(
            f"{known[missing[0]]} is in none of the given groups",
            todo="put every trainable parameter into a group, or freeze it",
        )
    return found


def warnings_for(plan: Plan, rule: str, weight_decay: float | None) -> list[str]:
    """Things that have no sourced rule and that a user should hear about."""
    found = []
    chosen = optimizers()[rule]
    if weight_decay and chosen.decay == "gradient" and chosen.power == 0:
        found.append(
            f"{rule} adds weight decay to the gradient, for which no width rule is sourced: decouple it, as AdamW does"
        )
    if rule == "sgd":
        mixed = [p.name for p in plan.parameters.values() if p.segments]
        if mixed:
            found.append(
                f"SGD: {mixed[0]} is a fused weight whose runs need different learning rates; it gets the hidden one"
            )
    return found
