"""All architectures of GGUF files that quantkit reads, a module for each kind; `names.py` has what they share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quantkit.models.gguf.dialect import Dialect
from quantkit.models.gguf.tables.dense import DENSE
from quantkit.models.gguf.tables.gemma import GEMMA
from quantkit.models.gguf.tables.gpt import GPT
from quantkit.models.gguf.tables.hybrid import HYBRID
from quantkit.models.gguf.tables.latent import LATENT
from quantkit.models.gguf.tables.mixtures import MIXTURES
from quantkit.models.gguf.tables.sigmoid import SIGMOID_MIXTURES
from quantkit.models.gguf.tables.state_space import STATE_SPACE

_TABLES = (MIXTURES, SIGMOID_MIXTURES, DENSE, GPT, GEMMA, LATENT, HYBRID, STATE_SPACE)
_NAMES = sorted({name for table in _TABLES for name in table})

DIALECTS: Mapping[str, Mapping[str, Dialect]] = MappingProxyType(
    {name: {sign: one for table in _TABLES for sign, one in table.get(name, {}).items()} for name in _NAMES}
)
"""Architecture -> what tells its model types apart -> how it is written down; an empty sign is the last resort."""
