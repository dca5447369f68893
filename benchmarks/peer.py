"""One peer and one model in a process of its own, which does what it is told: a line of JSON in, a line of JSON out.

    python benchmarks/peer.py mup gpt2 full

`benchmarks/peers.py` starts such processes, for each peer with an interpreter that has it, and tells them in turn.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import nn

READY = Path(__file__).parent / "ready"
MODULES = {
    "untouched": "untouched",
    "control": "untouched",
    "eager attention": "untouched",
    "autofit": "with_autofit",
    "mup": "with_mup",
    "unit-scaling": "with_unit_scaling",
}
"""What in ``ready`` makes each of them."""
IMPLEMENTATION = {"eager attention": "eager"}


@dataclass(frozen=True)
class Size:
    """Sizes of all models; the size of a head grows from 64, for which mup's README has its factor.

    Attributes:
        width: features; ``base`` of the model where settings were tuned.
        layers, heads, vocabulary: how many.
        batch, positions: of the input; ``image`` the side of a square one, in patches of 8.
    """

    width: int = 512
    base: int = 256
    layers: int = 12
    heads: int = 4
    vocabulary: int = 4096
    batch: int = 1
    positions: int = 64
    image: int = 64


SMALL: dict[str, Any] = {"width": 256, "base": 128, "heads": 2, "vocabulary": 97, "positions": 8, "image": 16}
SIZES = {
    "full": Size(),
    "deep": Size(layers=24),
    "quick": Size(**SMALL, layers=2),
    "quick deep": Size(**SMALL, layers=4),
    "survival": Size(**SMALL, layers=1, batch=2),
}


def gpt2(s: Size, width: int, **more: Any) -> nn.Module:
    """Tied; without dropout, as all of them."""
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"n_embd": width, "n_layer": s.layers, "n_head": s.heads, "n_positions": 2 * s.positions}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, vocab_size=s.vocabulary, **quiet, **more))
    model.loss_type = "ForCausalLM"  # transformers finds none by the name of this class, and warns in every step
    return model


def llama(s: Size, width: int, **more: Any) -> nn.Module:
    """Untied, two queries to a key."""
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads // 2,
        vocab_size=s.vocabulary,
        **more,
    )
    return transformers.LlamaForCausalLM(config)


def encoder(s: Size, width: int) -> dict[str, Any]:
    """Fields that BERT and ViT share."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def bert(s: Size, width: int, **more: Any) -> nn.Module:
    """Tied."""
    return transformers.BertForMaskedLM(transformers.BertConfig(**encoder(s, width), vocab_size=s.vocabulary, **more))


def vit(s: Size, width: int, **more: Any) -> nn.Module:
    """A hundred classes."""
    labels = {"image_size": s.image, "patch_size": 8, "num_labels": 100}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**encoder(s, width), **labels, **more))


MODELS: dict[str, Callable[..., nn.Module]] = {"gpt2": gpt2, "llama": llama, "bert": bert, "vit": vit}


def inputs(name: str, s: Size) -> dict[str, Any]:
    """A batch with labels."""
    generator = torch.Generator().manual_seed(0)
    if name == "vit":
        pixels = torch.randn(s.batch, 3, s.image, s.image, generator=generator)
        return {"pixel_values": pixels, "labels": torch.arange(s.batch)}
    ids = torch.randint(3, s.vocabulary, (s.batch, s.positions), generator=generator)
    return {"input_ids": ids, "labels": ids} | ({} if name == "bert" else {"use_cache": False})


def edit(name: str) -> None:
    """Put mup's edits of a family into what Python imports as that family's file."""
    module = f"transformers.models.{name}.modeling_{name}"
    with TemporaryDirectory() as folder:
        file = Path(folder, *module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True)
        shutil.copy(Path(transformers.__file__).parents[1] / file.relative_to(folder), file)
        subprocess.run(["git", "apply", str(READY / f"mup_{name}.patch")], cwd=folder, check=True)
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])


def memory() -> dict[str, float]:
    """Resident now and at most so far, in MiB."""
    if not Path("/proc/self/status").exists():
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {f[0]: int(f[1]) / 1024 for f in fields if f[0] in ("VmRSS:", "VmHWM:")}
    return {"resident": found["VmRSS:"], "peak": found["VmHWM:"]}


