"""The package's exceptions. Each is raised where the cause is known and names the file or option at fault.

The command line prints `str(error)` in one line and exits with 1; a traceback is shown only with `--debug`.
"""

from __future__ import annotations


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
