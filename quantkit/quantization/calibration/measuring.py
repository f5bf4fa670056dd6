"""From a model and a text to an importance file: how large the inputs of every matrix are.

The model reads some windows of the text at a time, part by part (`inputs.py`), so memory holds its values for those
alone. What they have shown is kept in the user's cache folder until all is measured, so an interrupted measurement goes
on behind them: 65,536 tokens of SmolLM2-135M take half a minute on two cores, and of a model of 7B half an hour.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import user_cache
from quantkit.engine.binding import Bound, bind
from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.engine.opening import open_model
from quantkit.errors import UnsupportedError
from quantkit.formats.gguf.imatrix import imatrix_bytes
from quantkit.formats.output import write_file
from quantkit.formats.output.file import check_file, save_file
from quantkit.formats.packed import PackedModel
from quantkit.generation.options import is_whole, require
from quantkit.models.program import Program
from quantkit.quantization.calibration import BUILTIN
from quantkit.quantization.calibration.memory import measuring_memory
from quantkit.quantization.calibration.text import CalibrationText, check_calibration_file, read_calibration_text
from quantkit.quantization.encode import ENCODER_VERSION
from quantkit.quantization.pipeline import memory_needed
from quantkit.quantization.report import Progress, counting

if TYPE_CHECKING:
    from quantkit.quantization.calibration.inputs import Squares

logger = logging.getLogger(__name__)

TURN_WINDOWS = 16
"""Windows that the model reads at a time."""
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
    seconds : float
        How long it took.
    """

    matrices: int
    tokens: int
    text: str
    rare: tuple[str, ...]
    memory: int
    peak_rss: int
    seconds: float


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

    An interrupted measurement goes on where it stopped when it is asked for again.

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
        Called after each matrix, for each part of the text.

    Raises
    ------
    CheckpointError, UnsupportedError
        As `convert`.
    OptionError
        The text cannot be read or is too short, or the file cannot be written, or is what is read.
    """
    start = time.perf_counter()
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    inputs = [Path(model), Path(text)]
    check_file(output, apart_from=inputs, force=force)
    check_calibration_file(text)
    source = open_model(model)
    check_file(output, apart_from=[*inputs, *map(source.file_of, source.names)], force=force)
    if isinstance(source, PackedModel):
        raise UnsupportedError(f"{source.path}: is packed already; measure the checkpoint that it was made of")
    bound = bind(source)
    read = read_calibration_text(text, bound.weights, bound.program)
    names = _matrices(bound.program)
    kept = _Kept([source.identity(), names, read.windows, TURN_WINDOWS, ENCODER_VERSION])
    from quantkit.quantization.calibration.imatrix import entries_of

    measured = _measured(bound, names, read, kept, threads or usable_cores(), progress)
    rare = [
        name
        for squares in measured
        for name, count in zip(squares.names, squares.counts.tolist(), strict=True)
        if count < FEW_ROWS
    ]
    entries = entries_of(measured, bound.architecture, bound.program)
    save_file(output, b"".join(imatrix_bytes(entries, read.name, len(read.windows), len(read.windows[0]))))
    kept.remove()
    memory, took = _memory_needed(bound, names, read), time.perf_counter() - start
    return Measurement(len(names), read.tokens, read.name, tuple(rare), memory, peak_memory(), took)


def _measured(
    bound: Bound,
    names: Sequence[str],
    text: CalibrationText,
    kept: _Kept,
    threads: int,
    progress: Callable[[Progress], None] | None,
) -> list[Squares]:
    """Let the model read a text, from where an interrupted process stopped, and add up the squares of all inputs."""
    from quantkit.quantization.calibration.inputs import measure  # compiles the engine: after all that can be refused

    turns = [text.windows[first : first + TURN_WINDOWS] for first in range(0, len(text.windows), TURN_WINDOWS)]
    weights = {name: bound.program.tensors[name].weights for name in names}
    tell = counting(progress, weights, sum(weights.values()) * len(turns))
    for name in (name for _ in range(kept.turns) for name in names):
        tell(name)
    try:
        while True:
            found = list(measure(bound.program, bound.weights, names, turns[kept.turns], threads, tell))
            kept.add(found)
            if kept.turns == len(turns):
                return list(kept.sums_of(found))
            kept.save()
    except (KeyboardInterrupt, SystemExit):
        done = min(kept.turns * TURN_WINDOWS, len(text.windows))
        logger.info("interrupted after %d of %d windows: the same command goes on from there", done, len(text.windows))
        raise


class _Kept:
    """The sums of all turns so far, in a file of the user's cache folder; one that cannot be read counts as none.

    Attributes
    ----------
    turns : int
        How many they are.
    """

    def __init__(self, decisive: Any) -> None:
        name = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
        self.turns, self._sums = 0, np.zeros(0)
        self._file: Path | None = None
        with suppress(OSError):
            self._file = user_cache.entry("inputs", name)
            content = self._file.read_bytes()
            digest, numbers = content[:32], content[32:]
            if hashlib.sha256(numbers).digest() == digest:
                found = np.frombuffer(numbers)
                self.turns, self._sums = int(found[0]), found[1:]

    def add(self, measured: Sequence[Squares]) -> None:
        """Add what another turn has shown."""
        sums = np.concatenate([part for each in measured for part in (each.counts, each.sums.ravel())])
        self._sums = self._sums + sums if self.turns else sums
        self.turns += 1

    def sums_of(self, measured: Sequence[Squares]) -> Iterator[Squares]:
        """Yield the sums of all turns, of the matrices of one."""
        place = 0
        for each in measured:
            count = len(each.counts)
            counts, sums = np.split(self._sums[place : place + count + each.sums.size], [count])
            yield each._replace(counts=counts.astype(np.int64), sums=sums.reshape(each.sums.shape))
            place += count + each.sums.size

    def save(self) -> None:
        """Write the file, if that is possible."""
        numbers = np.concatenate([[float(self.turns)], self._sums]).tobytes()
        if self._file:
            with suppress(OSError):
                write_file(self._file, hashlib.sha256(numbers).digest() + numbers)

    def remove(self) -> None:
        """Remove the file: the measurement is complete."""
        if self._file:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


def _memory_needed(bound: Bound, names: Sequence[str], text: CalibrationText) -> int:
    """Return about how many bytes measuring needs in memory at most, the whole process included."""
    tokens = min(TURN_WINDOWS, len(text.windows)) * len(text.windows[0])
    sums = sum(8 * (1 + bound.program.tensors[name].shape[1]) for name in names)
    # Those of a turn, of all turns before and after it, and what is written of them.
    return memory_needed(bound.weights) + measuring_memory(bound.program, names, tokens) + 4 * sums


def _matrices(program: Program) -> list[str]:
    """Return the matrices of products, but for routers, which stay as they are."""
    products = (name for each in program.operations if each.spec.product for name in each.tensors)
    return [name for name in dict.fromkeys(products) if program.tensors[name].role in ("linear", "expert", "head")]
