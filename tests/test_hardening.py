"""Whatever comes in, an answer or an `autofit.AutofitError` comes out, and nothing is left changed.

A portion of `benchmarks/fuzz.py`, each alteration of its models alone, and a test for everything that it found.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import fuzz
from judging import RAN, Wrong
from odd_arguments import workplace
from odd_calls import CODE, Named
from odd_files import DANGEROUS
from odd_models import ALTERATIONS, EXAMPLES, WIDTH, Case, Decoder, mlp
from odd_times import SCENARIOS, Interrupt, lines
from snapshot import Snapshot, changed, process

import autofit
from autofit import cli
from autofit.bases import KEY, read_base
from autofit.errors import LINES, LONGEST
from autofit.plan import Plan

KINDS = {k.name: k for k in fuzz.KINDS}
COUNTS = {
    "base files": 200,
    "shape files": 150,
    "plans": 200,
    "options": 100,
    "commands": 60,
    "names": 12,
    "models": 30,
    "interrupts": 12,
    "threads": 2,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_portion_of_each_kind(name: str) -> None:
    tally = fuzz.fuzz(KINDS[name], COUNTS[name], seed=0)
    assert tally.findings == {}
    assert sum(tally.outcomes.values()) >= 0.8 * COUNTS[name]
    assert any(tally.outcomes[o] for o in ("right", "interrupted"))


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_each_alteration_alone(alteration: str) -> None:
    fuzz.outcome(KINDS["models"], Case("untied", (alteration,)))


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_alone(example: str) -> None:
    fuzz.outcome(KINDS["models"], Case("mlp", example=example))


def test_the_judges_see_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that leaves a hook behind, or raises something else, is found out."""

    def careless(model: nn.Module, *_: object, **__: object) -> None:
        model.register_forward_hook(lambda *_: None)
        raise autofit.PlanError("refused")

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(autofit, "muify", careless, raising=False)
    with pytest.raises(Wrong, match="not as it was"):
        fuzz.outcome(KINDS["models"], Case("mlp"))
    monkeypatch.setattr(autofit, "muify", broken)
    with pytest.raises(Wrong, match="KeyError"):
        fuzz.outcome(KINDS["models"], Case("mlp"))
    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(Wrong, match="defect"):
        fuzz.outcome(KINDS["commands"], ("rules",))


def test_what_is_said_to_be_mended_has_a_test() -> None:
    assert all(callable(globals().get(f"test_{name}")) for name, _ in fuzz.MENDED)
    page = (Path(__file__).parent.parent / "docs" / "fuzz.md").read_text()
    assert all(f"`test_{name}`" in page for name, _ in fuzz.MENDED)


def refused(call: Callable[[], object], error: type[autofit.AutofitError], match: str | None = None) -> None:
    with pytest.raises(error, match=match):
        call()


# files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan])
def test_numbers_that_no_float_holds(value: float, tmp_path: Path) -> None:
    model, x = mlp()
    file = tmp_path / "base.json"
    file.write_text(json.dumps({"0": value, "2": 16}))
    for base in (value, {"0": value, "2": 16}, file):
        refused(lambda base=base: autofit.analyze(model, x, base=base), autofit.BaseError)  # type: ignore[misc]
    found = autofit.analyze(model, x, base=16)
    refused(lambda: found.param_groups("adamw", lr=value), autofit.OptimizerError, "finite|not a number")
    refused(lambda: autofit.Knob(lr=value), autofit.PlanError)


def test_a_rate_that_is_a_number_times_a_factor_that_is_none() -> None:
    refused(
        lambda: autofit.analyze(*mlp(), base=64).param_groups("adamw", lr=1.7e308), autofit.OptimizerError, "times 2"
    )


