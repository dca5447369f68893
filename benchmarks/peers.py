"""autofit beside the packages `mup` and `unit-scaling` and the untouched model: one run on one machine.

    python benchmarks/peers.py run --peers DIRECTORY    # half an hour; both packages go into DIRECTORY
    python benchmarks/peers.py run --mup PYTHON --unit-scaling PYTHON    # or interpreters that have them
    python benchmarks/peers.py run --quick --out DIRECTORY    # small models, few rounds
    python benchmarks/peers.py write                    # the page again, from the rows

Every case is a process of its own (benchmarks/peer.py), with one thread. They stand ready side by side and take turns:
a round is one step of each, so that what the machine does besides meets all alike. Written are docs/benchmarks.jsonl,
the rows, and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.metadata
import json
import os
import platform
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peers_page import FAMILIES, PEERS, written

ROOT = Path(__file__).parent.parent
READY = Path(__file__).parent / "ready"
PACKAGES = ("mup==1.0.0", "unit-scaling==0.3.5", "einops", "docstring-parser", "tabulate", "pygments", "pyyaml")
CASES = ("untouched", "control", "eager attention", "autofit", "mup", "unit-scaling")
WARMUP = 3
SURVIVAL = ("gpt2", "llama")
SIZE_DEEP = {"full": "deep", "quick": "quick deep"}
COMPILED = ("untouched", "autofit", "control", "mup", "unit-scaling")
"""In the order in which two at a time are compiled; `control` finds its code in the cache."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Interpreter:
    """A Python that has a peer, and what is to be put on its path."""

    python: str
    path: tuple[str, ...] = ()


