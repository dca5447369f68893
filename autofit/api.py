"""The public calls: `analyze` and `muify`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from autofit import lowering, optim
from autofit.bases import read_base, without_version, write_base
from autofit.capture import capture, outputs, require_tree
from autofit.cleanup import no_collection, one_at_a_time, within
from autofit.deferred import Recipe, draw_all, find_recipe, forget
from autofit.dims import Dims
from autofit.errors import AutofitError, BaseError, ExampleError, ExportError, LoweringError, PlanError
from autofit.graphform import graph_form
from autofit.growth import Growth
from autofit.measure import Spread, spreads
from autofit.passes.assign_roles import AssignRoles
from autofit.passes.infer_dims import InferDims
from autofit.passes.make_plan import MakePlan
from autofit.passes.place_multipliers import PlaceMultipliers, folds, multipliable, queries
from autofit.passes.resolve_base import BaseModel, BaseShapes, ResolveBase
from autofit.passes.tune import Tune
from autofit.plan import Plan
from autofit.provenance import Parametrization, forget_parametrization, loaded, read_parametrization, unsaid_on_failure
from autofit.report import render, to_json
from autofit.residuals import residuals
from autofit.roles import Roles
from autofit.rules import table
from autofit.source.fields import scale_fields
from autofit.source.write import Source, difference, export
from autofit.stages import stages
from autofit.tunables import Tunables
from autofit.unwrap import require_unwrapped
from autofit.values import fields_of, is_number, shown, text_of
from autofit.verify import verify_program, verify_values

Second = nn.Module | tuple[nn.Module, Any]
Base = int | Second | Callable[[], Second] | Mapping[str, float] | str | os.PathLike[str]
Progress = Callable[[str], None]
BRANCHES = "residual_branches"
"""Name, in a base, of the number of branches on its residual stream; of the second stream, with ``.2``."""
NOT_SEEN = (
    "the model is on meta and its initialization was not seen, so no initial value is planned: "
    "build it by autofit.deferred_init(factory)"
)


@dataclass(frozen=True)
class Analysis:
    """What was found in a model, and what follows for its optimizer.

    Attributes:
        model: the model; rewritten if it came from `muify`, untouched if from `analyze`.
        plan: roles, factors and multipliers, as data.
        roles: the dataflow facts behind the plan.
        applied: whether the plan was applied to the model.
        recipe: how initial values come about, of a model that was on ``meta``.
        spreads: initial values before anything was done, by parameter name.
        tunables: factors that were tuned at the base.
    """

    model: nn.Module = field(repr=False)
    plan: Plan
    roles: Roles = field(repr=False)
    applied: bool
    recipe: Recipe | None = field(default=None, repr=False)
    spreads: Mapping[str, Spread] = field(default_factory=dict, repr=False)
    tunables: Tunables = field(default_factory=Tunables, repr=False)

    def param_groups(
        self,
        optimizer: str | type,
        lr: float | torch.Tensor,
        weight_decay: float | None = None,
        eps: float | None = None,
        *,
        scale_eps: bool = True,
        decoupled_weight_decay: bool = False,
        beside: Mapping[str, Any] | None = None,
        groups: Iterable[Mapping[str, Any]] | None = None,
        per_parameter: optim.Exception_ | None = None,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Optimizer groups, one per distinct setting, in the order of ``model.parameters()``.

        Args:
            optimizer: a class of the table of rules (``autofit rules``), or its name there, as ``"adamw"``.
            lr, weight_decay, eps: values tuned at the base width; ``None`` is the optimizer's default. A learning rate
                that is a tensor stays one, as compiled steps want it, a new one for each group.
            scale_eps: ``False`` leaves eps alone, as the ``mup`` package does.
            decoupled_weight_decay: torch's option of that name, for ``Adam``, ``NAdam`` and ``RAdam``.
            beside: settings of the optimizer for what this one does not take: `torch.optim.Muon` takes matrices
                inside the model, and AdamW tables, readouts, stacks of experts and vectors, at an ``lr`` of its own.
            groups: your own groups; their settings stay and are split where muP needs it.
            per_parameter: ``(name, parameter) -> settings or None`` for single parameters.
            settings: further ones of the optimizer; they go into the groups.

        Raises:
            OptimizerError: unknown optimizer, bad number, or groups that miss or repeat parameters.
            LoweringError: a module was replaced after `muify`, and its multiplier with it.
        """
        if self.applied:
            lowering.require_installed(self.model, self.plan)
        return optim.param_groups(
            self.model,
            self.plan,
            optimizer,
            lr,
            weight_decay,
            eps,
            scale_eps=scale_eps,
            decoupled_weight_decay=decoupled_weight_decay,
            beside=beside,
            groups=groups,
            per_parameter=per_parameter,
            settings=settings,
        )

    def optimizer(
        self,
        optimizer: str | type,
        lr: float | torch.Tensor,
        weight_decay: float | None = None,
        eps: float | None = None,
        *,
        scale_eps: bool = True,
        decoupled_weight_decay: bool = False,
        beside: Mapping[str, Any] | None = None,
        groups: Iterable[Mapping[str, Any]] | None = None,
        per_parameter: optim.Exception_ | None = None,
        **settings: Any,
    ) -> torch.optim.Optimizer:
        """An instance of the optimizer class with muP groups; ``settings`` go to its constructor.

        Where the class takes only some of the parameters, one object (`~autofit.together.Together`) steps it and
        the other.

        Raises:
            OptimizerError: as `param_groups`.
        """
        if self.applied:
            lowering.require_installed(self.model, self.plan)
        return optim.make_optimizer(
            self.model,
            self.plan,
            optimizer,
            lr,
            weight_decay=weight_decay,
            eps=eps,
            scale_eps=scale_eps,
            decoupled_weight_decay=decoupled_weight_decay,
            beside=beside,
            groups=groups,
            per_parameter=per_parameter,
            settings=settings,
        )

    def init_(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values of a model that was on ``meta`` when it was muified, once it has memory.

        The model's own initialization is replayed tensor by tensor, parameters and buffers, and scaled as planned.
        Values depend on the generator alone, not on how the parameters are sharded (``DTensor``, FSDP2).

        Args:
            generator: of the seeds, torch's default one if ``None``; give every process the same.

        Raises:
            PlanError: not muified, not from ``meta``, still there, or a tensor's initialization was not seen.
        """
        if not self.applied:
            raise PlanError("analyze applies nothing", todo="call init_ on what muify returned")
        if self.recipe is None:
            raise PlanError(
                "how this model's values come about was not seen",
                todo="init_ is for models on meta: build yours by autofit.deferred_init(factory), then muify it",
            )
        draw_all(self.recipe, self.model, self.plan, generator)

    def bake(self, *, untie: bool = False) -> nn.Module:
        """Move every multiplier into weights: a plain model that gives the same, without a trace of autofit.

        For inference and for leaving: what is trained on from there has other learning rates (TP5 Lemma J.1), so this
        analysis makes no optimizer for it any more. A tied readout's multiplier goes into the norm before it.

        Args:
            untie: where nothing else can take a multiplier, give each module of a tied weight one of its own, and tell
                a transformers configuration so. Outputs are compared before and after.

        Returns:
            The model.

        Raises:
            PlanError: nothing was applied.
            LoweringError: a multiplier has no weight of its own, or the model is baked already; nothing was changed.
        """
        if not self.applied:
            raise PlanError("analyze applies nothing", todo="call bake on what muify returned")
        try:
            todo = folds(self.roles, self.plan, untie)
        except LoweringError as error:
            raise self._with_fields(error) from None
        with lowering.all_folds_or_none(self.model, self.plan, todo), unsaid_on_failure(self.model):
            if not any(fold.untie for fold in todo):
                lowering.bake(self.model, self.plan, todo)
                forget_parametrization(self.model)
                return self.model
            example = self.roles.growth.dims.program.example.filled()
            before = outputs(self.model, example)
            lowering.bake(self.model, self.plan, todo)
            after = outputs(self.model, example)
            if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(before, after, strict=True)):
                raise LoweringError(
                    "untied, this model computes something else: its forward looks at whether it is tied",
                    todo="keep the multipliers in forward, or export the source; nothing was changed",
                )
        forget_parametrization(self.model)
        return self.model

    def _with_fields(self, error: LoweringError) -> LoweringError:
        """A refusal to bake, with the fields of the configuration that could take the multiplier."""
        fields = scale_fields(self.model, self.roles, error.where)
        if not fields:
            return error
        said = ", ".join(f"{name} (now {value:g}) times {factor:g}" for name, value, factor in fields)
        return LoweringError(error.what, where=error.where, todo=f"{error.todo}; or save the model with {said}")

    def unbake(self, state: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """Put multipliers into forward again that `bake` moved into weights.

        A baked checkpoint has the names and shapes of any other, so ``load_state_dict`` cannot tell it: loaded into a
        muified model, every multiplier would count twice. This divides by them first.

        Args:
            state: of a baked model, to be loaded into this one, which has its multipliers; ``None`` takes the
                baking of this very model back.

        Returns:
            The model, with multipliers in forward.

        Raises:
            PlanError: nothing was applied.
            LoweringError: the model or checkpoint is not what was baked, or was untied; nothing was changed.
        """
        if not self.applied:
            raise PlanError("analyze applies nothing", todo="call unbake on what muify returned")
        todo = folds(self.roles, self.plan, untie=True)
        if state is None:
            with lowering.all_folds_or_none(self.model, self.plan, todo), unsaid_on_failure(self.model):
                lowering.unbake(self.model, self.plan, todo)
                self.parametrization().keep(self.model)
        elif not lowering.is_muified(self.model):
            raise LoweringError("this model is baked itself", todo="load_state_dict loads a baked checkpoint into it")
        else:
            self.model.load_state_dict(lowering.unbaked(state, self.model, self.plan, todo))
        return self.model

    def export(self, path: str | os.PathLike[str] | None = None, *, multipliers: bool = True) -> Source:
        """Write the model as one Python file that needs torch alone and trains in muP by itself.

        Its modules, names and state_dict keys are the model's; sizes are fields of a ``Config``, and multipliers,
        initial values and optimizer groups are functions of these. It is run, captured and compared before it is
        written.

        Args:
            path: of the file; ``None`` writes none.
            multipliers: ``False`` writes the model as it was before muify: what `diff` compares with.

        Returns:
            The text, how it was shown to be the model, and what in it is fixed or written op by op.

        Raises:
            ExportError: an op of another package, a size or value that nothing in the file could give, or a file that
                is not the model.
            LoweringError: a form whose multipliers are in weights, or a module was wrapped since.
        """
        require_unwrapped(self.model, self.plan)
        try:
            made = export(
                self.model,
                self.roles,
                self.plan,
                self.spreads,
                init_constants(self.model),
                multipliers=multipliers,
            )
        except AutofitError:
            raise
        except Exception as error:
            told = f"the source of {type(self.model).__name__} cannot be written: {type(error).__name__}: {error}"
            raise ExportError(told, todo="please report it with this model") from error
        if path is not None:
            Path(path).write_text(made.text, encoding="utf-8")
        return made

    def diff(self) -> str:
        """What muP changes, as a patch from the exported model as it was to the one in muP, to be carried by hand."""
        return difference(self.export(multipliers=False).text, self.export().text)

    def graph(self) -> torch.fx.GraphModule:
        """The captured program as a module, with every multiplier as a node at its site.

        It holds the model's own parameters under their names, takes the captured inputs in their order, and has the
        sizes of the example and the mode in which it was captured built in.

        Raises:
            LoweringError: the captured program has no place for a multiplier, or a module was wrapped since.
        """
        require_unwrapped(self.model, self.plan)
        return graph_form(self.model, self.roles, self.plan)

    def stages(self) -> str:
        """Every stage of the analysis as text, so that two runs can be compared line by line."""
        return stages(self.roles, self.plan)

    def base(self) -> dict[str, float]:
        """Base size of every dimension that can grow, in elements; under a scheme of depth, its branches, too."""
        names = (BRANCHES if i == 0 else f"{BRANCHES}.{i + 1}" for i in range(len(self.plan.branches)))
        return {**self.plan.base, **dict(zip(names, self.plan.branches, strict=True))}

    def parametrization(self) -> Parametrization:
        """What decides groups and forward beside the model; a transformers configuration carries it."""
        return Parametrization(self.base(), self.plan.scheme, self.plan.form, self.tunables)

    def save_base(self, path: str | os.PathLike[str]) -> None:
        """Write `base` as a small JSON file, which ``base=path`` reads for a model of any depth."""
        write_base(Path(path), self.base())

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain data."""
        return to_json(self.plan, self.roles)

    def __str__(self) -> str:
        return render(self.plan, self.roles)


@one_at_a_time()
@no_collection()
def analyze(
    model: nn.Module,
    example: Any = None,
    *,
    base: Base | None = None,
    scheme: str | None = None,
    form: str | None = None,
    init: Literal["auto", "keep"] = "auto",
    strict: bool = True,
    bottleneck: Literal["hidden", "output"] = "hidden",
    grow: Literal["heads", "head_dim"] = "heads",
    zero_readout: bool = False,
    zero_query: bool = False,
    frozen: Literal["keep", "plan"] | None = None,
    unused: Literal["freeze"] | None = None,
    tunables: Tunables | Mapping[str, Any] | None = None,
    depth_ratio: float | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Find roles, sites and factors; change nothing. Arguments and errors as `muify`."""
    say = progress or (lambda stage: None)
    _check_options(
        model,
        scheme=scheme,
        form=form,
        init=init,
        strict=strict,
        bottleneck=bottleneck,
        grow=grow,
        zero_readout=zero_readout,
        zero_query=zero_query,
        frozen=frozen,
        unused=unused,
    )
    said = read_parametrization(model)
    if said is not None and scheme in (None, said.scheme):
        form = form or said.form
        tunables = said.tunables if tunables is None else tunables
    scheme = scheme or (said.scheme if said else "mup")
    rules, knobs = table(scheme, form=form), Tunables.of(tunables)
    require_tree(model)
    if lowering.is_muified(model):
        raise LoweringError(
            "this model is already muified",
            todo="use the object that muify returned; a plan is made from an untouched model",
        )
    if base is None:
        base = said.base if said else _own_base(model) if hasattr(model, "mup_base") else 256
    say("capture")
    recipe = find_recipe(model)
    dims = InferDims()(capture(model, example, recipe.scalars(model) if recipe else None))
    say("base")
    growth, depth = _resolve(base, example, grow, strict, frozen, dims, "residual" in rules.sites)
    if depth_ratio is not None and not 1e-9 <= optim.check_number("depth_ratio", depth_ratio) <= 1e9:
        raise PlanError(f"depth_ratio is {shown(depth_ratio)}", todo="pass layers of the model / layers of the base")
    say("roles")
    if "embedding" in rules.folds:  # nothing in forward
        knobs = replace(knobs, folded=True)
    roles = Tune(knobs)(
        AssignRoles(
            scheme,
            strict=strict,
            frozen=frozen,
            unused=unused,
            depth=depth if depth_ratio is None else float(depth_ratio),
            branches=knobs.residual_branch != 1,
        )(growth)
    )
    say("plan")
    modules = dict(model.named_modules(remove_duplicate=False))
    carriers = PlaceMultipliers(modules, rules.folds)(roles)
    drawn = spreads(model) | (recipe.spreads(model) if recipe else {})
    kept = loaded(model) if init == "auto" else frozenset()
    make = MakePlan(
        carriers=carriers,
        spreads=drawn,
        shapes={p.name: p.shape for p in dims.program.parameters},
        scheme=scheme,
        form=rules.form,
        bottleneck=bottleneck,
        init=init,
        loaded=kept if said else frozenset(),
        constants=init_constants(model),
        zero_readout=zero_readout,
        queries=queries(roles) if zero_query else {},
        frozen=frozen,
        unused=unused,
        tunables=knobs,
        multipliable=multipliable(roles, modules),
    )
    plan = make(roles)
    if recipe is None and any(p.is_meta for p in model.parameters()):
        plan = replace(plan, notes=(*plan.notes, NOT_SEEN))
    found = Analysis(model, plan, roles, False, recipe, drawn, replace(knobs, folded=False))
    _check_loaded(found, kept, said)
    return found


def _check_loaded(found: Analysis, kept: frozenset[str], said: Parametrization | None) -> None:
    """Values of a checkpoint are in the parametrization in which they were trained, and in no other.

    Raises:
        PlanError: they would get factors, and nothing says that they are in muP.
        BaseError: their configuration says another base or scheme.
    """
    plan = found.plan
    mine = [p for p in plan.parameters.values() if kept.intersection(p.names) and p.name in trainable(found.model)]
    if not mine:
        return
    own = found.parametrization()
    if said is None:
        changed = (
            any(p.init_factor != 1 for p in mine) or plan.multiplied() or any(s.multiplier != 1 for s in plan.sites)
        )
        if changed:
            raise PlanError(
                f"{mine[0].name} was read from a checkpoint, which was not trained in muP: its configuration does not "
                "say so, and muP would change what it computes",
                todo="build the model by from_config; for adapters beside it, freeze it and pass frozen='keep'; "
                "init='keep' says that the values are of a run in muP with this base",
            )
        return
    other = [f"{d} {own.base[d]:g}, not {n:g}" for d, n in said.base.items() if own.base.get(d, n) != n]
    other += [f"{a}, not {b}" for a, b in ((own.scheme, said.scheme), (own.form, said.form)) if a != b]
    if other:
        raise BaseError(
            f"{mine[0].name} was read from a checkpoint of another base or scheme ({'; '.join(other)})",
            where="the configuration of the model, which save_pretrained wrote",
            todo="leave base= and scheme= out, and the checkpoint's are taken",
        )


def trainable(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that have a gradient."""
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)


@one_at_a_time()
@no_collection()
def muify(
    model: nn.Module,
    example: Any = None,
    *,
    base: Base | None = None,
    scheme: str | None = None,
    form: str | None = None,
    init: Literal["auto", "keep"] = "auto",
    strict: bool = True,
    bottleneck: Literal["hidden", "output"] = "hidden",
    grow: Literal["heads", "head_dim"] = "heads",
    zero_readout: bool = False,
    zero_query: bool = False,
    frozen: Literal["keep", "plan"] | None = None,
    unused: Literal["freeze"] | None = None,
    tunables: Tunables | Mapping[str, Any] | None = None,
    depth_ratio: float | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Rewrite a model in place so that it trains in muP, and prove that the rewrite is what was planned.

    Class, forward, state_dict keys and ties stay. Multipliers become small hooks on module boundaries, and
    initial values are rescaled in place. If anything fails the model is left exactly as it was.

    Args:
        model: any module.
        example: input for one forward pass: a tensor, tuple of arguments or dict of keyword arguments;
            ``None`` infers it from a transformers configuration or from the first layer.
        base: where the width is 1x: base size of the main dimension (the one the readout contracts), a
            second, narrower model, that with its own example where the input is as wide as the model (a pair), or a
            factory of either, a mapping ``{dimension: size}``, or the path of a
            saved base (JSON) or of mup's ``.bsh``. ``None`` is what the configuration of a transformers model says,
            which carries the base of the run that saved it; else 256.
        scheme: parametrization, as ``autofit rules`` lists them: ``"mup"``, with depth ``"mup+completep"`` or
            ``"mup+depth"``, and for comparison ``"sp"`` (nothing) or ``"ntk"``; ``None`` is the configuration's, else
            ``"mup"``.
        form: where multipliers are, in one and the same training run (TP5 Lemma J.1): ``"table8"`` in forward,
            ``"table3"`` those of readouts in initial values and learning rates, ``"folded"`` all of them, so that
            forward and checkpoints are plain, ``"table9"`` in forward on both ends.
        init: ``"auto"`` rescales initial values, but for those that ``from_pretrained`` read from a checkpoint of this
            parametrization; ``"keep"`` touches none.
        strict: refuse where an answer would be a guess.
        bottleneck: initial std of inner bottlenecks: ``"hidden"`` r_in^-1/2 or ``"output"`` r_in^-1.
        grow: under a numeric base, whether the number of ``"heads"`` or the ``"head_dim"`` grows.
        zero_readout: start every readout weight at zero, as TP5 appendix D.2 advises; refused where it is tied.
        zero_query: start what gives the queries of attention at zero, so that all positions count alike at first (TP5
            appendix D.2); refused where that has another use.
        frozen: parameters without gradient: ``"keep"`` leaves their values and the scale of what they compute alone
            (pretrained weights beside adapters), ``"plan"`` treats them like all others (frozen copies, random
            features); ``None`` refuses where these differ.
        unused: parameters that the example does not reach: ``"freeze"`` takes their gradient away, so that no
            optimizer trains them; ``None`` refuses a model that has such matrices, for their role is unknown.
        tunables: factors that were tuned at the base, on learning rates, initial values and multipliers, by kind of
            parameter or name (`Tunables`).
        depth_ratio: how many times as many residual branches as the base has, where the scheme scales with depth and
            the base does not tell.
        progress: called with the name of each stage.

    Returns:
        The analysis; its ``model`` is the same object, rewritten.

    Raises:
        AutofitError: one of its subclasses says what is wrong, where, and what to do.
    """
    found = analyze(
        model,
        example,
        base=base,
        scheme=scheme,
        form=form,
        init=init,
        strict=strict,
        bottleneck=bottleneck,
        grow=grow,
        zero_readout=zero_readout,
        zero_query=zero_query,
        frozen=frozen,
        unused=unused,
        tunables=tunables,
        depth_ratio=depth_ratio,
        progress=progress,
    )
    say = progress or (lambda stage: None)
    with lowering.all_or_nothing(model, found.plan), unsaid_on_failure(model):
        say("rewrite")
        lowering.install(model, found.plan)
        if found.plan.multiplied() or any(s.multiplier != 1 and s.carrier.place != "weight" for s in found.plan.sites):
            say("verify")
            scalars = found.recipe.scalars(model) if found.recipe else None
            again = InferDims()(capture(model, example, scalars))
            verify_program(found.roles, again, found.plan)
        lowering.rescale(model, found.plan)
        verify_values(found.plan, spreads(model, found.plan.rescaled()))
        forget(model)
        found.parametrization().keep(model)
        return replace(found, applied=True)


def _own_base(model: nn.Module) -> nn.Module:
    """The base that an exported model brings along, so that what it has of muP already is seen."""
    try:
        made: nn.Module = model.mup_base()  # type: ignore[operator]
    except Exception as error:
        raise BaseError(
            f"this model says that it is in muP (mup_base), and its base cannot be built: {error}",
            todo="use its own init_weights and param_groups, or pass base= a model or factory",
        ) from None
    return made


def _check_options(model: object, **options: object) -> None:
    switches = False, True
    allowed: dict[str, tuple[object, ...] | None] = {
        "scheme": None,  # the table of rules tells which there are
        "form": None,
        "init": ("auto", "keep"),
        "bottleneck": ("hidden", "output"),
        "grow": ("heads", "head_dim"),
        "frozen": (None, "keep", "plan"),
        "unused": (None, "freeze"),
        "strict": switches,
        "zero_readout": switches,
        "zero_query": switches,
    }
    if not isinstance(model, nn.Module):
        raise AutofitError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if wrapper := _wrapper(model):
        raise PlanError(
            f"the model is {wrapper}, and muP is for what is inside",
            todo="muify the model first, then wrap, shard or compile it; the optimizer is made last",
        )
    for key, value in options.items():
        choice = allowed[key]
        if not isinstance(value, str | bool | None) or (choice is not None and value not in choice):
            one_of = f"choose one of: {', '.join(map(str, choice))}" if choice else "pass its name"
            raise PlanError(f"{key}={shown(value)}", todo=one_of)


def _wrapper(model: nn.Module) -> str:
    """What was done to a model that has to come after `muify`, in words; nothing else is decided by a class."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return f"wrapped by {type(model).__name__}"
    if "_orig_mod" in model._modules:
        return "compiled by torch.compile"
    sharded = (name for name, p in model.named_parameters() if hasattr(p, "device_mesh"))
    name = next(sharded, None)
    return f"sharded ({name} is a DTensor)" if name else ""


def _resolve(
    base: Base,
    example: Any,
    grow: Literal["heads", "head_dim"],
    strict: bool,
    frozen: Literal["keep", "plan"] | None,
    dims: Dims,
    deep: bool,
) -> tuple[Growth, tuple[float, ...] | None]:
    """Base sizes, and the number of branches on the base's residual streams if it tells, and ``deep`` asks for it."""
    if callable(base) and not isinstance(base, nn.Module):
        made = _made(base)
        if not isinstance(made[0] if isinstance(made, tuple) and len(made) == 2 else made, nn.Module):
            raise BaseError(f"base() returned a {type(made).__name__}, not a torch.nn.Module")
        base = made
    if isinstance(base, tuple) and len(base) == 2 and isinstance(base[0], nn.Module):
        base, example = base
    if isinstance(base, nn.Module):
        require_tree(base)
        if lowering.is_muified(base):
            raise BaseError("the base model is already muified", todo="pass an untouched model as base")
        recipe = find_recipe(base)
        drawn = spreads(base) | (recipe.spreads(base) if recipe else {})
        scalars = recipe.scalars(base) if recipe else None
        try:
            captured = capture(base, example, scalars)
        except ExampleError as error:
            raise BaseError(
                f"the base model does not run: {error.what}",
                where=error.where,
                todo="pass the same architecture, only narrower; base=(model, its example) where its input differs",
            ) from None
        second = BaseModel(InferDims()(captured), {n: s.std for n, s in drawn.items()})
        counts = Counter(r.stream for r in residuals(second.dims)) if deep else {}
        return ResolveBase(second, grow, frozen=frozen)(dims), tuple(float(counts[i]) for i in sorted(counts))
    if isinstance(base, str) and _says_a_number(base) and not os.path.exists(base):
        raise BaseError(f"base={base!r} is a string, and no such file exists", todo=f"pass the number: base={base}")
    if isinstance(base, str | os.PathLike):
        loaded = read_base(Path(base))
        if loaded.kind == "shapes":
            return ResolveBase(BaseShapes(loaded.shapes), grow, str(base), frozen=frozen)(dims), None
        sizes, depth = _apart(loaded.sizes, dims)
        return ResolveBase(sizes, grow, str(base), strict, frozen)(dims), depth
    if isinstance(base, Mapping):
        sizes, depth = _apart(without_version(base), dims)
        return ResolveBase(sizes, grow, strict=strict, frozen=frozen)(dims), depth
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise BaseError(
            f"base is a {type(base).__name__}",
            todo="pass a number, a model, a function that makes one, a mapping, or the path of a base file",
        )
    return ResolveBase(base, grow, strict=strict, frozen=frozen)(dims), None


def _says_a_number(text: str) -> bool:
    try:
        return is_number(float(text))
    except ValueError:
        return False


def _made(factory: Callable[[], Any]) -> Any:
    """What a function of the user's makes; random numbers that it takes are not taken from the model."""
    try:
        with within(torch.random.fork_rng(devices=[])):
            return factory()
    except AutofitError:
        raise
    except Exception as error:
        raise BaseError(
            f"base() failed: {text_of(error)}", todo="pass a function without arguments that returns the base model"
        ) from error


def _apart(base: Mapping[str, float], dims: Dims) -> tuple[dict[str, float], tuple[float, ...] | None]:
    """Sizes, and the numbers of residual branches, of a base that has both."""
    taken = {n.partition(".")[0] for p in dims.program.parameters for n in p.names}  # a module may have that name
    own = {k for k in base if isinstance(k, str) and k.partition(".")[0] == BRANCHES} if BRANCHES not in taken else {}
    sizes = {k: v for k, v in base.items() if k not in own}
    counts = [optim.check_number(k, base[k]) for k in base if k not in sizes]
    if any(n == 0 for n in counts):
        raise BaseError(f"the base has 0 {BRANCHES}")
    return sizes, tuple(counts) or None


def init_constants(model: nn.Module) -> tuple[float, ...]:
    """Standard deviations that configurations name: floats between 0 and 1 with ``init`` in their field."""
    configs: dict[int, Any] = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    fields = [(str(k), v) for c in configs.values() for k, v in fields_of(c).items()]
    named = (v for k, v in fields if isinstance(v, float) and ("init" in k or "std" in k))
    return tuple(dict.fromkeys(v for v in named if 0 < v <= 1 and math.isfinite(v)))


__all__ = ["Analysis", "analyze", "muify"]
