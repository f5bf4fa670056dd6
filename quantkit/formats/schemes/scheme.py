"""What a quantization scheme tells those who read a checkpoint; each is a file here and a row in `SCHEMES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from quantkit.formats.mapped import Entry
from quantkit.tensor import GroupScales


@dataclass(frozen=True)
class Part:
    """A stored tensor: its name, what the header of its file says of it, and how entries of its first axis are read."""

    name: str
    entry: Entry
    read: Callable[[slice], NDArray[Any]]

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def __call__(self, wanted: slice = slice(None)) -> NDArray[Any]:
        """Return some entries, or all: FP8 as bytes, BF16 as uint16, everything else as numbers."""
        return self.read(wanted)


class Scheme(ABC):
    """How checkpoints of one `quant_method` store tensors.

    Attributes
    ----------
    known_as, variants : str
        What people call it, and what of it is read, for a table.
    kind : str
        What decoded tensors are: `f32`, `f16` or `bf16`, whichever holds every number exactly.
    ignored : tuple of str
        How names of tensors end that no number of the model depends on, such as scales of activations.
    """

    known_as: ClassVar[str]
    variants: ClassVar[str]
    kind: ClassVar[str]
    ignored: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Scheme:
        """Make the scheme of a `quantization_config`; raises `UnsupportedError` for a variant that is not read.

        It may be of another class, where variants of a method have little in common.
        """
        return cls()

    @abstractmethod
    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the tensors that are stored in the scheme, by their names: the names of each one's parts.

        A part need not be among `names`, which are those of a checkpoint.
        """

    @abstractmethod
    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        """Return the shape of a decoded tensor; raises `ValueError`, with what is wrong, where parts do not fit.

        Of their contents, no more is read than says what the others hold.
        """

    @abstractmethod
    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[Any]:
        """Return some entries of the first axis of a tensor, as `kind` stores them; no others are read."""

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        """Return what some entries of a tensor were quantized with; None where there is no scale for 32 columns."""
        return None
