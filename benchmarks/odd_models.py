"""Odd models: small nets, and alterations that make them odd, by name, so that a case is plain data.

A `Case` names a net, the alterations that are applied to it in turn, and the options of `autofit.muify`; `build` makes
the model and its example. `fuzz` draws cases, and ``tests/test_hardening.py`` names those that were wrong.
"""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

WIDTH = 32
Made = tuple[nn.Module, Any]


# nets ---------------------------------------------------------------------------------------------------


def mlp(width: int = WIDTH) -> Made:
    """Two hidden layers."""
    layers = nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    return nn.Sequential(*layers), torch.zeros(7, 6)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, d = x.shape
        q, k, v = (t.view(b, s, 4, d // 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d))


class Decoder(nn.Module):
    """One block with a tied readout."""

    def __init__(self, width: int = WIDTH, tied: bool = True) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(23, width), nn.LayerNorm(width)
        self.attention = _Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 23, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = x + self.attention(self.norm(x))
        return self.head(x + self.mlp(x))


def decoder(width: int = WIDTH) -> Made:
    """`Decoder`, tied."""
    return Decoder(width), torch.zeros(3, 7, dtype=torch.long)


def untied(width: int = WIDTH) -> Made:
    """`Decoder` with a readout of its own."""
    return Decoder(width, tied=False), torch.zeros(3, 7, dtype=torch.long)


class LooksAtData(nn.Module):
    """A branch on a value: the run-once recorder's work."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.one(x))
        return self.two(h.relu() if h.sum() < 1e9 else h)


def branching(width: int = WIDTH) -> Made:
    """`LooksAtData`."""
    return LooksAtData(width), torch.randn(7, 6)


class Stack(nn.Module):
    """Equal residual blocks, which capture traces once."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(6)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


def stack(width: int = WIDTH) -> Made:
    """`Stack`."""
    return Stack(width), torch.zeros(7, 6)


def convolutional(width: int = WIDTH) -> Made:
    """Convolutions, batch norm, pooling."""
    body = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5)), torch.zeros(2, 3, 9, 9)


def recurrent(width: int = WIDTH) -> Made:
    """An LSTM, whose result is a tuple."""
    return nn.LSTM(5, width, batch_first=True, proj_size=0), torch.zeros(2, 7, 5)


def multihead(width: int = WIDTH) -> Made:
    """torch's own Transformer layer."""
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Linear(6, width), layer, nn.Linear(width, 3)), torch.zeros(2, 7, 6)


def empty(width: int = WIDTH) -> Made:
    """Nothing."""
    return nn.Sequential(), torch.zeros(7, 6)


def formless(width: int = WIDTH) -> Made:
    """A module without forward."""
    model = nn.Module()
    model.one = nn.Linear(6, width)
    return model, torch.zeros(7, 6)


NETS: dict[str, Callable[..., Made]] = {
    f.__name__: f
    for f in (mlp, decoder, untied, branching, stack, convolutional, recurrent, multihead, empty, formless)
}


# alterations --------------------------------------------------------------------------------------------
# Each takes a model and a generator of choices, changes or wraps the model, and returns it. What does not apply to a
# model leaves it as it is.


def _leaves(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, n) for m in model.modules() for n, p in m._parameters.items() if p is not None]


def _some(model: nn.Module, choose: random.Random, least: int = 0) -> tuple[nn.Module, str] | None:
    found = [(m, n) for m, n in _leaves(model) if _dims(m._parameters[n]) >= least]
    return choose.choice(found) if found else None


def _dims(p: torch.Tensor | None) -> int:
    try:
        return p.dim() if p is not None else 0
    except (RuntimeError, ValueError):  # lazy ones have no shape
        return 0


def _put(change: Callable[[torch.Tensor], torch.Tensor], least: int = 0) -> Callable[..., nn.Module]:
    """An alteration that puts another tensor into the place of one parameter."""

    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        if at := _some(model, choose, least):
            owner, name = at
            old: Any = owner._parameters[name]
            new = change(old.detach())
            owner._parameters[name] = nn.Parameter(
                new, old.requires_grad and (new.is_floating_point() or new.is_complex())
            )
        return model

    return alter


