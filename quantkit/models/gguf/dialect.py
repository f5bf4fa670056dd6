"""How one architecture of llama.cpp is written down in GGUF files: rows of a table, nothing that reads.

`Dialect` says which `model_type` an architecture is, which key is which field of its config, and which tensor of a
block is which tensor of the program: `stored.py`'s words, since a GGUF file is one more way to store a program's
tensors. `tables/` has the rows, `reading.py` reads by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.models.gguf.metadata import Metadata
from quantkit.models.stored import Fused, Named

Names = dict[str, str | tuple[str, ...]]
"""Module in a GGUF file -> module of the program, or several whose rows stand below each other in it."""

Fields = Callable[[Metadata, Mapping[str, Any]], Mapping[str, Any]]
"""Returns further fields of a config, from metadata and from the fields so far; `...` leaves one out."""


Row = Fused | Named


class Key(NamedTuple):
    """Where a field of a config stands: its key, its type, and its value where a file has no such key.

    A field without a default is left out; one that is required has `...` as its default. The type `list` stands for
    whole numbers that differ from layer to layer.
    """

    name: str
    kind: type
    default: Any = None


class Dialect(NamedTuple):
    """One architecture.

    Attributes
    ----------
    model_type : str
        Of `registry.FAMILIES`.
    rows : tuple of Row
        GGUF's tensors; a name stands behind `blk.N.`, or alone.
    fields : Mapping of str to Key
        Fields of the config beyond those that all architectures have.
    present : Mapping of str to str
        Field that says whether there is something, such as biases -> a tensor that is there if so.
    fixed : Mapping
        Fields that no file says.
    stated : Mapping of str to str
        Tensor of the program, as its name ends -> the whole key that has its number for each layer.
    more : Fields, optional
    blocks : str
        How the program calls its blocks.
    own_heads, own_rope : bool
        Whether `more` reads sizes of heads, or rotary parameters, which are not those of most architectures.
    accepted : Mapping
        Key that changes what others compute -> the values that are this architecture's own.
    """

    model_type: str
    rows: tuple[Row, ...]
    fields: Mapping[str, Key] = MappingProxyType({})
    present: Mapping[str, str] = MappingProxyType({"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"})
    fixed: Mapping[str, Any] = MappingProxyType({})
    stated: Mapping[str, str] = MappingProxyType({})
    more: Fields | None = None
    blocks: str = "model.layers"
    own_heads: bool = False
    own_rope: bool = False
    accepted: Mapping[str, tuple[Any, ...]] = MappingProxyType({})


def rows(names: Names, *, paired: bool = False, shifted: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """Return the rows of an architecture.

    Parameters
    ----------
    names : Mapping
    paired : bool
        Whether the rows of query and key heads stand in pairs of channels that turn together, see `Piece`.
    shifted : tuple of str
        Modules whose weights are stored with 1 added.
    """
    pairs = {"attn_q": "num_attention_heads", "attn_k": "kv_heads", "attn_qkv": "qkv_heads"} if paired else {}
    tuples = {module: (parts,) if isinstance(parts, str) else parts for module, parts in names.items()}
    return tuple(
        Fused(
            module,
            parts,
            pairs=pairs.get(module, ""),
            unpaired=parts[2:] if module == "attn_qkv" and paired else (),
            decoder="minus_one" if module in shifted else "",
        )
        for module, parts in tuples.items()
    )
