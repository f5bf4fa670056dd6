"""From a checkpoint to a packed folder, one stripe of rows after the other.

`plan.py` has refused everything that can be refused before the first weight is read, `pipeline.py` reads and encodes,
and what it yields is written here, in order, to its place in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

from quantkit import formats
from quantkit.engine.machine import peak_memory, usable_cores
from quantkit.errors import CheckpointError
from quantkit.formats.output import check_output
from quantkit.formats.packed import FORMAT_VERSION, PackedWriter, write_packed
from quantkit.generation.options import is_whole, require
from quantkit.quantization.encode import ENCODER_VERSION
from quantkit.quantization.pipeline import Stripe, encoded_stripes
from quantkit.quantization.plan import Plan, make_plan
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report import Progress, Report, by_kind
from quantkit.tensor import TensorSpec


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quantize: str | Recipe = "int4",
    *,
    overrides: Sequence[tuple[str, str]] = (),
    threads: int | None = None,
    force: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    dry_run: bool = False,
) -> Report:
    """Pack a checkpoint into int4/int8 blocks.

    Parameters
    ----------
    source : path
        A Hugging Face folder with F16, BF16 or F32 weights, or a GGUF file.
    output : path
        Folder to write. It appears when it is complete. An interrupted conversion goes on where it stopped when it is
        asked for again, with the same source and options. Until then it is kept beside the output, as a hidden folder
        `.NAME.*.partial`, which may be deleted; a conversion of something else to the same output removes it.
    quantize : {"int4", "int8"} or Recipe
        Kind of the linear layers; embedding and head become int8, norms and biases f32. Or a whole recipe, such as
        `read_recipe` reads from a file.
    overrides : sequence of (regular expression, kind)
        Kinds of the matrices whose names the expressions are found in; the last match decides. They come after those of
        a recipe.
    threads : int, optional
        Default: the physical cores that this process may use. The result does not depend on it.
    force : bool
        Replace `output` if it exists, provided that quantkit wrote every file in it.
    strict : bool
        Refuse a checkpoint of which something would be left out, or stand in for what is missing: tensors and fields of
        config.json that the model does not use, a head that is not tied as the config says, a missing tokenizer, ...
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
    StrictError
        With `strict`, naming all that would be left out or made up.
    PackedModelError
        When the output exists or cannot be written.
    """
    start = time.perf_counter()
    recipe = (quantize if isinstance(quantize, Recipe) else Recipe(quantize)).with_overrides(overrides)
    plan = make_plan(source, recipe, strict=strict)
    require(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "a whole number from 1 up")
    check_output(output, force=force, source=plan.source.path)
    errors = {} if dry_run else _pack(plan, output, force=force, threads=threads or usable_cores(), progress=progress)
    return Report(
        kinds=by_kind(plan.specs),
        source_bytes=plan.source.nbytes,
        unused=plan.source.unused,
        notices=plan.notices,
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
    done, total = 0, sum(spec.weights for spec in plan.specs.values())

    def tell(name: str) -> None:
        nonlocal done
        done += plan.specs[name].weights
        if progress:
            progress(Progress(name, done, total))

    with write_packed(
        output, source.config, plan.specs, source.files, plan.about, force=force, key=_key(plan, identity)
    ) as writer:
        growing = _Growing(writer, plan.specs)
        for name, error in writer.keep_finished():
            growing.errors[name] = error
            tell(name)
        kinds = {name: (spec.kind,) for name, spec in plan.specs.items() if name not in growing.errors}
        with closing(encoded_stripes(source, kinds, threads)) as stripes:
            for stripe in stripes:
                growing.append(stripe)
                if stripe.last:
                    tell(stripe.name)
        if formats.open(source.path).identity() != identity:
            raise CheckpointError(f"{source.path}: was changed while it was packed; pack it again")
    return growing.errors


def _key(plan: Plan, identity: str) -> str:
    """Return a hash of all that decides the bytes of the packed tensors."""
    kinds = {name: spec.kind for name, spec in plan.specs.items()}
    decisive = [identity, plan.about, kinds, ENCODER_VERSION, FORMAT_VERSION]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


class _Growing:
    """A packed folder that is being written, stripe by stripe.

    Attributes
    ----------
    errors : dict of str to float
        Relative error of each tensor that is complete.
    """

    def __init__(self, writer: PackedWriter, specs: Mapping[str, TensorSpec]) -> None:
        self._writer, self._specs = writer, specs
        self._error = self._squares = 0.0
        self.errors: dict[str, float] = {}

    def append(self, stripe: Stripe) -> None:
        """Write a stripe, in the kind that its tensor has in this folder."""
        part = stripe.encoded[self._specs[stripe.name].kind]
        self._writer.append(stripe.name, part.data, part.row_scales)
        self._error, self._squares = self._error + part.error, self._squares + part.squares
        if stripe.last:
            self.errors[stripe.name] = self._error / (self._squares or 1.0)
            self._writer.finish(stripe.name, self.errors[stripe.name])
            self._error = self._squares = 0.0
