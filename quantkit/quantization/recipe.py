"""The choice: which tensor becomes which kind.

A recipe maps the role of a tensor in the model to a kind; overrides, regular expressions over names, come after it.
How codes are found is `encode.py`'s affair. Nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from quantkit.errors import OptionError
from quantkit.tensor import Role, TensorSpec
from quantkit_kernels.blocks import KINDS

_ALWAYS: Mapping[Role, str] = {
    **{"embedding": "int8", "head": "int8", "positions": "f16"},
    **{"router": "f32", "norm": "f32", "bias": "f32", "channels": "f32"},
}
RECIPES: Mapping[str, Mapping[Role, str]] = MappingProxyType(
    {
        "int4": {"linear": "int4", "expert": "int4", **_ALWAYS},
        "int8": {"linear": "int8", "expert": "int8", **_ALWAYS},
    }
)
"""Name of a recipe -> role -> kind. Heads stay at int8: they cost little, and every token's logits come from them.
Routers keep all their bits: they are small, and a token that goes to another expert is another text. So do learned
positions nearly: a token reads a single row of them."""


def choose(tensors: Mapping[str, TensorSpec], recipe: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Return name -> kind for each of a model's tensors.

    Parameters
    ----------
    tensors : mapping of str to TensorSpec
        The tensors that the model reads, by name.
    recipe : str
        A name of `RECIPES`.
    overrides : sequence of (regular expression, kind)
        Matrices in whose name the expression is found become that kind; the last match decides. Norms, biases and short
        convolutions stay.

    Raises
    ------
    OptionError
        For an unknown recipe or kind, a bad expression, or one that finds no matrix.
    """
    if recipe not in RECIPES:
        raise OptionError(f"quantize: {recipe!r} is not one of {', '.join(RECIPES)}")
    kinds = {name: RECIPES[recipe][spec.role] for name, spec in tensors.items()}
    for pattern, kind in overrides:
        if kind not in KINDS:
            raise OptionError(f"override {pattern}={kind}: {kind!r} is not one of {', '.join(KINDS)}")
        try:
            expression = re.compile(pattern)
        except re.error as cause:
            raise OptionError(f"override {pattern}={kind}: {pattern!r} is no regular expression: {cause}") from cause
        found = [name for name, spec in tensors.items() if not spec.is_vector and expression.search(name)]
        if not found:
            raise OptionError(
                f"override {pattern}={kind}: {pattern!r} is found in the name of no matrix, "
                f"such as {next(iter(tensors))!r} (norms, biases and short convolutions stay f32)"
            )
        kinds |= dict.fromkeys(found, kind)
    _check_experts(tensors, kinds)
    return kinds


def _check_experts(tensors: Mapping[str, TensorSpec], kinds: Mapping[str, str]) -> None:
    """Raise `OptionError` where only some experts of a layer would be packed."""
    packed: dict[str, bool] = {}
    for name, spec in tensors.items():
        if spec.role == "expert":
            alike = re.sub(r"\bexperts\.\d+\b", "experts", name)
            if packed.setdefault(alike, bool(KINDS[kinds[name]].block_bytes)) != bool(KINDS[kinds[name]].block_bytes):
                raise OptionError(f"override: {name!r} is packed or not, unlike the other experts of its layer")
