"""Every error a user can meet. Each says what, where and what to do."""

from __future__ import annotations

LONGEST, LINES = 1200, 12
"""Characters and lines of each part of a message: together they fit on a screen."""


def _short(text: str) -> str:
    """A text, or its two ends with a mark between them."""
    lines = text.splitlines()
    if len(lines) > LINES:
        text = "\n".join((*lines[: LINES // 2], "...", *lines[-LINES // 2 + 1 :]))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 + 5 :]}"


class AutofitError(Exception):
    """Base class of every error raised on purpose by autofit.

    Args:
        what: one sentence: what is wrong.
        where: parameter, attention site or file, with the user's source line where there is one.
        todo: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = _short(what), where and _short(where), todo and _short(todo)
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  to do: {self.todo}")
        super().__init__("\n".join(lines))


class ExampleError(AutofitError):
    """No example input was given and none could be inferred, or the model's forward rejects it."""


class CaptureError(AutofitError):
    """The model runs, but no front end could turn it into one graph."""


class DimensionError(AutofitError):
    """Tensor axes are related in a way that cannot be resolved without guessing."""


class BaseError(AutofitError):
    """The base (number, mapping, file or second model) is invalid or does not fit the model."""


class PlanError(AutofitError):
    """A parameter or site has no sound muP treatment, or an option contradicts the model."""


class LoweringError(AutofitError):
    """The plan is sound but cannot be applied to this model."""


class ExportError(AutofitError):
    """The model cannot be written as source that needs torch alone."""


class VerificationError(AutofitError):
    """The rewritten model does not do what the plan says: a defect of autofit, nothing was changed."""


class OptimizerError(AutofitError):
    """An optimizer has no known rule, or its settings are invalid."""


class TargetError(AutofitError):
    """A command line target or option cannot be resolved."""
