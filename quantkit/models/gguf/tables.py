"""All architectures of GGUF files that quantkit reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quantkit.models.gguf.dense import DENSE
from quantkit.models.gguf.dialect import Dialect
from quantkit.models.gguf.mixtures import MIXTURES

DIALECTS: Mapping[str, Mapping[str, Dialect]] = MappingProxyType(
    {name: {**MIXTURES.get(name, {}), **DENSE.get(name, {})} for name in sorted(DENSE.keys() | MIXTURES.keys())}
)
"""Architecture -> what tells its model types apart -> how it is written down; an empty sign is the last resort."""
