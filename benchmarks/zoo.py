"""The zoo: models that nobody here chose, each in a process of its own.

    python benchmarks/zoo.py run --source transformers     # resumable; rows go to docs/coverage.jsonl
    python benchmarks/zoo.py run --source timm              # and torchvision: in an environment of their own
    python benchmarks/zoo.py write                          # docs/coverage.md from the rows
    python benchmarks/zoo.py diff OLD.jsonl                 # what changed against an older run

For each model: built, captured by which front end, planned strictly, static and differential inference agree,
forward runs after `muify`, identity at the base.

timm and torchvision, and the transformers types that use them, need `pip install -e ".[zoo]"` in an environment of
their own: torchvision fits one torch only, here torchvision 0.29.1 with torch 2.14.1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
ROWS = ROOT / "docs" / "coverage.jsonl"
PAGE = ROOT / "docs" / "coverage.md"
EXPORTS = ROOT / "docs" / "exports.jsonl"
SOURCES = ("transformers", "plain", "timm", "torchvision")
VISION = ("timm", "torchvision")
OPTIONS = {"frozen": "plan", "unused": "freeze"}


# what is in the zoo -------------------------------------------------------------------------------------


def names(source: str) -> list[str]:
    """Names of all models of a source."""
    if source == "plain":
        from plain_models import MODELS

        return list(MODELS)
    if source in VISION:
        return list(_vision(source))
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [n for n in CONFIG_MAPPING_NAMES if n]


def builder(source: str, name: str) -> Callable[[int], tuple[Any, Any]] | None:
    """Function of a width (64 or 32) that gives a model and its example; ``None`` if the type has no model."""
    if source == "plain":
        from plain_models import MODELS

        return MODELS[name]
    if source in VISION:
        return _vision(source)[name]  # type: ignore[no-any-return]
    return _transformers_builder(name)


def _vision(source: str) -> dict[str, Any]:
    import vision_models

    return vision_models.TIMM if source == "timm" else vision_models.TORCHVISION


def _transformers_builder(name: str) -> Callable[[int], tuple[Any, Any]] | None:
    import torch
    import transformers
    from examples_zoo import example_for
    from shrink import shrink

    from autofit.autoclass import auto_class

    transformers.logging.set_verbosity_error()
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[name]
    if auto_class(object.__new__(config_class)) is None:
        return None

    def build(width: int) -> tuple[Any, Any]:
        torch.manual_seed(0)
        config = config_class()
        shrink(config, width)
        model = auto_class(config).from_config(config)
        return model, _timm_example(model) or example_for(model)

    return build


def _timm_example(model: Any) -> Any:
    if not importlib.util.find_spec("timm"):
        return None
    import vision_models

    return vision_models.example_for(model)


# one model ----------------------------------------------------------------------------------------------


def examine(source: str, name: str) -> dict[str, Any]:
    """All answers for one model; never raises."""
    row: dict[str, Any] = {"source": source, "name": name, "stage": "build"}
    row |= {"versions": versions(source), "date": date.today().isoformat()}
    try:
        build = builder(source, name)
        if build is None:
            return row | {"stage": "no model class"}
        _examine(row, build)
    except Exception as error:
        row["error"] = type(error).__name__
        row["reason"] = str(error).strip()[:600]
        module = type(error).__module__
        row["crash"] = row["stage"] != "build" and not module.startswith("autofit")
        if row["crash"]:
            row["traceback"] = traceback.format_exc()[-1500:]
    return row


def versions(source: str) -> dict[str, str]:
    """Versions of torch and of the library that the models are from."""
    packages = ("torch",) if source == "plain" else ("torch", source)
    return {p: importlib.metadata.version(p) for p in packages}


def _examine(row: dict[str, Any], build: Callable[[int], tuple[Any, Any]]) -> None:
    import torch

    import autofit

    model, example = build(64)
    if type(model).forward is torch.nn.Module.forward:
        row["stage"] = "no forward"
        return
    pair = getattr(build, "base", True)  # whether there is a second, narrower model
    if pair:
        base = build(32)
    else:
        row["second"] = "none"
    smaller = getattr(build, "smaller", lambda _: 32)(model)
    row["class"] = type(model).__name__
    row["stage"] = "plan"
    start = time.process_time()
    number = autofit.analyze(model, example, base=smaller, **OPTIONS)
    row["seconds"] = round(time.process_time() - start, 2)
    program = number.roles.growth.dims.program
    row["ops"] = sum(1 for _ in program.calls())
    row["front_end"] = program.front_end
    row["notes"] = len(number.plan.notes)
    row["unused"] = len(number.plan.frozen)
    if pair:
        row["stage"] = "differential"
        second = autofit.analyze(model, example, base=base, **OPTIONS)
        row["stage"] = "static"
        alone = autofit.analyze(model, example, base=second.base(), **OPTIONS)
        row["disagree"] = list(differences(alone, second))
        row["by_number"] = list(differences(_by_number(number, smaller, second, model, example), second))[:5]
    row["stage"] = "identity"
    inputs = normal_inputs(model, example)
    training = model.training
    before = outputs(model.eval(), inputs)
    model.train(training)  # some models keep results of eval mode until then
    at_base, _ = build(64)
    at_base.load_state_dict(model.state_dict())
    same = autofit.muify(at_base, example, base=model_as_base(number), **OPTIONS)
    row["identity"] = all(
        torch.equal(a, b) or (a != a).all() for a, b in zip(before, outputs(same.model.eval(), inputs), strict=True)
    )
    row["stage"] = "muify"
    muified = autofit.muify(model, example, base=smaller, **OPTIONS)
    row["stage"] = "forward"
    after = outputs(muified.model.eval(), inputs)
    free = program.recorded  # where a size depends on values, it may change with them
    row["forward"] = len(after) == len(before) and all(
        a.ndim == b.ndim and (free or a.shape == b.shape) for a, b in zip(after, before, strict=True)
    )
    row["stage"] = "done"


def _by_number(number: Any, base: float, second: Any, model: Any, example: Any) -> Any:
    """The plan from one number, at the ratio that the second model's main dimension has."""
    import autofit

    (main,) = (d for d in number.roles.growth.dimensions if d.name == number.roles.growth.main)
    ratio = next((d.ratio for d in second.roles.growth.dimensions if d.label == main.label), main.ratio)
    return number if ratio == main.ratio else autofit.analyze(model, example, base=base * main.ratio / ratio, **OPTIONS)