@dataclass
class Process:
    """A case that stands ready.

    Attributes:
        case, model: which.
        popen: the process.
        error: why it has no more to say.
    """

    case: str
    model: str
    popen: subprocess.Popen[str]
    error: str = ""

    @classmethod
    def start(cls, case: str, model: str, size: str, by: Interpreter, environment: dict[str, str]) -> Process:
        """Without waiting until it is up."""
        path = os.pathsep.join((str(ROOT), *by.path))
        log = Path(environment["LOGS"], f"{case}-{model}-{size}".replace(" ", "-"))
        with log.open("w") as errors:
            popen = subprocess.Popen(
                [by.python, str(Path(__file__).with_name("peer.py")), case, model, size],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**environment, "PYTHONPATH": path},
            )
        return cls(case, model, popen)

    def told(self, seconds: float = 600) -> Row:
        """The next line that it says."""
        assert self.popen.stdout is not None
        if self.error:
            return {"error": self.error}
        if not select.select([self.popen.stdout], [], [], seconds)[0]:
            self.error = f"no answer within {seconds:g} s"
            self.popen.kill()
            self.popen.wait()
        elif line := self.popen.stdout.readline():
            answer: Row = json.loads(line)
            self.error = answer.get("error", "")
            return answer
        else:
            self.error = f"the process ended with {self.popen.wait()}"
        return {"error": self.error}

    def tell(self, command: str, **arguments: Any) -> None:
        """Give a command, whose answer is `told`."""
        assert self.popen.stdin is not None
        if not self.error:
            with contextlib.suppress(BrokenPipeError):  # of one that is dead, as `told` says
                self.popen.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
                self.popen.stdin.flush()

    def ask(self, command: str, **arguments: Any) -> Row:
        """Give a command and wait; a step that takes minutes is none."""
        self.tell(command, **arguments)
        return self.told(100 if command == "step" else 600)

    def end(self) -> None:
        """No more commands."""
        try:
            self.popen.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.communicate()


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        models: families; ``cases`` that are measured of each.
        interpreters: by case; absent ones have a reason in ``absent``.
        quick: small sizes.
        rounds: of steps; ``starts`` of making a model and optimizer; ``exports`` of whole exports; ``imports`` of
            new processes.
        backend: of torch.compile.
        transforms: how many of the transforms that are to be survived; all if ``None``.
        compiled, deep: families that are compiled, and those of 24 layers that are exported.
    """

    models: tuple[str, ...]
    cases: tuple[str, ...]
    interpreters: dict[str, Interpreter]
    absent: dict[str, str]
    quick: bool
    rounds: int
    starts: int
    exports: int
    imports: int
    transforms: int | None
    backend: str
    compiled: tuple[str, ...]
    deep: tuple[str, ...]


def in_turn(processes: Sequence[Process], command: str, rounds: int) -> dict[str, list[Row]]:
    """Answers by case; the order is turned round every time, and who fails is out."""
    answers: dict[str, list[Row]] = {p.case: [] for p in processes}
    for i in range(rounds):
        for p in processes if i % 2 else processes[::-1]:
            if not p.error:
                answers[p.case].append(p.ask(command))
    return answers


def series(what: str, p: Process, answers: Sequence[Row]) -> Row:
    """A row of the seconds of several rounds."""
    found = {"what": what, "model": p.model, "case": p.case}
    if p.error:
        return {**found, "error": p.error}
    return {**found, **{k: [round(a[k], 6) for a in answers] for k in ("seconds", "cpu")}}


def steps(prefix: str, p: Process, answers: Sequence[Row]) -> Iterator[Row]:
    """Rows of both halves of a training step; the first rounds warm up."""
    for half in ("computing", "updating"):
        yield series(prefix + half, p, [a[half] for a in answers[WARMUP:] if half in a])


def of_model(model: str, plan: Plan, environment: dict[str, str], note: Callable[[str], None]) -> Iterator[Row]:
    """All about one family."""
    size, by = "quick" if plan.quick else "full", plan.interpreters
    cases = [c for c in plan.cases if c in by and (c != "eager attention" or "unit-scaling" in by)]
    processes = [Process.start(c, model, size, by[c], environment) for c in cases]
    deep = [Process.start("autofit", model, SIZE_DEEP[size], by["autofit"], environment)] * (model in plan.deep)
    try:
        versions = {id(p): p.told().get("versions") for p in (*processes, *deep)}
        note(f"{model}: {len(versions)} processes are up")
        for p in processes:
            yield {"what": "ready", "model": model, "case": p.case, "versions": versions[id(p)], **p.ask("ready")}
        for p in processes:
            yield {"what": "first step", "model": model, "case": p.case, **p.ask("step")}
        note(f"{model}: first steps")
        answers = in_turn(processes, "step", plan.rounds + WARMUP)
        for p in processes:
            yield from steps("", p, answers[p.case])
        again = in_turn(processes, "again", plan.starts)
        for p in processes:
            yield series("again", p, again[p.case])
        note(f"{model}: steps")
        if model in plan.compiled:
            by_case = {p.case: p for p in processes if not p.error}
            yield from compiled([by_case[c] for c in COMPILED if c in by_case], plan)
            note(f"{model}: compiled steps")
        if model in SURVIVAL:
            lost = [p for p in processes if p.popen.poll() is not None]
            new = [Process.start(p.case, model, size, by[p.case], environment) for p in lost if p.case in PEERS]
            for p in new:
                p.told()
            processes = [p for p in processes if p not in lost] + new
            yield from survival([p for p in processes if p.case in ("untouched", *PEERS)], plan)
            note(f"{model}: survival")
        for p in deep:
            yield from exports(p, plan)
            note(f"{model}: exports")
    finally:
        for p in (*processes, *deep):
            p.end()


def compiled(processes: list[Process], plan: Plan) -> Iterator[Row]:
    """Steps of compiled models; two are compiled at a time, which is not measured."""
    for i in range(0, len(processes), 2):
        for p in processes[i : i + 2]:
            p.tell("compile", backend=plan.backend)
        for p in processes[i : i + 2]:
            p.told()
    answers = in_turn(processes, "compiled_step", plan.rounds + WARMUP)
    for p in processes:
        yield from steps("compiled ", p, answers[p.case])


def survival(processes: list[Process], plan: Plan) -> Iterator[Row]:
    """What is left of every peer's work; two at a time, which is not measured. Whoever failed before is asked, too."""
    for i in range(0, len(processes), 2):
        for p in processes[i : i + 2]:
            p.error = ""
            p.tell("survive", transforms=plan.transforms)
        for p in processes[i : i + 2]:
            yield {"what": "survival", "model": p.model, "case": p.case, "found": p.told()}


def exports(p: Process, plan: Plan) -> Iterator[Row]:
    """One export of a whole deep model against muify, in turn in one process; the first of each imports."""
    found: dict[str, list[Row]] = {"export": [], "muify": []}
    for _ in range(plan.exports + 1):
        for command, answers in found.items():
            answers.append(p.ask(command))
    for command, answers in found.items():
        yield {**series(command, p, answers[1:] or answers), "layers": answers[-1].get("layers")}


PROGRAMS = {
    "nothing": "pass",
    "import autofit": "import autofit",
    "autofit --help": "import sys; sys.argv = ['autofit', '--help']\nfrom autofit.cli import main\nmain()",
}


