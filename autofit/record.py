"""The run-once recorder: a graph of the one path that an example takes, for control flow that looks at values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import stateless
from torch.utils import _pytree as pytree

from autofit.examples import Example
from autofit.functional import functionalize
from autofit.inline import inline
from autofit.program import Captured, storage_key


def record(model: nn.Module, example: Example, reason: str) -> Captured:
    """Run the model for real on copies of its tensors, and write down every op.

    Unlike export this computes: it needs values, and memory for a copy of the model. ``reason`` says why it was
    asked for.

    Raises:
        RuntimeError: the model is on ``meta``; or whatever forward raises.
    """
    copies: dict[Any, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if tensor.is_meta:
            raise RuntimeError("a model on meta has no values to run on")
        key = storage_key(tensor)
        if key not in copies:
            copies[key] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        tensors[name] = copies[key]
    names = {id(copy): name for name, copy in reversed(tensors.items())}
    held = list({id(t): t for t in tensors.values()}.values())
    data, structure = pytree.tree_flatten((example.args, example.kwargs))
    at = [i for i, value in enumerate(data) if isinstance(value, torch.Tensor)]

    def run(*values: torch.Tensor) -> list[Any]:
        own = dict(zip((id(t) for t in held), values[: len(held)], strict=True))
        swapped = {name: own[id(t)] for name, t in tensors.items()}
        filled = list(data)
        for i, value in zip(at, values[len(held) :], strict=True):
            filled[i] = value
        args, kwargs = pytree.tree_unflatten(filled, structure)
        with stateless._reparametrize_module(model, swapped):
            result = model(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    run._orig_mod = model  # type: ignore[attr-defined]  # gives nodes their module paths
    module = make_fx(
        run,
        tracing_mode="real",
        pre_dispatch=True,
        record_module_stack=True,
        record_stack_traces=True,
        _error_on_data_dependent_ops=False,
    )(*held, *(data[i] for i in at))
    inline(module)
    functionalize(module)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    parameters = {id(tensors[name]) for name, _ in model.named_parameters(remove_duplicate=False)}
    return Captured(
        module=module,
        parameter_nodes={
            names[id(t)]: node for t, node in zip(held, placeholders, strict=False) if id(t) in parameters
        },
        inputs=tuple(n.name for n in placeholders[len(held) :]),
        constants={
            **_constants(module),
            **{
                node.name: float(tensor)
                for (name, tensor), node in zip(((names[id(t)], t) for t in held), placeholders, strict=False)
                if id(tensor) not in parameters and tensor.numel() == 1 and tensor.is_floating_point()
            },
        },
        buffers={
            node.name: names[id(t)] for t, node in zip(held, placeholders, strict=False) if id(t) not in parameters
        },
        tensors={
            node.name: value
            for node in module.graph.nodes
            if node.op == "get_attr" and isinstance(value := getattr(module, str(node.target), None), torch.Tensor)
        },
        front_end=f"running it once, so that only the path which this example takes is seen ({reason})",
    )


def _constants(module: fx.GraphModule) -> dict[str, float]:
    """Values of one-element tensors that the program made from numbers."""
    found = {}
    for node in module.graph.nodes:
        value = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
            found[node.name] = float(value)
    return found
