"""What `config.json` says of a decoder, read with every field checked.

A family's `Config` inherits `DecoderConfig` and adds its own fields: the name, type and default of a field are those of
transformers. Values come from a downloaded file and are believed only within bounds, so that no later step meets a
text where a number should be, or a model of a billion layers. Nothing here knows a family; `rope.py` reads rotary
parameters, and `fields.py` judges the fields that a family does not use.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeGuard

from quantkit.errors import CheckpointError, UnsupportedError

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
}
"""transformers' name -> the recorder's."""

LAYER_TYPES = ("full_attention", "sliding_attention")
"""How a layer may attend."""

_EXPECTED = {
    int: "a whole number from {minimum} to {maximum}",
    float: "a positive number that float32 holds",
    bool: "true or false",
    str: "a text",
    Mapping: "an object",
    list: "a list",
}


def bounded(default: Any = dataclasses.MISSING, *, minimum: int = 1, maximum: int = 2**31 - 1) -> Any:
    """Return a dataclass field for a whole number within bounds."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The fields that all families share; `None` stands for `null` and for missing.

    Attributes
    ----------
    IGNORED : frozenset of str
        Fields that the family's own code in transformers does not read either, though other families compute with them.
    ROPE_TYPES : Mapping of str to str
        What the family calls a rope type -> what all others call it.
    SPELLINGS : Mapping of str to str
        What the family calls a field -> what all others call it.
    default_theta : float
        The base of rotary embedding where the config has none.
    default_rope : Mapping
        Rope parameters where the config has neither `rope_scaling` nor `rope_parameters`.
    default_rotary_part : float, optional
        The share of a head's channels that turn where the config has no `partial_rotary_factor`; None: the family turns
        all of them, and knows no other share.
    beyond_f16 : bool
        Whether activations pass f16's range, so that bf16 is what other tools must compute in.
    """

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    ROPE_TYPES: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    SPELLINGS: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    default_theta: ClassVar[float] = 10_000.0
    default_rope: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})
    default_rotary_part: ClassVar[float | None] = None
    beyond_f16: ClassVar[bool] = False

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = bounded(maximum=1000)
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: int | None = None
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Pick the known fields out of `config.json`.

        Raises
        ------
        CheckpointError
            A field is missing, ill-typed, out of bounds, or does not fit another one; the message names it.
        """
        hints = typing.get_type_hints(cls)
        values = {
            known.name: _read(config, known, hints[known.name], cls._spelled(config, known.name))
            for known in dataclasses.fields(cls)
        }
        decoder = cls(**values)
        decoder._check_heads()
        return decoder

    @classmethod
    def used(cls) -> frozenset[str]:
        """Names of the fields that the family uses, and of those that it alone may ignore."""
        return cls.IGNORED.union(cls.SPELLINGS, (known.name for known in dataclasses.fields(cls)))

    @classmethod
    def _spelled(cls, config: Mapping[str, Any], name: str) -> str:
        """How a config spells a field."""
        spellings = [*(theirs for theirs, ours in cls.SPELLINGS.items() if ours == name), name]
        first, *others = [spelling for spelling in spellings if spelling in config] or spellings[:1]
        for other in others:
            if config[other] != config[first]:
                raise CheckpointError(
                    f"config.json: {first} is {shown(config[first])}, but {other} is {shown(config[other])}"
                )
        return first

    @property
    def head_size(self) -> int:
        """Channels of one head: `head_dim`, or the hidden size's share."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys, and of values: `num_key_value_heads`, or as many as there are query heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def qkv_heads(self) -> int:
        """Heads of queries, of keys and of values, all together."""
        return self.num_attention_heads + 2 * self.kv_heads

    @property
    def query_columns(self) -> int:
        """Columns of the queries, all heads together."""
        return self.num_attention_heads * self.head_size

    @property
    def kv_columns(self) -> int:
        """Columns of the keys, and of the values, all heads together."""
        return self.kv_heads * self.head_size

    @property
    def windows(self) -> tuple[int, ...]:
        """Attention window of each layer, 0 where a token sees all tokens before it."""
        return (0,) * self.num_hidden_layers

    @property
    def rotated(self) -> tuple[bool, ...]:
        """Whether each layer rotates its queries and keys; without, only attention's order tells positions apart."""
        return (True,) * self.num_hidden_layers

    def _check_heads(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} does not divide into num_attention_heads {heads}"
            )
        if kv_heads is not None and heads % kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        if self.head_size % 2 or self.head_size > 65_536:
            raise CheckpointError(f"config.json: head_dim {self.head_size} is not an even number up to 65536")