def imports(plan: Plan) -> Iterator[Row]:
    """Seconds of whole processes: an interpreter that does nothing, one that imports autofit, and ``--help``."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(plan.imports + 1):
        for name, program in PROGRAMS.items():
            found[name].append(process(program))
    for name, times in found.items():
        seconds, cpu = zip(*times[1:], strict=True)
        yield {"what": "process", "case": name, "seconds": seconds, "cpu": cpu}


def process(program: str) -> tuple[float, float]:
    """Seconds of an interpreter that runs a program: by the wall, and its own."""
    environment, before = {**os.environ, "PYTHONPATH": str(ROOT)}, resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(wall, 4), round(own, 4)


def run(plan: Plan, note: Callable[[str], None]) -> Iterator[Row]:
    """All rows; the last one says where and when."""
    begin, load = time.perf_counter(), os.getloadavg()[0]
    yield from imports(plan)
    note("imports")
    with TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "LOGS": folder,
        }
        for model in plan.models:
            yield from of_model(model, plan, environment, note)
    yield {
        "what": "run",
        "date": str(date.today()),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "machine": machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "backend": plan.backend,
        "quick": plan.quick,
        "absent": plan.absent,
        "packages": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "edits": edits(),
    }


def machine() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def edits() -> dict[str, dict[str, list[int]]]:
    """Lines that are added and taken away, by peer: in the program that makes the model, and in each family's file."""
    before = (READY / "untouched.py").read_text().splitlines()
    found = {}
    for peer in PEERS:
        after = (READY / f"with_{peer.replace('-', '_')}.py").read_text().splitlines()
        found[peer] = {"program": changed(list(difflib.unified_diff(before, after, n=0, lineterm="")))}
        for model in FAMILIES:
            patch = READY / f"{peer}_{model}.patch"
            found[peer][model] = changed(patch.read_text().splitlines()) if patch.exists() else [0, 0]
    return found


def changed(diff: list[str]) -> list[int]:
    """Lines added and taken away, but for empty ones."""
    lines = [line for line in diff if line[:3] not in ("+++", "---") and line[1:].strip()]
    return [sum(line.startswith(sign) for line in lines) for sign in "+-"]


def interpreters(directory: Path | None, given: dict[str, str | None]) -> tuple[dict[str, Interpreter], dict[str, str]]:
    """Those of all cases, and why a peer has none; what is not given goes into a directory, if there is one."""
    here = Interpreter(sys.executable)
    found = {case: here for case in CASES if case not in given}
    missing = [peer for peer, python in given.items() if python is None]
    error = "no interpreter was given"
    if missing and directory is not None:
        error = install(directory)
        if not error:
            found |= {peer: Interpreter(sys.executable, (str(directory),)) for peer in missing}
    found |= {peer: Interpreter(python) for peer, python in given.items() if python is not None}
    return found, {peer: error for peer in missing if peer not in found}


def install(directory: Path) -> str:
    """Both packages beside this interpreter's torch and transformers, and in nobody's way; or why that failed."""
    if all(any(directory.glob(f"{p.partition('==')[0].replace('-', '_')}-*.dist-info")) for p in PACKAGES[:2]):
        return ""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(directory), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
    return f"not installed: {lines[-1]}" if done.returncode else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("--peers", type=Path, metavar="DIRECTORY", help="where mup and unit-scaling are, or are put")
    parser.add_argument("--mup", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--unit-scaling", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--quick", action="store_true", help="small models, few rounds; torch.compile by its eager")
    parser.add_argument("--models", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="directory of both files")
    o = parser.parse_args(arguments)
    if o.quick and o.out == ROOT / "docs":
        parser.error("--quick measures nothing worth keeping: give it a directory by --out")
    rows, page = o.out / "benchmarks.jsonl", o.out / "benchmarks.md"
    if o.what == "run":
        found, absent = interpreters(o.peers, {"mup": o.mup, "unit-scaling": o.unit_scaling})
        begin = time.perf_counter()
        plan = planned(o.quick, tuple(o.models), found, absent)
        made = list(run(plan, lambda part: print(f"{time.perf_counter() - begin:6.0f} s  {part}", flush=True)))
        rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    page.write_text(written([json.loads(line) for line in rows.read_text().splitlines()]))


def planned(quick: bool, models: tuple[str, ...], found: dict[str, Interpreter], absent: dict[str, str]) -> Plan:
    """How much, of quick runs and of those that count."""
    shared: dict[str, Any] = {"models": models, "interpreters": found, "absent": absent, "quick": quick}
    if quick:
        few = {"rounds": 3, "starts": 1, "exports": 0, "imports": 2, "transforms": 3, "backend": "eager"}
        cases = tuple(c for c in CASES if c != "control")
        return Plan(**shared, cases=cases, **few, compiled=models[:1], deep=models[:1])
    backend = "inductor" if any(map(shutil.which, ("g++", "clang++", "c++"))) else "aot_eager"
    many = {"rounds": 30, "starts": 5, "exports": 4, "imports": 15, "transforms": None, "backend": backend}
    both = tuple(m for m in models if m in ("gpt2", "llama"))
    return Plan(**shared, cases=CASES, **many, compiled=both, deep=both)


if __name__ == "__main__":
    main()
