"""Quantized checkpoints: how a scheme stores a tensor in several, and which numbers they stand for, exactly.

`config.json` names the scheme, `scheme_of` finds it; one that is not in `SCHEMES` is refused by its name. `folder.py`
reads the parts and offers the decoded tensors. A scheme knows neither files nor architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.bitnet import Bitnet
from quantkit.formats.schemes.mxfp4 import Mxfp4
from quantkit.formats.schemes.scheme import Scheme

SCHEMES: Mapping[str, type[Scheme]] = MappingProxyType({"bitnet": Bitnet, "mxfp4": Mxfp4})
"""`quant_method` -> scheme."""
FIELDS = ("quantization_config", "quantization", "compression_config")
"""Fields of config.json that say that a checkpoint is quantized: transformers', MLX's, an old one of others."""


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme of a checkpoint; None where it is not quantized.

    Raises
    ------
    UnsupportedError
        It is quantized in a way that quantkit does not read.
    """
    for field in FIELDS:
        found = config.get(field)
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else None
            if field == FIELDS[0] and isinstance(method, str) and method in SCHEMES:
                return SCHEMES[method].of(found)
            raise UnsupportedError(
                f"the checkpoint is already quantized ({field}: {method or 'method not named'}); "
                f"quantkit packs F16, BF16 and F32 weights, and reads {', '.join(SCHEMES)}: use the original checkpoint"
            )
    return None
