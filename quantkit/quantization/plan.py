"""What a conversion reads and makes, known before anything is written.

Everything that can be refused is refused here, from configuration, headers and the files that say something about
text, before numba is imported or a weight read. `conversion/` does what a plan says, `report/` adds it up.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from quantkit.engine.binding import Bound, bind
from quantkit.engine.opening import open_model
from quantkit.errors import (
    GenerationError,
    QuantkitError,
    StrictError,
    UnsupportedError,
    collecting_notices,
    notice,
)
from quantkit.formats.hub import shown_name
from quantkit.formats.output import as_json
from quantkit.formats.packed import PackedModel
from quantkit.formats.packed.writer import Contents, Measured
from quantkit.formats.source import ModelSource, Selection
from quantkit.models.program import Program
from quantkit.models.registry import Architecture
from quantkit.quantization.recipe import Recipe, choose
from quantkit.quantization.report import AllocationReport, TensorReport
from quantkit.quantization.report.card import card
from quantkit.quantization.report.card_fields import Fields, card_fields
from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import nbytes

if TYPE_CHECKING:
    from quantkit.quantization.calibration.imatrix import ImportanceFile
    from quantkit.quantization.calibration.text import CalibrationText

logger = logging.getLogger(__name__)

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Kind of a checkpoint's tensor -> how config.json spells it."""
METHODS = ("round", "search", "calibrate")
"""Ways to find codes, each better than the one before, and slower."""


@dataclass(frozen=True)
class Plan:
    """What a conversion reads and makes.

    Attributes
    ----------
    program : Program
    architecture : Architecture
    source : Selection
        The tensors that the model reads.
    specs : Mapping of str to TensorSpec
        The tensors to write, in the order of the source's bytes.
    reasons : Mapping of str to str
        Why each has its kind.
    recipe : Recipe
    notices : tuple of str
        What is left out, and what stands in for something that is missing.
    card_fields : Mapping
        What the checkpoint says of itself to model hubs.
    text : CalibrationText, optional
        What to calibrate on.
    imatrix : ImportanceFile, optional
        What says how much columns count.
    search : bool
        Whether blocks that are not calibrated are searched; else weights are rounded.
    allocation : AllocationReport, optional
        How a target was kept.
    """

    program: Program
    architecture: Architecture
    source: Selection
    specs: Mapping[str, TensorSpec]
    reasons: Mapping[str, str]
    recipe: Recipe
    notices: tuple[str, ...]
    card_fields: Fields
    text: CalibrationText | None = None
    imatrix: ImportanceFile | None = None
    search: bool = True
    allocation: AllocationReport | None = None

    @property
    def method(self) -> str:
        """How codes are found: one of `METHODS`."""
        if self.text:
            return "calibrate"
        return "search" if self.search else "round"

    @property
    def nbytes(self) -> int:
        """Bytes of the packed folder's files."""
        return sum(self.contents.sizes.values())

    @cached_property
    def about(self) -> dict[str, Any]:
        """What quantkit.json says of the source, the options, and the text or importance file that packing goes by."""
        source = {"name": shown_name(self.source.path), "dtype": _stored_dtype(self.source)}
        about = {"source": source, "options": self.recipe.options, "method": self.method}
        if self.text:
            about["calibration"] = self.text.about
        if self.imatrix:
            about["imatrix"] = self.imatrix.about
        return about

    @cached_property
    def contents(self) -> Contents:
        """What the packed folder will hold."""

        def readme(packed: Measured) -> bytes:
            return card(self, self.tensors(packed))

        return Contents(self.source.config, self.specs, self.source.files, self.about, readme)

    def tensors(self, packed: Measured) -> tuple[TensorReport, ...]:
        """Return what a report says of each tensor, with what was measured of those that are packed."""
        return tuple(
            TensorReport(
                *(name, spec.kind, spec.shape, spec.role, nbytes(spec.kind, spec.shape)),
                reason=self.reasons[name],
                error=packed[name].get("relative_error", 0.0) if name in packed else None,
                kept_codes=packed.get(name, {}).get("kept_codes"),
            )
            for name, spec in self.specs.items()
        )


def make_plans(path: str | os.PathLike[str], recipes: Iterable[Recipe], *, strict: bool = False) -> list[Plan]:
    """Open a checkpoint and choose kinds by each of some recipes; raises what `convert` raises for both."""
    with collecting_notices(silent=strict) as notices:
        model = open_model(path)
        if isinstance(model, PackedModel):
            raise UnsupportedError(f"{model.path}: is packed already; convert the checkpoint that it was made of")
        bound = bind(model)
        _check_text_files(bound.weights)
    if strict and notices:
        messages = [message.removeprefix(f"{bound.weights.path}: ") for message in notices]
        raise StrictError(f"{bound.weights.path}: refused by --strict: {_listed(messages)}")
    return [_plan(bound, recipe, notices, card_fields(model)) for recipe in recipes]


def _plan(bound: Bound, recipe: Recipe, notices: Sequence[str], fields: Fields) -> Plan:
    source, tensors = bound.weights, bound.program.tensors
    chosen = choose(tensors, recipe)
    return Plan(
        bound.program,
        bound.architecture,
        source,
        {name: replace(tensors[name], kind=chosen[name].kind) for name in source.names},
        {name: chosen[name].reason for name in source.names},
        recipe,
        tuple(notices),
        fields,
    )


def _listed(notices: Sequence[str]) -> str:
    """Number messages where there are several."""
    return "; ".join(f"({i}) {message}" for i, message in enumerate(notices, 1)) if notices[1:] else notices[0]


def _check_text_files(source: ModelSource) -> None:
    """Open the tokenizer, chat template and generation settings as `run` would; raises what it would raise.

    A chat template that cannot be used is a notice: without it the model still continues texts.
    """
    from quantkit.generation.text.tokenizer import Tokenizer

    if "tokenizer.json" not in source.files:
        notice(logger, f"{source.path}: has no tokenizer.json; the packed model will not take text")
        return
    tokenizer = Tokenizer({**source.files, "config.json": as_json(source.config)}, source.path)
    tokenizer.detokenizer()  # whose section of tokenizer.json is read when the first answer needs it
    if tokenizer.has_chat_template:
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
        except GenerationError:
            pass  # it may take other conversations
        except QuantkitError as error:
            notice(logger, f"{error}; the packed model runs with --ignore-chat-template alone")


def _stored_dtype(source: Selection) -> str:
    """Return the type that most weights are stored in, as config.json spells types; `dequantize` goes back to it."""
    weights: Counter[str] = Counter()
    for spec in map(source.spec, source.names):
        weights[spec.kind] += spec.weights
    ((kind, _),) = weights.most_common(1)
    return DTYPES[kind]
