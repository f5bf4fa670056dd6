"""From a checkpoint to a packed folder, one stripe of rows after the other.

`plan.py` has refused everything that can be refused before the first weight is read, `pipeline.py` reads and encodes,
and what it yields is written here, in order, to its place in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from quantkit import formats
from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.errors import CheckpointError, OptionError
from quantkit.formats.output import check_outputs
from quantkit.formats.output.space import check_space, free_bytes
from quantkit.formats.packed import FORMAT_VERSION
from quantkit.formats.packed.writer import Measured, PackedWriter, write_packed
from quantkit.formats.source import Selection
from quantkit.generation.options import is_whole, require
from quantkit.quantization.calibration import CALIBRATION_VERSION
from quantkit.quantization.calibration import KIND as CALIBRATED
from quantkit.quantization.calibration.memory import calibration_memory, measuring_memory
from quantkit.quantization.encode import ENCODER_VERSION
from quantkit.quantization.kept_codes import fit
from quantkit.quantization.pipeline import Importances, Stripe, encoded_stripes, memory_needed
from quantkit.quantization.plan import Plan, make_plans
from quantkit.quantization.recipe import MIXED, Recipe
from quantkit.quantization.report import CalibrationReport, Progress, Report, counting
from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import ROWS, grid

SEARCHED = "int4"
"""The kind whose search asks what columns count."""

Output = TypeVar("Output", bound=str | os.PathLike[str])


class _Losses(NamedTuple):
    """What a packed folder lost: what quantkit.json says of each tensor, and what calibration found."""

    tensors: Measured
    calibration: CalibrationReport | None = None


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quantize: str | Recipe = "int4",
    *,
    overrides: Sequence[tuple[str, str]] = (),
    calibration: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    measuring: Callable[[Progress], None] | None = None,
    dry_run: bool = False,
) -> Report:
    """Pack a checkpoint into int4/int8 blocks.

    Parameters
    ----------
    source : path or str
        A Hugging Face folder with F16, BF16 or F32 weights, a GGUF file, or the name of one on the hub (extra `hub`).
    output : path
        Folder to write. It appears when it is complete. An interrupted conversion goes on where it stopped when it is
        asked for again, with the same source and options. Until then it is kept beside the output, as a hidden folder
        `.NAME.*.partial`, which may be deleted; a conversion of something else to the same output removes it.
    quantize : {"int4", "int8", "mixed"} or Recipe
        Kind of the linear layers; embedding and head become int8, norms and biases f32. Of `mixed`, matrices become
        int4 or more bits, where these save most divergence; `Recipe` takes a target. Or a whole recipe, such as
        `read_recipe` reads from a file.
    overrides : sequence of (regular expression, kind)
        Kinds of the matrices whose names the expressions are found in; the last match decides. They come after those of
        a recipe.
    calibration : path, optional
        UTF-8 text, a `.jsonl` file of texts and dialogues, or `builtin`. The model reads it layer by layer, and each
        int4 matrix is packed so that its output on it changes least (GPTQ). Far better than without, but takes minutes
        rather than seconds, and memory for what the layers make of the text. Measure the result on other text.
    imatrix : path, optional
        Importance file of llama.cpp's, or of `calibrate`: how much the columns of matrices count in the search for
        int4. By default the model says it itself, of tokens spread over its vocabulary. Not with `calibration`.
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
    outputs : mapping of path to {"int4", "int8", "mixed"} or Recipe
        Folders to write, and what each is to hold. Each appears by itself, when all are complete.
    source, overrides, calibration, imatrix, threads, force, strict, progress, measuring, dry_run
        As of `convert`, which also says what is raised.

    Returns
    -------
    dict
        The report of each output, by its path as it was given.
    """
    start = time.perf_counter()
    require(bool(outputs), "outputs", dict(outputs), "one folder at least")
    check_outputs(outputs, force=force, source=Path(source))
    if calibration is not None:
        from quantkit.quantization.calibration.text import check_calibration_file  # needs tokenizers

        check_calibration_file(calibration)  # before anything is downloaded
    if imatrix is not None:
        require(calibration is None, "imatrix", str(imatrix), "none with a text for calibration, which says more")
    recipes = [(it if isinstance(it, Recipe) else Recipe(it)).with_overrides(overrides) for it in outputs.values()]
    plans = dict(zip(outputs, make_plans(source, recipes, strict=strict), strict=True))
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    if calibration is not None:
        plans = _with_text(plans, calibration)
    if imatrix is not None:
        plans = _with_imatrix(plans, imatrix)
    plans = {output: _with_kinds(plan, threads or usable_cores(), progress) for output, plan in plans.items()}
    check_space({Path(output): plan.nbytes for output, plan in plans.items()})
    free = {output: free_bytes(Path(output)) for output in outputs}
    lost = dict.fromkeys(plans, _Losses({}))
    if not dry_run:
        lost = _pack(plans, force=force, threads=threads or usable_cores(), progress=progress, measuring=measuring)
    took = time.perf_counter() - start
    return {output: _report(plan, lost[output], free[output], took) for output, plan in plans.items()}


def _report(plan: Plan, lost: _Losses, disk_free: int, seconds: float) -> Report:
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
    else:
        more.append(measuring_memory(plan.program, _searched_kinds(plan)))
    return memory_needed(plan.source) + max(more)


def _pack(
    plans: Mapping[Output, Plan],
    *,
    force: bool,
    threads: int,
    progress: Callable[[Progress], None] | None,
    measuring: Callable[[Progress], None] | None,
) -> dict[Output, _Losses]:
    """Write the packed folders, whose plans have the same source; returns what each lost."""
    source = next(iter(plans.values())).source
    identity, weights = source.identity(), {name: source.spec(name).weights for name in source.names}
    calibrated = [output for output, plan in plans.items() if plan.text]
    together = len(calibrated) < len(plans)
    tell = counting(progress, weights, sum(weights.values()) * (len(calibrated) + together))

    with ExitStack() as stack:
        writers = {
            output: stack.enter_context(_written(output, plan, force, identity)) for output, plan in plans.items()
        }
        growing = {output: _Growing(writers[output], plan.specs) for output, plan in plans.items() if not plan.text}
        if together:
            kinds = _lacking(source, list(growing.values()))
            for name in source.names:
                if name not in kinds:
                    tell(name)
            importances = _importances(next(iter(plans.values())), _searched(source, kinds), threads, measuring)
            _write_stripes(encoded_stripes(source, kinds, threads, importances), list(growing.values()), tell)
        lost = {output: _Losses(writers[output].tensors) for output in growing}
        for output in calibrated:
            lost[output] = _write_calibrated(plans[output], writers[output], threads, tell)
        if formats.open(source.path).identity() != identity:
            raise CheckpointError(f"{source.path}: was changed while it was packed; pack it again")
    return lost


def _lacking(source: Selection, folders: Sequence[_Growing]) -> dict[str, set[str]]:
    """Return the tensors that some folder lacks, and the kinds that they are wanted in."""
    kinds = {name: {it.specs[name].kind for it in folders if it.lacks(name)} for name in source.names}
    return {name: wanted for name, wanted in kinds.items() if wanted}


def _searched(source: Selection, kinds: Mapping[str, Collection[str]]) -> list[str]:
    """Return the matrices whose codes are searched, not kept."""
    wanted = (name for name, found in kinds.items() if SEARCHED in found and len(source.spec(name).shape) == 2)
    return [name for name in wanted if not fit(SEARCHED, source.group_scales(name, slice(0, ROWS)))]


def _importances(
    plan: Plan, names: Sequence[str], threads: int, measuring: Callable[[Progress], None] | None
) -> Importances:
    """Return what the columns of matrices count: by a file, or as large as the model itself says that they are."""
    if plan.imatrix:
        return plan.imatrix.importances
    if not names:
        return {}
    from quantkit.quantization.calibration.inputs import any_tokens, importances_of, measure  # compiles the engine

    weights = {name: plan.specs[name].weights for name in names}
    tell = counting(measuring, weights, sum(weights.values()))
    windows = any_tokens(plan.program)
    return importances_of(measure(plan.program, plan.source, names, windows, threads, tell))


def _write_stripes(encoded: Generator[Stripe], folders: Sequence[_Growing], tell: Callable[[str], None]) -> None:
    """Write what folders lack, each weight packed by itself."""
    with closing(encoded) as stripes:
        for stripe in stripes:
            for folder in folders:
                if folder.lacks(stripe.name):
                    folder.append(stripe)
            if stripe.last:
                tell(stripe.name)


def _with_text(plans: Mapping[Output, Plan], path: str | os.PathLike[str]) -> dict[Output, Plan]:
    """Let the plans that have something to calibrate be calibrated on a text."""
    from quantkit.quantization.calibration.text import read_calibration_text  # needs tokenizers

    fit = {output for output, plan in plans.items() if any(it.kind == CALIBRATED for it in plan.specs.values())}
    if not fit:
        raise OptionError(f"calibration: no matrix becomes {CALIBRATED}; the other kinds need none")
    plan = next(iter(plans.values()))
    text = read_calibration_text(path, plan.source, plan.program.learned_positions)
    calibrated = {output: replace(plans[output], text=text) for output in fit}
    return {output: calibrated.get(output, plan) for output, plan in plans.items()}


def _with_imatrix(plans: Mapping[Output, Plan], path: str | os.PathLike[str]) -> dict[Output, Plan]:
    """Let a file say what the columns of the matrices count that become int4."""
    from quantkit.quantization.calibration.imatrix import read_importances

    plan = next(iter(plans.values()))
    wanted = dict.fromkeys(name for it in plans.values() for name in _searched_kinds(it))
    if not wanted:
        raise OptionError(f"imatrix: no matrix becomes {SEARCHED}; columns of the other kinds count the same")
    file = read_importances(path, plan.architecture, plan.program, list(wanted))
    return {output: replace(each, imatrix=file) for output, each in plans.items()}


def _searched_kinds(plan: Plan) -> list[str]:
    """Return the matrices that a plan packs to the kind that is searched."""
    return [name for name, spec in plan.specs.items() if spec.kind == SEARCHED and len(spec.shape) == 2]


def _with_kinds(plan: Plan, threads: int, progress: Callable[[Progress], None] | None) -> Plan:
    """Let a plan that has a target keep it."""
    if plan.recipe.quantize != MIXED:
        return plan
    from quantkit.quantization.allocation import allocated  # heavy, as calibration

    return allocated(plan, threads=threads, progress=progress)


def _write_calibrated(plan: Plan, writer: PackedWriter, threads: int, tell: Callable[[str], None]) -> _Losses:
    """Write the tensors that are not finished, those of int4 packed for what they do to a text."""
    from quantkit.quantization.calibration.layers import Packed, pack_calibrated  # heavy: after all that can be refused

    assert plan.text is not None
    noted = dict(writer.keep_finished())

    def finished(name: str) -> Packed | None:
        if name not in noted:
            return None
        lost, output_error, kept = map(noted[name].get, ("relative_error", "output_error", "kept_codes"))
        return Packed(name, writer.read(name), lost or 0.0, output_error, kept)

    output_errors = {}
    for packed in pack_calibrated(plan.program, plan.source, plan.specs, plan.text.windows, threads, finished):
        if packed.name not in noted:
            measured = {"kept_codes": packed.kept_codes, "output_error": packed.output_error}
            writer.add(packed.name, packed.tensor, packed.error, **measured)
        if packed.output_error is not None:
            output_errors[packed.name] = packed.output_error
        tell(packed.name)
    rest = (name for name, spec in plan.specs.items() if spec.kind == CALIBRATED and name not in output_errors)
    return _Losses(writer.tensors, CalibrationReport(plan.text.name, plan.text.tokens, output_errors, tuple(rest)))


def _written(output: Output, plan: Plan, force: bool, identity: str) -> AbstractContextManager[PackedWriter]:
    return write_packed(output, plan.contents, force=force, key=_key(plan, identity))


def _key(plan: Plan, identity: str) -> str:
    """Return a hash of all that decides the bytes of the packed tensors."""
    kinds = {name: spec.kind for name, spec in plan.specs.items()}
    versions = [ENCODER_VERSION, FORMAT_VERSION, *([CALIBRATION_VERSION] if plan.text else [])]
    decisive = [identity, plan.about, kinds, *versions]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


class _Growing:
    """A packed folder that is being written, stripe by stripe, from where an interrupted process stopped.

    Attributes
    ----------
    specs : Mapping of str to TensorSpec
        The tensors that it is to hold.
    """

    def __init__(self, writer: PackedWriter, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs
        self._complete = {name for name, _ in writer.keep_finished()}
        self._writer = writer
        self._error = self._squares = 0.0
        self._kept: list[int] = []

    def lacks(self, name: str) -> bool:
        """Whether a tensor is not complete."""
        return name not in self._complete

    def append(self, stripe: Stripe) -> None:
        """Write a stripe, in the kind that its tensor has in this folder."""
        part = stripe.encoded[self.specs[stripe.name].kind]
        self._writer.append(stripe.name, part.data, part.row_scales)
        self._error, self._squares = self._error + part.error, self._squares + part.squares
        if part.kept is not None:
            self._kept.append(part.kept)
        if stripe.last:
            self._finish(stripe.name)

    def _finish(self, name: str) -> None:
        kept = sum(self._kept) / grid(*self.specs[name].shape)[0] if self._kept else None
        self._writer.finish(name, self._error / (self._squares or 1.0), kept)
        self._complete.add(name)
        self._error, self._squares, self._kept = 0.0, 0.0, []
