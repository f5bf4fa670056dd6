"""Quantized checkpoints: how a scheme stores a tensor in several, and which numbers they stand for, exactly.

`config.json` names the scheme, `scheme_of` finds it; one that is not in `SCHEMES` is refused by its name. `folder.py`
reads the parts and offers the decoded tensors. A scheme knows neither files nor architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.bitnet import Bitnet
from quantkit.formats.schemes.bnb import Bnb
from quantkit.formats.schemes.compressed_tensors import CompressedTensors
from quantkit.formats.schemes.floats.fp8 import Fp8
from quantkit.formats.schemes.floats.modelopt import ModelOpt
from quantkit.formats.schemes.floats.mxfp4 import Mxfp4
from quantkit.formats.schemes.integers import auto_round
from quantkit.formats.schemes.integers.awq import Awq
from quantkit.formats.schemes.integers.gptq import Gptq
from quantkit.formats.schemes.integers.hqq import Hqq
from quantkit.formats.schemes.mlx import Mlx
from quantkit.formats.schemes.scheme import Scheme
from quantkit.formats.schemes.torchao import TorchAo

SCHEMES: Mapping[str, type[Scheme]] = MappingProxyType(
    {
        "awq": Awq,
        "bitnet": Bitnet,
        "bitsandbytes": Bnb,
        "compressed-tensors": CompressedTensors,
        "fbgemm_fp8": Fp8,
        "fp8": Fp8,
        "gptq": Gptq,
        "hqq": Hqq,
        "metal": Mlx,
        "mlx": Mlx,
        "modelopt": ModelOpt,
        "modelopt_fp4": ModelOpt,
        "mxfp4": Mxfp4,
        "mxfp8": Fp8,
        "torchao": TorchAo,
    }
)
"""`quant_method` -> scheme."""
RENAMED: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = MappingProxyType(
    {"auto-round": auto_round.config_of, "intel/auto-round": auto_round.config_of}
)
"""`quant_method` -> what config.json would say if it named the scheme that tensors are stored in."""
UNNAMED = MappingProxyType({"mlx": {"bits", "group_size"}, "bitsandbytes": {"load_in_8bit"}})
"""`quant_method` -> fields that say so where it is not named."""
PACKED = "quantkit"
"""`quant_method` of quantkit's own folders, which `quantkit.formats.packed` reads, not a scheme."""
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
            method, said = _named(found)
            if isinstance(method, str) and method in SCHEMES:
                return SCHEMES[method].of(said)
            if method == PACKED:
                raise UnsupportedError(
                    "the model was packed by quantkit, and its quantkit.json is missing; copy it, too"
                )
            named = "method not named" if method is None else f"{method!r:.60}"
            raise UnsupportedError(
                f"the checkpoint is already quantized ({field}: {named}), in no scheme that quantkit reads: use the "
                f"original checkpoint, or a copy in one of {', '.join(SCHEMES)}"
            )
    return None


def _named(found: Any) -> tuple[Any, Mapping[str, Any]]:
    """The name of a method, and what is said of it; some have no name, but fields of their own."""
    if not isinstance(found, dict):
        return None, {}
    unnamed = (method for method, fields in UNNAMED.items() if fields <= found.keys())
    method = found["quant_method"] if "quant_method" in found else next(unnamed, None)
    if isinstance(method, str) and method in RENAMED:
        return _named(RENAMED[method](found))
    return method, found
