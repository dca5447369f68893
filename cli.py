"""The command line: ``autofit report | explain | export | check | proxy | rules``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from autofit import __version__
from autofit.errors import AutofitError, TargetError
from autofit.values import text_of

if TYPE_CHECKING:
    from torch import nn

app = App(
    name="autofit",
    help="muP for any PyTorch model, without hand edits.\n\n"
    "TARGET is file.py:factory, package.module:factory, hf:MODEL_TYPE, hf:config.json or timm:NAME.",
    version=__version__,
    version_flags=["--version"],
)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What `autofit.analyze` takes, as text.

    Attributes:
        base: base width, base file, or another TARGET.
        settings: KEY=VALUE for the factory or config; may be repeated.
        base_settings: KEY=VALUE by which the base model differs: the same target, built a second time.
        scheme: parametrization, as `autofit rules` lists them.
        form: where the multipliers are; the scheme's own if not given.
        depth_ratio: how many times as many residual branches as the base has, where the scheme asks and the base
            does not tell.
        grow: what grows with a numeric base.
        frozen: what becomes of weights without gradient: kept (pretrained), or planned like all others.
        unused: freeze what the example does not reach.
        strict: refuse where an answer would be a guess.
    """

    base: str = "256"
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None
    base_settings: Annotated[list[str] | None, Parameter(name="--base-set", negative=())] = None
    scheme: str = "mup"
    form: str | None = None
    depth_ratio: float | None = None
    grow: Literal["heads", "head_dim"] = "heads"
    frozen: Literal["keep", "plan"] | None = None
    unused: Literal["freeze"] | None = None
    strict: bool = True

    def analyze(self, target: str) -> Any:
        """Build a target and its base, and analyze it."""
        from autofit.api import analyze

        console, settings = Console(stderr=True), self.settings or []
        with console.status("build") as status:
            model, example = build(target, settings)
            return analyze(
                model,
                example,
                base=self._base(target, settings),
                scheme=self.scheme,
                form=self.form,
                depth_ratio=self.depth_ratio,
                grow=self.grow,
                frozen=self.frozen,
                unused=self.unused,
                strict=self.strict,
                progress=lambda stage: status.update(stage),
            )

    def _base(self, target: str, settings: list[str]) -> Any:
        if self.base_settings:
            return build(target, settings + self.base_settings)[0]
        if self.base.replace(".", "", 1).lstrip("-").isdigit():
            return float(self.base) if "." in self.base else int(self.base)
        if ":" in self.base and not Path(self.base).exists():
            return build(self.base, [])[0]
        return self.base


DEFAULTS = Options()


