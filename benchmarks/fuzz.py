"""Fuzzing: whatever comes in, an answer or an `autofit.AutofitError` comes out, and nothing is left changed.

    python benchmarks/fuzz.py run --cases 12000 --seed 0 --jobs 2     # writes docs/fuzz.md
    python benchmarks/fuzz.py run --cases 500 --kind models --seed 7  # one kind, on the screen

Cases are drawn by hypothesis. Each kind judges its own; what all share: no other exception than the library's own, no
hang, the model as it was after a refusal, the process's state (random numbers, types, modes, hooks) as it was always,
and no code of a data file is run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import hypothesis
import torch
import yaml
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent))
from judging import ROOT, Hang, Wrong, limit, unexpected
from odd_arguments import command_lines, judge_command, judge_options, odd_options
from odd_calls import judge_model, judge_names, model_cases, name_cases
from odd_files import base_texts, changed_plans, judge_base, judge_plan, shapes, sizes
from odd_times import SCENARIOS, interrupts, judge_interrupt, judge_threads
from snapshot import process, restore

PAGE = ROOT / "docs" / "fuzz.md"


@dataclass(frozen=True)
class Kind:
    """One kind of cases.

    Attributes:
        name: of it.
        what: is fuzzed, in words.
        cases: strategy that draws one.
        judge: gives the outcome in a word, or raises `Wrong`.
        seconds: a case may take.
        share: of all cases.
    """

    name: str
    what: str
    cases: st.SearchStrategy[Any]
    judge: Callable[[Any], str]
    seconds: float
    share: float


KINDS = (
    Kind(
        "base files",
        "contents of a base file in JSON",
        base_texts(sizes, lambda data: json.dumps(data)),
        lambda case: judge_base(case, ".json"),
        10,
        0.22,
    ),
    Kind(
        "shape files",
        "contents of a `.bsh` file in YAML",
        base_texts(shapes, lambda data: yaml.safe_dump(data, allow_unicode=True)),
        lambda case: judge_base(case, ".bsh"),
        10,
        0.16,
    ),
    Kind("plans", "plans in JSON with changes anywhere", changed_plans(), judge_plan, 10, 0.22),
    Kind("options", "arguments of `muify` and `param_groups`", odd_options(), judge_options, 20, 0.14),
    Kind("commands", "words on the command line", command_lines(), judge_command, 120, 0.07),
    Kind("names", "names of modules and parameters", name_cases(), judge_names, 60, 0.03),
    Kind(
        "models",
        "nets with up to three of the alterations in benchmarks/odd_models.py",
        model_cases(),
        judge_model,
        60,
        0.1,
    ),
    Kind("interrupts", "KeyboardInterrupt in a line of the library", interrupts(), judge_interrupt, 60, 0.055),
    Kind(
        "threads",
        "two or three models at the same time",
        st.lists(st.sampled_from(list(SCENARIOS)), min_size=2, max_size=3).map(tuple),
        judge_threads,
        90,
        0.005,
    ),
)


@dataclass
class Tally:
    """What became of the cases of one kind.

    Attributes:
        outcomes: how often each.
        findings: the shortest case of each, by what is wrong.
        seconds: all together.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        found = dict(other.findings)
        for what, case in self.findings.items():
            found[what] = min(case, found.get(what, case), key=len)
        return Tally(self.outcomes + other.outcomes, found, self.seconds + other.seconds)


def outcome(kind: Kind, case: Any) -> str:
    """Judge one case under its time limit.

    Raises:
        Wrong: it came out as it must not.
    """
    was = process()
    try:
        with limit(kind.seconds):
            return kind.judge(case)
    except Wrong:
        raise
    except Hang as error:
        raise unexpected(error) from error
    except Exception as error:
        raise unexpected(error) from error
    finally:
        restore(was)


def fuzz(kind: Kind, cases: int, seed: int, say: Callable[[str], None] = lambda line: None) -> Tally:
    """Draw and judge cases."""
    tally, start = Tally(), time.monotonic()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.cases)
    def one(case: Any) -> None:
        try:
            tally.outcomes[outcome(kind, case)] += 1
        except Wrong as wrong:
            tally.outcomes["wrong"] += 1
            shown = repr(case)
            if str(wrong) not in tally.findings:
                say(f"{kind.name}: {wrong}\n    {shown[:400]}")
            tally.findings[str(wrong)] = min(shown, tally.findings.get(str(wrong), shown), key=len)

    one()
    return replace(tally, seconds=time.monotonic() - start)


