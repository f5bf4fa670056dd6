"""Writing packed folders as their plans say, one stripe of rows after the other.

Several folders of the same source are written at once: each tensor is read once, and what is alike is encoded once.
`pipeline.py` reads and encodes; of tensors that are calibrated, `calibration/` says what they become. What an
interrupted process finished is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from typing import NamedTuple, TypeVar

from quantkit import formats
from quantkit.errors import CheckpointError
from quantkit.formats.packed import FORMAT_VERSION
from quantkit.formats.packed.writer import Measured, PackedWriter, write_packed
from quantkit.formats.source import Selection
from quantkit.quantization.calibration import CALIBRATED, CALIBRATION_VERSION
from quantkit.quantization.encode import ENCODER_VERSION
from quantkit.quantization.kept_codes import CODE_BITS, fit
from quantkit.quantization.pipeline import Importances, Stripe, encoded_stripes
from quantkit.quantization.plan import Plan
from quantkit.quantization.report import CalibrationReport, Progress, counting
from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import ROWS, grid

Output = TypeVar("Output", bound=str | os.PathLike[str])


class Losses(NamedTuple):
    """What a packed folder lost: what quantkit.json says of each tensor, and what calibration found."""

    tensors: Measured
    calibration: CalibrationReport | None = None


def write_folders(
    plans: Mapping[Output, Plan],
    *,
    force: bool,
    threads: int,
    progress: Callable[[Progress], None] | None,
    measuring: Callable[[Progress], None] | None,
) -> dict[Output, Losses]:
    """Write packed folders, whose plans have the same source; returns what each lost."""
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
            plan = next(iter(plans.values()))  # all are searched alike
            measure = partial(_importances, plan, threads=threads, measuring=measuring)
            _write_alone(source, list(growing.values()), measure, threads, tell, search=plan.search)
        lost = {output: Losses(writers[output].tensors) for output in growing}
        for output in calibrated:
            lost[output] = _write_calibrated(plans[output], writers[output], threads, tell)
        if formats.open(source.path).identity() != identity:
            raise CheckpointError(f"{source.path}: was changed while it was packed; pack it again")
    return lost


def _lacking(source: Selection, folders: Sequence[_Growing]) -> dict[str, set[str]]:
    """Return the tensors that some folder lacks, and the kinds that they are wanted in."""
    kinds = {name: {it.specs[name].kind for it in folders if it.lacks(name)} for name in source.names}
    return {name: wanted for name, wanted in kinds.items() if wanted}


def _searched(source: Selection, kinds: Mapping[str, set[str]]) -> list[str]:
    """Return the matrices whose codes are searched, not kept."""
    blocks = {name: found & CODE_BITS.keys() for name, found in kinds.items() if len(source.spec(name).shape) == 2}
    scales = {name: source.group_scales(name, slice(0, ROWS)) for name, found in blocks.items() if found}
    return [name for name, of in scales.items() if not all(fit(kind, of) for kind in blocks[name])]


def _importances(
    plan: Plan, names: Sequence[str], threads: int, measuring: Callable[[Progress], None] | None
) -> Importances:
    """Return what the columns of matrices count: by a file, or as large as the model itself says that they are."""
    if plan.imatrix:
        return plan.imatrix.importances
    if not (names and plan.search):
        return {}
    from quantkit.quantization.calibration.inputs import importances_without_text  # compiles the engine

    weights = {name: plan.specs[name].weights for name in names}
    tell = counting(measuring, weights, sum(weights.values()))
    return importances_without_text(plan.program, plan.source, names, threads, tell)


def _write_alone(
    source: Selection,
    folders: Sequence[_Growing],
    measure: Callable[[list[str]], Importances],
    threads: int,
    tell: Callable[[str], None],
    *,
    search: bool = True,
) -> None:
    """Write what folders lack, each weight packed by itself; `measure` says what the columns of matrices count."""
    kinds = _lacking(source, folders)
    for name in source.names:
        if name not in kinds:
            tell(name)
    importances = measure(_searched(source, kinds))
    _write_stripes(encoded_stripes(source, kinds, threads, importances, search=search), folders, tell)


def _write_stripes(encoded: Generator[Stripe], folders: Sequence[_Growing], tell: Callable[[str], None]) -> None:
    """Write stripes as they come."""
    with closing(encoded) as stripes:
        for stripe in stripes:
            for folder in folders:
                if folder.lacks(stripe.name):
                    folder.append(stripe)
            if stripe.last:
                tell(stripe.name)


def _write_calibrated(plan: Plan, writer: PackedWriter, threads: int, tell: Callable[[str], None]) -> Losses:
    """Write the tensors that are not finished, packed for what they do to a text."""
    from quantkit.quantization.calibration.balance import balanced, mean_squares  # heavy: after all that can be refused

    assert plan.text is not None
    source = balanced(plan.program, plan.source, plan.specs, plan.text.windows, threads)
    if any(spec.kind in CALIBRATED for spec in plan.specs.values()):
        output_errors = _write_fitted(plan, source, writer, threads, tell)
    else:
        output_errors = {}
        measure = partial(mean_squares, plan.program, source, windows=plan.text.windows, threads=threads)
        _write_alone(source, [_Growing(writer, plan.specs)], measure, threads, tell)
    multiplied = {name for each in plan.program.operations if each.spec.product for name in each.tensors}
    wanted = (name for name, spec in plan.specs.items() if spec.kind in CALIBRATED and name in multiplied)
    rest = (name for name in wanted if name not in output_errors)
    return Losses(writer.tensors, CalibrationReport(plan.text.name, plan.text.tokens, output_errors, tuple(rest)))


def _write_fitted(
    plan: Plan, source: Selection, writer: PackedWriter, threads: int, tell: Callable[[str], None]
) -> dict[str, float]:
    """Write the tensors that are not finished, those of `CALIBRATED` kinds by their outputs; returns their errors."""
    from quantkit.quantization.calibration.layers import Packed, pack_calibrated

    assert plan.text is not None
    noted = dict(writer.keep_finished())

    def finished(name: str) -> Packed | None:
        if name not in noted:
            return None
        lost, output_error, kept = map(noted[name].get, ("relative_error", "output_error", "kept_codes"))
        return Packed(name, writer.read(name), lost or 0.0, output_error, kept)

    output_errors = {}
    for packed in pack_calibrated(plan.program, source, plan.specs, plan.text.windows, threads, finished):
        if packed.name not in noted:
            measured = {"kept_codes": packed.kept_codes, "output_error": packed.output_error}
            writer.add(packed.name, packed.tensor, packed.error, **measured)
        if packed.output_error is not None:
            output_errors[packed.name] = packed.output_error
        tell(packed.name)
    return output_errors


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
