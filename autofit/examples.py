"""Example inputs: what the user passed, or what the model's own signature and first layer ask for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from autofit.errors import ExampleError


@dataclass(frozen=True)
class Example:
    """Arguments for one call of a model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        inferred: whether autofit made them up.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inferred: bool = False

    def filled(self, integers: bool = True) -> Example:
        """The same with other numbers in tensors that are all zero: random ones, and 0 and 1 in turn for integers."""
        generator = torch.Generator().manual_seed(0)

        def fill(value: torch.Tensor) -> torch.Tensor:
            if value.is_meta or value.dtype == torch.bool or value.is_complex() or bool(value.any()):
                return value
            if value.is_floating_point():
                return torch.randn(value.shape, generator=generator).to(value)
            return (torch.arange(value.numel()) % 2).reshape(value.shape).to(value) if integers else value

        args, kwargs = _pytree.tree_map_only(torch.Tensor, fill, (self.args, self.kwargs))
        return Example(args, kwargs, self.inferred)

    def __str__(self) -> str:
        parts = [_brief(a) for a in self.args]
        parts += [f"{k}={_brief(v)}" for k, v in self.kwargs.items()]
        return ", ".join(parts) or "no arguments"


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value) if isinstance(value, int | float | str | bool | None) else type(value).__name__


def normalize(example: Any) -> Example:
    """Turn any accepted form of ``example=`` into arguments.

    Raises:
        ExampleError: not a tensor, tuple, list or dict.
    """
    if isinstance(example, Example):
        return example
    if isinstance(example, torch.Tensor):
        return Example((example,))
    if isinstance(example, dict):
        return Example((), dict(example))
    if isinstance(example, tuple | list):
        return Example(tuple(example))
    raise ExampleError(
        f"example= is a {type(example).__name__}",
        todo="pass one tensor, a tuple of positional arguments, or a dict of keyword arguments",
    )


def _signature(model: nn.Module) -> inspect.Signature | None:
    """Of forward; ``None`` where it has none, as in TorchScript."""
    try:
        return inspect.signature(model.forward)
    except (AttributeError, TypeError, ValueError):
        return None


def without_cache(model: nn.Module, example: Example) -> Example:
    """The example with ``use_cache=False`` where a transformers model would else return a cache."""
    signature = _signature(_wrapped(model))
    if signature is None or not hasattr(model, "config") or "use_cache" not in signature.parameters:
        return example
    try:
        given = signature.bind_partial(*example.args, **example.kwargs).arguments
    except TypeError:
        return example
    return example if "use_cache" in given else replace(example, kwargs={**example.kwargs, "use_cache": False})


def _wrapped(model: nn.Module) -> nn.Module:
    """What a model of peft hands its arguments to, whose own signature does not name them all; otherwise the model."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def beside(model: nn.Module, example: Example) -> Example:
    """The example with its tensors on ``meta`` where the whole model is there."""
    if not all(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return example
    try:
        args, kwargs = _pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (example.args, example.kwargs))
    except RecursionError:
        raise ExampleError("the example holds itself", todo="pass tensors in lists, tuples and dicts") from None
    return replace(example, args=args, kwargs=kwargs)


def candidate_examples(model: nn.Module) -> Iterator[Example]:
    """Yield examples worth trying, most specific first."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        yield from _from_config(model, config)
    else:
        yield from _from_first_layer(model)


def _primes(model: nn.Module, count: int, above: int, at_most: int = 10**9) -> list[int]:
    """Distinct primes that equal no size of a parameter, so that no axis matches by coincidence."""
    taken = {s for p in model.parameters() for s in p.shape}
    found: list[int] = []
    n = above
    while len(found) < count:
        if n > at_most:
            raise ExampleError(
                f"no {count} prime sizes between {above} and {at_most} are free",
                todo="pass example= yourself",
            )
        if all(n % d for d in range(2, int(n**0.5) + 1)) and n not in taken:
            found.append(n)
        n += 1
    return found


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _field(config: Any, *names: str, default: Any = None) -> Any:
    """First of the given fields that some part of a (nested) configuration has."""
    parts = [config] + [v for v in vars(config).values() if hasattr(v, "to_dict")]
    for name in names:
        for part in parts:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _from_config(model: nn.Module, config: Any) -> Iterator[Example]:
    """Inputs by the model's signature; sizes by its configuration where it fixes them."""
    signature = _signature(_wrapped(model))
    parameters = signature.parameters if signature else {}
    limit = int(_field(config, "max_position_embeddings", "n_positions", "max_seq_len", default=512) or 512)
    (batch,) = _primes(model, 1, 3)
    lengths = _primes(model, 3, 5 if limit < 64 else 17, max(limit, 5) if limit < 64 else 10**9)
    lengths = [n for n in lengths if n != batch][:2]
    device, dtype = _device(model), _dtype(model)

    def ids(length: int) -> torch.Tensor:
        return torch.zeros(batch, length, dtype=torch.long, device=device)

    def floats(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    wanted: dict[str, Any] = {}
    main = str(getattr(model, "main_input_name", "input_ids"))
    if "pixel_values" in parameters:
        size = _field(config, "image_size", default=97)
        height, width = size if isinstance(size, tuple | list) else (size, size)
        channels = int(_field(config, "num_channels", "in_channels", default=3))
        wanted["pixel_values"] = floats(batch, channels, int(height), int(width))
    if "input_features" in parameters:
        bins = int(_field(config, "num_mel_bins", "feature_size", default=80))
        frames = int(_field(config, "max_source_positions", default=0)) * 2 or 101
        wanted["input_features"] = floats(batch, bins, frames)
    if "input_values" in parameters:
        wanted["input_values"] = floats(batch, 2003)
    if "input_ids" in parameters and (main == "input_ids" or not wanted or "pixel_values" in wanted):
        wanted["input_ids"] = ids(lengths[0])
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        wanted["decoder_input_ids"] = ids(lengths[1])
    if not wanted:
        return
    yield Example((), wanted, inferred=True)
    if "pixel_values" in wanted and _field(config, "image_size") is None:  # halved so often that a prime does not do
        yield Example((), {**wanted, "pixel_values": floats(*wanted["pixel_values"].shape[:2], 96, 128)}, inferred=True)


def _from_first_layer(model: nn.Module) -> Iterator[Example]:
    """One tensor that the first layer with parameters would accept."""
    signature = _signature(model)
    if signature is None:
        return
    parameters = signature.parameters.values()
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) != 1 and not isinstance(model, nn.Sequential):
        return
    first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if first is None:
        return
    device, dtype = _device(model), _dtype(model)
    (batch,) = _primes(model, 1, 3)
    length, height, width = [n for n in _primes(model, 4, 29) if n != batch][:3]

    def floats(*shape: int) -> Example:
        return Example((torch.zeros(shape, dtype=dtype, device=device),), inferred=True)

    match first:
        case nn.Embedding():
            ids = torch.zeros(batch, length, dtype=torch.long, device=device)
            yield Example((ids,), inferred=True)
        case nn.Linear():
            yield floats(batch, first.in_features)
            yield floats(batch, length, first.in_features)
        case nn.RNNBase():
            yield floats(batch, length, first.input_size)
        case nn.Conv1d():
            yield floats(batch, first.in_channels, length)
        case nn.Conv2d():
            yield floats(batch, first.in_channels, height, width)
        case nn.Conv3d():
            yield floats(batch, first.in_channels, length, height, width)
        case _:
            return
