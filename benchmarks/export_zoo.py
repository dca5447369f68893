"""Source export of the zoo: every file is run in a process that has torch alone, and compared with the model.

python benchmarks/export_zoo.py run --source transformers    # resumable; rows go to docs/exports.jsonl
python benchmarks/export_zoo.py write                         # docs/exports.md from the rows
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zoo

ROWS = zoo.EXPORTS
PAGE = zoo.ROOT / "docs" / "exports.md"
CHECK = """
import importlib.util, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("autofit", "transformers", "timm"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import torch
torch.set_num_threads(1)
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("model_mup", folder + "/model_mup.py")
module = importlib.util.module_from_spec(spec)
sys.modules["model_mup"] = module
spec.loader.exec_module(module)
saved = torch.load(folder + "/saved.pt")
model = module.build().eval()
model.load_state_dict(saved["state"])
torch.manual_seed(0)
with torch.no_grad():
    found = model(**saved["inputs"])
found = [found] if isinstance(found, torch.Tensor) else list(found)
wanted = saved["outputs"]
assert len(found) == len(wanted), f"{len(found)} outputs, not {len(wanted)}"
worst = 0.0
for a, b in zip(found, wanted):
    assert a.shape == b.shape, f"{tuple(a.shape)}, not {tuple(b.shape)}"
    if b.is_floating_point() and b.numel():
        both = torch.isfinite(a) & torch.isfinite(b)
        assert torch.equal(torch.isfinite(a), torch.isfinite(b))
        if both.any():
            worst = max(worst, float((a - b)[both].abs().max() / b[both].abs().max().clamp(min=1e-30)))
    else:
        assert torch.equal(a, b), "other integers"
print(worst)
"""


def examine(source: str, name: str) -> dict[str, Any]:
    """One model, exported and compared; never raises."""
    row: dict[str, Any] = {"source": source, "name": name, "stage": "build", "versions": zoo.versions(source)}
    try:
        build = zoo.builder(source, name)
        if build is None:
            return row | {"stage": "no model class"}
        _examine(row, build)
    except Exception as error:
        row["error"] = type(error).__name__
        row["reason"] = str(error).strip()[:600]
        row["crash"] = row["stage"] == "export" and not type(error).__module__.startswith("autofit")
        if row["crash"]:
            row["traceback"] = traceback.format_exc()[-1500:]
    return row


def _examine(row: dict[str, Any], build: Any) -> None:
    import torch

    import autofit
    from autofit.source.worlds import named_inputs

    model, example = build(64)
    if type(model).forward is torch.nn.Module.forward:
        row["stage"] = "no forward"
        return
    smaller = getattr(build, "smaller", lambda _: 32)(model)
    row["stage"] = "plan"
    mu = autofit.muify(model, example, base=smaller, **zoo.OPTIONS)
    args, kwargs = zoo.normal_inputs(model, example)
    row["stage"] = "export"
    start = time.process_time()
    made = mu.export()
    row["seconds"] = round(time.process_time() - start, 2)
    row["lines"], row["classes"] = len(made.text.splitlines()), made.classes
    row["fallbacks"], row["shown"], row["notes"] = sorted(set(made.fallbacks)), made.shown, list(made.notes)
    row["stage"] = "run"
    wanted = zoo.outputs(model.eval(), (args, kwargs))
    named = named_inputs(model, mu.roles.growth.dims.program, args, kwargs)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model_mup.py").write_text(made.text)
        torch.save({"state": model.state_dict(), "inputs": named, "outputs": wanted}, Path(folder, "saved.pt"))
        run = subprocess.run([sys.executable, "-c", CHECK, folder], capture_output=True, text=True, timeout=120)
    if run.returncode:
        row["error"], row["reason"] = "FreshProcess", run.stderr.strip().splitlines()[-1][:300]
        return
    row["difference"] = float(run.stdout)
    row["stage"] = "done" if row["difference"] < 1e-5 else "differs"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run", "write"])
    parser.add_argument("--source", default="transformers", choices=zoo.SOURCES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=240)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--every", type=int, default=1, help="only one type in so many")
    parser.add_argument("--again", nargs="*", default=[])
    parser.add_argument("--rows", type=Path, default=ROWS)
    given = parser.parse_args()
    if given.command == "run":
        planned = {k for k, r in zoo.read(zoo.ROWS).items() if zoo.planned(r)}
        only = given.only or [n for n in zoo.names(given.source) if (given.source, n) in planned][:: given.every]
        known = zoo.read(given.rows)
        only = [
            n
            for n in only
            if given.only or (given.source, n) not in known or known[given.source, n]["stage"] in given.again
        ]
        zoo.run(given.source, only, given.jobs, given.timeout, given.again, given.rows, examine)
    else:
        PAGE.write_text("\n".join(page(zoo.read(given.rows))) + "\n")


def page(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """The document."""
    yield "# Source export of the zoo"
    yield ""
    yield "Written by `python benchmarks/export_zoo.py write`. Each type that is planned (docs/coverage.md) is"
    yield "muified and exported, and the file is run in a process that can import neither autofit nor transformers,"
    yield "on the model's state and a random input; done means that all outputs agree to 1e-5 of their largest value."
    yield ""
    yield from zoo.exports(rows)
    yield ""
    ops = Counter(op for r in rows.values() for _, op in r.get("fallbacks", ()))
    if ops:
        yield "Ops by their ATen name: " + ", ".join(f"{op} ({n})" for op, n in ops.most_common()) + "."
        yield ""
    yield "## Not done"
    yield ""
    for (_, name), r in sorted(rows.items()):
        if r["stage"] in ("export", "run", "differs", "timeout", "died"):
            said = r.get("reason") or f"difference {r.get('difference')}"
            yield f"- {name}: {r['stage']}: {' '.join(re.sub(r'[|<>]', ' ', str(said)).split())[:160]}"


if __name__ == "__main__":
    main()
