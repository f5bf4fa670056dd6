"""What a conversion reads and makes, known before anything is written.

Everything that can be refused is refused here, from configuration, headers and the files that say something about
text, before numba is imported or a weight read. `conversion.py` does what a plan says, `report.py` adds it up.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import StrictError, UnsupportedError, collecting_notices, notice
from quantkit.formats.output import as_json
from quantkit.formats.packed import PackedModel
from quantkit.formats.source import ModelSource, Selection
from quantkit.quantization.recipe import Recipe, choose
from quantkit.tensor import TensorSpec

logger = logging.getLogger(__name__)

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Kind of a checkpoint's tensor -> how config.json spells it."""


@dataclass(frozen=True)
class Plan:
    """What a conversion reads and makes.

    Attributes
    ----------
    source : Selection
        The tensors that the model reads.
    specs : Mapping of str to TensorSpec
        The tensors to write, in the order of the source's bytes.
    reasons : Mapping of str to str
        Why each has its kind.
    recipe : Recipe
    notices : tuple of str
        What is left out, and what stands in for something that is missing.
    """

    source: Selection
    specs: Mapping[str, TensorSpec]
    reasons: Mapping[str, str]
    recipe: Recipe
    notices: tuple[str, ...]

    @property
    def about(self) -> dict[str, Any]:
        """What quantkit.json says of the source and the options."""
        source = {"name": _name_of(self.source.path), "dtype": _stored_dtype(self.source)}
        return {"source": source, "options": self.recipe.options}


def make_plan(path: str | os.PathLike[str], recipe: Recipe, *, strict: bool = False) -> Plan:
    """Open a checkpoint and choose a kind for each tensor; raises what `convert` raises for both."""
    with collecting_notices(silent=strict) as notices:
        model = formats.open(path)
        if isinstance(model, PackedModel):
            raise UnsupportedError(f"{model.path}: is packed already; convert the checkpoint that it was made of")
        bound = bind(model)
        source, tensors = bound.weights, bound.program.tensors
        _check_text_files(source)
    if strict and notices:
        raise StrictError(f"{source.path}: refused by --strict: {_listed(notices)}")
    chosen = choose(tensors, recipe)
    return Plan(
        source,
        {name: replace(tensors[name], kind=chosen[name].kind) for name in source.names},
        {name: chosen[name].reason for name in source.names},
        recipe,
        tuple(notices),
    )


def _listed(notices: Sequence[str]) -> str:
    """Number messages where there are several."""
    return "; ".join(f"({i}) {message}" for i, message in enumerate(notices, 1)) if notices[1:] else notices[0]


def _check_text_files(source: ModelSource) -> None:
    """Open the tokenizer, chat template and generation settings as `run` would; raises what it would raise."""
    from quantkit.generation.text.tokenizer import Tokenizer

    if "tokenizer.json" not in source.files:
        notice(logger, f"{source.path}: has no tokenizer.json; the packed model will not take text")
        return
    tokenizer = Tokenizer({**source.files, "config.json": as_json(source.config)}, source.path)
    tokenizer.detokenizer()  # whose section of tokenizer.json is read when the first answer needs it


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