@pytest.mark.parametrize("text", DANGEROUS)
@pytest.mark.parametrize("suffix", [".json", ".bsh"])
def test_files_that_grow_while_they_are_shown(text: str, suffix: str, tmp_path: Path) -> None:
    """And files that would run code, and those of no end of brackets: none is read, in no time and in few words."""
    RAN.clear()
    file = tmp_path / f"base{suffix}"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with fuzz.limit(5), pytest.raises(autofit.BaseError) as caught:
        autofit.analyze(*mlp(), base=file)
    assert len(str(caught.value)) < 1000
    assert RAN == []


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("a\0b"), Path("x" * 5000)):
        with fuzz.limit(5), pytest.raises(autofit.BaseError):
            read_base(path)


def test_ratios_that_no_width_has() -> None:
    for base in (5e-324, 1e308, {"0": 1e-300, "2": 16}):
        refused(lambda base=base: autofit.analyze(*mlp(), base=base), autofit.BaseError, "widths differ by less")  # type: ignore[misc]


def test_versions(tmp_path: Path) -> None:
    """Of base files and plans: older ones are read, or refused with the reason; newer ones are refused."""
    model, x = mlp()
    mu = autofit.analyze(model, x, base=16)
    file = tmp_path / "base.json"
    mu.save_base(file)
    data = json.loads(file.read_text())
    assert data == mu.base()
    for older in (data, {KEY: 1, **data}):
        file.write_text(json.dumps(older))
        assert autofit.analyze(model, x, base=file).base() == mu.base()
        assert autofit.analyze(model, x, base=older).base() == mu.base()
    for version, reason in (
        (2, "newer autofit"),
        (0, "no autofit wrote"),
        ("1", "no autofit wrote"),
        (True, "no autofit"),
    ):
        file.write_text(json.dumps(data | {KEY: version}))
        refused(lambda: autofit.analyze(model, x, base=file), autofit.BaseError, reason)
        plan = mu.plan.to_dict() | {"version": version}
        refused(lambda plan=plan: Plan.from_dict(plan), autofit.PlanError, reason)  # type: ignore[misc]
    first = mu.plan.to_dict()
    del first["branches"]  # as the first plans were
    for p in first["parameters"]:
        del p["drawn"]
    assert Plan.from_dict(first) == mu.plan


@pytest.mark.parametrize(
    "change",
    [
        {"base": [[1, 2, 3]]},
        {"base": {"0": "16"}},
        {"sizes": {"0": 1.5}},
        {"scheme": "nope"},
        {"scheme": ["mup"]},
        {"form": "nope"},
        {"parameters": {}},
        {"parameters": [3]},
        {"parameters.0": {"r_in": 0}},
        {"parameters.0": {"r_in": 1e300}},
        {"parameters.0": {"r_in": "1"}},
        {"parameters.0": {"shape": [3, None]}},
        {"parameters.0": {"rule": "nope"}},
        {"parameters.0": {"drawn": 1}},
        {"parameters.0": {"zeros": [0, [[1]]]}},
        {"parameters.0": {"new": 1}},
        {"parameters.0": {"names": ["other"]}},
        {"parameters.0": {"name": "2.weight", "names": ["2.weight"]}},
        {"sites.0": {"multiplier": -1}},
        {"sites.0": {"carrier": {"place": "everywhere"}}},
        {"notes": "text"},
        {"extra": 1},
    ],
)
def test_plans_that_are_none(change: dict[str, Any]) -> None:
    data = json.loads(json.dumps(autofit.analyze(*mlp(), base=16).plan.to_dict()))
    for key, value in change.items():
        name, _, at = key.partition(".")
        if at:
            data[name][int(at)] |= value
        else:
            data[name] = value
    refused(lambda: Plan.from_dict(data), autofit.PlanError)


# arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"form": []},
        {"scheme": {}},
        {"init": torch.zeros(2)},
        {"zero_query": numpy.zeros(2)},
        {"strict": "yes"},
        {"depth_ratio": 1e300},
        {"tunables": {"names": None}},
        {"tunables": {"names": {1: 2}}},
        {"tunables": {"folded": {}}},
    ],
)
def test_arguments_of_any_kind(options: dict[str, Any]) -> None:
    refused(lambda: autofit.analyze(*mlp(), base=16, **options), autofit.AutofitError)