def _expand(p: torch.Tensor) -> torch.Tensor:
    return p[:1].clone().expand_as(p)


def _with(name: str, make: Callable[[], Any], grad: bool = True) -> Callable[..., nn.Module]:
    """An alteration that registers one more parameter, which forward does not read."""

    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        owner = choose.choice(list(model.modules()))
        owner.register_parameter(name, nn.Parameter(make(), grad))
        return model

    return alter


def _fill(value: float) -> Callable[..., nn.Module]:
    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        if at := _some(model, choose):
            at[0]._parameters[at[1]].detach().fill_(value)  # type: ignore[union-attr]
        return model

    return alter


def scale_by_scalar(model: nn.Module, choose: random.Random) -> nn.Module:
    """A 0-d parameter that the result is multiplied by."""
    return _Around(model, lambda self, out: _first(out) * self.gain, gain=nn.Parameter(torch.tensor(2.0)))


def share_module(model: nn.Module, choose: random.Random) -> nn.Module:
    """A submodule under a second name."""
    inner = [m for m in model.modules() if m is not model]
    if inner:
        model.add_module("again", choose.choice(inner))
    return model


def share_parameter(model: nn.Module, choose: random.Random) -> nn.Module:
    """Two parameters of one shape become one."""
    leaves = _leaves(model)
    pairs = [
        (a, b) for a in leaves for b in leaves if a != b and _alike(a[0]._parameters[a[1]], b[0]._parameters[b[1]])
    ]
    if pairs:
        (a, name), (b, other) = choose.choice(pairs)
        b._parameters[other] = a._parameters[name]
    return model


def _alike(a: Any, b: Any) -> bool:
    return _dims(a) == _dims(b) and type(a) is type(b) and _dims(a) > 0 and a.shape == b.shape


def share_transposed(model: nn.Module, choose: random.Random) -> nn.Module:
    """One square weight is the transpose of another, in the same memory."""
    leaves = [(m, n) for m, n in _leaves(model) if _dims(m._parameters[n]) == 2]
    shape = {(m, n): tuple(m._parameters[n].shape) for m, n in leaves}  # type: ignore[union-attr]
    pairs = [(a, b) for a in leaves for b in leaves if a != b and shape[a] == shape[b][::-1]]
    if pairs:
        (a, name), (b, other) = choose.choice(pairs)
        b._parameters[other] = nn.Parameter(a._parameters[name].detach().t())
    return model


def share_overlapping(model: nn.Module, choose: random.Random) -> nn.Module:
    """Vectors of one length lie one element apart in the same memory."""
    leaves = [(m, n) for m, n in _leaves(model) if _dims(m._parameters[n]) == 1]
    if len(leaves) > 1:
        flat = torch.randn(4096)
        for i, (m, n) in enumerate(choose.sample(leaves, 2)):
            m._parameters[n] = nn.Parameter(flat[i : i + m._parameters[n].numel()])
    return model


def flatten_all(model: nn.Module, choose: random.Random) -> nn.Module:
    """All parameters are views of one flat tensor, side by side."""
    named = [p for p in dict.fromkeys(model.parameters()) if _dims(p) and not p.is_meta and p.dtype == torch.float32]
    flat, at = torch.cat([p.detach().flatten() for p in named]) if named else torch.empty(0), 0
    for p in named:
        p.data = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()
    return model


def contain_itself(model: nn.Module, choose: random.Random) -> nn.Module:
    """A module that is its own child, or its parent's parent."""
    choose.choice(list(model.modules()))._modules["me"] = model
    return model


def lazy(model: nn.Module, choose: random.Random) -> nn.Module:
    """A lazy layer in front, whose parameters have no shape yet."""
    return nn.Sequential(nn.LazyLinear(6), model)


def to_dtype(dtype: torch.dtype) -> Callable[..., nn.Module]:
    """All parameters in another type."""

    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        for m, n in _leaves(model):
            p: Any = m._parameters[n]
            if _dims(p):
                m._parameters[n] = nn.Parameter(p.detach().to(dtype), p.requires_grad and dtype.is_floating_point)
        return model

    return alter


