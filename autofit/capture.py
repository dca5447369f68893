"""From a live module to a Program: ``torch.export`` on fake tensors, and nothing of the model touched."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from types import NoneType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from autofit.cleanup import no_collection, one_at_a_time, undone, within
from autofit.errors import AutofitError, CaptureError, ExampleError
from autofit.examples import Example, beside, candidate_examples, normalize, without_cache
from autofit.folding import Folding, unfold
from autofit.functional import functionalize
from autofit.inline import inline
from autofit.program import Captured, Parameter, Program, describe, storage_key
from autofit.provenance import FIELD
from autofit.record import record
from autofit.values import fields_of, text_of, words_of


def capture(
    model: nn.Module, example: Any = None, known: Mapping[str, float] | None = None, *, like: Program | None = None
) -> Program:
    """Capture a model's forward pass as one FX graph of ATen ops.

    No parameter or buffer is read, allocated or changed: tensors are faked, and mode, RNG and plain
    attributes are put back whatever happens.

    Args:
        model: any module, on any device including ``meta``.
        example: ``None`` (inferred), a tensor, a tuple of positional or a dict of keyword arguments.
        known: values of one-element buffers that are on ``meta``, by name.
        like: another capture, whose front end alone is tried.

    Returns:
        The program, with every parameter once.

    Raises:
        ExampleError: no example given and none inferable, or forward rejects it.
        CaptureError: forward runs but cannot be captured as one graph, or a module contains itself.
    """
    require_tree(model)
    attempts = [normalize(example)] if example is not None else candidate_examples(model)
    failure: AutofitError | None = None
    for attempt in attempts:
        try:
            return _capture_once(model, beside(model, without_cache(model, attempt)), known or {}, like)
        except (ExampleError, CaptureError) as error:
            failure = failure or error
    if failure is None:
        raise ExampleError(
            f"no example input was given for {type(model).__name__}, and none could be inferred",
            where="the model has no configuration with known inputs and no recognisable first layer",
            todo="pass example=(tensor, ...) or example={'name': tensor, ...}, as you would call the model",
        )
    raise failure


def require_tree(model: nn.Module) -> None:
    """Check that no module is one of its own submodules, so that every parameter has a last name.

    Raises:
        CaptureError: one is.
    """
    left, inside = set[nn.Module](), dict[nn.Module, str]()
    stack: list[tuple[nn.Module, str, bool]] = [(model, "", False)]
    while stack:
        module, name, done = stack.pop()
        if done:
            left.add(module)
            del inside[module]
            continue
        if module in inside:
            raise CaptureError(
                f"{type(model).__name__} contains itself: its submodule {name} is {inside[module] or 'the root'} again",
                todo="keep such a reference out of the submodules, in a list or a weakref",
            )
        if module in left:
            continue
        inside[module] = name
        stack.append((module, name, True))
        stack += [(child, f"{name}.{key}".lstrip("."), False) for key, child in module.named_children()]


def _capture_once(model: nn.Module, example: Example, known: Mapping[str, float], like: Program | None) -> Program:
    captured = _first_that_works(model, example) if like is None else _by_one(model, example, like)
    notes = [f"example inferred: {example}"] if example.inferred else []
    notes += [
        f"the buffer {name} has no value on meta: should it be a scale that depends on width, it was not counted"
        for name in captured.unknown.values()
        if name not in known
    ]
    return Program(
        module=captured.module,
        parameters=_merge_ties(model, captured.parameter_nodes),
        inputs=captured.inputs,
        front_end=captured.front_end,
        model_name=type(model).__name__,
        config=_numbers(fields_of(getattr(model, "config", None)) | {FIELD: None}),
        constants=captured.constants | {n: known[name] for n, name in captured.unknown.items() if name in known},
        notes=tuple(notes),
        inferred=example.inferred,
        buffers=captured.buffers,
        tensors=captured.tensors,
        example=example,
        folded=captured.folded,
    )


_EVAL_MODES = {
    "in eval mode (the training-mode forward cannot be exported)": True,
    "in eval mode without gradients (an op has none on this device)": False,
}


def _first_that_works(model: nn.Module, example: Example) -> Captured:
    """Export; export in eval mode, where forward may branch less; the recorder, where forward looks at values."""
    try:
        return _export(model, example, "torch.export")
    except Exception as first:
        for kind, gradients in _EVAL_MODES.items():
            try:
                with _eval_mode(model):
                    return _export(model, example, f"torch.export {kind}", gradients)
            except Exception:
                continue
        failure = _explain_failure(model, example, first)
        try:
            with untouched(model), _quietly(), _eval_mode(model):
                return record(model, example, failure.what)
        except Exception as second:
            raise _explain_both(model, example, failure, first, second) from first


def _by_one(model: nn.Module, example: Example, like: Program) -> Captured:
    """The front end of another capture."""
    kind = like.front_end.removeprefix("torch.export").strip()
    try:
        if not like.recorded and kind not in _EVAL_MODES:
            return _export(model, example, like.front_end)
        with untouched(model), _quietly(), _eval_mode(model):
            if like.recorded:
                return record(model, example, "as another capture")
            return _export(model, example, like.front_end, _EVAL_MODES[kind])
    except Exception as error:
        raise CaptureError(f"{like.front_end}: {text_of(error)}") from error


def _explain_both(
    model: nn.Module, example: Example, failure: AutofitError, first: Exception, second: Exception
) -> AutofitError:
    """What to say when neither front end works: that forward fails is only said where it does."""
    told = f"Recording one run failed too: {text_of(second)}"
    if isinstance(failure, CaptureError):
        where = _user_frame(second, model) or failure.where
        return CaptureError(f"{failure.what}. {told}", where=where, todo=failure.todo)
    if not isinstance(failure, ExampleError) or not _runs(model, example):
        return failure
    return CaptureError(
        f"forward of {type(model).__name__} runs on the example, but torch.export cannot capture it: "
        f"{text_of(first)}. {told}",
        where=failure.where,
        todo="pass an example of plain dense tensors, or simplify the construct at this line",
    )


def _runs(model: nn.Module, example: Example) -> bool:
    """Whether forward accepts the example; on copies of the model's tensors."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with untouched(model), _quietly(), _eval_mode(model), torch.no_grad():
            copies = {name: t.detach().clone() for name, t in tensors.items()}
            torch.func.functional_call(model, copies, example.args, example.kwargs)
    except Exception:
        return False
    return not any(t.is_meta for t in tensors.values())