@pytest.mark.parametrize(
    "settings",
    [
        {"groups": [{}]},
        {"groups": [3]},
        {"groups": {"params": []}},
        {"groups": 3},
        {"groups": "params"},
        {"per_parameter": "weight"},
        {"per_parameter": lambda name, p: 3},
        {"per_parameter": lambda name: None},
        {"decoupled_weight_decay": {}},
        {"scale_eps": "no"},
        {"beside": 3},
    ],
)
def test_settings_of_any_kind(settings: dict[str, Any]) -> None:
    found = autofit.analyze(*mlp(), base=16)
    refused(lambda: found.param_groups("adamw", lr=0.1, **settings), autofit.OptimizerError)


def test_a_message_fits_on_a_screen() -> None:
    refused(lambda: autofit.analyze(*mlp(), frozen="x" * 10_000), autofit.PlanError, "xxx")
    error = autofit.AutofitError("line\n" * 500, where="y" * 10_000, todo="z")
    assert len(str(error)) < 3 * LONGEST
    assert len(str(error).splitlines()) <= 3 * LINES
    assert "..." in error.what
    assert autofit.AutofitError("short", todo="do").args == ("short\n  to do: do",)


def test_odd_exceptions_and_configurations() -> None:
    for alteration in ("raises what cannot be printed", "raises without text", "raises MemoryError"):
        model, x = Case("mlp", (alteration,)).build()
        refused(lambda model=model, x=x: autofit.muify(model, x), autofit.ExampleError, "failed on the example")  # type: ignore[misc]
    plain = autofit.analyze(*Case("mlp").build(), base=16).plan
    for alteration in (name for name in ALTERATIONS if "configuration" in name):
        model, x = Case("mlp", (alteration,)).build()
        assert autofit.analyze(model, x, base=16).plan.parameters == plain.parameters


def test_the_line_of_a_failure_is_not_one_of_python_itself() -> None:
    with pytest.raises(autofit.ExampleError) as caught:
        autofit.muify(Named(("a.b", "two", "gain", "bias")), torch.zeros(7, 6))
    assert caught.value.where is None or "contextlib" not in caught.value.where