def quantize(p: torch.Tensor) -> torch.Tensor:
    """A quantized tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(p.float(), 0.1, 0, torch.qint8)


def script(model: nn.Module, choose: random.Random) -> nn.Module:
    """TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.script(model)
        except Exception:  # not every model can be scripted
            return model


def compile_(model: nn.Module, choose: random.Random) -> nn.Module:
    """`torch.compile`, not yet run."""
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def parallel(model: nn.Module, choose: random.Random) -> nn.Module:
    """`nn.DataParallel`."""
    return nn.DataParallel(model)


def fake(model: nn.Module, choose: random.Random) -> nn.Module:
    """Parameters without values, of a mode that is gone."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    for m, n in _leaves(model):
        p: Any = m._parameters[n]
        if _dims(p) and p.layout == torch.strided and not p.is_quantized:
            m._parameters[n] = nn.Parameter(mode.from_tensor(p.detach()), p.requires_grad)
    return model


def inference(model: nn.Module, choose: random.Random) -> nn.Module:
    """Parameters made in inference mode."""
    with torch.inference_mode():
        for m, n in _leaves(model):
            p: Any = m._parameters[n]
            if _dims(p):
                m._parameters[n] = nn.Parameter(p.detach().clone(), requires_grad=False)
    return model


class Labelled(torch.Tensor):
    """A tensor subclass that does nothing of its own."""


def subclass(model: nn.Module, choose: random.Random) -> nn.Module:
    """A parameter of a tensor subclass."""
    if at := _some(model, choose, 1):
        p: Any = at[0]._parameters[at[1]]
        if p.layout == torch.strided and not p.is_quantized:
            at[0]._parameters[at[1]] = nn.Parameter(p.detach().as_subclass(Labelled), p.requires_grad)
    return model


def _parametrization(apply: Callable[[nn.Module, str], Any]) -> Callable[..., nn.Module]:
    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        if at := _some(model, choose, 2):
            with warnings.catch_warnings(), contextlib.suppress(Exception):  # not every tensor can be, as one on meta
                warnings.simplefilter("ignore")
                apply(*at)
        return model

    return alter


class Doubled(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def partly_meta(model: nn.Module, choose: random.Random) -> nn.Module:
    """One module has no memory."""
    choose.choice(list(model.modules())).to("meta")
    return model


def all_meta(model: nn.Module, choose: random.Random) -> nn.Module:
    """None has."""
    return model.to("meta")


def freeze_some(model: nn.Module, choose: random.Random) -> nn.Module:
    """About half of the parameters have no gradient."""
    for p in model.parameters():
        p.requires_grad_(choose.random() < 0.5 and (p.is_floating_point() or p.is_complex()))
    return model


def with_gradients(model: nn.Module, choose: random.Random) -> nn.Module:
    """A step was made: gradients are there."""
    for p in model.parameters():
        if _dims(p) and p.requires_grad and p.layout == torch.strided:
            p.grad = torch.ones_like(p)
    return model


def evaluate(model: nn.Module, choose: random.Random) -> nn.Module:
    """Some modules are in eval mode."""
    for m in model.modules():
        if not isinstance(m, torch.jit.ScriptModule):
            m.training = choose.random() < 0.5
    return model


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple | list) else out


class _Around(nn.Module):
    """A model, and what is done with its result."""

    def __init__(self, inner: nn.Module, after: Callable[[Any, Any], Any], **own: Any) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["after"] = after
        for name, value in own.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.after(self, self.inner(*args, **kwargs))


def _then(after: Callable[[Any, Any], Any]) -> Callable[..., nn.Module]:
    return lambda model, choose: _Around(model, after)


class Unprintable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Thing:
    """A result that torch does not know."""


def _raise(error: Callable[[], BaseException]) -> Callable[[Any, Any], Any]:
    def after(self: Any, out: Any) -> Any:
        raise error()

    return after


def _after(change: Callable[[Any], Any]) -> Callable[..., nn.Module]:
    """An alteration after which forward changes its own module in every call."""

    def after(self: Any, out: Any) -> Any:
        change(self)
        return out

    return _then(after)


def _grow(self: Any) -> None:
    self.register_parameter(f"p{len(self._parameters)}", nn.Parameter(torch.zeros(3)))


def _write(self: Any) -> None:
    with torch.no_grad():
        for p in self.inner.parameters():
            p.add_(1)


def _count(self: Any) -> None:
    self.calls = getattr(self, "calls", 0) + 1
    if not hasattr(self, "history"):
        self.history = deque()
    self.history.append(self.calls)


def _shake(self: Any) -> None:
    torch.manual_seed(1)
    random.seed(1)
    import numpy

    numpy.random.seed(1)


def _settle(self: Any) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)


def _forget(self: Any) -> None:
    del self.after


def _buffer(self: Any) -> None:
    self.register_buffer("seen", torch.ones(2))


def _replace(self: Any) -> None:
    self.inner = copy.deepcopy(self.inner)


def _hook_self(self: Any) -> None:
    self.register_forward_hook(lambda *_: None)


def _hook(when: str, error: type[BaseException] | None) -> Callable[..., nn.Module]:
    """A hook of the user's on some module, which raises or returns something else."""

    def hook(*args: Any) -> Any:
        if error is not None:
            raise error("from a hook")
        return None

    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        owner = choose.choice(list(model.modules()))
        if not isinstance(owner, torch.jit.ScriptModule):
            getattr(owner, f"register_{when}")(hook)
        return model

    return alter