def outputs(model: nn.Module, example: Example) -> list[torch.Tensor]:
    """What a model gives in eval mode; nothing of it is changed."""
    with untouched(model), _eval_mode(model), torch.no_grad():
        found = model(*example.args, **example.kwargs)
    return [t for t in _pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]


def _export(model: nn.Module, example: Example, front_end: str, gradients: bool = True) -> Captured:
    """Export with equal blocks folded, and whole where that fails."""
    folding = Folding(model)
    trying = True
    while trying:
        try:
            with untouched(model):
                return _exported(model, example, front_end, gradients, folding)
        except Exception:
            if not folding.found:
                raise
            trying = folding.again()
    with untouched(model):
        return _exported(model, example, front_end, gradients, None)


def _exported(model: nn.Module, example: Example, front_end: str, gradients: bool, folding: Folding | None) -> Captured:
    with _quietly(), torch.set_grad_enabled(gradients), folding() if folding else nullcontext():
        exported = torch.export.export(model, example.args, example.kwargs, strict=False)
    module = exported.graph_module
    inline(module)
    functionalize(module)
    _refuse_symbolic(module)
    specs = exported.graph_signature.input_specs
    kinds = {s.arg.name: s.kind.name for s in specs}
    placeholders = {n.name: n for n in module.graph.nodes if n.op == "placeholder"}
    nodes = {str(s.target): placeholders[s.arg.name] for s in specs if s.target and s.arg.name in placeholders}
    parameters = {str(s.target) for s in specs if s.kind.name == "PARAMETER"}
    if folding is not None:
        unfold(module, folding, nodes)
        parameters |= set(folding.without)
    changed = set(exported.graph_signature.buffers_to_mutate.values())
    values = {**exported.constants, **dict(exported.named_buffers())}
    held = {
        s.arg.name: values.get(str(s.target))
        for s in specs
        if s.kind.name == "CONSTANT_TENSOR" or (s.kind.name == "BUFFER" and str(s.target) not in changed)
    }
    return Captured(
        module=module,
        parameter_nodes={name: node for name, node in nodes.items() if name in parameters},
        inputs=tuple(name for name in placeholders if kinds.get(name) == "USER_INPUT"),
        constants={
            name: float(value)
            for name, value in held.items()
            if isinstance(value, torch.Tensor)
            and value.numel() == 1
            and value.device.type != "meta"
            and not value.is_complex()
        },
        front_end=front_end,
        unknown={
            s.arg.name: str(s.target)
            for s in specs
            if s.kind.name == "BUFFER" and (b := held.get(s.arg.name)) is not None
            if b.is_meta and b.numel() == 1 and b.is_floating_point()
        },
        folded=len(folding.copied) if folding is not None else 0,
        buffers={s.arg.name: str(s.target) for s in specs if s.kind.name == "BUFFER"},
        tensors={
            s.arg.name: value
            for s in specs
            if s.kind.name == "CONSTANT_TENSOR" and isinstance(value := values.get(str(s.target)), torch.Tensor)
        },
    )


