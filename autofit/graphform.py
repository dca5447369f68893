"""A muified model as an FX graph: the captured program with its multipliers as nodes."""

from __future__ import annotations

import torch
from torch import fx, nn

from autofit.multiply import multiply
from autofit.plan import Plan
from autofit.roles import Roles


def graph_form(model: nn.Module, roles: Roles, plan: Plan) -> fx.GraphModule:
    """The captured program over the model's own parameters, with the plan's multipliers at their sites.

    Args:
        model: that was captured; the graph reads its parameters and buffers, under their names.
        roles: its sites.
        plan: what to apply.

    Raises:
        LoweringError: a multiplier has no place in the graph.
    """
    program = roles.growth.dims.program
    names = {p.node: p.names[0] for p in program.parameters if p.node is not None} | program.buffers
    graph, at = fx.Graph(), dict[fx.Node, fx.Node]()
    held = program.tensors
    root: dict[str, torch.Tensor] = {}
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            at[node] = graph.get_attr(names[node.name])
            root[names[node.name]] = state[names[node.name]]
        elif node.name in held:
            at[node] = graph.get_attr(f"_{node.name}")
            root[f"_{node.name}"] = held[node.name]
        elif node.op == "output":
            results = [r for r in _flat(node.args) if isinstance(r, fx.Node)]
            values = [at[r] for r in results]
            graph.output(values[0] if len(values) == 1 else tuple(values))
        else:
            at[node] = graph.node_copy(node, lambda n: at[n])
        if node in at:
            at[node].meta = dict(node.meta)
    for p in plan.multiplied().values():
        owner = next(n for n in graph.nodes if n.op == "get_attr" and n.target == p.name)
        readers = list(owner.users)
        with graph.inserting_after(owner):
            scaled = graph.call_function(torch.ops.aten.mul.Tensor, (owner, p.multiplier))
        for reader in readers:
            reader.replace_input_with(owner, scaled)
    multiply(graph, roles, plan, at)
    made = fx.GraphModule(_holder(root), graph)
    made.train(model.training)
    return made


def _flat(value: object) -> list[object]:
    return [v for item in value for v in _flat(item)] if isinstance(value, list | tuple) else [value]


def _holder(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module that holds tensors under dotted names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        owner, at = root, name.split(".")
        for part in at[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(at[-1], tensor)
        else:
            owner.register_buffer(at[-1], tensor, persistent=not at[-1].startswith("_"))
    return root
