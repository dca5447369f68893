"""Calls of `muify` on odd models and on models with odd names, and who judges them."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from judging import RAN, Wrong, check_message, check_plan, finite_plan, require, unchanged
from odd_arguments import OPTIONS
from odd_models import ALTERATIONS, BASES, EXAMPLES, NAMES, NETS, Case
from snapshot import Snapshot, changed, process, restore
from torch import nn

import autofit
from autofit import api
from autofit.report import explain

# models -------------------------------------------------------------------------------------------------


@st.composite
def model_cases(draw: st.DrawFn) -> Case:
    """A net with up to three alterations, and how `muify` is called."""
    count = draw(st.sampled_from([1, 1, 1, 2, 2, 3]))
    own = {k: v for k, v in OPTIONS.items() if k not in ("base", "tunables", "depth_ratio")}
    options = draw(st.fixed_dictionaries({}, optional=own)) if draw(st.booleans()) else {}
    return Case(
        draw(st.sampled_from(list(NETS))),
        tuple(draw(st.lists(st.sampled_from(list(ALTERATIONS)), min_size=count, max_size=count, unique=True))),
        draw(st.integers(0, 99)),
        draw(st.sampled_from(["right"] * 3 * len(EXAMPLES) + list(EXAMPLES))),
        draw(st.sampled_from(["half"] * 2 * len(BASES) + ["same"] * 3 + list(BASES))),
        options,
    )


CHANGING = ("writes its weights in forward", "loses an attribute in forward", "freezes itself in forward")
"""Alterations after which a second run is another."""
INTERRUPTING = ("raises KeyboardInterrupt", "raises SystemExit", "a pre-hook that interrupts")


def judge_model(case: Case) -> str:
    """A model is rewritten rightly, or refused and left as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, example = case.build()
            plain, _ = case.build()
            arguments = case.arguments()
        except Exception:  # alterations that do not go together, as a view of a sparse tensor
            return "no case"
        snapshot = Snapshot(model)
        try:
            mu = autofit.muify(model, example, **arguments)
        except autofit.AutofitError as error:
            check_message(error)
            unchanged(snapshot)
            return "refused"
        except (KeyboardInterrupt, SystemExit) as error:
            require(any(a in INTERRUPTING for a in case.alterations), f"{type(error).__name__}")
            unchanged(snapshot)
            return "interrupted"
        for difference in changed(snapshot.process):
            raise Wrong(f"not as it was: {difference}"[:200])
        use(mu, plain, case)
        return "right"


def use(mu: api.Analysis, plain: nn.Module, case: Case) -> None:
    """What a user does next: read, save, train, run, leave."""
    require(finite_plan(mu.plan), "a plan of numbers that are not finite")
    require(bool(str(mu)), "no report")
    json.dumps(mu.to_json())
    check_plan(mu.plan)
    trainable = {id(p) for p in mu.model.parameters() if p.requires_grad} - _frozen(mu)
    with contextlib.suppress(autofit.AutofitError):
        groups = mu.param_groups("adamw", lr=0.1)
        held = [id(p) for g in groups for p in g["params"]]
        require(sorted(held) == sorted(trainable), "a parameter in no group, or in two")
        require(all(math.isfinite(g["lr"]) and g["lr"] >= 0 for g in groups), "a learning rate that is none")
    if any(a in CHANGING for a in case.alterations):
        return
    example = mu.roles.growth.dims.program.example.filled()
    before = _run(plain, example)
    after = _run(mu.model, example)
    if isinstance(before, list):
        require(isinstance(after, list), f"forward runs no more: {after}")
        require([t.shape for t in before] == [t.shape for t in after], "forward gives other shapes")
        ratios = {d.ratio for d in mu.roles.growth.dimensions} | {p.depth for p in mu.plan.parameters.values()}
        if ratios <= {1.0} and mu.plan.scheme.startswith("mup") and not _asked(case):
            require(all(_equal(a, b) for a, b in zip(before, after, strict=True)), "not the same at the base")
    try:
        autofit.muify(mu.model, case.build()[1], base=16)
    except autofit.LoweringError:
        pass
    else:
        raise Wrong("a second muify goes through")
    with contextlib.suppress(autofit.AutofitError):
        mu.bake()
        baked = _run(mu.model, example)
        if isinstance(after, list):
            require(isinstance(baked, list), "forward runs no more after bake")
            close = all(_close(a, b) for a, b in zip(after, baked, strict=True))
            require(close, "bake changes what the model gives")


