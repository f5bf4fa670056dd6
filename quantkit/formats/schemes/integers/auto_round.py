"""AutoRound, which stores what it rounded as GPTQ or AWQ do, and says in config.json as which.

Bits and groups of modules that differ (`extra_config`) follow from shapes; what has 16 bits stands there as it is.

Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from quantkit.errors import UnsupportedError

_GPTQ = {"quant_method": "gptq", "checkpoint_format": "gptq"}
_GPTQ_V2 = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
_AWQ = {"quant_method": "awq", "version": "gemm"}
PACKINGS: Mapping[Any, Mapping[str, str]] = MappingProxyType(
    {
        "auto_round:auto_gptq": _GPTQ,
        "auto_round:gptq": _GPTQ,
        "auto_round:gptqmodel": _GPTQ_V2,
        "auto_round": _GPTQ_V2,
        "auto_round:auto_awq": _AWQ,
        "auto_round:awq": _AWQ,
    }
)
"""`packing_format` -> what GPTQ and AWQ say in its place."""


def config_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json would say if it named the scheme that tensors are stored in.

    Raises
    ------
    UnsupportedError
        It is none of these, or activations are rotated while the model runs.
    """
    packing, kind, rotation = (said.get(field) for field in ("packing_format", "data_type", "rotation_config"))
    if not isinstance(packing, str) or packing not in PACKINGS or kind not in (None, "int") or rotation:
        raise UnsupportedError(
            f"quantization_config: packing_format {packing!r:.60} of data_type {kind!r:.60}"
            f"{' with rotations' if rotation else ''} is not supported"
        )
    return {**said, **PACKINGS[packing]}
