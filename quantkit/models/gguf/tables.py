"""All architectures of GGUF files that quantkit reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quantkit.models.gguf.dense import DENSE
from quantkit.models.gguf.dialect import Dialect
from quantkit.models.gguf.gemma4 import GEMMA4
from quantkit.models.gguf.hybrid import HYBRID
from quantkit.models.gguf.mixtures import MIXTURES

_ALL = {**DENSE, **GEMMA4, **HYBRID, **{name: MIXTURES[name] | DENSE.get(name, {}) for name in MIXTURES}}

DIALECTS: Mapping[str, Mapping[str, Dialect]] = MappingProxyType({name: _ALL[name] for name in sorted(_ALL)})
"""Architecture -> what tells its model types apart -> how it is written down; an empty sign is the last resort."""
