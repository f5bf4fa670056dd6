"""Where an architecture and a model on disk meet: what a config describes, and the tensors that are there.

Neither knows the other: `quantkit.models` records a program from a config, `quantkit.formats` opens files. Whoever runs
or converts a model starts here. No tensor is read, except routers, which are small, and where two copies of one are to
be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError, notice
from quantkit.formats.source import ModelSource, Selection
from quantkit.models import mlx, registry
from quantkit.models.program import Program
from quantkit.models.registry import Architecture
from quantkit_kernels.blocks import dequantize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """A model on disk with the program that runs it, and those of its tensors that the program reads."""

    architecture: Architecture
    program: Program
    weights: Selection


def bind(source: ModelSource, text_length: int | None = None) -> Bound:
    """Record the program of a model on disk, for texts of some length, and select its tensors.

    A head that the config ties to the embedding, but that is stored with numbers of its own, is not tied, as in
    transformers; a warning says so.

    Raises
    ------
    QuantkitError
        The config asks for what quantkit does not compute, or the tensors are not those that it asks for.
    """
    with _naming(source):
        architecture = architecture_of(source)
        program = architecture.record(text_length)
    prefixes = (*architecture.prefixes, *_bare(source, program))
    for spec in program.tensors.values():
        if spec.aliases and source.copies_differ(spec, prefixes):
            names = " and ".join(map(repr, (spec.name, *spec.aliases)))
            notice(logger, f"{source.path}: {names} differ: they are not tied, though the configuration says so")
            architecture = architecture.untied()
            program = architecture.record(text_length)
    weights = source.select(program.tensors, prefixes, architecture.source, program.spare)
    _check_routers(program, weights)
    if weights.unused:
        notice(logger, f"{source.path}: {_left_out(weights.unused, architecture.part_of)}")
    if weights.absent:
        notice(logger, f"{source.path}: {_made_up(weights.absent)}", logging.DEBUG)
    return Bound(architecture, program, weights)


def _check_routers(program: Program, weights: Selection) -> None:
    """Raise where the numbers by which experts are chosen are not finite: any expert would be as good as another."""
    for operation in program.operations:
        names = operation.tensors
        routes = operation.name == "route" or (names and program.tensors[names[0]].role == "router")
        for name in names if routes else ():
            tensor = weights.tensor(name, copy=True)
            if not np.isfinite(dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape)).all():
                raise weights.error(
                    f"{weights.file_of(name)}: tensor {name!r}, which chooses experts, holds NaN or infinity; "
                    "the checkpoint is damaged"
                )


def architecture_of(source: ModelSource) -> Architecture:
    """Read what a model on disk says of itself: its `config.json`, or the metadata of a GGUF file.

    A folder that mlx-lm wrote has the `config.json` of any other; the names and shapes of its tensors tell.
    """
    if source.metadata is None:
        architecture = registry.read(source.config)
        model_type = architecture.source["model_type"]
        return architecture.storing(mlx.rows(model_type, source.names, lambda name: source.spec(name).shape))
    from quantkit.models.gguf import reading  # tables of all families, of no use to other files

    specs = {name: source.spec(name) for name in source.names}
    return reading.read(source.metadata, specs, lambda name: source.tensor(name, copy=True).data)


@contextmanager
def _naming(source: ModelSource) -> Iterator[None]:
    """Let errors about the metadata of a GGUF file name the file; those about a `config.json` name that."""
    try:
        yield
    except (CheckpointError, UnsupportedError) as error:
        message = str(error)
        files = {source.path, *map(source.file_of, source.names)}
        if source.metadata is None or any(message.startswith(f"{file}: ") for file in files):
            raise
        what = "its metadata, as " if message.startswith("config.json: ") else ""
        raise type(error)(f"{source.path}: {what}{message}") from error


def _bare(source: ModelSource, program: Program) -> tuple[tuple[str, str], ...]:
    """How names begin where a model was saved without its head, as GPT-2 was published: with nothing for `model.`."""
    model = next(iter(program.tensors)).partition(".")[0] + "."
    return () if source.metadata is not None or any(model in name for name in source.names) else (("", model),)


def _left_out(names: Sequence[str], part_of: str) -> str:
    """Say which tensors of a checkpoint are left out."""
    if part_of:
        modules = dict.fromkeys(name.removeprefix("model.").partition(".")[0] for name in names)
        return f"{part_of} runs as text only; left out: {', '.join(modules)} ({len(names)} tensors)"
    return f"the model does not use {_named(names)}; left out"


def _made_up(names: Sequence[str]) -> str:
    """Say which tensors of a program a checkpoint lacks."""
    return f"has no {_named(names)}; zeros stand in for what is missing"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more, such as {names[-1]!r}" if names[1:] else ""
    return f"tensor {names[0]!r}{more}"