def _work(job: tuple[str, int, int]) -> tuple[str, Tally]:
    torch.set_num_threads(1)
    name, cases, seed = job
    kind = next(k for k in KINDS if k.name == name)
    return name, fuzz(kind, cases, seed, lambda line: print(line, flush=True))


def run(cases: int, seed: int, jobs: int, only: str | None) -> dict[str, Tally]:
    """Fuzz every kind, each in parts, over processes."""
    chosen = [k for k in KINDS if only in (None, k.name)]
    whole = sum(k.share for k in chosen)
    parts = [
        (k.name, math.ceil(cases * k.share / whole / (2 * jobs)), 1000 * seed + i)
        for k in sorted(chosen, key=lambda k: -k.seconds)
        for i in range(2 * jobs)
    ]
    tallies = {k.name: Tally() for k in chosen}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:  # it notices a process that dies
        for future in as_completed([pool.submit(_work, part) for part in parts]):
            name, tally = future.result()
            tallies[name] += tally
            done = sum(sum(t.outcomes.values()) for t in tallies.values())
            print(f"{name}: {dict(tally.outcomes)} in {tally.seconds:.0f} s; {done} cases in all", flush=True)
    return tallies


def main() -> None:
    """Run, and write docs/fuzz.md if all kinds ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["run"])
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kind", choices=[k.name for k in KINDS])
    given = parser.parse_args()
    start = time.monotonic()
    tallies = run(given.cases, given.seed, given.jobs, given.kind)
    print(f"{time.monotonic() - start:.0f} s")
    for tally in tallies.values():
        for what, case in tally.findings.items():
            print(f"WRONG {what}\n      {case[:600]}")
    if given.kind is None:
        PAGE.write_text(page(tallies, given.cases, given.seed, given.jobs, time.monotonic() - start))
    sys.exit(1 if any(t.findings for t in tallies.values()) else 0)


MENDED = (
    (
        "numbers_that_no_float_holds",
        "Base sizes, learning rates and knobs of hundreds of digits ended in `OverflowError`.",
    ),
    (
        "files_that_grow_while_they_are_shown",
        "A `.bsh` of lists in lists by reference took all memory for its own message.",
    ),
    (
        "what_is_no_regular_file",
        "A pipe, a device or a path with a zero byte as base was read, or ended in `ValueError`.",
    ),
    (
        "ratios_that_no_width_has",
        "Bases that differ from the model by more than any width gave factors of 0 or infinity.",
    ),
    (
        "versions",
        "Base files had no version; newer plans were refused without the reason.",
    ),
    (
        "plans_that_are_none",
        "Plans with fields of a wrong type, unknown rules or repeated names were read.",
    ),
    (
        "arguments_of_any_kind",
        "Options, groups and callbacks of a wrong type ended in `TypeError`, `KeyError` or `ValueError`.",
    ),
    (
        "a_message_fits_on_a_screen",
        "Messages quoted values of any length.",
    ),
    (
        "odd_exceptions_and_configurations",
        "Exceptions without text, and configurations that raise or hold anything, went through.",
    ),
    (
        "a_base_function",
        "What `base=` calls may raise anything, and took random numbers from the model's.",
    ),
    (
        "values_that_have_no_spread",
        "Sparse, float8, fake and not finite parameters ended the measuring of initial values.",
    ),
    (
        "memory_that_is_shared",
        "Parameters that share memory without being one were multiplied twice, or not put back.",
    ),
    (
        "a_module_that_contains_itself",
        "A module that contains itself was told that recursion is too deep.",
    ),
    (
        "what_forward_does_to_the_process",
        "A forward that sets the default type, or NumPy's random numbers, changed them for the process.",
    ),
    (
        "threads",
        "Two threads disturbed each other's capture: other plans, a lost stderr.",
    ),
    (
        "an_interrupt_in_every_line",
        "Interrupted in its last lines, `muify` left the model rewritten, with what `deferred_init` keeps; now only "
        "while it lets other threads in.",
    ),
    (
        "an_interrupt_in_every_line_of_bake",
        "Interrupted, `bake` left some weights multiplied.",
    ),
    (
        "compiled_code_of_a_twin",
        "Code compiled for a model without hooks ran for one of the same class with them.",
    ),
    (
        "baking_what_is_in_weights",
        "`bake` multiplied weights again that have the multiplier in them already.",
    ),
    (
        "terms_of_a_sum_that_meet_again",
        "A factor went onto all terms of a sum of which one is computed from another, without a norm between: forward "
        "and `bake` gave something else, and nothing saw it.",
    ),
    (
        "baking_under_weight_norm",
        "`bake` put a readout's multiplier into the direction under `weight_norm`, where it does nothing.",
    ),
    (
        "torchscript",
        "TorchScript: no signature, no parameter by name.",
    ),
    (
        "a_module_called_residual_branches",
        "A module called `residual_branches` was taken for a number of layers.",
    ),
    (
        "targets_that_fail",
        "Factories, files and configurations that raise, or exit, ended the command with a traceback.",
    ),
    (
        "a_scheme_that_is_none",
        "`autofit rules --scheme optimizers` ended in `KeyError`.",
    ),
    (
        "a_weight_that_ends_the_process",
        "An LSTM with an empty weight, run to see whether it runs, ended the process: oneDNN's kernel does. The run of "
        "12,000 cases waited for that process for ever.",
    ),
    (
        "an_example_that_holds_itself",
        "An example that holds itself, of a model without parameters, ended in `RecursionError`.",
    ),
)
"""Tests of tests/test_hardening.py, and what the first runs found for each."""


def page(tallies: dict[str, Tally], cases: int, seed: int, jobs: int, seconds: float) -> str:
    """docs/fuzz.md."""
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "hypothesis"))
    total = sum(sum(t.outcomes.values()) for t in tallies.values())
    wrong = sum(t.outcomes["wrong"] for t in tallies.values())
    columns = ("right", "refused", "usage", "interrupted", "no case", "wrong")
    rows = [
        f"| {k.name} | {k.what} | {sum(t.outcomes.values())} | "
        + " | ".join(str(t.outcomes[c] or "") for c in columns)
        + f" | {len(t.findings)} | {t.seconds:.0f} s |"
        for k in KINDS
        if (t := tallies[k.name])
    ]
    findings = [f"- {k.name}: {what}" for k in KINDS for what in tallies[k.name].findings]
    return "\n".join(
        (
            "# Fuzzing",
            "",
            f"Written by `python benchmarks/fuzz.py run --cases {cases} --seed {seed} --jobs {jobs}` on {date.today()} "
            f"with {versions}, Python {sys.version.split()[0]}, in {seconds / 60:.0f} minutes.",
            "",
            f"Of {total} cases {wrong} came out wrong. Wrong is: an exception that is not `autofit.AutofitError`, a "
            "message of more than a screen, a passed time limit, a model that is not as it was after a refusal, "
            "state of the process (random numbers, default type, gradient mode, warnings, streams, modes) that is not "
            "as it was, code of a file or name that was run, an exit code other than 0, 1 and 2, a traceback on the "
            "command line; and of a model that was rewritten, a plan that does not come back from JSON, a parameter in "
            "no group, a forward that runs no more or gives something else at the base, a second `muify` that goes "
            "through, a `bake` that changes what the model gives.",
            "",
            f"| kind | what is drawn | cases | {' | '.join(columns)} | different findings | time |",
            f"|---|---|{'---|' * (len(columns) + 3)}",
            *rows,
            "",
            "No case are alterations that do not go together, as a view of a sparse tensor. Time is that of all "
            "processes together. A smaller portion runs with the tests (tests/test_hardening.py).",
            *(("", "Found and not mended:", "", *findings) if findings else ()),
            "",
            "## Found and mended",
            "",
            "What the first runs found, each with the test by which it stays mended:",
            "",
            *(f"- {what} (`test_{test}`)" for test, what in MENDED),
            "",
        )
    )


if __name__ == "__main__":
    main()