def _asked(case: Case) -> bool:
    return any(case.options.get(k) for k in ("zero_readout", "zero_query")) or "form" in case.options


def _frozen(mu: api.Analysis) -> set[int]:
    return {id(mu.model.get_parameter(n)) for n in mu.plan.frozen}


def _run(model: nn.Module, example: Any) -> list[torch.Tensor] | str:
    """What a model gives in eval mode, or why not; the process as it was."""
    was = process()
    try:
        for m in model.modules():
            m.training = False
        with torch.no_grad():
            torch.manual_seed(0)
            found = model(*example.args, **example.kwargs)
        return [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
    except Exception as error:
        return f"{type(error).__name__}"
    finally:
        restore(was)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_meta or bool(torch.equal(a, b)) or bool(torch.isnan(a.float()).any())


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_meta or not a.numel() or not a.is_floating_point() or not bool(torch.isfinite(a).all()):
        return True
    tolerance = 1e-4 if a.dtype in (torch.float32, torch.float64) else 5e-2
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(a.abs().max()))))


# names --------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """An MLP whose modules and parameters have given names.

    Args:
        names: of two modules and two parameters.
        width: of it.
    """

    def __init__(self, names: tuple[str, str, str, str], width: int = 32) -> None:
        super().__init__()
        one, two, gain, bias = names
        self.order = names
        self._modules[one] = nn.Linear(6, width)
        self._modules[two] = nn.Linear(width, 3)
        self._parameters[gain] = nn.Parameter(torch.ones(width))
        self._parameters[bias] = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two, gain, bias = self.order
        h = self._modules[one](x) * self._parameters[gain] + self._parameters[bias]  # type: ignore[misc, operator]
        return self._modules[two](h.relu())  # type: ignore[misc]


CODE = (
    "x\nautofit_ran()\n",
    "x');autofit_ran()#",
    '"""\nautofit_ran()\n"""',
    "{autofit_ran()}",
    "x\rautofit_ran()",
    "x\x0cautofit_ran()",
    "x\u2028autofit_ran()",
    "autofit_ran()",
    "x=autofit_ran()",
    "x:autofit_ran()",
)
"""Names that would run, were they written into source as they are; torch allows no dots."""


@st.composite
def name_cases(draw: st.DrawFn) -> tuple[tuple[str, str, str, str], bool]:
    """Names, and whether the model is exported, too."""
    name = st.one_of(
        st.sampled_from(NAMES), st.sampled_from(CODE), st.text(max_size=6), st.sampled_from(["a", "b", "w"])
    )
    names = draw(st.lists(name, min_size=4, max_size=4, unique=True))
    return tuple(names), draw(st.integers(0, 4)) == 0  # type: ignore[return-value]


def judge_names(case: tuple[tuple[str, str, str, str], bool]) -> str:
    """A model whose parts have any names is rewritten, told about, saved, and exported, or refused."""
    names, exported = case
    RAN.clear()
    torch.manual_seed(0)
    model, x = Named(names), torch.zeros(7, 6)
    snapshot = Snapshot(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.json"
        try:
            mu = autofit.muify(model, x, base=16)
        except autofit.AutofitError as error:
            check_message(error)
            unchanged(snapshot)
            return "refused"
        use(mu, Named(names), Case("mlp"))
        for name in mu.plan.parameters:
            require(bool(explain(mu.plan, mu.roles, name)), "no explanation")
        mu.save_base(path)
        try:
            found = autofit.analyze(Named(names), x, base=path)
        except autofit.BaseError as error:
            raise Wrong(f"a saved base is refused: {error}") from error
        require(found.base() == mu.base(), "a saved base is not read as it was")
        if exported:
            with contextlib.suppress(autofit.ExportError):
                autofit.muify(Named(names), x, base=16).export(Path(folder) / "model.py")
        require(not RAN, "a name was run as code")
    return "right"
