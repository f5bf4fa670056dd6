"""From a checkpoint to a packed folder, one tensor at a time.

`plan.py` has refused everything that can be refused before the first weight is read. Memory then holds one tensor, read
whole, so that a source which is truncated meanwhile is an error and no signal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from quantkit import formats
from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.errors import CheckpointError
from quantkit.formats.output import check_output
from quantkit.formats.packed import PackedWriter, write_packed
from quantkit.formats.source import ModelSource
from quantkit.generation.options import is_whole, require
from quantkit.quantization.plan import Plan, make_plan
from quantkit.quantization.report import Progress, Report, by_kind
from quantkit.tensor import TensorSpec


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
    plan = make_plan(source, quantize, overrides)
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    check_output(output, force=force, source=plan.source.path)
    errors = {} if dry_run else _pack(plan, output, force=force, threads=threads or usable_cores(), progress=progress)
    return Report(
        kinds=by_kind(plan.specs),
        source_bytes=plan.source.nbytes,
        unused=plan.source.unused,
        seconds=time.perf_counter() - start,
        peak_rss=peak_memory(),
        errors=errors,
    )


def _pack(
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    force: bool,
    threads: int,
    progress: Callable[[Progress], None] | None,
) -> dict[str, float]:
    """Write the packed folder; returns each tensor's relative error."""
    source, identity = plan.source, plan.source.identity()
    errors: dict[str, float] = {}
    done, total = 0, sum(spec.weights for spec in plan.specs.values())
    with write_packed(output, source.config, plan.specs, source.files, plan.about, force=force) as writer:
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
