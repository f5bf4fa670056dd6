"""The package's exceptions, and its notices: what is wrong with a model, and what is worked around.

Each error is raised where the cause is known and names the file or option at fault. The command line prints
`str(error)` in one line and exits with 1; a traceback is shown only with `--debug`. A notice tells of a fallback or of
something left out: it is logged, and `convert` collects all of them, which `strict` turns into one error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


class QuantkitError(Exception):
    """Base of every error that quantkit raises on purpose."""


class CheckpointError(QuantkitError):
    """A downloaded checkpoint is damaged, incomplete or inconsistent."""


class UnsupportedError(QuantkitError):
    """The checkpoint is sound, but quantkit cannot run it: architecture, rope scaling, quantization method, ..."""


class PackedModelError(QuantkitError):
    """A packed folder is damaged, incomplete, of another format version, or cannot be written."""


class GenerationError(QuantkitError):
    """A request that cannot be served: empty prompt, more tokens than the context holds, token id outside the
    vocabulary."""


class OptionError(QuantkitError):
    """An option has a value that quantkit does not accept."""


class StrictError(QuantkitError):
    """With `strict`, what else is a notice: something would be left out, or stand in for what is missing."""


@dataclass(frozen=True)
class _Collector:
    found: list[str]
    silent: bool


_collector: ContextVar[_Collector | None] = ContextVar("collector", default=None)


def notice(logger: logging.Logger, message: str, level: int = logging.WARNING) -> None:
    """Tell of something that is left out of a model, or that stands in for what is missing.

    It is logged, and given to whoever collects notices at the time: what is silent by default, at `logging.DEBUG`, is
    collected as well.
    """
    collector = _collector.get()
    if collector is not None and message not in collector.found:
        collector.found.append(message)
    if collector is None or not collector.silent:
        logger.log(level, "%s", message)


@contextmanager
def collecting_notices(*, silent: bool = False) -> Iterator[list[str]]:
    """Yield a list that grows by each `notice` of this thread while the block runs, each message once.

    With `silent` they are not logged: whoever collects them says them.
    """
    collector = _Collector([], silent)
    before = _collector.set(collector)
    try:
        yield collector.found
    finally:
        _collector.reset(before)