def test_a_base_function() -> None:
    """Its failure is a refusal, with the cause; and the random numbers that it takes are not the model's."""
    model, x = mlp()
    snapshot = Snapshot(model)
    with pytest.raises(autofit.BaseError, match="ZeroDivisionError") as caught:
        autofit.muify(model, x, base=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert list(snapshot.differences()) == []
    autofit.muify(model, x, base=lambda: mlp(16)[0])
    assert list(changed(snapshot.process)) == []


# models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alteration", ["a sparse parameter", "a float8 parameter", "fake tensors", "not a number"])
def test_values_that_have_no_spread(alteration: str) -> None:
    model, x = Case("untied", (alteration,), seed=3).build()
    plan = autofit.analyze(model, x, base=16, strict=False).plan
    assert any(p.init_std in (None, 0) for p in plan.parameters.values())
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan


@pytest.mark.parametrize("how", ["expanded", "overlapping", "transposed"])
def test_memory_that_is_shared(how: str) -> None:
    """What is to be multiplied has memory of its own, or nothing is."""
    model, x = mlp()
    if how == "expanded":
        model[2].bias = nn.Parameter(torch.randn(1).expand(WIDTH))
    elif how == "overlapping":
        flat = torch.randn(2 * WIDTH)
        model[0].bias, model[2].bias = nn.Parameter(flat[:WIDTH]), nn.Parameter(flat[1 : WIDTH + 1])
    else:
        flat = torch.randn(WIDTH, WIDTH)
        body = nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        model = nn.Sequential(nn.Linear(6, WIDTH), *body, nn.Linear(WIDTH, 3))
        model[1].weight, model[3].weight = nn.Parameter(flat), nn.Parameter(flat.t())
    snapshot = Snapshot(model)
    tuned = {"hidden": {"init": 2.0}, "bias": {"init": 2.0}}
    with pytest.raises(autofit.LoweringError, match="share memory"):
        autofit.muify(model, x, base=16, tunables=tuned)
    assert list(snapshot.differences()) == []


def test_side_by_side_in_one_memory_is_well() -> None:
    model, x = Case("untied", ("shared memory, side by side",)).build()
    plain = autofit.muify(*Case("untied").build(), base=16, tunables={"hidden": {"init": 2.0}}).model
    autofit.muify(model, x, base=16, tunables={"hidden": {"init": 2.0}})
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_module_that_contains_itself() -> None:
    model, x = mlp()
    model[2].me = model
    refused(lambda: autofit.muify(model, x), autofit.CaptureError, r"contains itself: its submodule 2\.me is the root")
    refused(lambda: autofit.analyze(*mlp(), base=model), autofit.CaptureError, "contains itself")
    model, x = Decoder(), torch.zeros(3, 7, dtype=torch.long)
    model.again = model.mlp  # twice is not inside
    found = autofit.analyze(model, x, base=16)
    assert found.plan.parameters["mlp.0.weight"].names == ("mlp.0.weight", "again.0.weight")


@pytest.mark.parametrize("alteration", ["sets dtype and gradients for all", "seeds all generators"])
def test_what_forward_does_to_the_process(alteration: str) -> None:
    model, x = Case("mlp", (alteration,)).build()
    was = process()
    autofit.muify(model, x, base=16)
    assert list(changed(was)) == []
    assert (random.getstate(), torch.get_default_dtype()) == (was["Python's random numbers"], torch.float32)


def test_threads() -> None:
    """The same model from many threads is rewritten once; others get the plans that they get alone."""
    assert fuzz.outcome(KINDS["threads"], ("tied decoder", "second model", "run once")) == "right"
    model, x = mlp()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            autofit.muify(model, x, base=16)
        except autofit.AutofitError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [type(e) for e in errors] == [autofit.LoweringError] * 2
    assert len(model[4]._forward_pre_hooks) == 1


def deciding() -> Iterator[tuple[str, int]]:
    """Lines of two scenarios that change or put back something, and every 100th other."""
    for name in ("freezes", "second model"):
        for at, ((file, _), _) in enumerate(lines(name)):
            if Path(file).name in ("lowering.py", "cleanup.py") or at % 100 == 0:
                yield name, at


def test_an_interrupt_in_every_line() -> None:
    """Every sixth of the lines that change something, the last time it is reached; `fuzz` draws from all lines."""
    for name, at in list(deciding())[::6]:
        times = lines(name)[at][1]
        fuzz.outcome(KINDS["interrupts"], (name, at, times))
    for name in ("freezes", "mlp"):
        last = [at for at, ((file, _), _) in enumerate(lines(name)) if file.endswith("api.py")][-3:]
        assert last
        for at in last:
            fuzz.outcome(KINDS["interrupts"], (name, at, 1))


@pytest.mark.parametrize("name", ["mlp", "factors on parameters", "untied by baking"])
def test_an_interrupt_in_every_line_of_bake(name: str) -> None:
    def muified() -> autofit.Analysis:
        if name in SCENARIOS:
            case = SCENARIOS[name]
            return autofit.muify(*case.build(), **case.arguments())
        torch.manual_seed(0)
        return autofit.muify(Decoder(tied=True), torch.zeros(3, 7, dtype=torch.long), base=16)

    untie = name not in SCENARIOS
    mu, counter = muified(), Interrupt()
    sys.settrace(counter)
    mu.bake(untie=untie)
    sys.settrace(None)
    of_bake = [at for at in counter.seen if Path(at[0]).name == "lowering.py"][::2]
    mu, interrupted = muified(), 0
    for line in of_bake:
        if not mu.model.__dict__.get("_autofit"):
            mu = muified()
        snapshot, interrupt = Snapshot(mu.model), Interrupt(line, 1)
        sys.settrace(interrupt)
        try:
            mu.bake(untie=untie)
        except KeyboardInterrupt:
            interrupted += 1
            assert list(snapshot.differences()) == [], line
        finally:
            sys.settrace(None)
    assert interrupted > 10


def test_compiled_code_of_a_twin() -> None:
    """Code that was compiled for a model without hooks is not used for one of its class that has them."""
    plain, x = mlp()
    x = torch.randn(7, 6)
    with torch.no_grad():
        torch.compile(plain, backend="eager")(x)
        model, _ = mlp()
        compiled = torch.compile(model, backend="eager")
        compiled(x)
        mu = autofit.muify(model, x, base=16)
        assert mu.plan.sites[0].multiplier == 0.5
        torch.testing.assert_close(compiled(x), model(x))
        torch.compile(plain, backend="eager")(x)
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))
        before = model(x)
        mu.bake()
        torch.testing.assert_close(compiled(x), before)


