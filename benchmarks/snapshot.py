"""What a call must leave alone: a model, whatever it is made of, and the process around it."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn

REGISTRIES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


class Snapshot:
    """A model and the process's state as they are now.

    Args:
        model: any module, also one that contains itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = {id(m): _module(m) for m in _modules(model)}
        self.tensors = {id(t): (t, _value(t), _facts(t)) for m in _modules(model) for t in _tensors(m)}
        self.process = process()

    def differences(self) -> Iterator[str]:
        """What is not as it was, in words."""
        now = {id(m): _module(m) for m in _modules(self.model)}
        if now.keys() != self.modules.keys():
            yield "modules came or went"
        for key, was in self.modules.items():
            for what, value in now.get(key, {}).items():
                if value != was[what]:
                    yield f"{what} of a {was['class']}: {_brief(was[what])} became {_brief(value)}"
        for tensor, value, facts in self.tensors.values():
            if _facts(tensor) != facts:
                yield f"a tensor: {facts} became {_facts(tensor)}"
            elif (after := _value(tensor)) is not None and value is not None and not _same(value, after):
                yield f"values of a tensor {tuple(tensor.shape)}"
        yield from changed(self.process)


def _brief(value: Any) -> str:
    try:
        return repr(value)[:200]
    except Exception as error:  # names and attributes are the case's own
        return f"<{type(error).__name__}>"


def _modules(model: nn.Module) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [m for m in module._modules.values() if m is not None]
    return list(found.values())


def _own(module: nn.Module) -> dict[str, Any]:
    return {} if isinstance(module, torch.jit.ScriptModule) else module.__dict__


def _module(module: nn.Module) -> dict[str, Any]:
    own = _own(module)
    return {
        "class": type(module).__name__,
        "training": module.training,
        "attributes": sorted(own),
        "identities": {k: id(v) for k, v in own.items() if k not in ("training", "__annotations__")},
        "containers": {k: _contents(v) for k, v in own.items() if isinstance(v, dict | list | set)},
        "parameters": [(n, id(p)) for n, p in module._parameters.items()],
        "buffers": [(n, id(b)) for n, b in module._buffers.items()],
        "hooks": {r: [(k, id(h)) for k, h in own[r].items()] for r in REGISTRIES if r in own},
    }


def _contents(value: Any) -> Any:
    return [(repr(k), id(v)) for k, v in value.items()] if isinstance(value, dict) else [id(v) for v in value]


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _facts(t: torch.Tensor) -> tuple[Any, ...]:
    try:
        shape: Any = tuple(t.shape), t.stride() if t.layout == torch.strided else None
    except (RuntimeError, ValueError):  # a lazy one
        shape = None
    return type(t).__name__, t.dtype, t.device, shape, t.requires_grad, id(t.grad) if t.is_leaf else None


def _value(t: torch.Tensor) -> torch.Tensor | None:
    """A copy of what a tensor holds; ``None`` where it holds nothing."""
    try:
        with torch.no_grad():
            return None if t.is_meta else t.detach().clone()
    except (RuntimeError, ValueError, NotImplementedError, TypeError):
        return None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, so that a NaN is itself."""
    try:
        if a.layout != torch.strided:
            a, b = a.to_dense(), b.to_dense()
        if a.is_quantized:
            a, b = a.int_repr(), b.int_repr()
        if type(a) is not torch.Tensor and hasattr(a, "fake_mode"):
            return True
        a, b = a.contiguous().reshape(-1), b.contiguous().reshape(-1)
        return a.shape == b.shape and bool((a.view(torch.uint8) == b.view(torch.uint8)).all())
    except (RuntimeError, NotImplementedError):
        return bool(torch.equal(a, b))


def process() -> dict[str, Any]:
    """State of the process that a call must leave alone."""
    loggers = [v for v in logging.root.manager.loggerDict.values() if isinstance(v, logging.Logger)]
    return {
        "torch's random numbers": torch.get_rng_state(),
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": str(numpy.random.get_state()),
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "collection": gc.isenabled(),
        "warnings": [f[:3] for f in warnings.filters if f[2] is not None],
        "levels": {(v.name, i): h.level for v in loggers for i, h in enumerate(v.handlers)},
        "streams": (id(sys.stdout), id(sys.stderr)),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
    }


def changed(was: dict[str, Any]) -> Iterator[str]:
    """What of the process's state is not as it was."""
    now = process()
    if not torch.equal(was["torch's random numbers"], now["torch's random numbers"]):
        yield "torch's random numbers"
    for what in was.keys() - {"torch's random numbers", "levels", "warnings"}:
        if was[what] != now[what]:
            yield f"{what}: {_brief(was[what])} became {_brief(now[what])}"
    if lost := [f for f in was["warnings"] if f not in now["warnings"]]:
        yield f"warnings: lost {lost}"
    for key in was["levels"].keys() & now["levels"].keys():
        if was["levels"][key] != now["levels"][key]:
            yield f"the level of logger {key[0]}"


def restore(was: dict[str, Any]) -> None:
    """Put the process's state back, so that one case does not spoil the next."""
    torch.set_rng_state(was["torch's random numbers"])
    random.setstate(was["Python's random numbers"])
    torch.set_default_dtype(was["default type"])
    torch.set_grad_enabled(was["gradients"])
    (gc.enable if was["collection"] else gc.disable)()
    os.chdir(was["folder"])
    sys.path[:] = was["path"]
