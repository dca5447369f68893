"""What a parameter is to somebody who tunes it: gain or bias, of a norm or of a layer, table or matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from autofit.dims import Use
from autofit.flow import NORMS, Flow
from autofit.program import op_name
from autofit.roles import Role

Kind = Literal["embedding", "input", "hidden", "output", "norm_gain", "norm_bias", "gain", "bias", "fixed"]
KINDS: tuple[str, ...] = get_args(Kind)


def kind_of(use: Use, beside: Iterable[Use], role: Role, inner: bool, flow: Flow) -> Kind:
    """The kind of a parameter, by the use that decides its role.

    Tables are embeddings, whether looked up or added to data; a sum over weights is named by its role, and one with
    growing dimensions before and behind it is hidden; what multiplies or is added per element is a gain or a bias.

    Args:
        use: the deciding use.
        beside: all uses of parameters by the same op.
        role: the parameter's role.
        inner: whether growing dimensions are before it and behind it, even if it gives or contracts a fixed one.
        flow: of the program.
    """
    ways = set(use.kinds.values())
    if "index" in ways or (role == "input" and "in" not in ways):
        return "embedding"
    if "in" in ways:
        if role == "fixed" or role == "vector":
            return "fixed"
        return "hidden" if inner else role
    if any("in" in other.kinds.values() for other in beside):
        return "bias"
    added = _is_added(use)
    others = (n for n in use.node.all_input_nodes if n is not use.operand)
    if op_name(use.node) in NORMS or any(flow.is_normalized(n) for n in others):
        return "norm_bias" if added else "norm_gain"
    return "bias" if added else "gain"


def _is_added(use: Use) -> bool:
    """Whether an op adds a parameter: an addition, or one with an argument for biases."""
    if op_name(use.node) in ("aten.add", "aten.sub"):
        return True
    names = [a.name for a in getattr(getattr(use.node.target, "_schema", None), "arguments", ())]
    taken = {**dict(zip(names, use.node.args, strict=False)), **use.node.kwargs}
    return taken.get("bias") is use.operand
