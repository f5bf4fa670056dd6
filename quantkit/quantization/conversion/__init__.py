"""From a checkpoint to packed folders: `convert`, and `convert_all` for several at once.

All that can be refused is refused here, or by `plan.py`, before the first weight is read. Then `folders.py` writes what
the plans say. Which kinds meet a target is `allocation/`'s affair, what to calibrate on `calibration/`'s.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.engine.machine import peak_memory, usable_cores, usable_memory
from quantkit.errors import OptionError
from quantkit.formats.output import check_outputs
from quantkit.formats.output.space import check_space, free_bytes
from quantkit.generation.options import is_whole, require
from quantkit.quantization.calibration import BALANCED, BUILTIN, CALIBRATED
from quantkit.quantization.calibration.memory import calibration_memory, measuring_memory
from quantkit.quantization.conversion.folders import Losses, Output, write_folders
from quantkit.quantization.kept_codes import CODE_BITS
from quantkit.quantization.pipeline import memory_needed
from quantkit.quantization.plan import METHODS, Plan, make_plans
from quantkit.quantization.recipe import MIXED, Recipe
from quantkit.quantization.report import Progress, Report

logger = logging.getLogger(__name__)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quantize: str | Recipe = MIXED,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    method: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    measuring: Callable[[Progress], None] | None = None,
    dry_run: bool = False,
) -> Report:
    """Pack a checkpoint into blocks of 4 to 8 bits a weight.

    Parameters
    ----------
    source : path or str
        A Hugging Face folder with F16, BF16 or F32 weights, a GGUF file, or the name of one on the hub (extra `hub`).
    output : path
        Folder to write. It appears when it is complete. An interrupted conversion goes on where it stopped when it is
        asked for again, with the same source and options. Until then it is kept beside the output, as a hidden folder
        `.NAME.*.partial`, which may be deleted; a conversion of something else to the same output removes it.
    quantize : {"mixed", "int4", "int5", "int6", "int8"} or Recipe
        Of `mixed`, matrices become int4 or more bits, where these save most divergence, in the bytes of `int4`; of a
        `Recipe`, in those of its target. Otherwise the kind of the linear layers; embedding and head become int8. Norms
        and biases become f32. Or a whole recipe, such as `read_recipe` reads from a file.
    overrides : sequence of (regular expression, kind)
        Kinds of the matrices whose names the expressions are found in; the last match decides. They come after those of
        a recipe.
    method : {"round", "search", "calibrate"}, optional
        How the codes of blocks are found. `round`: the nearest ones in the range of each group. `search`: those of
        scales and mins that lose least, where a column counts as much as its inputs are large. `calibrate`: the model
        reads a text layer by layer, and each matrix of int4 to int6 is packed so that its output on it changes least
        (GPTQ). Far better, but takes minutes rather than seconds, and memory for what the layers make of the text.
        Where all matrices that read a norm have 5 bits or more, it is scaled, and these by the inverse, so that their
        inputs lose less (SmoothQuant). Default: `calibrate` where there is a text, else `search`.
    calibration : path, optional
        The text for `calibrate`: UTF-8, a `.jsonl` file of texts and dialogues, or `builtin`, its default. Measure the
        result on other text.
    imatrix : path, optional
        For `search`, an importance file of llama.cpp's, or of `quantkit.calibrate`: how much the columns of matrices
        count. By default the model says it itself, of tokens spread over its vocabulary.
    threads : int, optional
        Default: the physical cores that this process may use. The result does not depend on it.
    force : bool
        Replace `output` if it exists, provided that quantkit wrote every file in it.
    strict : bool
        Refuse a checkpoint of which something would be left out, or stand in for what is missing: tensors and fields of
        config.json that the model does not use, a head that is not tied as the config says, a missing tokenizer, ...
    progress : callable, optional
        Called after each tensor.
    measuring : callable, optional
        Called after each matrix whose inputs the model has measured, before anything is written.
    dry_run : bool
        Check everything and return the report; write and search nothing.

    Raises
    ------
    CheckpointError, UnsupportedError
        When the checkpoint is damaged, incomplete, holds NaN or infinity, or is of a kind that quantkit does not run.
    OptionError
        For unknown kinds, overrides that match nothing, `threads` that is no whole number from 1 up, a text for
        calibration that cannot be read, is too short, or has nothing to calibrate, or an importance file of another
        model.
    StrictError
        With `strict`, naming all that would be left out or made up.
    PackedModelError
        When the output exists or cannot be written, or its disk lacks room for it.
    """
    (report,) = convert_all(
        source,
        {output: quantize},
        overrides=overrides,
        method=method,
        calibration=calibration,
        imatrix=imatrix,
        threads=threads,
        force=force,
        strict=strict,
        progress=progress,
        measuring=measuring,
        dry_run=dry_run,
    ).values()
    return report


def convert_all(
    source: str | os.PathLike[str],
    outputs: Mapping[Output, str | Recipe],
    *,
    overrides: Sequence[tuple[str, str]] = (),
    method: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    measuring: Callable[[Progress], None] | None = None,
    dry_run: bool = False,
) -> dict[Output, Report]:
    """Pack a checkpoint in several ways at once: it is read once, and what is alike is encoded once.

    Parameters
    ----------
    outputs : mapping of path to {"mixed", "int4", "int5", "int6", "int8"} or Recipe
        Folders to write, and what each is to hold. Each appears by itself, when all are complete.
    source, overrides, method, calibration, imatrix, threads, force, strict, progress, measuring, dry_run
        As of `convert`, which also says what is raised.

    Returns
    -------
    dict
        The report of each output, by its path as it was given.
    """
    start = time.perf_counter()
    require(bool(outputs), "outputs", dict(outputs), "one folder at least")
    check_outputs(outputs, force=force, source=Path(source))
    calibration = _text_of(method, calibration, imatrix)
    if calibration is not None:
        from quantkit.quantization.calibration.text import check_calibration_file  # needs tokenizers

        check_calibration_file(calibration)  # before anything is downloaded
    recipes = [(it if isinstance(it, Recipe) else Recipe(it)).with_overrides(overrides) for it in outputs.values()]
    plans = dict(zip(outputs, make_plans(source, recipes, strict=strict), strict=True))
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    if calibration is not None:
        plans = _with_text(plans, calibration)
    if imatrix is not None:
        plans = _with_imatrix(plans, imatrix)
    if method == "round":
        plans = {output: replace(plan, search=False) for output, plan in plans.items()}
    cores = threads or usable_cores()
    plans = {output: _with_kinds(plan, cores, progress) for output, plan in plans.items()}
    check_space({Path(output): plan.nbytes for output, plan in plans.items()})
    _warn_of_memory(max(map(_memory_needed, plans.values())))
    free = {output: free_bytes(Path(output)) for output in outputs}
    lost = dict.fromkeys(plans, Losses({}))
    if not dry_run:
        lost = write_folders(plans, force=force, threads=cores, progress=progress, measuring=measuring)
    took = time.perf_counter() - start
    return {output: _report(plan, lost[output], free[output], took) for output, plan in plans.items()}


def _text_of(
    method: str | None, calibration: str | os.PathLike[str] | None, imatrix: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Return the text that a method calibrates on, if it does; raises `OptionError` where options contradict."""
    require(method is None or method in METHODS, "method", method, f"one of {', '.join(METHODS)}")
    if calibration is not None:
        require(method in (None, "calibrate"), "calibration", str(calibration), f"none with method {method!r}")
        require(imatrix is None, "imatrix", str(imatrix), "none with a text for calibration, which says more")
    if imatrix is not None:
        require(method in (None, "search"), "imatrix", str(imatrix), f"none with method {method!r}")
    return BUILTIN if calibration is None and method == "calibrate" else calibration