def differences(static: Any, differential: Any) -> Iterator[str]:
    """Where the answers from one model and those from comparing two differ, at equal base sizes."""
    for p, q in zip(static.plan.parameters.values(), differential.plan.parameters.values(), strict=True):
        if (p.role, p.rule, p.r_in, p.r_out) != (q.role, q.rule, q.r_in, q.r_out):
            yield f"{p.name}: {p.rule} in x{p.r_in:g} out x{p.r_out:g} and {q.rule} in x{q.r_in:g} out x{q.r_out:g}"
    mine, theirs = ({s.node: s for s in found.plan.sites if s.multiplier != 1} for found in (static, differential))
    for node in sorted(mine.keys() | theirs.keys()):
        here, there = (found[node].multiplier if node in found else 1.0 for found in (mine, theirs))
        if abs(here - there) > 1e-9:
            yield f"{(mine.get(node) or theirs[node]).where}: x{here:g} and x{there:g}"


def model_as_base(analysis: Any) -> dict[str, float]:
    """The base at which the model is its own base."""
    return {d.name: d.size for d in analysis.roles.growth.dimensions}


def normal_inputs(model: Any, example: Any) -> Any:
    """The example with random floats in place of zeros."""
    import torch

    from autofit.examples import candidate_examples, normalize, without_cache

    chosen = normalize(example) if example is not None else next(iter(candidate_examples(model)))
    chosen = without_cache(model, chosen)
    generator = torch.Generator().manual_seed(0)

    def fill(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.any():
            return torch.randn(value.shape, generator=generator).to(value)
        return value

    return [fill(a) for a in chosen.args], {k: fill(v) for k, v in chosen.kwargs.items()}


def outputs(model: Any, inputs: Any) -> list[Any]:
    """All tensors that one forward pass returns."""
    import torch
    from torch.utils import _pytree

    args, kwargs = inputs
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(*args, **kwargs)
    if hasattr(result, "to_tuple"):
        result = result.to_tuple()
    return [t.clone() for t in _pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]


# many models --------------------------------------------------------------------------------------------


def _child(source: str, name: str, pipe: Any, answer: Callable[[str, str], dict[str, Any]]) -> None:
    import warnings

    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    pipe.send(answer(source, name))


def run(
    source: str,
    only: list[str],
    jobs: int,
    timeout: float,
    again: list[str],
    path: Path,
    answer: Callable[[str, str], dict[str, Any]] = examine,
) -> None:
    """Examine what has no row yet in the file at `path`; `again` names stages whose rows are repeated."""
    from rich.progress import Progress

    rows = read(path)
    todo = [
        n
        for n in names(source)
        if (n in only if only else (source, n) not in rows or rows[source, n]["stage"] in again)
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "autofit.api", "shrink"])
    running: dict[str, tuple[Any, Any, float]] = {}
    with Progress() as progress:
        task = progress.add_task(source, total=len(todo))
        waiting = list(reversed(todo))
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(source, name, there, answer), daemon=False)
                process.start()
                there.close()
                running[name] = (process, here, time.monotonic())
            for name, (process, here, start) in list(running.items()):
                row = None
                if here.poll(0.02):
                    try:
                        row = here.recv()
                    except EOFError:
                        row = {"source": source, "name": name, "stage": "died", "crash": True}
                elif time.monotonic() - start > timeout:
                    row = {"source": source, "name": name, "stage": "timeout", "reason": f"over {timeout:g} s"}
                if row is not None:
                    process.kill()
                    process.join()
                    del running[name]
                    rows[source, name] = row
                    write_rows(rows, path)
                    progress.advance(task)
                    progress.console.print(f"{name}: {row['stage']} {str(row.get('reason', ''))[:100]}", markup=False)


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by (source, name)."""
    if not path.exists():
        return {}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {(r["source"], r["name"]): r for r in found}


def write_rows(rows: dict[tuple[str, str], dict[str, Any]], path: Path) -> None:
    """All rows, sorted, one a line."""
    path.parent.mkdir(exist_ok=True)
    lines = [portable(json.dumps(rows[key], sort_keys=True)) for key in sorted(rows)]
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)


def portable(text: str) -> str:
    """Text without the paths of the machine that made it."""
    return re.sub(r"/[^\s\"']*/(site-packages|lib/python3\.\d+)/", "", text.replace(f"{ROOT}/", ""))


# documents ----------------------------------------------------------------------------------------------


def buildable(row: dict[str, Any]) -> bool:
    """Whether there was a model to examine."""
    return row["stage"] not in ("no model class", "no forward", "build")


def planned(row: dict[str, Any]) -> bool:
    """Whether the strict plan was made."""
    return buildable(row) and "ops" in row


def page(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """docs/coverage.md, line by line."""
    used = {p: v for r in rows.values() for p, v in r.get("versions", {}).items() if p != "torch"}
    torches = sorted({r["versions"]["torch"] for r in rows.values() if "versions" in r})
    tools = ", ".join([f"torch {' or '.join(torches)}", *(f"{p} {used[p]}" for p in sorted(used))])
    yield "# Coverage"
    yield ""
    dates = Counter(r["date"] for r in rows.values())
    on = ", ".join(f"{day} ({n})" for day, n in sorted(dates.items()))
    yield f"Made by `python benchmarks/zoo.py` on {on} with {tools}."
    yield "Models are shrunk to width 64, their base to width 32. Rows: `docs/coverage.jsonl`."
    yield "Weights that the example does not reach are frozen, and frozen ones planned like all others"
    yield "(`unused='freeze', frozen='plan'`); `muify` has its defaults otherwise, and no model is edited."
    yield "*No model*: no Auto class takes the type, or its class has no forward of its own."
    yield "*Agree*: the plan from one model and the base sizes of its dimensions is that from two models, for every"
    yield "parameter and multiplier. *By number*: so is the plan from one model and one number."
    yield ""
    columns = "types|no model|not built|examined|planned|agree|by number|forward|identity|crashes".split("|")
    yield f"| source | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for source in SOURCES:
        mine = [r for (s, _), r in rows.items() if s == source]
        if mine:
            yield _summary(source, mine)
    yield from _times(rows)
    yield "\n## Source export\n"
    yield "`docs/exports.md` says how it was done and lists the types that do not export."
    yield ""
    yield from exports(read(EXPORTS))
    for source in SOURCES:
        refused = [r for (s, _), r in rows.items() if s == source and buildable(r) and not planned(r)]
        wrong = [r for (s, _), r in rows.items() if s == source and planned(r) and not _right(r)]
        missing = [r for (s, _), r in rows.items() if s == source and r["stage"] == "build"]
        for title, group in (("Not planned", refused), ("Planned, not right", wrong), ("Not built", missing)):
            if group:
                yield f"\n## {title}: {source}\n"
                yield "| model | stage | reason |"
                yield "|---|---|---|"
                for row in group:
                    yield f"| {row['name']} | {row['stage']} | {_reason(row)} |"


REASONS = {
    "other outputs, here or in a fresh process": r"computes something|draws random|gives \d+ tensors|^differs$|^run$",
    "the file cannot be captured again": r"cannot be captured again|does not run",
    "a buffer of unknown origin": r"how the buffer",
    "an op that is none of torch's own": r"not an op of torch alone|another package|vmap over",
    "a multiplier inside a weight": r"holds a multiplier",
    "time was up, or the process died": r"timeout|died",
}


def exports(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """What became of source export: a line a source, blocks with ops by their ATen name, and reasons."""
    asked = [r for r in rows.values() if r["stage"] not in ("no model class", "no forward", "build", "plan")]
    yield "| source | asked | done | exact | node for node | with ops by ATen name | median lines | median seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for source in sorted({r["source"] for r in asked}):
        mine = [r for r in asked if r["source"] == source]
        done = [r for r in mine if r["stage"] == "done"]
        exact = sum(r["difference"] == 0 for r in done)
        nodes = sum(r["shown"] == "node for node" for r in done)
        raw = sum(bool(r["fallbacks"]) for r in done)
        share = f"{len(done)} ({100 * len(done) / len(mine):.1f} %)"
        lines, seconds = median(r["lines"] for r in done), median(r["seconds"] for r in done)
        yield f"| {source} | {len(mine)} | {share} | {exact} | {nodes} | {raw} | {lines:.0f} | {seconds:.1f} |"
    done = [r for r in asked if r["stage"] == "done"]
    blocks, raw = sum(r["classes"] for r in done), sum(len({c for c, _ in r["fallbacks"]}) for r in done)
    yield ""
    yield f"Classes in all files: {blocks}, of them with an op by its ATen name: {raw} ({100 * raw / blocks:.1f} %)."
    counts = Counter(_kind(r) for r in asked if r["stage"] != "done")
    yield ""
    yield "| why not | types |"
    yield "|---|---|"
    for kind, count in counts.most_common():
        yield f"| {kind} | {count} |"


def _kind(row: dict[str, Any]) -> str:
    told = row.get("reason", "") if row["stage"] == "export" else row["stage"]
    return next((kind for kind, pattern in REASONS.items() if re.search(pattern, told)), "others")


def _times(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    timed = [r for r in rows.values() if planned(r) and r["ops"]]
    yield "\n## Time\n"
    yield "CPU seconds of one `analyze` (capture, inference, plan) with a numeric base, on one thread.\n"
    yield "| source | models | median ops | median seconds | median seconds per 1000 ops |"
    yield "|---|---|---|---|---|"
    for source in SOURCES:
        mine = [r for r in timed if r["source"] == source]
        if mine:
            ops, seconds = median(r["ops"] for r in mine), median(r["seconds"] for r in mine)
            rate = median(1000 * r["seconds"] / r["ops"] for r in mine)
            yield f"| {source} | {len(mine)} | {ops:g} | {seconds:.2f} | {rate:.1f} |"
    yield "\nThe slowest:\n"
    yield "| source | model | ops | seconds | seconds per 1000 ops |"
    yield "|---|---|---|---|---|"
    for r in sorted(timed, key=lambda r: -r["seconds"])[:5]:
        rate = 1000 * r["seconds"] / r["ops"]
        yield f"| {r['source']} | {r['name']} | {r['ops']} | {r['seconds']:.1f} | {rate:.1f} |"


def _summary(source: str, rows: list[dict[str, Any]]) -> str:
    examined = [r for r in rows if buildable(r)]
    made = [r for r in examined if planned(r)]
    counts = (
        len(rows),
        sum(r["stage"].startswith("no ") for r in rows),
        sum(r["stage"] == "build" for r in rows),
        len(examined),
        f"{len(made)} ({len(made) / max(len(examined), 1):.1%})",
        _of(sum(r.get("disagree") == [] for r in made), sum(r.get("second") != "none" for r in made), len(made)),
        _of(sum(r.get("by_number") == [] for r in made), sum(r.get("second") != "none" for r in made), len(made)),
        sum(r.get("forward", False) for r in made),
        sum(r.get("identity", False) for r in made),
        sum(bool(r.get("crash")) for r in examined),
    )
    return f"| {source} | " + " | ".join(map(str, counts)) + " |"


def _of(count: int, asked: int, made: int) -> str:
    """A count, and of how many where not all were asked."""
    return str(count) if asked == made else f"{count} of {asked}"


def _right(row: dict[str, Any]) -> bool:
    agree = row.get("second") == "none" or row.get("disagree") == []
    return bool(agree and row.get("forward") and row.get("identity"))


def _reason(row: dict[str, Any]) -> str:
    text = row.get("reason") or "; ".join(row.get("disagree", [])[:2])
    kind = f"{row['error']}: " if row.get("error") else ""
    return (kind + " ".join(text.split())).replace("|", "\\|")[:300]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("--source", choices=SOURCES, default="transformers")
    runner.add_argument("--only", default="")
    runner.add_argument("--again", default="", help="repeat rows that ended at these stages")
    runner.add_argument("--jobs", type=int, default=2)
    runner.add_argument("--timeout", type=float, default=180)
    runner.add_argument("--rows", type=Path, default=ROWS, help="file that the rows go to")
    commands.add_parser("write")
    commands.add_parser("diff").add_argument("old", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "run":
        only = [n for n in chosen.only.split(",") if n]
        run(chosen.source, only, chosen.jobs, chosen.timeout, [s for s in chosen.again.split(",") if s], chosen.rows)
    elif chosen.command == "write":
        PAGE.write_text("\n".join(page(read(ROWS))) + "\n")
    else:
        old, new = read(chosen.old), read(ROWS)
        for key in sorted(old.keys() | new.keys()):
            was, now = (rows.get(key, {}).get("stage", "absent") for rows in (old, new))
            if was != now:
                print(f"{key[0]}:{key[1]}: {was} -> {now}")
    rows = read(chosen.rows if chosen.command == "run" else ROWS)
    print(dict(Counter(r["stage"] for r in rows.values())))


if __name__ == "__main__":
    main()