@pytest.mark.parametrize("form", ["table8", "table3", "folded", "table9"])
def test_baking_what_is_in_weights(form: str) -> None:
    model, x = mlp()
    mu = autofit.muify(model, x, base=16, form=form)
    x = torch.randn(7, 6)
    before = model(x)
    mu.bake()
    torch.testing.assert_close(model(x), before)
    mu.unbake()
    torch.testing.assert_close(model(x), before)


def test_baking_under_weight_norm() -> None:
    """A factor on the direction alone changes nothing, so it is refused; a norm with a gain before takes it."""
    model, x = mlp()
    parametrizations.weight_norm(model[4])
    mu = autofit.muify(model, x, base=16)
    snapshot = Snapshot(model)
    refused(mu.bake, autofit.LoweringError, "no weight can take")
    assert list(snapshot.differences()) == []


class Meeting(nn.Module):
    """A residual branch, and a readout that is no module of its own and is tied to the table."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(23, WIDTH), norm
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return nn.functional.linear(x + self.mlp(self.norm(x)), self.table.weight)


def test_terms_of_a_sum_that_meet_again() -> None:
    """A factor goes onto all terms of a sum only where what one term is computed from another by does not know it."""
    ids = torch.arange(21).view(3, 7)
    model = Meeting(nn.LayerNorm(WIDTH))
    before = model(ids)
    mu = autofit.muify(model, ids, base=16, init="keep")
    assert str(mu.plan.sites[0].carrier) == "output table and 1 more"
    torch.testing.assert_close(model(ids), before / 2, rtol=1e-3, atol=1e-3)
    refused(lambda: autofit.muify(Meeting(nn.Identity()), ids, base=16), autofit.LoweringError, "no module boundary")
    model = Decoder(tied=False)
    parametrizations.weight_norm(model.head)
    mu = autofit.muify(model, ids, base=16)
    refused(mu.bake, autofit.LoweringError, "no weight can take")


def test_torchscript() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = Case("mlp", ("scripted",)).build()
        mu = autofit.muify(model, x, base=16)
        x = torch.randn(7, 6)
        before = model(x)
        torch.testing.assert_close(mu.bake()(x), before)
        lstm, x = Case("recurrent", ("scripted",)).build()
        refused(lambda: autofit.analyze(lstm), autofit.AutofitError)


def test_a_module_called_residual_branches(tmp_path: Path) -> None:
    names = "residual_branches", "two", "gain", "bias"
    mu = autofit.muify(Named(names), torch.zeros(7, 6), base=16)
    mu.save_base(tmp_path / "base.json")
    assert mu.base() == {"residual_branches": 16}
    assert autofit.analyze(Named(names), torch.zeros(7, 6), base=tmp_path / "base.json").base() == mu.base()


@pytest.mark.parametrize("code", CODE)
def test_names_are_no_code(code: str, tmp_path: Path) -> None:
    RAN.clear()
    for names in ((code, "two", "gain", "bias"), ("one", "two", code, "bias")):
        mu = autofit.muify(Named(names), torch.zeros(7, 6), base=16)
        try:
            mu.export(tmp_path / "model.py")
        except autofit.ExportError:
            continue
        finally:
            assert RAN == []
        assert "autofit_ran" in (tmp_path / "model.py").read_text()


# the command line ---------------------------------------------------------------------------------------


def command(*words: str) -> tuple[int, str]:
    """Exit code and what was said."""
    with pytest.MonkeyPatch.context() as patch, workplace():
        patch.setattr(sys, "argv", ["autofit", *words])
        patch.setattr(sys, "stdout", out := io.StringIO())
        patch.setattr(sys, "stderr", out)
        code: Any = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = leave.code
    return code, " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nets.py:divides", r"divides\(\) failed: ZeroDivisionError.*where: \S*nets\.py:\d+ in divides"),
        ("nets.py:raises", r"raises\(\) failed: RuntimeError: the factory's own trouble"),
        ("nets.py:exits", r"exits\(\) failed: SystemExit"),
        ("syntax.py:net", "importing syntax.py failed: SyntaxError"),
        ("raising.py:net", "importing raising.py failed: RuntimeError: on import"),
        ("exiting.py:net", "importing exiting.py failed: SystemExit"),
        ("hf:typeless.json", "gives no configuration: KeyError"),
        ("hf:list.json", "gives no configuration: TypeError"),
    ],
)
def test_targets_that_fail(target: str, said: str) -> None:
    code, text = command("report", target)
    assert code == 2
    assert re.search(said, text), text


def test_models_that_transformers_cannot_build() -> None:
    code, text = command("report", "hf:gpt2", "--set", "n_head=5")
    assert (code, "building hf:gpt2 failed" in text) == (2, True), text


def test_a_scheme_that_is_none() -> None:
    for scheme in ("optimizers", "../schemes/mup", "nope"):
        code, text = command("rules", "--scheme", scheme)
        assert (code, "unknown scheme" in text) == (1, True), text


def test_what_cannot_be_written() -> None:
    small = "--widths", "8,16,32", "--steps", "1", "--seeds", "1", "--no-control"
    code, text = command("check", "nets.py:net", *small, "--page", "no/such/folder/page.html")
    assert (code, "No such file" in text) == (2, True), text


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (ZeroDivisionError, 1)])
def test_a_command_ends_without_a_traceback(
    error: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    found, text = command("rules")
    assert found == code
    assert text.startswith("autofit: ")
    assert "Traceback" not in text


def test_every_error_is_exported() -> None:
    from autofit import errors

    own = {n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, autofit.AutofitError)}
    assert own <= set(autofit.__all__)
    assert all(getattr(autofit, name) is getattr(errors, name) for name in own)


def test_a_weight_that_ends_the_process() -> None:
    """In a process of its own, as it would be the end of this one."""
    program = """
import torch, autofit
from torch import nn

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 32, batch_first=True), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])

model = Recurrent()
model.lstm.weight_hh_l0 = nn.Parameter(torch.empty(0, 32))
try:
    autofit.muify(model, torch.zeros(2, 7, 5), base=16)
except autofit.AutofitError as error:
    print(type(error).__name__)
print(torch.backends.mkldnn.enabled)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(torch.backends.mkldnn.enabled)
    assert done.stdout.split()[0].endswith("Error")


def test_an_example_that_holds_itself() -> None:
    example: list[object] = [torch.zeros(2, 5)]
    example.append(example)
    refused(lambda: autofit.muify(nn.ReLU(), (example,)), autofit.ExampleError, "holds itself")
