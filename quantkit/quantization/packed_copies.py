"""Packed copies of checkpoints that are run as they were downloaded, in the user's cache folder.

A copy is found again by all that decides its bytes: the model on the disk, the recipe, the encoder and the format. When
a model changed, its new copy replaces the old one; those that nobody used for a month are removed by `user_cache.py`.
What was packed with `convert` is used where it stands.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from quantkit import formats, user_cache
from quantkit.errors import PackedModelError
from quantkit.formats.output import lock
from quantkit.formats.packed import FORMAT_VERSION, PackedModel, is_packed
from quantkit.quantization.conversion import convert
from quantkit.quantization.encode import ENCODER_VERSION
from quantkit.quantization.report import Progress

logger = logging.getLogger(__name__)

RECIPE = "int4"


@contextmanager
def packed_copy(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[Path]:
    """Yield the packed folder of a model: `path` itself, or a copy in the cache, packed to int4 at its first use.

    While the block runs, no other process removes the copy. A model that was opened in the block works after it, since
    mapped files outlive their names.

    Parameters
    ----------
    path : path
        A packed folder, a Hugging Face folder or a GGUF file.
    threads, progress
        For the conversion, see `convert`.

    Raises
    ------
    QuantkitError
        As `convert`.
    """
    path = os.path.expanduser(path)
    if is_packed(path):
        yield Path(path)
        return
    name_of_source = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    folder = user_cache.entry("models", f"{name_of_source}-{_key(path)}")
    with ExitStack() as stack:
        if not _held(folder, stack):
            logger.info("packing %s to %s, once, into %s ...", path, RECIPE, folder)
            # Another process may have been faster. Its copy has the same bytes, and is replaced by one system call.
            convert(path, folder, RECIPE, threads=threads, progress=progress, force=True)
            _held(folder, stack)
            _remove_older(folder, name_of_source)
        yield folder


def _key(path: str | os.PathLike[str]) -> str:
    """Return a hash of what decides the bytes of a model's copy."""
    decisive = [formats.open(path).identity(), RECIPE, ENCODER_VERSION, FORMAT_VERSION]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]


def _held(folder: Path, stack: ExitStack) -> bool:
    """Lock a copy against removal until the stack is closed; returns whether there is one, and sound."""
    if not is_packed(folder):
        return False
    with ExitStack() as attempt:
        try:
            lock(folder, fcntl.LOCK_SH, attempt)
            PackedModel(folder)
        except (OSError, PackedModelError) as cause:
            logger.info("%s: packed again, since the copy cannot be used: %s", folder, cause)
            return False
        stack.enter_context(attempt.pop_all())
    return True


def _remove_older(folder: Path, name_of_source: str) -> None:
    """Remove the copies of what the source was before, unless another process is just opening or making one."""
    for other in (path for hidden in ("", ".") for path in folder.parent.glob(f"{hidden}{name_of_source}-*")):
        if other != folder:
            with ExitStack() as stack, suppress(OSError):
                if lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB, stack):
                    shutil.rmtree(other)
                    logger.info("removed %s, the packed copy of what this model was before", other)
