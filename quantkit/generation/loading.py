"""From a folder to a model and its tokenizer.

Packed folders run from their packed bytes; a downloaded checkpoint runs too, in f32 arithmetic straight from its 16-bit
weights: slower, and what quality is measured against.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING

from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.engine.huge_pages import CopiedWeights, is_worth_a_copy
from quantkit.engine.machine import usable_cores
from quantkit.engine.numa import POLICIES, interleave, memory_nodes
from quantkit.engine.opening import local_path, open_model
from quantkit.formats import ModelSource
from quantkit.formats.hub import shown_name
from quantkit.formats.packed import PackedModel
from quantkit.generation.options import is_whole, require
from quantkit.generation.text.tokenizer import Tokenizer
from quantkit.models.registry.wrappers import text_config

if TYPE_CHECKING:
    from quantkit.engine.model import Model


def load_model(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    context: int | None = None,
    kv_dtype: str = "int16",
    numa: str | None = None,
    mmap: bool = False,
) -> Model:
    """Open a model folder (or GGUF file) without its tokenizer.

    Parameters
    ----------
    path : path or str
        A packed folder, a Hugging Face checkpoint folder or a GGUF file; or a name on the hub (extra `hub`):
        `ORG/NAME`, `ORG/NAME@REVISION`, `ORG/NAME:FILE.gguf`, which is downloaded into the hub's cache.
    threads : int, optional
        Default: the physical cores that this process may use.
    context : int, optional
        Tokens that a sequence may hold; default: what the model was made for. Where rope has other angles for long
        texts, as in Phi-3, the default is the length of short ones.
    kv_dtype : {"int16", "int8", "f32"}
        Precision of the KV cache.
    numa : {"interleave"}, optional
        Spread the weights over the memory nodes of a machine that has several, see `quantkit.engine.numa`.
    mmap : bool
        Leave the weights of a packed folder in the mapped file, whose memory other processes share. Else they are
        copied to huge pages, from which decoding is faster, where at most half of the free memory is needed for that,
        see `quantkit.engine.huge_pages`.

    Raises
    ------
    OptionError
        An option has a value that makes no sense for this model.
    QuantkitError
        The folder is damaged, incomplete or of a kind that quantkit does not run; the message names file and cause.
    """
    _check_threads(threads)
    return model_of(open_model(path), threads=threads, context=context, kv_dtype=kv_dtype, numa=numa, mmap=mmap)


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    context: int | None = None,
    kv_dtype: str = "int16",
    numa: str | None = None,
    mmap: bool = False,
) -> tuple[Model, Tokenizer]:
    """Open a model folder (or GGUF file) with its tokenizer; options and errors as `load_model`."""
    _check_threads(threads)
    source = open_model(path)
    with ThreadPoolExecutor(1) as beside:  # the tokenizers library needs no GIL
        reading = beside.submit(copy_context().run, _tokenizer, source)
        make = _maker(source, threads=threads, context=context, kv_dtype=kv_dtype, numa=numa, mmap=mmap)
        tokenizer = reading.result()
    return make(), tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Open a tokenizer alone.

    Parameters
    ----------
    path : path or str
        A model folder, packed or not; a GGUF file, of any architecture and with or without tensors; or a vocabulary:
        `tokenizer.json`, `tokenizer.model`, `tekken.json` or `qwen.tiktoken`, under any name. Or a name on the hub, as
        of `load_model`, of which no weights are downloaded.

    Raises
    ------
    QuantkitError
        The tokenizer is missing, damaged, or of a kind that quantkit does not read; the message names file and cause.
    """
    path = local_path(path, weights=False)
    if path.is_dir():
        return Tokenizer.from_folder(path)
    return Tokenizer(formats.tokenizer_files(path), path)


def _check_threads(threads: int | None) -> None:
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")


def model_of(
    source: ModelSource,
    *,
    threads: int | None = None,
    context: int | None = None,
    kv_dtype: str = "int16",
    numa: str | None = None,
    mmap: bool = False,
) -> Model:
    """Return the model that a source holds; options and errors as `load_model`."""
    return _maker(source, threads=threads, context=context, kv_dtype=kv_dtype, numa=numa, mmap=mmap)()


def _maker(
    source: ModelSource, *, threads: int | None, context: int | None, kv_dtype: str, numa: str | None, mmap: bool
) -> Callable[[], Model]:
    """Return what makes a model, once all that is known of a source and the options has been checked.

    Making it starts threads, and compiles kernels that are not on disk.
    """
    from quantkit.engine.model import Model  # heavy: `load` reads the tokenizer meanwhile

    require(numa is None or numa in POLICIES, "numa", numa, f"None or one of {', '.join(POLICIES)}")
    require(isinstance(mmap, bool), "mmap", mmap, "True or False")
    accepted = context is None or (is_whole(context) and context >= 1)
    bound = bind(source, context if accepted else None)
    longest = bound.architecture.longest_context
    accepted = accepted and (context is None or context <= longest)
    require(accepted, "context", context, f"1 to {longest}, which {shown_name(source.path)} was made for")

    def make() -> Model:
        workers = usable_cores() if threads is None else threads
        copied = isinstance(source, PackedModel) and not (mmap or numa) and is_worth_a_copy(bound.weights.nbytes)
        model = Model(
            bound.program,
            CopiedWeights(bound.weights, bound.program.tensors, workers) if copied else bound.weights,
            context_length=bound.architecture.context_length if context is None else context,
            threads=workers,
            kv_kind=kv_dtype,
        )
        if numa:
            interleave((tensor.data for tensor in model.tensors.values()), memory_nodes())
        return model

    return make


def _tokenizer(source: ModelSource) -> Tokenizer:
    config = json.dumps(dict(text_config(source.config))).encode()
    return Tokenizer({**source.files, "config.json": config}, source.path)
