"""From a packed folder back to a fp16 checkpoint that other tools read.

The weights are those that the packed model computes with, rounded to fp16, under the names of the original checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import PackedModelError
from quantkit.formats.output import UNPACKED_MANIFEST, WEIGHTS, as_json, check_output, output_folder, write_files
from quantkit.formats.packed import CONFIG, SECTION, PackedModel, open_packed
from quantkit.formats.writer import SafetensorsWriter
from quantkit.quantization.encode import dequantize as dequantize_tensor


def dequantize(model: str | os.PathLike[str], output: str | os.PathLike[str], *, force: bool = False) -> None:
    """Unpack a packed folder into a fp16 Hugging Face folder.

    Parameters
    ----------
    model : path
        A packed folder.
    output : path
        Folder to write. It appears when it is complete.
    force : bool
        Replace `output` if it exists, provided that quantkit wrote every file in it.

    Raises
    ------
    PackedModelError
        When the packed folder is not sound, holds weights beyond fp16's range, or the output cannot be written.
    """
    packed = open_packed(model)
    check_output(output, force=force, source=packed.path)
    config = {key: value for key, value in packed.config.items() if key != SECTION}
    spelling = "torch_dtype" if "torch_dtype" in config else "dtype"  # of transformers before and since 5
    with output_folder(output, force=force) as folder:
        files = write_files(folder, {CONFIG: as_json(config | {spelling: "float16"}), **packed.files})
        manifest = {"quantkit_version": version("quantkit"), "files": files}
        (folder / UNPACKED_MANIFEST).write_bytes(as_json(manifest))
        shapes = {name: ("F16", packed.layouts[name].shape) for name in packed.names}
        with SafetensorsWriter(folder / WEIGHTS, shapes, {"format": "pt"}, alignment=1) as weights:
            for name in packed.names:
                weights.write(name, _halves(packed, name))
                packed.release(name)


def _halves(packed: PackedModel, name: str) -> Iterator[NDArray[Any]]:
    for stripe in dequantize_tensor(packed.tensor(name)):
        with np.errstate(over="ignore"):
            half = stripe.astype(np.float16)
        if not np.isfinite(half).all():
            raise PackedModelError(
                f"{packed.path / WEIGHTS}: tensor {name!r} holds weights up to {np.abs(stripe).max():.4g}, "
                "beyond fp16's 65504; they cannot be written as fp16"
            )
        yield half
