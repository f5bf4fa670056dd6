"""The choice: which tensor becomes which kind, and why.

A recipe maps the role of a tensor in the model to a kind; overrides, regular expressions over names, come after it.
`file.py` reads recipes from files, `target.py` sizes. Which tensors get more bits under a target is `allocation/`'s
affair, how codes are found `encode.py`'s. Nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.errors import OptionError
from quantkit.quantization.recipe.target import read_bpw, read_size
from quantkit.tensor import Role, TensorSpec
from quantkit_kernels.blocks import KINDS


class Choice(NamedTuple):
    """What a tensor becomes: a kind, and the reason why it is that one."""

    kind: str
    reason: str


_ALWAYS: Mapping[Role, Choice] = {
    "embedding": Choice("int8", "embedding: a token reads one row of it, and often the head is the same table"),
    "head": Choice("int8", "head: every token's logits come from it, and it costs little"),
    "positions": Choice("f16", "learned positions: a token reads a single row of them"),
    "router": Choice("f32", "router: it is small, and a token that goes to another expert is another text"),
    "norm": Choice("f32", "norm: it weighs nothing"),
    "bias": Choice("f32", "bias: it weighs nothing"),
    "channels": Choice("f32", "numbers of single channels: they weigh nothing"),
}
MIXED = "mixed"
"""What is asked for where each tensor becomes what the target leaves room for."""
LEAST = Choice("int4", "mixed: the least kind, before bytes are spent")
"""What matrices are by a recipe of `MIXED` alone."""
_MIXED: Mapping[Role, Choice] = {"linear": LEAST, "expert": LEAST, "embedding": LEAST, "head": LEAST}
RECIPES: Mapping[str, Mapping[Role, Choice]] = MappingProxyType(
    {
        kind: {
            **_ALWAYS,
            "linear": Choice(kind, f"linear layer: {kind} is asked for"),
            "expert": Choice(kind, f"expert: {kind} is asked for"),
        }
        for kind in ("int4", "int5", "int6", "int8")
    }
    | {MIXED: {**_ALWAYS, **_MIXED}}
)
"""What is asked for -> role -> kind and reason."""
SENSITIVITIES = ("rule", "measured")
"""Where a recipe of `MIXED` takes from what rounding a tensor costs."""


class Override(NamedTuple):
    """A kind for the matrices in whose name a regular expression is found.

    `origin` says in messages where it stands: an option, or a file and its key.
    """

    pattern: str
    kind: str
    origin: str = "override"

    @property
    def fault(self) -> str | None:
        """What is wrong with it, whatever the model."""
        if self.kind not in KINDS:
            return f"{self.kind!r} is not one of {', '.join(KINDS)}"
        try:
            re.compile(self.pattern)
        except re.error as cause:
            return f"{self.pattern!r} is no regular expression: {cause}"
        return None

    def error(self, fault: str) -> OptionError:
        """Return the error that names the override and what is wrong with it."""
        return OptionError(f"{self.origin} {self.pattern}={self.kind}: {fault}")


@dataclass(frozen=True)
class Recipe:
    """What decides the kind of each tensor.

    Parameters
    ----------
    quantize : {"mixed", "int4", "int5", "int6", "int8"}
        Of `mixed`, linear layers, embedding and head become int4 or more bits, where these save most divergence, up to
        the target. Otherwise the kind of the linear layers; embedding and head become int8. Routers, norms and biases
        become f32.
    overrides : tuple of (regular expression, kind)
        Matrices in whose name the expression is found become that kind; the last match decides. Norms, biases and short
        convolutions stay.
    target_bpw : float, optional
        Of `mixed`: bits per weight of the packed model, at most.
    target_size : int or str, optional
        Of `mixed`, instead: bytes of its tensors, at most; a text such as `98MB` or `4.5GB` says it, too. By default
        what `int4` takes.
    sensitivities : {"rule", "measured"}
        Of `mixed`: whether a rule says which tensors matter, or the model reads a text to find out.

    Raises
    ------
    OptionError
        For an unknown kind, a bad expression, or a target that means nothing.
    """

    quantize: str = MIXED
    overrides: tuple[Override, ...] = ()
    target_bpw: float | None = None
    target_size: int | str | None = None
    sensitivities: str = SENSITIVITIES[0]

    def __post_init__(self) -> None:
        if not isinstance(self.quantize, str) or self.quantize not in RECIPES:
            raise OptionError(f"quantize: {self.quantize!r} is not one of {', '.join(RECIPES)}")
        self._check_target()
        object.__setattr__(self, "overrides", _overrides(self.overrides))
        for override in self.overrides:
            if override.fault:
                raise override.error(override.fault)

    def with_overrides(self, overrides: Sequence[tuple[str, str]]) -> Recipe:
        """Return the recipe with further overrides behind its own, which therefore win."""
        return replace(self, overrides=(*self.overrides, *_overrides(overrides)))

    @property
    def options(self) -> dict[str, Any]:
        """What quantkit.json says of it, and what a file would say that holds it."""
        overrides = [[pattern, kind] for pattern, kind, _ in self.overrides]
        return {"quantize": self.quantize, "overrides": overrides, **self._of_mixed}

    @property
    def arguments(self) -> list[str]:
        """The arguments of `quantkit convert` that say it."""
        overrides = (("--override", f"{pattern}={kind}") for pattern, kind, _ in self.overrides)
        mixed = ((f"--{key.replace('_', '-')}", str(value)) for key, value in self._of_mixed.items())
        return ["-q", self.quantize, *(argument for pair in (*mixed, *overrides) for argument in pair)]

    @property
    def _of_mixed(self) -> dict[str, Any]:
        """What differs from the defaults of those fields that say something of `MIXED` alone."""
        found = {each.name: (getattr(self, each.name), each.default) for each in fields(self)[2:]}
        return {name: value for name, (value, default) in found.items() if value != default}

    def _check_target(self) -> None:
        if self.target_bpw is not None:
            object.__setattr__(self, "target_bpw", read_bpw(self.target_bpw))
        if self.target_size is not None:
            object.__setattr__(self, "target_size", read_size(self.target_size))
        if self.sensitivities not in SENSITIVITIES:
            raise OptionError(f"sensitivities: {self.sensitivities!r} is not one of {', '.join(SENSITIVITIES)}")
        if self.target_bpw is not None and self.target_size is not None:
            raise OptionError("target_size: there is a target_bpw already; give one of the two")
        for name in self._of_mixed if self.quantize != MIXED else ():
            raise OptionError(f"{name}: says something of {MIXED!r} alone, and quantize is {self.quantize!r}")


def _overrides(given: Sequence[Sequence[str]]) -> tuple[Override, ...]:
    """Return pairs of a regular expression and a kind as overrides."""
    for pair in given:
        texts = isinstance(pair, tuple | list) and all(isinstance(text, str) for text in pair)
        if not texts or len(pair) not in (2, 3):
            raise OptionError(f"overrides: {pair!r:.100} is no pair of a regular expression and a kind")
    return tuple(Override(*pair) for pair in given)


def choose(tensors: Mapping[str, TensorSpec], recipe: Recipe) -> dict[str, Choice]:
    """Return name -> kind and reason for each of a model's tensors.

    Parameters
    ----------
    tensors : mapping of str to TensorSpec
        The tensors that the model reads, by name.
    recipe : Recipe

    Raises
    ------
    OptionError
        For an override that finds no matrix, or that packs some experts of a layer and leaves others.
    """
    chosen = {name: RECIPES[recipe.quantize][spec.role] for name, spec in tensors.items()}
    for override in recipe.overrides:
        expression = re.compile(override.pattern)
        found = [name for name, spec in tensors.items() if not spec.is_vector and expression.search(name)]
        if not found:
            raise override.error(
                f"{override.pattern!r} is found in the name of no matrix, "
                f"such as {next(iter(tensors))!r} (norms, biases and short convolutions stay f32)"
            )
        chosen |= dict.fromkeys(found, Choice(override.kind, f"override {override.pattern}={override.kind}"))
    check_experts(tensors, chosen)
    return chosen


def check_experts(tensors: Mapping[str, TensorSpec], chosen: Mapping[str, Choice]) -> None:
    """Raise `OptionError` where only some experts of a layer would be packed."""
    packed: dict[str, bool] = {}
    for name, spec in tensors.items():
        if spec.role == "expert":
            alike = re.sub(r"\bexperts\.\d+\b", "experts", name)
            is_packed = bool(KINDS[chosen[name].kind].block_bytes)
            if packed.setdefault(alike, is_packed) != is_packed:
                raise OptionError(f"override: {name!r} is packed or not, unlike the other experts of its layer")
