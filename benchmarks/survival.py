"""What is left of a peer's work after what people do to models: the same function, and the same next step.

Every transform is compared with the same model to which nothing was done. `tests/test_survival.py` asks the same of
autofit alone, bit for bit; here the tolerance is one for all.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

NEAR, NEAR_BFLOAT16 = 1e-3, 0.05
"""Largest difference, of the largest value."""
LAYERS = {"gpt2": "transformer.h.0.attn.c_attn", "llama": "lm_head"}
"""A weight that is not tied; of Llama the readout."""
SETTINGS = {"lr": 1e-3, "weight_decay": 0.1}


@dataclass(frozen=True)
class Subject:
    """What a transform gets.

    Attributes:
        model: with a peer's work in it.
        other: another one, with other values.
        name: of the family.
        inputs: of forward; of ``tokens`` different ones.
        optimizer: makes one for a model that was this one before, as the peer's users would.
    """

    model: Any
    other: Callable[[], Any]
    name: str
    inputs: dict[str, Any]
    tokens: int
    optimizer: Callable[[nn.Module], Any]


def with_optimizer(peer: str, ready: Callable[..., Any], make: Any, width: int, base: int) -> tuple[Any, Any]:
    """A model, and how its users make an optimizer when they have another object in its place."""
    if peer == "autofit":
        import autofit

        mu = autofit.muify(make(width), base=base, grow="head_dim")
        return mu.model, lambda model: dataclasses.replace(mu, model=model).optimizer("adamw", **SETTINGS)
    model, _ = ready(make, width, base)
    if peer == "mup":
        import mup

        return model, lambda model: mup.MuAdamW(model.parameters(), **SETTINGS)
    if peer == "unit-scaling":
        import unit_scaling as uu

        return model, lambda model: uu.optim.AdamW(model.parameters(), **SETTINGS, allow_non_unit_scaling_params=True)
    return model, lambda model: torch.optim.AdamW(model.parameters(), **SETTINGS)


def pickled(s: Subject) -> nn.Module:
    return pickle.loads(pickle.dumps(s.model))


def saved(s: Subject) -> nn.Module:
    file = io.BytesIO()
    torch.save(s.model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(s: Subject) -> nn.Module:
    average = AveragedModel(s.model)
    average.update_parameters(s.model)
    return average


def loaded(s: Subject, assign: bool = False) -> nn.Module:
    other = s.other()
    other.load_state_dict(s.model.state_dict(), assign=assign)
    other.tie_weights()
    return other


@torch.no_grad()
def emptied(s: Subject) -> nn.Module:
    """Buffers that no state_dict holds are put back by hand."""
    values, buffers = copy.deepcopy(s.model.state_dict()), {n: b.clone() for n, b in s.model.named_buffers()}
    s.model.to_empty(device="cpu").tie_weights()
    s.model.load_state_dict(values)
    for name, buffer in buffers.items():
        s.model.get_buffer(name).copy_(buffer)
    return s.model


def exported(s: Subject) -> nn.Module:
    given = {k: v for k, v in s.inputs.items() if k != "labels"}
    return torch.export.export(s.model, (), given, strict=False).module()


def sharded(s: Subject) -> nn.Module:
    """Layers one by one, then the rest."""
    mesh = init_device_mesh("cpu", (1,))
    for layers in list(s.model.modules()):
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                fully_shard(layer, mesh=mesh)
    return fully_shard(s.model, mesh=mesh)


def called_with_others(s: Subject) -> nn.Module:
    """By ``functional_call`` on another model with this one's values, as torch's tutorials take them."""
    values = {n: t.detach() for n, t in [*s.model.named_parameters(), *s.model.named_buffers()]}
    other = s.other()

    class Called(nn.Module):
        def forward(self, **kwargs: Any) -> Any:
            return functional_call(other, values, (), kwargs)

    return Called()


def normalized(s: Subject) -> nn.Module:
    parametrizations.weight_norm(s.model.get_submodule(LAYERS[s.name]))
    return s.model


def pruned(s: Subject) -> nn.Module:
    """Nothing away: the weight is computed from now on."""
    prune.identity(s.model.get_submodule(LAYERS[s.name]), "weight")
    return s.model


def resized(s: Subject) -> nn.Module:
    """More tokens: those that were there give what they gave."""
    s.model.resize_token_embeddings(s.model.config.vocab_size + 6, mean_resizing=False)
    return s.model


def checkpointed(s: Subject) -> nn.Module:
    s.model.train().gradient_checkpointing_enable()
    return s.model


STEPS, CALLS = "output and next step", "output"
TRANSFORMS: dict[str, tuple[str, Callable[[Subject], nn.Module]]] = {
    "deepcopy": (STEPS, lambda s: copy.deepcopy(s.model)),
    "moving average (AveragedModel)": (STEPS, averaged),
    "pickle": (STEPS, pickled),
    "torch.save, torch.load": (STEPS, saved),
    "state_dict into another model": (STEPS, loaded),
    "load_state_dict(assign=True)": (STEPS, lambda s: loaded(s, assign=True)),
    "to_empty, load_state_dict": (STEPS, emptied),
    "double and back": (STEPS, lambda s: s.model.double().float()),
    "bfloat16": (CALLS, lambda s: s.model.bfloat16()),
    "torch.compile(fullgraph=True)": (STEPS, lambda s: torch.compile(s.model, fullgraph=True, backend="aot_eager")),
    "torch.export": (CALLS, exported),
    "DistributedDataParallel": (STEPS, lambda s: DistributedDataParallel(s.model)),
    "FSDP2 (fully_shard)": (STEPS, sharded),
    "functional_call": (CALLS, called_with_others),
    "gradient checkpointing": (STEPS, checkpointed),
    "weight_norm": (CALLS, normalized),
    "prune": (CALLS, pruned),
    "resize_token_embeddings": (STEPS, resized),
}
"""What is asked of each, and the transform."""


def logits(call: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Without labels."""
    found: torch.Tensor = call(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    return found


def stepped(call: Any, optimizer: Any, s: Subject) -> torch.Tensor:
    """Output after one step, on the tokens that were there at first."""
    logits(call, s.inputs)[..., : s.tokens].square().mean().backward()
    optimizer.step()
    return logits(call, s.inputs).detach()


def inner(module: Any) -> nn.Module:
    """What a wrapper wraps."""
    for attribute in ("module", "_orig_mod"):
        module = getattr(module, attribute, module)
    return module


def fate(transform: str, subject: Callable[[int], Subject], before: dict[str, torch.Tensor]) -> str:
    """Of a peer's work: empty if it is all there, else what is not."""
    asked, apply = TRANSFORMS[transform]
    s = subject(0)
    try:
        after = apply(s)
        optimizer = s.optimizer(inner(after)) if asked == STEPS else None
        found = logits(after, s.inputs).detach()
        if differs(found, before[CALLS], NEAR_BFLOAT16 if transform == "bfloat16" else NEAR):
            return "the output is another"
        if asked == STEPS and differs(stepped(after, optimizer, s), before[STEPS], NEAR):
            return "the next step is another"
    except Exception as error:  # of whatever kind: it is the answer
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def differs(found: torch.Tensor, expected: torch.Tensor, near: float) -> bool:
    """Whether by more than the given part of the largest value; after `resized`, in the tokens that were there."""
    found = found[..., : expected.shape[-1]].float()
    return not bool(((found - expected).abs().max() <= near * expected.abs().max()).item())


def survivors(
    peer: str,
    name: str,
    ready: Callable[..., Any],
    make: Any,
    size: Any,
    inputs: dict[str, Any],
    transforms: int | None = None,
) -> dict[str, str]:
    """What becomes of a peer's work in each transform, or in the first few."""

    def subject(seed: int) -> Subject:
        def seeded(width: int, **more: Any) -> Any:
            return make(width, **more) if seed == 0 else shifted(make(width, **more))

        model, optimizer = with_optimizer(peer, ready, seeded, size.width, size.base)
        return Subject(model, lambda: subject(1).model, name, inputs, size.vocabulary, optimizer)

    s = subject(0)
    before = {CALLS: logits(s.model, inputs).detach()}
    before[STEPS] = stepped(s.model, s.optimizer(s.model), s)
    with TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{Path(folder, 'store')}", rank=0, world_size=1)
        try:
            found = {}
            for transform in list(TRANSFORMS)[:transforms]:
                torch._dynamo.reset()
                found[transform] = fate(transform, subject, before)
            return found
        finally:
            distributed.destroy_process_group()


@torch.no_grad()
def shifted(model: nn.Module) -> nn.Module:
    """The model with other values."""
    for p in model.parameters():
        p.add_(0.01 * torch.randn_like(p))
    return model