class _Config:
    """A configuration as other libraries have them."""

    def __init__(self, fields: Any) -> None:
        self.fields = fields

    def to_dict(self) -> Any:
        if isinstance(self.fields, Exception):
            raise self.fields
        return self.fields


def _configured(fields: Any) -> Callable[..., nn.Module]:
    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        model.__dict__["config"] = _Config(fields)
        return model

    return alter


class _Stubborn(dict[str, Any]):
    """A container that cannot be copied."""

    def copy(self) -> Any:
        raise TypeError("no copies")


def _keep(value: Callable[[], Any]) -> Callable[..., nn.Module]:
    def alter(model: nn.Module, choose: random.Random) -> nn.Module:
        choose.choice(list(model.modules())).__dict__["kept"] = value()
        return model

    return alter


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def nest(model: nn.Module, choose: random.Random) -> nn.Module:
    """Deep inside many containers."""
    for _ in range(150):
        model = nn.Sequential(model)
    return model


def rename(model: nn.Module, choose: random.Random) -> nn.Module:
    """A child under a name that is no identifier."""
    if model._modules:
        name = choose.choice(list(model._modules))
        odd = choose.choice(NAMES)
        if odd not in model._modules:
            model._modules = OrderedDict((odd if n == name else n, m) for n, m in model._modules.items())  # type: ignore[assignment]
    return model


NAMES = (
    "",
    ".",
    "a.b",
    "a b",
    "weight",
    "forward",
    "self",
    "class",
    "None",
    "__class__",
    "__init__",
    "_parameters",
    "training",
    "config",
    "ünï",
    "ﬁ",
    "数",
    "\u202e",
    "\ud800",
    "\n",
    "a\nb",
    "\x00",
    "1",
    "01",
    "-",
    "*",
    "?[a]",
    "[bold]x[/bold]",
    "{x}",
    "%s",
    "'",
    '"""',
    "\\",
    "#",
    "residual_branches",
    "x" * 300,
)
"""Names of modules and parameters that something may stumble over."""


