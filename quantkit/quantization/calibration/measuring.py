"""From a model and a text to an importance file: how large the inputs of every matrix are.

One pass over the model measures all of the text, part by part (`inputs.py`); the file appears when all is measured. It
is not gone on with when it was interrupted, since it takes little: 65,536 tokens of SmolLM2-135M half a minute on two
cores, and of a model of 7B half an hour.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantkit.engine.binding import bind
from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.engine.opening import open_model
from quantkit.errors import UnsupportedError
from quantkit.formats.gguf.imatrix import imatrix_bytes
from quantkit.formats.output.file import check_file, save_file
from quantkit.formats.packed import PackedModel
from quantkit.generation.options import is_whole, require
from quantkit.models.program import Program
from quantkit.quantization.calibration.memory import measuring_memory
from quantkit.quantization.calibration.text import BUILTIN, check_calibration_file, read_calibration_text
from quantkit.quantization.pipeline import memory_needed
from quantkit.quantization.report import Progress, counting

FEW_ROWS = 64
"""Rows of inputs below which an expert counts as one that was rarely seen."""


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes
    ----------
    matrices, tokens : int
    text : str
        Name of what was read.
    rare : tuple of str
        Experts that fewer than `FEW_ROWS` rows reached.
    memory : int
        About how many bytes of memory it was to take at most.
    peak_rss : int
        Bytes that the process took.
    """

    matrices: int
    tokens: int
    text: str
    rare: tuple[str, ...]
    memory: int
    peak_rss: int


def calibrate(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    text: str | os.PathLike[str] = BUILTIN,
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Measurement:
    """Measure the inputs of a model's matrices on a text, and write an importance file.

    Parameters
    ----------
    model : path or str
        A checkpoint that is not packed: a folder, a GGUF file, or a name on the hub (extra `hub`).
    output : path
        The GGUF file to write, which `convert(imatrix=...)` and llama.cpp's quantizer read.
    text : path
        UTF-8 text or a `.jsonl` file, of which up to 65,536 tokens are read, or `builtin`.
    threads : int, optional
        Default: the physical cores that this process may use.
    force : bool
        Replace `output` if it exists.
    progress : callable, optional
        Called after each matrix.

    Raises
    ------
    CheckpointError, UnsupportedError
        As `convert`.
    OptionError
        The text cannot be read or is too short, or the file cannot be written, or is what is read.
    """
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    inputs = [Path(model), Path(text)]
    check_file(output, apart_from=inputs, force=force)
    check_calibration_file(text)
    source = open_model(model)
    check_file(output, apart_from=[*inputs, *map(source.file_of, source.names)], force=force)
    if isinstance(source, PackedModel):
        raise UnsupportedError(f"{source.path}: is packed already; measure the checkpoint that it was made of")
    bound = bind(source)
    read = read_calibration_text(text, bound.weights, bound.program.learned_positions)
    names = _matrices(bound.program)
    weights = {name: bound.program.tensors[name].weights for name in names}
    tell = counting(progress, weights, sum(weights.values()))
    from quantkit.quantization.calibration.imatrix import entries_of
    from quantkit.quantization.calibration.inputs import measure  # compiles the engine: after all that can be refused

    windows = read.windows
    measured = list(measure(bound.program, bound.weights, names, windows, threads or usable_cores(), tell))
    rare = [
        name
        for squares in measured
        for name, count in zip(squares.names, squares.counts.tolist(), strict=True)
        if count < FEW_ROWS
    ]
    entries = entries_of(measured, bound.architecture, bound.program)
    save_file(output, b"".join(imatrix_bytes(entries, read.name, len(windows), len(windows[0]))))
    memory = memory_needed(bound.weights) + measuring_memory(bound.program, names, read.tokens)
    return Measurement(len(names), read.tokens, read.name, tuple(rare), memory, peak_memory())


def _matrices(program: Program) -> list[str]:
    """Return the matrices of products, but for routers, which stay as they are."""
    products = (name for each in program.operations if each.spec.product for name in each.tensors)
    return [name for name in dict.fromkeys(products) if program.tensors[name].role in ("linear", "expert", "head")]