def _report(plan: Plan, lost: Losses, disk_free: int, seconds: float) -> Report:
    from importlib.metadata import version  # slow to import, and `run` does without

    return Report(
        source=plan.about["source"],
        options=plan.about["options"],
        version=version("quantkit"),
        tensors=plan.tensors(lost.tensors),
        files=plan.contents.sizes,
        source_bytes=plan.source.nbytes,
        unused=plan.source.unused,
        notices=plan.notices,
        disk_free=disk_free,
        memory=_memory_needed(plan),
        seconds=seconds,
        peak_rss=peak_memory(),
        calibration=lost.calibration,
        allocation=plan.allocation,
    )


def _memory_needed(plan: Plan) -> int:
    """Return about how many bytes packing needs in memory at most, the whole process included."""
    more = [plan.allocation.memory if plan.allocation else 0]
    if plan.text:
        more.append(calibration_memory(plan.program, plan.specs, plan.text.tokens))
    elif plan.search:
        more.append(measuring_memory(plan.program, _matrices(plan)))
    return memory_needed(plan.source) + max(more)


def _warn_of_memory(needed: int) -> None:
    """Say beforehand that packing may take more memory than there is."""
    there = usable_memory()
    if there is not None and needed > there:
        sizes = f"up to {needed / 1e9:.1f} GB of memory, and this process may use {there / 1e9:.1f} GB"
        logger.warning("packing may take %s: it may become slow, or be killed", sizes)


def _with_text(plans: Mapping[Output, Plan], path: str | os.PathLike[str]) -> dict[Output, Plan]:
    """Let the plans that have something to calibrate be calibrated on a text."""
    from quantkit.quantization.calibration.text import read_calibration_text  # needs tokenizers

    kinds = dict.fromkeys([*CALIBRATED, *BALANCED])
    fit = {output for output, plan in plans.items() if any(it.kind in kinds for it in plan.specs.values())}
    if not fit:
        raise OptionError(f"calibration: no matrix becomes one of {', '.join(kinds)}; the other kinds need none")
    plan = next(iter(plans.values()))
    text = read_calibration_text(path, plan.source, plan.program)
    calibrated = {output: replace(plans[output], text=text) for output in fit}
    return {output: calibrated.get(output, plan) for output, plan in plans.items()}


def _with_imatrix(plans: Mapping[Output, Plan], path: str | os.PathLike[str]) -> dict[Output, Plan]:
    """Let a file say what the columns of the matrices count."""
    from quantkit.quantization.calibration.imatrix import read_importances

    plan = next(iter(plans.values()))
    wanted = dict.fromkeys(name for it in plans.values() for name in _matrices(it))
    if not wanted:
        raise OptionError(
            f"imatrix: no matrix becomes one of {', '.join(CODE_BITS)}; columns of the other kinds count the same"
        )
    file = read_importances(path, plan.architecture, plan.program, list(wanted))
    return {output: replace(each, imatrix=file) for output, each in plans.items()}


def _matrices(plan: Plan) -> list[str]:
    """Return the matrices that a plan packs into blocks."""
    return [name for name, spec in plan.specs.items() if spec.kind in CODE_BITS and len(spec.shape) == 2]


def _with_kinds(plan: Plan, threads: int, progress: Callable[[Progress], None] | None) -> Plan:
    """Let a plan that has a target keep it."""
    if plan.recipe.quantize != MIXED:
        return plan
    from quantkit.quantization.allocation import allocated  # heavy, as calibration

    return allocated(plan, threads=threads, progress=progress)