ALTERATIONS: dict[str, Callable[[nn.Module, random.Random], nn.Module]] = {
    "a parameter without elements": _with("none", lambda: torch.zeros(0, 8)),
    "a scalar parameter that nothing reads": _with("gain", lambda: torch.tensor(1.0)),
    "a parameter of whole numbers": _with("steps", lambda: torch.zeros(3, dtype=torch.long), False),
    "a parameter of truth values": _with("mask", lambda: torch.ones(4, dtype=torch.bool), False),
    "a complex parameter": _with("phase", lambda: torch.zeros(3, 3, dtype=torch.complex64)),
    "a sparse parameter": _with("sparse", lambda: torch.eye(3).to_sparse()),
    "a quantized parameter": _with("quantized", lambda: quantize(torch.ones(3, 3)), False),
    "a float8 parameter": _with("small", lambda: torch.zeros(3, 3).to(torch.float8_e4m3fn), False),
    "scaled by a scalar parameter": scale_by_scalar,
    "shared module": share_module,
    "shared parameter": share_parameter,
    "shared memory, transposed": share_transposed,
    "shared memory, overlapping": share_overlapping,
    "shared memory, side by side": flatten_all,
    "contains itself": contain_itself,
    "lazy": lazy,
    "float64": to_dtype(torch.float64),
    "bfloat16": to_dtype(torch.bfloat16),
    "float16": to_dtype(torch.float16),
    "complex": to_dtype(torch.complex64),
    "one parameter in float64": _put(lambda p: p.double()),
    "one parameter quantized": _put(quantize, 1),
    "one parameter sparse": _put(lambda p: p.to_sparse(), 2),
    "one parameter transposed in memory": _put(lambda p: p.t().contiguous().t() if p.dim() == 2 else p, 2),
    "one parameter in channels-last": _put(
        lambda p: p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p
    ),
    "one parameter expanded": _put(_expand, 1),
    "one parameter emptied": _put(lambda p: p[:0], 1),
    "not a number": _fill(float("nan")),
    "infinite": _fill(float("inf")),
    "very large": _fill(3e38),
    "constant": _fill(0.5),
    "scripted": script,
    "compiled": compile_,
    "data-parallel": parallel,
    "fake tensors": fake,
    "made in inference mode": inference,
    "a tensor subclass": subclass,
    "weight_norm": _parametrization(lambda m, n: parametrizations.weight_norm(m, n)),
    "old weight_norm": _parametrization(lambda m, n: nn.utils.weight_norm(m, n)),
    "spectral_norm": _parametrization(lambda m, n: parametrizations.spectral_norm(m, n)),
    "orthogonal": _parametrization(lambda m, n: parametrizations.orthogonal(m, n)),
    "a parametrization without inverse": _parametrization(
        lambda m, n: parametrize.register_parametrization(m, n, Doubled())
    ),
    "pruned": _parametrization(lambda m, n: prune.l1_unstructured(m, n, amount=0.5)),
    "partly on meta": partly_meta,
    "on meta": all_meta,
    "partly frozen": freeze_some,
    "with gradients": with_gradients,
    "partly in eval mode": evaluate,
    "deeply nested": nest,
    "an odd name": rename,
    "raises RuntimeError": _then(_raise(lambda: RuntimeError("the user's own trouble"))),
    "raises without text": _then(_raise(lambda: RuntimeError())),
    "raises what cannot be printed": _then(_raise(Unprintable)),
    "raises StopIteration": _then(_raise(StopIteration)),
    "raises MemoryError": _then(_raise(MemoryError)),
    "raises RecursionError": _then(_raise(RecursionError)),
    "raises KeyboardInterrupt": _then(_raise(KeyboardInterrupt)),
    "raises SystemExit": _then(_raise(lambda: SystemExit(3))),
    "returns nothing": _then(lambda self, out: None),
    "returns a number": _then(lambda self, out: 3),
    "returns a string": _then(lambda self, out: "x"),
    "returns a dict with odd keys": _then(lambda self, out: {1: _first(out), None: (out,), "": []}),
    "returns an empty tuple": _then(lambda self, out: ()),
    "returns a generator": _then(lambda self, out: (x for x in [out])),
    "returns an unknown object": _then(lambda self, out: Thing()),
    "returns its parameter": _then(lambda self, out: next(self.parameters(), None)),
    "returns itself": _then(lambda self, out: self),
    "returns a scalar": _then(lambda self, out: _first(out).sum()),
    "returns a Python number of a value": _then(lambda self, out: _first(out).sum().item()),
    "returns only a view of the input": _then(lambda self, out: _first(out).detach()),
    "grows in forward": _after(_grow),
    "writes its weights in forward": _after(_write),
    "counts its calls": _after(_count),
    "seeds all generators": _after(_shake),
    "sets dtype and gradients for all": _after(_settle),
    "loses an attribute in forward": _after(_forget),
    "registers a buffer in forward": _after(_buffer),
    "replaces its child in forward": _after(_replace),
    "hooks itself in forward": _after(_hook_self),
    "goes to eval mode in forward": _after(lambda self: self.eval()),
    "freezes itself in forward": _after(lambda self: self.requires_grad_(False)),
    "a hook": _hook("forward_hook", None),
    "a pre-hook": _hook("forward_pre_hook", None),
    "a hook that raises": _hook("forward_hook", ValueError),
    "a pre-hook that raises": _hook("forward_pre_hook", TypeError),
    "a pre-hook that interrupts": _hook("forward_pre_hook", KeyboardInterrupt),
    "an empty configuration": _configured({}),
    "a configuration that raises": _configured(RuntimeError("no fields")),
    "a configuration that is none": _configured(None),
    "a configuration of odd values": _configured(
        {1: 2, "a": {"b": float("nan")}, "init_std": float("inf"), "c": [10**400]}
    ),
    "keeps what cannot be copied": _keep(lambda: _Stubborn(a=1)),
    "keeps a list that holds itself": _keep(_cycle),
    "keeps a generator": _keep(lambda: iter([1, 2])),
}


EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "right": lambda x: x,
    "none": lambda x: None,
    "in a tuple": lambda x: (x,),
    "empty tuple": lambda x: (),
    "under a wrong name": lambda x: {"no such argument": x},
    "of a wrong shape": lambda x: torch.zeros(2, 3, 4, 5, 6),
    "without rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
    "on meta": lambda x: x.to("meta"),
    "of another type": lambda x: x.double(),
    "not a number": lambda x: x.float() * float("nan"),
    "sparse": lambda x: x.float().to_sparse(),
    "with gradient": lambda x: x.float().requires_grad_(),
    "twice": lambda x: (x, x),
    "a string": lambda x: "x",
    "an object": lambda x: Thing(),
    "a list of strings": lambda x: ["a", None, 3],
    "holds itself": lambda x: _cycle(),
}


@dataclass(frozen=True)
class Case:
    """One model, and how `muify` is called on it.

    Attributes:
        net: key of `NETS`.
        alterations: keys of `ALTERATIONS`, applied in turn.
        seed: of what alterations choose.
        example: key of `EXAMPLES`.
        base: key of `BASES`.
        options: further arguments.
    """

    net: str = "mlp"
    alterations: tuple[str, ...] = ()
    seed: int = 0
    example: str = "right"
    base: str = "half"
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, width: int = WIDTH) -> Made:
        """The model and its example; the same for the same case."""
        torch.manual_seed(self.seed)
        choose = random.Random(self.seed)
        model, example = NETS[self.net](width)
        for name in self.alterations:
            model = ALTERATIONS[name](model, choose)
        return model, EXAMPLES[self.example](example)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `muify`."""
        return {"base": BASES[self.base](self), **self.options}


BASES: dict[str, Callable[[Case], Any]] = {
    "half": lambda case: WIDTH // 2,
    "same": lambda case: WIDTH,
    "narrow": lambda case: lambda: NETS[case.net](WIDTH // 2)[0],
    "altered": lambda case: lambda: case.build(WIDTH // 2)[0],
    "another architecture": lambda case: mlp()[0] if case.net != "mlp" else convolutional()[0],
    "a factory that raises": lambda case: lambda: 1 / 0,
    "a factory of nothing": lambda case: lambda: None,
}


def every_alteration() -> Iterator[Case]:
    """Each alteration alone, on nets that have what it alters."""
    for name in ALTERATIONS:
        for net in ("mlp", "untied", "branching"):
            yield Case(net, (name,))