@app.command
def report(
    target: str,
    *,
    options: Options = DEFAULTS,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show roles, dimensions, sites, ties, multipliers and groups of a model.

    Args:
        target: the model.
        options: of the analysis.
        json_: print JSON.
    """
    found = options.analyze(target)
    if json_:
        print(json.dumps(found.to_json(), indent=2))
        return
    from autofit.report import renderables

    console = Console(markup=False, highlight=False)
    for piece in renderables(found.plan, found.roles):
        console.print(piece)


@app.command
def explain(target: str, name: str, *, options: Options = DEFAULTS) -> None:
    """Say why a parameter or dimension is what it is, with source lines.

    Args:
        target: the model.
        name: parameter or dimension.
        options: of the analysis.
    """
    found = options.analyze(target)
    from autofit.report import explain as explanation

    Console(soft_wrap=True, highlight=False).print(explanation(found.plan, found.roles, name), markup=False)


@app.command
def export(
    target: str,
    *,
    options: Options = DEFAULTS,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    diff: Annotated[bool, Parameter(negative=())] = False,
    stages: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write the rewritten model as one Python file that needs torch alone.

    Args:
        target: the model.
        options: of the analysis.
        output: the file; without it, the source is printed.
        diff: print what muP changes instead, as a patch from the exported model as it was.
        stages: print every stage of the analysis as text instead.
    """
    found = options.analyze(target)
    if diff or stages:
        print(found.diff() if diff else found.stages(), end="")
        return
    with Console(stderr=True).status("export"):
        made = found.export(output)
    if output is None:
        print(made.text, end="")
        return
    console = Console(markup=False, highlight=False)
    lines = len(made.text.splitlines())
    console.print(f"{output}: {lines} lines, {made.classes} classes; equal to the model {made.shown}")
    for note in made.notes:
        console.print(f"  {note}")
    for name, op in made.fallbacks:
        console.print(f"  {name} calls {op} by its ATen name")


@app.command
def check(
    target: str,
    *,
    widths: str = "64,128,256,512",
    base: int | None = None,
    depth: int | None = None,
    optimizer: str = "adam",
    lr: float = 1e-2,
    steps: int = 4,
    seeds: int = 2,
    scheme: str = "mup",
    form: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    control: bool = True,
    strict: bool = True,
    plot: Path | None = None,
    page: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Coordinate check: train a few steps at several widths; exit code 0 if nothing grows that must not, else 1.

    A factory with an argument "width" is called with it, and may return a module; a module and its example; or, edited
    by hand, a module and its optimizer. Any other target is built at smaller widths as by "autofit proxy".

    Args:
        target: the model.
        widths: at least three, separated by commas.
        base: base width; the smallest if not given.
        depth: layers of all models, of a target that is not called with a width.
        optimizer: as "autofit rules" lists them.
        lr: at the base.
        steps: of training.
        seeds: how many.
        scheme: parametrization.
        form: where the multipliers are.
        settings: KEY=VALUE for the factory or config; may be repeated.
        control: measure the same without muP, too.
        strict: refuse where an answer would be a guess.
        plot: draw sizes over width into this .png or .svg.
        page: write everything as one HTML page.
        json_: print JSON.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from autofit.coordinates import coord_check

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("build", total=None)
        wanted = _widths(widths)
        answer = coord_check(
            _at_widths(target, settings or [], {*wanted, base or min(wanted)}, depth),
            wanted,
            base,
            optimizer,
            lr,
            steps,
            seeds,
            control=control,
            title=target,
            progress=lambda stage, done, of: bar.update(task, description=stage, completed=done, total=of),
            scheme=scheme,
            form=form,
            strict=strict,
        )
    for path, write in ((plot, answer.plot), (page, answer.page)):
        if path is not None:
            write(path)
    if json_:
        print(json.dumps(answer.to_json(), indent=2))
    else:
        console = Console(markup=False, highlight=False)
        for piece in answer.renderables():
            console.print(piece)
    sys.exit(0 if answer.ok else 1)


def _widths(text: str) -> list[int]:
    try:
        return [int(w) for w in text.split(",")]
    except ValueError:
        raise TargetError(f"--widths {text!r}: give whole numbers, as 64,128,256") from None


def _at_widths(target: str, settings: list[str], widths: set[int], depth: int | None) -> Callable[[int], Any]:
    """What builds a target at a width."""
    from autofit.narrow import family

    kind, _, rest = target.partition(":")
    if kind not in ("hf", "timm") and rest:
        factory, keywords = _factory(kind, rest), dict(_setting(s) for s in settings)
        if "width" in inspect.signature(factory).parameters:
            return lambda width: factory(**{**keywords, "width": width})
    source, example, arguments = _source(target, settings)
    return family(source, example, widths=widths, depth=depth, arguments=arguments)


@app.command
def proxy(
    target: str,
    *,
    width: int,
    depth: int | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
) -> None:
    """Show the narrow model to tune on: the fields that change, parameters and FLOPs.

    Args:
        target: the model.
        width: of the narrow one, in elements of the dimension that the readout contracts.
        depth: of the narrow one, in layers.
        settings: KEY=VALUE for the factory or config; may be repeated.
    """
    from autofit.narrow import proxy as make

    with Console(stderr=True).status("proxy"):
        source, example, arguments = _source(target, settings or [])
        found = make(source, example, width=width, depth=depth, arguments=arguments)
    print(found)
    print("as a base:", *(f"--base-set {shlex.quote(f'{n}={json.dumps(v)}')}" for n, (_, v) in found.changed.items()))


def _source(target: str, settings: list[str]) -> tuple[Any, Any, dict[str, Any] | None]:
    """What makes a target at any width, its example, and the arguments of a factory."""
    model, example = build(target, settings)
    if getattr(model, "config", None) is not None:
        return model, example, None
    kind, _, rest = target.partition(":")
    keywords = dict(_setting(s) for s in settings)
    if kind == "timm":
        raise TargetError(f"{target!r} gives no way to build it at another width", todo="write a factory around it")
    return _factory(kind, rest), example, keywords


@app.command
def rules(
    *,
    scheme: str = "mup",
    optimizer: str | None = None,
    form: str | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    markdown: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print the one table of all rules: factors on init, multipliers and optimizer settings, by role.

    Args:
        scheme: parametrization.
        optimizer: one optimizer in detail, every cell with its source.
        form: where the multipliers are.
        json_: print JSON.
        markdown: print Markdown.
    """
    from autofit import rulebook

    if json_:
        print(json.dumps(rulebook.to_json(scheme, optimizer, form), indent=2))
    elif markdown:
        print(rulebook.markdown(rulebook.sheets(scheme, optimizer, form)))
    else:
        Console(highlight=False).print(rulebook.rich(rulebook.sheets(scheme, optimizer, form)))


def build(target: str, settings: list[str]) -> tuple[nn.Module, Any]:
    """Make the model that a TARGET names, with its example input where the factory gives one.

    Raises:
        TargetError: the target or a setting cannot be resolved.
    """
    kind, colon, rest = target.partition(":")
    if not colon or not rest:
        raise TargetError(
            f"{target!r} is no target",
            todo="use file.py:factory, package.module:factory, hf:MODEL_TYPE, hf:config.json or timm:NAME",
        )
    keywords = dict(_setting(s) for s in settings)
    if kind == "hf":
        return _from_transformers(rest, keywords), None
    if kind == "timm":
        return _from_timm(rest, keywords)
    return _from_factory(kind, rest, keywords)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise TargetError(f"--set {text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _factory(place: str, name: str) -> Any:
    """The function or class of a target.

    Raises:
        TargetError: there is none.
    """
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None or not Path(place).is_file():
                raise TargetError(f"there is no file {place!r}")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)
            sys.path.insert(0, str(Path(place).resolve().parent))  # for good: a forward may import what lies there
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
    except ImportError as error:
        raise TargetError(f"{place} cannot be imported: {error}") from None
    except (AutofitError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        raise _failed(f"importing {place}", error) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise TargetError(f"{place} has no function or class {name!r}")
    return factory


def _failed(what: str, error: BaseException) -> TargetError:
    """A target's own failure, with the line where it failed."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return TargetError(f"{what} failed: {text_of(error)}", where=f"{last.filename}:{last.lineno} in {last.name}")


def _from_factory(place: str, name: str, keywords: dict[str, Any]) -> tuple[nn.Module, Any]:
    from torch import nn

    factory = _factory(place, name)
    try:
        made = factory(**keywords)
    except (AutofitError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        raise _failed(f"{name}({', '.join(keywords)})", error) from error
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"{place}:{name} returned a {type(made).__name__}",
            todo="return a torch.nn.Module, or a tuple of a module and its example input",
        )
    return model, example


MEASURE_UP_TO = 300_000_000
"""Models with more parameters stay on ``meta``: their initial values are not drawn, and not measured."""


def _from_transformers(name: str, keywords: dict[str, Any]) -> nn.Module:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise TargetError("hf: targets need transformers", todo="pip install 'autofit[hf]'") from None

    from autofit.autoclass import auto_class
    from autofit.configurations import configured
    from autofit.deferred import on_meta

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        if name.endswith(".json"):
            fields = {**json.loads(Path(name).read_text())}
            kind = fields.pop("model_type")
        else:
            fields, kind = {}, name
        config = configured(lambda **more: transformers.AutoConfig.for_model(kind, **{**fields, **more}), keywords)
    except AutofitError:
        raise
    except Exception as error:
        raise TargetError(f"hf:{name} gives no configuration: {text_of(error)}") from None
    cls = auto_class(config)
    if cls is None:
        raise TargetError(f"transformers has no model class for hf:{name}")
    try:
        model: nn.Module = on_meta(lambda: cls.from_config(config))
        if sum(p.numel() for p in model.parameters()) <= MEASURE_UP_TO:
            model = cls.from_config(config)
    except Exception as error:
        raise _failed(f"building hf:{name}", error) from error
    return model


def _from_timm(name: str, keywords: dict[str, Any]) -> tuple[nn.Module, Any]:
    try:
        import timm
    except ImportError:
        raise TargetError("timm: targets need timm", todo="pip install timm") from None
    import torch

    try:
        model: nn.Module = timm.create_model(name, **keywords)
    except Exception as error:
        raise TargetError(f"timm:{name} gives no model: {text_of(error)}") from None
    settings: Any = model.pretrained_cfg
    return model, torch.zeros(2, *settings["input_size"])


def main() -> None:
    """Entry point: exit code 0 right, 1 refused or wrong, 2 usage; 130 interrupted."""
    with contextlib.suppress(AttributeError):  # names may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app(exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(2)
    except TargetError as error:
        Console(stderr=True, highlight=False).print(f"autofit: {error}", markup=False)
        sys.exit(2)
    except AutofitError as error:
        Console(stderr=True, highlight=False).print(f"autofit: {type(error).__name__}: {error}", markup=False)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        Console(stderr=True, highlight=False).print(f"autofit: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("autofit: interrupted")
        sys.exit(130)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"autofit: a defect of autofit: {text_of(error)}\n  where: {last.filename}:{last.lineno} in {last.name}"
        Console(stderr=True, highlight=False).print(
            f"{said}\n  to do: please report it with this message", markup=False
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