def is_positive(value: Any) -> TypeGuard[float]:
    """Whether a value of a config is a number, and a positive normal one of float32, which it is computed with."""
    return type(value) in (int, float) and 2.0**-126 <= value <= 2.0**127


def shown(value: Any) -> str:
    """Return a value of a config in at most 60 characters, for messages; nested values are not followed far."""
    return f"{reprlib.repr(value):.60}"


def activation(field_name: str, value: str) -> str:
    """Return the recorder's name of an activation function; raises `UnsupportedError` for an unknown one."""
    if value not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedError(f"config.json: {field_name} {shown(value)} is not supported; supported are {known}")
    return _ACTIVATIONS[value]


def every_nth_full(full: int, layers: int) -> list[str]:
    """Return each layer's type where layer `full`, twice `full`, ... sees all tokens, and the others have a window."""
    return ["sliding_attention" if number % full else "full_attention" for number in range(1, layers + 1)]


def attention_windows(layer_types: list[Any] | None, default: list[str], sliding_window: int | None) -> tuple[int, ...]:
    """Return each layer's attention window, 0 where a token sees all tokens before it.

    Parameters
    ----------
    layer_types : list of str, optional
        The config's own: `"sliding_attention"` or `"full_attention"` for each layer.
    default : list of str
        Used when the config has none; as long as there are layers.
    sliding_window : int, optional
        Tokens that a sliding layer sees, the current one included.
    """
    kinds = checked_layers(default if layer_types is None else layer_types, LAYER_TYPES, len(default))
    if sliding_window is None and "sliding_attention" in kinds:
        raise CheckpointError("config.json: layer_types has sliding_attention, but there is no sliding_window")
    return tuple(sliding_window or 0 if kind == "sliding_attention" else 0 for kind in kinds)


def checked_layers(
    layer_types: list[Any], known: Sequence[str], layers: int, field_name: str = "layer_types"
) -> list[str]:
    """Return a field with the types of layers, of which there must be one for each layer, and all of them known."""
    if len(layer_types) != layers:
        raise CheckpointError(f"config.json: {field_name} has {len(layer_types)} entries for {layers} layers")
    for kind in layer_types:
        if kind not in known:
            raise UnsupportedError(f"config.json: {field_name} has {shown(kind)}; supported are {' and '.join(known)}")
    return layer_types


def _read(config: Mapping[str, Any], known: dataclasses.Field[Any], hint: Any, name: str) -> Any:
    optional = isinstance(hint, types.UnionType)
    kind = next(choice for choice in typing.get_args(hint) if choice is not type(None)) if optional else hint
    kind = typing.get_origin(kind) or kind
    if name not in config:
        if known.default is dataclasses.MISSING:
            raise CheckpointError(f"config.json: {name} is missing")
        return known.default
    value = config[name]
    if value is None and optional:
        return None
    bounds = {"minimum": 1, "maximum": 2**31 - 1} | dict(known.metadata)
    if not _is(kind, value, **bounds):
        expected = _EXPECTED[kind].format(**bounds)
        raise CheckpointError(f"config.json: {name} is {shown(value)}, not {expected}")
    return float(value) if kind is float else value


def _is(kind: Any, value: Any, *, minimum: int, maximum: int) -> bool:
    if kind is Any:
        return True
    if kind is int:
        return type(value) is int and minimum <= value <= maximum
    if kind is float:
        return is_positive(value)
    return isinstance(value, kind)
