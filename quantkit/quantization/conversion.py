"""From a checkpoint to a packed folder, one tensor at a time.

Everything that can be refused is refused first, from configuration, headers and the files that say something about
text, before numba is imported or a byte written. Memory then holds one tensor: its mapped pages are given back behind
the search.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.errors import OptionError
from quantkit.formats import Checkpoint, open_checkpoint
from quantkit.formats.output import as_json, check_output
from quantkit.formats.packed import Layout, write_packed
from quantkit.models import registry
from quantkit.quantization.recipe import choose

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
        A Hugging Face folder or a GGUF file with F16, BF16 or F32 weights.
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
        For unknown kinds, or overrides that match nothing.
    PackedModelError
        When the output exists or cannot be written.
    """
    start = time.perf_counter()
    plan = _plan(source, quantize, overrides)
    if threads is not None and threads < 1:
        raise OptionError(f"threads: {threads} is less than 1")
    check_output(output, force=force, source=plan.checkpoint.path)
    errors = {} if dry_run else _pack(plan, output, force=force, threads=threads or usable_cores(), progress=progress)
    return Report(
        kinds=_by_kind(plan.layouts),
        source_bytes=plan.checkpoint.nbytes,
        unused=plan.unused,
        seconds=time.perf_counter() - start,
        peak_rss=peak_memory(),
        errors=errors,
    )


@dataclass(frozen=True)
class _Plan:
    """What a conversion reads and makes, known before anything is written."""

    checkpoint: Checkpoint
    layouts: Mapping[str, Layout]  # in the order of the source's bytes
    unused: tuple[str, ...]
    options: Mapping[str, Any]


def _plan(source: str | os.PathLike[str], recipe: str, overrides: Sequence[tuple[str, str]]) -> _Plan:
    """Open a checkpoint and choose a kind for each tensor; raises what `convert` raises for both."""
    checkpoint = open_checkpoint(source)
    specs = registry.read(checkpoint.config).record().tensors
    unused = checkpoint.check(specs)
    _check_text_files(checkpoint)
    kinds = choose(specs, recipe, overrides)
    return _Plan(
        checkpoint,
        {name: Layout(kinds[name], specs[name].shape) for name in checkpoint.names if name in specs},
        tuple(unused),
        {"quantize": recipe, "overrides": [list(override) for override in overrides]},
    )


def _check_text_files(checkpoint: Checkpoint) -> None:
    """Open the tokenizer, chat template and generation settings as `run` would; raises what it would raise."""
    from quantkit.generation.text.tokenizer import Tokenizer

    if "tokenizer.json" not in checkpoint.files:
        logger.warning("%s: has no tokenizer.json; the packed model will not take text", checkpoint.path)
        return
    tokenizer = Tokenizer({**checkpoint.files, "config.json": as_json(checkpoint.config)}, checkpoint.path)
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
    checkpoint, layouts = plan.checkpoint, plan.layouts
    source = {
        "name": _name_of(checkpoint.path),
        "fingerprint": checkpoint.fingerprint(),
        "dtype": _stored_dtype(checkpoint, layouts),
    }
    about = {"source": source, "options": plan.options}
    errors: dict[str, float] = {}
    done, total = 0, sum(math.prod(layout.shape) for layout in layouts.values())
    with write_packed(output, checkpoint.config, layouts, checkpoint.files, about, force=force) as writer:
        from quantkit.quantization.encode import quantize  # heavy: after everything that can be refused

        for name, layout in layouts.items():
            label = f"{checkpoint.file_of(name)}: tensor {name!r}"
            tensor, errors[name] = quantize(checkpoint.tensor(name), layout.kind, label=label, threads=threads)
            checkpoint.release(name)
            writer.add(name, tensor, errors[name])
            done += math.prod(layout.shape)
            if progress:
                progress(Progress(name, done, total))
    return errors


def _name_of(path: Path) -> str:
    """Return the last part of a path, also of `.` and `..`; a byte that is not UTF-8 reads as U+FFFD."""
    return os.fsencode(os.path.basename(os.path.abspath(path))).decode("utf-8", "replace")


def _stored_dtype(checkpoint: Checkpoint, layouts: Mapping[str, Layout]) -> str:
    """Return the type that most weights are stored in, as config.json spells types; `dequantize` goes back to it."""
    weights: Counter[str] = Counter()
    for name, layout in layouts.items():
        weights[checkpoint.header(name).kind] += math.prod(layout.shape)
    ((kind, _),) = weights.most_common(1)
    return DTYPES[kind]


def _by_kind(layouts: Mapping[str, Layout]) -> tuple[KindReport, ...]:
    groups: dict[str, list[Layout]] = {}
    for layout in layouts.values():
        groups.setdefault(layout.kind, []).append(layout)
    rows = (
        KindReport(kind, len(group), sum(math.prod(one.shape) for one in group), sum(one.nbytes for one in group))
        for kind, group in groups.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.nbytes))
