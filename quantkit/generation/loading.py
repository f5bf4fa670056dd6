"""From a folder to a model and its tokenizer.

Packed folders run from their packed bytes; a downloaded checkpoint runs too, in f32 arithmetic straight from its 16-bit
weights: slower, and what quality is measured against.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from quantkit.engine.machine import usable_cores
from quantkit.engine.model import Model
from quantkit.errors import OptionError
from quantkit.formats import open_checkpoint
from quantkit.formats.packed import is_packed, open_packed
from quantkit.generation.tokenizer import Tokenizer
from quantkit.models import registry


def load_model(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    context: int | None = None,
    kv_dtype: str = "f16",
) -> Model:
    """Open a model folder (or GGUF file) without its tokenizer.

    Parameters
    ----------
    path : path
        A packed folder, a Hugging Face checkpoint folder or a GGUF file.
    threads : int, optional
        Default: the physical cores that this process may use.
    context : int, optional
        Tokens that a sequence may hold; default: what the model was made for.
    kv_dtype : {"f16", "int8", "f32"}
        Precision of the KV cache.

    Raises
    ------
    QuantkitError
        The folder is damaged, incomplete or of a kind that quantkit does not run; the message names file and cause.
    """
    source = open_packed(path) if is_packed(path) else open_checkpoint(path)
    program = registry.record(source.config)
    source.check(program.tensors)
    longest = registry.context_length(source.config)
    if context is not None and not 1 <= context <= longest:
        raise OptionError(f"context: {context} is not in 1..{longest}, which {Path(path).name} was made for")
    return Model(
        program, source, context_length=context or longest, threads=threads or usable_cores(), kv_kind=kv_dtype
    )


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, context: int | None = None, kv_dtype: str = "f16"
) -> tuple[Model, Tokenizer]:
    """Open a model folder (or GGUF file) with its tokenizer; options and errors as `load_model`."""
    tokenizer = load_tokenizer(path)
    return load_model(path, threads=threads, context=context, kv_dtype=kv_dtype), tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Open the tokenizer of a model folder or GGUF file alone."""
    if Path(path).is_dir():
        return Tokenizer.from_folder(path)
    checkpoint = open_checkpoint(path)
    config = json.dumps(dict(checkpoint.config)).encode()
    return Tokenizer({**checkpoint.files, "config.json": config}, Path(path))