def _refuse_symbolic(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else [values]:
            if isinstance(value, torch.Tensor) and any(not isinstance(s, int) for s in value.shape):
                raise CaptureError("a size depends on values", where=describe(node))


@contextmanager
def _quietly() -> Iterator[None]:
    """Gradients on, warnings and logs off, no collections, plain kernels: how both front ends run."""
    with within(warnings.catch_warnings(), torch.enable_grad(), no_collection(), _quiet(), _plain_kernels()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Those of oneDNN end the process where an LSTM has a weight of another size; others raise."""
    enabled = torch._C._get_mkldnn_enabled()
    with undone(lambda: torch._C._set_mkldnn_enabled(enabled)):
        torch._C._set_mkldnn_enabled(False)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Export logs and prints its partial graph on failure; what matters of it is in the exception."""
    if os.environ.get("TORCH_LOGS"):
        yield
        return
    loggers = [v for k, v in logging.root.manager.loggerDict.items() if k.split(".")[0] == "torch"]
    handlers = [(h, h.level) for v in loggers if isinstance(v, logging.Logger) for h in v.handlers]

    def put_back() -> None:
        for handler, level in handlers:
            handler.setLevel(level)

    with undone(put_back), within(redirect_stderr(io.StringIO())):
        for handler, _ in handlers:
            handler.setLevel(logging.CRITICAL + 1)
        yield


def _explain_failure(model: nn.Module, example: Example, error: Exception) -> AutofitError:
    """Tell a forward that is wrong from one that only resists capture."""
    if isinstance(error, AutofitError):
        return error
    reason = text_of(error)
    line = _user_frame(error, model)
    if "data-dependent" in words_of(error).lower() or "DataDependent" in type(error).__name__:
        return CaptureError(
            f"{type(model).__name__} decides its control flow from tensor values: {reason}",
            where=line,
            todo="move the decision out of forward, or pass an example and mode that avoid this branch",
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._export", "torch.export", "torch.fx")):
        return CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {reason}",
            where=line,
            todo="pass example= with tensors only, or simplify the construct at this line",
        )
    if "device" in reason.lower() and (apart := _devices(model)):
        return ExampleError(
            f"tensors of {type(model).__name__} are on different devices, {apart}: {reason}",
            where=line,
            todo="move all of them to one, as model.to('meta') does; torch.Tensor(n) heeds no torch.device, and "
            "torch.empty(n) does",
        )
    if example.inferred:
        return ExampleError(
            f"forward of {type(model).__name__} failed on an example that was inferred, not given ({example}): "
            f"{reason}",
            where=line,
            todo="pass example= with the arguments that your training loop passes to the model; on the command line, "
            "a factory returns it beside the module",
        )
    return ExampleError(
        f"forward of {type(model).__name__} failed on the example ({example}): {reason}",
        where=line,
        todo="call the model on this example yourself: where that fails, too, mend the line above, or pass the "
        "arguments that your training loop passes",
    )


def _devices(model: nn.Module) -> str:
    """One tensor on each device, where the model has several."""
    found: dict[str, str] = {}
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        found.setdefault(str(t.device), name)
    return ", ".join(f"{name} on {device}" for device, name in found.items()) if len(found) > 1 else ""


_PYTHON = os.path.dirname(os.__file__)


def _user_frame(error: Exception, model: nn.Module) -> str | None:
    """Innermost line outside torch and Python itself, else the innermost module whose forward was running."""
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    for frame, line in frames:
        file = frame.f_code.co_filename
        python = file.startswith(_PYTHON) and "site-packages" not in file
        if not python and "/torch/" not in file and "/autofit/" not in file and not file.startswith("<"):
            return f"{file}:{line} in {frame.f_code.co_name}"
    names = {id(m): name for name, m in model.named_modules()}
    for frame, _ in frames:
        running = frame.f_locals.get("self")
        if frame.f_code.co_name == "forward" and id(running) in names:
            return f"module {names[id(running)] or 'root'} ({type(running).__name__})"
    return None


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back every attribute, list, mode and random state that running ``model`` may change."""
    with one_at_a_time():
        saved = [(m, dict(m.__dict__), _contents(m)) for m in model.modules()]
        restore_process = _process()

        def put_back() -> None:
            restore_process()
            for module, attributes, contents in saved:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for container, items in contents:
                    _refill(container, items)

        with undone(put_back):
            yield


def _process() -> Callable[[], None]:
    """What puts random states, the default type and the gradient mode back."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()

    def put_back() -> None:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)

    return put_back


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Plain containers among a module's attributes, or those of a cache it keeps, each with a copy of what it holds."""
    held = [v for v in module.__dict__.values() if not isinstance(v, bool | int | float | str | NoneType)]
    own = [v for v in held if hasattr(v, "__dict__") and not isinstance(v, torch.Tensor | nn.Module | type)]
    inner = [v for o in own if not hasattr(o, "to_dict") for v in vars(o).values()]
    found = []
    for value in (*held, *inner):
        if isinstance(value, dict | list | set | deque):
            with suppress(Exception):  # one that cannot be copied is left to itself
                found.append((value, value.copy()))
    return found


def _refill(container: Any, items: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(items)
    else:
        container.update(items)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]

    def put_back() -> None:
        for module, mode in modes:
            module.__dict__["training"] = mode

    with undone(put_back):
        for module, _ in modes:
            module.__dict__["training"] = False
        yield


def _merge_ties(model: nn.Module, node_of: Mapping[str, fx.Node]) -> tuple[Parameter, ...]:
    """One Parameter per storage; the graph reads each storage through one placeholder."""
    named: dict[tuple[Any, ...], list[tuple[str, nn.Parameter]]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        named.setdefault(storage_key(p), []).append((name, p))
    merged = []
    for group in named.values():
        names = tuple(name for name, _ in group)
        nodes = [node_of[n] for n in names if n in node_of]
        for other in nodes[1:]:
            other.replace_all_uses_with(nodes[0])
        first = group[0][1]
        merged.append(
            Parameter(
                name=names[0],
                names=names,
                shape=tuple(first.shape),
                node=nodes[0].name if nodes and nodes[0].users else None,
                trainable=first.requires_grad,
            )
        )
    return tuple(merged)


def _numbers(config: dict[Any, Any], prefix: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            found[prefix + str(key)] = value
        elif isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and 0 < len(value) <= 16:
            found |= {
                f"{prefix}{key}[{i}]": v for i, v in enumerate(value) if isinstance(v, int) and not isinstance(v, bool)
            }
    return found
