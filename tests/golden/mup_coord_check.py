"""The mup package's own coordinate check on models that autofit muified, and on the same without muP.

Their code trains and records (``mup.coord_check``, mean |x| of every module's output after each step); ours makes the
model and the groups. Needs an environment of its own, as mup asks for another torch:

    pip install torch==2.13.0 transformers pyyaml numpy pandas seaborn tqdm .
    pip install --no-deps mup
    python tests/golden/mup_coord_check.py

writes docs/mup_coord_check.csv, and prints the slopes over width after the last step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from mup.coord_check import _get_coord_data
from torch import nn

import autofit

WIDTHS, STEPS, SEEDS, LR = (64, 128, 256, 512), 4, 3, 1e-2
OUT = Path(__file__).parent.parent.parent / "docs" / "mup_coord_check.csv"
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": 61}
TOKENS = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(0))


def gpt2(width: int) -> nn.Module:
    """Tied."""
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(n_embd=width, n_layer=2, n_head=width // 16, n_positions=32, **quiet, **IDS)
    return transformers.GPT2LMHeadModel(config)


def llama(width: int) -> nn.Module:
    """Two queries to a key."""
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 32,
        head_dim=16,
        **IDS,
    )
    return transformers.LlamaForCausalLM(config)


def record(make: Callable[[int], nn.Module], scheme: str) -> pd.DataFrame:
    """Their records of our models."""
    made: dict[int, Any] = {}  # mup hands the model to the optimizer's factory

    def lazy(width: int) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            model = make(width)
            with torch.random.fork_rng():
                made[id(model)] = autofit.muify(model, base=make(WIDTHS[0]), scheme=scheme)
            return model

        return build

    # their recorder takes no None, which modules of attention give besides their result: leaves alone
    leaves = {name for name, module in make(WIDTHS[0]).named_modules() if not list(module.children())}
    return _get_coord_data(
        {width: lazy(width) for width in WIDTHS},
        [{"input_ids": TOKENS, "labels": TOKENS}],
        lambda model: made[id(model)].optimizer("adam", lr=LR),
        nsteps=STEPS,
        dict_in_out=True,
        filter_module_by_name=lambda name: name in leaves,
        cuda=False,
        nseeds=SEEDS,
        show_progress=False,
    )


def slopes(records: pd.DataFrame) -> pd.Series:
    """Of log2 of the mean of l1 over log2 of the width, by module, after the last step."""
    last = records[records.t == records.t.max()].groupby(["module", "width"]).l1.mean().unstack()
    xs = pd.Series({w: math.log2(w) for w in last.columns})
    centred = xs - xs.mean()
    return (last.map(math.log2) * centred).sum(axis=1) / (centred**2).sum()


def main() -> None:
    """Both models, both ways."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parts = []
    for name, make in (("gpt2", gpt2), ("llama", llama)):
        for scheme in ("mup", "sp"):
            found = record(make, scheme)
            found["model"], found["scheme"] = name, scheme
            parts.append(found)
            fitted = slopes(found)
            ends = f"{fitted.min():+.2f} ({fitted.idxmin()}) to {fitted.max():+.2f} ({fitted.idxmax()})"
            print(f"{name} {scheme}: {len(fitted)} modules, {ends}")
    everything = pd.concat(parts)
    means = everything.groupby(["model", "scheme", "module", "width", "t"]).l1.mean().round(6)
    means.reset_index().to_csv(OUT, index=False)


if __name__ == "__main__":
    main()
