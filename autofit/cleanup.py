"""Leave things as they were, also when an interrupt comes between two lines, and one thread after another.

A ``with`` statement does not leave a context if an interrupt comes at its end. A generator is closed even then, as
soon as nothing refers to it: so what is here is made of generators, and what these do at the end can be done twice.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

_LOCK = threading.RLock()


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Call ``undo`` after the block, whatever happens, and again if it was interrupted itself."""
    try:
        try:
            yield
        finally:
            undo()
    except BaseException:
        undo()
        raise


@contextmanager
def undone_on_failure(undo: Callable[[], object]) -> Iterator[None]:
    """Call ``undo`` after the block if it fails or is interrupted, and again if it was interrupted itself."""
    try:
        try:
            yield
        except BaseException:
            undo()
            raise
    except BaseException:
        undo()
        raise


@contextmanager
def within(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    """Be in contexts during the block."""
    stack = ExitStack()
    with undone(stack.close):
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let no other thread into such a block: capture patches torch, and random states are one for all threads."""
    held: list[bool] = []

    def release() -> None:
        if held:
            held.pop()
            _LOCK.release()

    with undone(release):
        held.append(_LOCK.acquire())
        yield


@contextmanager
def no_collection() -> Iterator[None]:
    """Analysis makes many objects and little garbage: cyclic collections in between cost a fifth of its time.

    At the end there is one, of what was made here. What it leaves is held, and not gone through again soon.
    """
    enabled = gc.isenabled()

    def resume() -> None:
        if enabled:
            gc.collect(0)
            if not gc.get_freeze_count():  # else somebody keeps objects apart, who would lose that
                gc.freeze()
                gc.unfreeze()  # into the oldest generation
            gc.enable()

    with undone(resume):
        gc.disable()
        yield
