"""Make ``from_mup.json`` with the ``mup`` package: what docs/from-mup.md says of its program. See ``make.py``.

mup-env/bin/pip install --no-deps .
mup-env/bin/pip install rich cyclopts networkx
mup-env/bin/python tests/golden/make_from_mup.py
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import mup
import torch
from torch import nn

import autofit

PAGE = Path(__file__).parent.parent.parent / "docs" / "from-mup.md"


def old_side(page: str) -> str:
    """The program as it was before the change that the page shows."""
    lines = re.search(r"```diff\n(.*?)```", page, re.DOTALL)[1].splitlines()
    return "\n".join(line[1:] for line in lines if not line.startswith("+"))


def main() -> None:
    """Losses of the old side, its base file, constant initial values, and what both checks say."""
    names: dict[str, Any] = {}
    exec(old_side(PAGE.read_text()), names)
    make, ids = names["Model"], names["ids"]
    with tempfile.NamedTemporaryFile(suffix=".bsh") as file:
        mup.make_base_shapes(make(64), make(128), savefile=file.name)
        shapes = Path(file.name).read_text()

    class Constant(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.hidden = nn.Linear(8, width), nn.Linear(width, width)
            self.head = mup.MuReadout(width, 64)
            for layer in (self.hidden, self.head):
                nn.init.normal_(layer.weight, std=0.02)

    wide = mup.set_base_shapes(Constant(1024), Constant(256), delta=Constant(512))

    def ready(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mup.set_base_shapes(make(width), make(64), delta=make(128))
        optimizer = mup.MuAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        model.head.width_mult = functools.partial(float, model.head.width_mult())
        return model, optimizer

    torch.manual_seed(0)
    model, optimizer = ready(256)
    static = autofit.check(model, ids, base=ready(64)[0], param_groups=optimizer)
    measured = autofit.coord_check(ready, widths=(64, 128, 256), data=ids)
    result = {
        "mup": "1.0.0",
        "torch": torch.__version__,
        "losses": names["losses"],
        "base shapes": shapes,
        "std of constant draws": {n: getattr(wide, n).weight.std().item() for n in ("hidden", "head")},
        "static check": {"ok": static.ok, "findings": sorted({f.what for f in static.findings})},
        "coordinate check": measured.ok,
        "muify": list(autofit.muify(model, ids, base=ready(64)[0]).plan.notes),
    }
    Path(__file__).with_name("from_mup.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