def clock(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds by the wall and of this process alone, and what came out."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, result


class Peer:
    """The commands."""

    def __init__(self, peer: str, name: str, size: str) -> None:
        self.peer, self.name, self.size = peer, name, SIZES[size]
        if peer == "mup":
            edit(name)
        self.module = importlib.import_module(MODULES[peer])
        self.inputs = inputs(name, self.size)
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        self.compiled: Any = None

    def make(self, width: int, **more: Any) -> nn.Module:
        """The model at a width, always with the same initial values."""
        torch.manual_seed(0)
        if self.peer in IMPLEMENTATION:
            more["attn_implementation"] = IMPLEMENTATION[self.peer]
        return MODELS[self.name](self.size, width, **more)

    def again(self) -> dict[str, Any]:
        """Time to another model and optimizer, which are dropped."""
        return clock(lambda: self.module.ready(self.make, self.size.width, self.size.base))[0]

    def ready(self) -> dict[str, Any]:
        """Time to the first model and optimizer of this process, with what a peer imports on first use."""
        before = memory()
        took, (self.model, self.optimizer) = clock(
            lambda: self.module.ready(self.make, self.size.width, self.size.base)
        )
        groups = [g for g in self.optimizer.param_groups if g["params"]]
        counts = {"groups": len(groups), "parameters": sum(p.numel() for p in self.model.parameters())}
        counts["layers"] = self.size.layers
        return {**took, **counts, "before": before, "after": memory()}

    def step(self, call: Callable[..., Any] | None = None) -> dict[str, Any]:
        """One of training: forward and backward, then the optimizer's."""
        call = self.model if call is None else call
        self.optimizer.zero_grad()
        computing, loss = clock(lambda: call(**self.inputs).loss)
        backward, _ = clock(loss.backward)
        updating, _ = clock(self.optimizer.step)
        computing = {k: v + backward[k] for k, v in computing.items()}
        return {"computing": computing, "updating": updating, "loss": loss.item(), **memory()}

    def compile(self, backend: str) -> dict[str, Any]:
        """Compile, and take the first step, which does the work."""
        if self.peer == "unit-scaling":  # its models do not go with torch.compile
            from unit_scaling import optim, transforms

            self.compiled = transforms.compile(self.model)  # a copy
            own = self.compiled.parameters()
            self.optimizer = optim.AdamW(own, lr=1e-3, weight_decay=0.1, allow_non_unit_scaling_params=True)
        else:
            self.compiled = torch.compile(self.model, backend=backend, fullgraph=True)
        return clock(self.compiled_step)[0]

    def compiled_step(self) -> dict[str, Any]:
        """As `step`, with the compiled model."""
        return self.step(self.compiled)

    def export(self) -> dict[str, Any]:
        """One torch.export of the whole untouched model, as anybody calls it."""
        model = self.make(self.size.width)
        took = clock(lambda: torch.export.export(model, (), self.inputs, strict=False))[0]
        return {**took, "layers": self.size.layers}

    def muify(self) -> dict[str, Any]:
        """`autofit.muify` of the same model."""
        import autofit

        model = self.make(self.size.width)
        took = clock(lambda: autofit.muify(model, base=self.size.base, grow="head_dim"))[0]
        return {**took, "layers": self.size.layers}

    def survive(self, transforms: int | None) -> dict[str, Any]:
        """What of this peer is left after what people do to models: all of it, or after the first few."""
        from survival import survivors

        self.size = SIZES["survival"]
        given = inputs(self.name, self.size)
        return survivors(self.peer, self.name, self.module.ready, self.make, self.size, given, transforms)


def answer(peer: Peer, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a command gives, or what it raised."""
    try:
        return getattr(peer, command)(**arguments)
    except Exception as error:  # of whatever kind: it is the answer
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def main() -> None:
    """Until there is no line any more."""
    sys.path[:0] = [str(READY), str(Path(__file__).parent)]
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # what libraries print must not stand between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name = sys.argv[1]
    peer = Peer(*sys.argv[1:])
    packages = ("torch", "transformers", *({name} & {"mup", "unit-scaling"}))
    versions = {p: importlib.metadata.version(p) for p in packages}
    print(json.dumps({"up": name, "versions": versions, **memory()}), file=answers, flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        print(json.dumps(answer(peer, told.pop("command"), told)), file=answers, flush=True)


if __name__ == "__main__":
    main()
