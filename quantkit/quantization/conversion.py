"""From a checkpoint to a packed folder, one tensor at a time.

Everything that can be refused is refused first, from configuration, headers and the files that say something about
text, before numba is imported or a byte written. Memory then holds one tensor, read whole, so that a source which is
truncated meanwhile is an error and no signal.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.output import as_json, check_output
from quantkit.formats.packed import PackedModel, PackedWriter, write_packed
from quantkit.formats.source import ModelSource, Selection
from quantkit.generation.options import is_whole, require
from quantkit.quantization.recipe import choose
from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import nbytes

logger = logging.getLogger(__name__)

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Kind of a checkpoint's tensor -> how config.json spells it."""


@dataclass(frozen=True)
class Progress:
    """How far a conversion is.

    Attributes
    ----------
    tensor : str
        The tensor that was just written.
    done, total : int
        Weights written, and weights in all.
    """

    tensor: str
    done: int
    total: int


@dataclass(frozen=True)
class KindReport:
    """What the tensors of a kind add up to: how many, their weights, their bytes with row scales."""

    kind: str
    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Report:
    """What a conversion made, or would make.

    Attributes
    ----------
    kinds : tuple of KindReport
        Largest first.
    bits_per_weight : float
        Of all tensors, row scales included.
    source_bytes, packed_bytes : int
        Bytes of all tensors, before and after.
    seconds : float
        Duration.
    peak_rss : int
        The most bytes that this process had in memory at once until now.
    unused : tuple of str
        Tensors of the checkpoint that the model does not use; they were left out.
    errors : Mapping of str to float
        Each tensor's squared error, relative to its sum of squares.
    """

    kinds: tuple[KindReport, ...]
    source_bytes: int
    unused: tuple[str, ...]
    seconds: float
    peak_rss: int
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def packed_bytes(self) -> int:
        return sum(row.nbytes for row in self.kinds)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.packed_bytes / sum(row.weights for row in self.kinds)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quantize: str = "int4",
    *,
    overrides: Sequence[tuple[str, str]] = (),
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
    dry_run: bool = False,
) -> Report:
    """Pack a checkpoint into int4/int8 blocks.

    Parameters
    ----------
    source : path
        A Hugging Face folder with F16, BF16 or F32 weights, or a GGUF file.
    output : path
        Folder to write. It appears when it is complete.
    quantize : {"int4", "int8"}
        Kind of the linear layers; embedding and head become int8, norms and biases f32.
    overrides : sequence of (regular expression, kind)
        Kinds of the matrices whose names the expressions are found in; the last match decides.
    threads : int, optional
        Default: the physical cores that this process may use. The result does not depend on it.
    force : bool
        Replace `output` if it exists, provided that quantkit wrote every file in it.
    progress : callable, optional
        Called after each tensor.
    dry_run : bool
        Check everything and return the report; write and search nothing.

    Raises
    ------
    CheckpointError, UnsupportedError
        When the checkpoint is damaged, incomplete, holds NaN or infinity, or is of a kind that quantkit does not run.
    OptionError
        For unknown kinds, overrides that match nothing, or `threads` that is no whole number from 1 up.
    PackedModelError
        When the output exists or cannot be written.
    """
    start = time.perf_counter()
    plan = _plan(source, quantize, overrides)
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    check_output(output, force=force, source=plan.source.path)
    errors = {} if dry_run else _pack(plan, output, force=force, threads=threads or usable_cores(), progress=progress)
    return Report(
        kinds=_by_kind(plan.specs),
        source_bytes=plan.source.nbytes,
        unused=plan.source.unused,
        seconds=time.perf_counter() - start,
        peak_rss=peak_memory(),
        errors=errors,
    )


@dataclass(frozen=True)
class _Plan:
    """What a conversion reads and makes, known before anything is written."""

    source: Selection
    specs: Mapping[str, TensorSpec]  # in the order of the source's bytes
    options: Mapping[str, Any]


def _plan(path: str | os.PathLike[str], recipe: str, overrides: Sequence[tuple[str, str]]) -> _Plan:
    """Open a checkpoint and choose a kind for each tensor; raises what `convert` raises for both."""
    model = formats.open(path)
    if isinstance(model, PackedModel):
        raise UnsupportedError(f"{model.path}: is packed already; convert the checkpoint that it was made of")
    bound = bind(model)
    source, tensors = bound.weights, bound.program.tensors
    _check_text_files(source)
    kinds = choose(tensors, recipe, overrides)
    return _Plan(
        source,
        {name: replace(tensors[name], kind=kinds[name]) for name in source.names},
        {"quantize": recipe, "overrides": [list(override) for override in overrides]},
    )


def _check_text_files(source: ModelSource) -> None:
    """Open the tokenizer, chat template and generation settings as `run` would; raises what it would raise."""
    from quantkit.generation.text.tokenizer import Tokenizer

    if "tokenizer.json" not in source.files:
        logger.warning("%s: has no tokenizer.json; the packed model will not take text", source.path)
        return
    tokenizer = Tokenizer({**source.files, "config.json": as_json(source.config)}, source.path)
    tokenizer.detokenizer()  # whose section of tokenizer.json is read when the first answer needs it


def _pack(
    plan: _Plan,
    output: str | os.PathLike[str],
    *,
    force: bool,
    threads: int,
    progress: Callable[[Progress], None] | None,
) -> dict[str, float]:
    """Write the packed folder; returns each tensor's relative error."""
    source, identity = plan.source, plan.source.identity()
    about = {"source": {"name": _name_of(source.path), "dtype": _stored_dtype(source)}, "options": plan.options}
    errors: dict[str, float] = {}
    done, total = 0, sum(spec.weights for spec in plan.specs.values())
    with write_packed(output, source.config, plan.specs, source.files, about, force=force) as writer:
        for name, spec in plan.specs.items():
            errors[name] = _pack_tensor(source, spec, writer, threads)
            done += spec.weights
            if progress:
                progress(Progress(name, done, total))
        if formats.open(source.path).identity() != identity:
            raise CheckpointError(f"{source.path}: was changed while it was packed; pack it again")
    return errors


def _pack_tensor(source: ModelSource, spec: TensorSpec, writer: PackedWriter, threads: int) -> float:
    """Read a tensor, write it in the kind of its spec, forget it; returns its relative error."""
    from quantkit.quantization.encode import quantize  # heavy: after everything that can be refused

    label = f"{source.file_of(spec.name)}: tensor {spec.name!r}"
    packed, error = quantize(source.tensor(spec.name, copy=True), spec.kind, label=label, threads=threads)
    writer.add(spec.name, packed, error)
    return error


def _name_of(path: Path) -> str:
    """Return the last part of a path, also of `.` and `..`; a byte that is not UTF-8 reads as U+FFFD."""
    return os.fsencode(os.path.basename(os.path.abspath(path))).decode("utf-8", "replace")


def _stored_dtype(source: Selection) -> str:
    """Return the type that most weights are stored in, as config.json spells types; `dequantize` goes back to it."""
    weights: Counter[str] = Counter()
    for spec in map(source.spec, source.names):
        weights[spec.kind] += spec.weights
    ((kind, _),) = weights.most_common(1)
    return DTYPES[kind]


def _by_kind(specs: Mapping[str, TensorSpec]) -> tuple[KindReport, ...]:
    kinds: dict[str, list[TensorSpec]] = {}
    for spec in specs.values():
        kinds.setdefault(spec.kind, []).append(spec)
    rows = (
        KindReport(kind, len(group), sum(one.weights for one in group), sum(nbytes(kind, one.shape) for one in group))
        for kind, group in kinds.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.nbytes))
