"""How checkpoints of a family store what its program reads, where that is not one tensor each under the same name.

A family names it in a few rows: `Fused`, several tensors in one (`qkv_proj`, experts in a stack), `Grouped`, several in
one by turns, `Split`, one in equal parts, `Joined`, one in others, and `Stated`, not at all. The sizes follow from the
program's own tensors.
`described` makes of the rows the pieces of each tensor; whoever reads a checkpoint reads those, and no format knows a
family. Nothing is read here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.models.config import DecoderConfig
from quantkit.tensor import Piece, TensorSpec


@dataclass(frozen=True)
class Fused:
    """Several tensors of the program that a checkpoint stores as one, their rows below each other.

    Attributes
    ----------
    module : str
        The checkpoint's module, as its name ends: `self_attn.qkv_proj`.
    parts : tuple of str
        The program's modules, `self_attn.q_proj` and others, in the order of their rows. `*` stands for the place in a
        stack of matrices, such as an expert's number.
    groups : str, optional
        The field of the config that says how many groups of rows there are, such as heads. Each has its share of every
        part. By default there is one.
    transposed : bool
        The rows stand side by side: matrices are `[in, out]`.
    weight, bias : str
        What follows `module` in the names of the checkpoint's tensors.
    pairs : str, optional
        The field of the config that says how many heads there are, where their rows stand in pairs, see `Piece`.
    unpaired : tuple of str
        Those of the parts whose rows do not stand in pairs, though those of the others do.
    decoder : str, optional
        How weights, not biases, are computed from what is stored, see `Piece`.
    either_way : bool
        Some checkpoints have matrices transposed, others not, see `Piece`.
    flat : bool
        The matrices of a stack stand below each other in one.
    """

    module: str
    parts: tuple[str, ...]
    groups: str = ""
    transposed: bool = False
    weight: str = ".weight"
    bias: str = ".bias"
    pairs: str = ""
    unpaired: tuple[str, ...] = ()
    decoder: str = ""
    either_way: bool = False
    flat: bool = False

    def pieces(self, tensors: Mapping[str, TensorSpec], config: DecoderConfig) -> Iterator[tuple[str, Piece]]:
        """Yield the name and the piece of each of a program's tensors that are stored so."""
        groups = getattr(config, self.groups) if self.groups else 1
        firsts = [first for first in ending(self.parts[0], tensors) if first.kind in ("weight", "bias")]
        places = Counter((first.prefix, first.kind) for first in firsts)
        for first in firsts:
            specs = [tensors[first.sibling(part)] for part in self.parts]
            ends = list(accumulate(spec.shape[0] // groups for spec in specs))
            begins, (rows, columns) = [0, *ends[:-1]], (ends[-1] * groups, specs[0].shape[1:])
            transposed = self.transposed and bool(columns)
            shape = (*columns, rows) if transposed else (rows, *columns)
            stack = () if first.place is None else (places[first.prefix, first.kind],)
            stacked = stack[0] if stack and self.flat else 0
            is_weight = first.kind == "weight"
            name = f"{first.prefix}{self.module}{self.weight if is_weight else self.bias}"
            pairs, decoder = getattr(config, self.pairs) if self.pairs else 0, self.decoder if is_weight else ""
            whole = Piece(
                name,
                (stacked * shape[0], *shape[1:]) if stacked else stack + shape,
                period=ends[-1],
                index=first.place,
                transposed=transposed,
                pairs=pairs,
                decoder=decoder,
                either_way=self.either_way,
                stacked=stacked,
            )
            for part, spec, begin, end in zip(self.parts, specs, begins, ends, strict=True):
                yield spec.name, replace(whole, begin=begin, end=end, pairs=0 if part in self.unpaired else pairs)


@dataclass(frozen=True)
class Grouped:
    """As `Fused`, where a tensor of the program may be made of several parts, one below the other.

    Attributes
    ----------
    module : str
        The checkpoint's module, as its name ends.
    parts : tuple of (str, str)
        In the order of a group's rows: the program's module, and the attribute of the config that says how many rows of
        a group are its.
    groups : str
        The attribute of the config that says how many groups of rows there are.
    """

    module: str
    parts: tuple[tuple[str, str], ...]
    groups: str

    def pieces(self, tensors: Mapping[str, TensorSpec], config: DecoderConfig) -> Iterator[tuple[str, Piece]]:
        """Yield name and piece, from the first rows to the last, of each of a program's tensors that are stored so."""
        ends = list(accumulate(getattr(config, rows) for _, rows in self.parts))
        for first in ending(self.parts[0][0], tensors):
            shape = (ends[-1] * getattr(config, self.groups), *tensors[first.name].shape[1:])
            for (part, _), begin, end in zip(self.parts, [0, *ends], ends, strict=False):
                name = f"{first.prefix}{self.module}.{first.kind}"
                yield first.sibling(part), Piece(name, shape, begin, end, ends[-1])


@dataclass(frozen=True)
class Split:
    """A tensor of the program that a checkpoint stores in equal parts, such as the norms of single heads.

    Attributes
    ----------
    module : str
        The program's module, as its name ends.
    part : str
        The checkpoint's modules, where `*` stands for 0, 1, 2, ...
    count : str
        The field of the config that says how many there are.
    """

    module: str
    part: str
    count: str

    def pieces(self, tensors: Mapping[str, TensorSpec], config: DecoderConfig) -> Iterator[tuple[str, Piece]]:
        """Yield name and piece, from the first rows to the last, of each of a program's tensors that are stored so."""
        count = getattr(config, self.count)
        for whole in ending(self.module, tensors):
            rows, *columns = tensors[whole.name].shape
            for number in range(count):
                part = f"{whole.prefix}{self.part.replace('*', str(number))}.{whole.kind}"
                yield whole.name, Piece(part, (rows // count, *columns))


@dataclass(frozen=True)
class Joined:
    """A tensor of the program that a checkpoint stores in several, one below the other.

    Attributes
    ----------
    module : str
        The program's module, as its name ends.
    parts : tuple of (str, str)
        The checkpoint's modules in order, and the attribute of the config that says how many rows each has.
    """

    module: str
    parts: tuple[tuple[str, str], ...]

    def pieces(self, tensors: Mapping[str, TensorSpec], config: DecoderConfig) -> Iterator[tuple[str, Piece]]:
        """Yield name and piece, from the first rows to the last, of each of a program's tensors that are stored so."""
        for whole in ending(self.module, tensors):
            for part, rows in self.parts:
                shape = (getattr(config, rows), *tensors[whole.name].shape[1:])
                yield whole.name, Piece(f"{whole.prefix}{part}.{whole.kind}", shape)


@dataclass(frozen=True)
class Named:
    """A tensor of the program that a checkpoint stores under another name, as a whole, in any shape.

    Attributes
    ----------
    stored : str
        Its name in the checkpoint, as it ends.
    tensor : str
        Its name in the program, as it ends, such as `mixer.A_log`.
    decoder : str, optional
        How its numbers are found in what is stored, see `Piece`.
    order : callable, optional
        Returns from the config which stored row each row is, or which column each column is, if `columns`.
    columns : bool
    """

    stored: str
    tensor: str
    decoder: str = ""
    order: Callable[[Any], tuple[int, ...]] | None = None
    columns: bool = False

    def pieces(self, tensors: Mapping[str, TensorSpec], config: DecoderConfig) -> Iterator[tuple[str, Piece]]:
        """Yield the name and the piece of each of a program's tensors that are stored so."""
        order = () if self.order is None else self.order(config)
        order = () if order == tuple(range(len(order))) else order
        for name, spec in tensors.items():
            if name == self.tensor or name.endswith(f".{self.tensor}"):
                stored = name.removesuffix(self.tensor) + self.stored
                reshaped = not self.columns
                piece = Piece(stored, spec.shape, decoder=self.decoder, reshaped=reshaped, order=order)
                yield name, replace(piece, columns=self.columns)


@dataclass(frozen=True)
class Stated:
    """A tensor of the program that no file stores, since what describes the model says its number for each layer.

    Attributes
    ----------
    tensor : str
        Its name in the program, as it ends.
    numbers : tuple of float
        One for each layer.
    """

    tensor: str
    numbers: tuple[float, ...]

    def pieces(self, tensors: Mapping[str, TensorSpec], config: DecoderConfig) -> Iterator[tuple[str, Piece]]:
        """There are none."""
        return iter(())

    def number(self, name: str) -> float | None:
        """Return the number that a tensor of some name consists of; None if it is another one."""
        layer = re.search(r"\.(\d+)\.", name)
        return self.numbers[int(layer[1])] if layer and name.endswith(f".{self.tensor}") else None


Stored = Fused | Grouped | Split | Joined | Named | Stated


def described(
    tensors: Mapping[str, TensorSpec],
    rows: Sequence[Stored],
    config: DecoderConfig,
    renamed: tuple[str, str] = ("", ""),
) -> Mapping[str, TensorSpec]:
    """Return a program's tensors with the pieces that a checkpoint may store them in.

    Names of pieces begin as those of the program, or `renamed`: (beginning in the program, in the checkpoint). Of
    several rows that have a tensor the first counts.
    """
    ours, theirs = renamed
    pieces: dict[str, list[Piece]] = {}
    for row in rows:
        found: dict[str, list[Piece]] = {}
        for name, piece in row.pieces(tensors, config):
            if piece.name.startswith(ours):
                piece = replace(piece, name=theirs + piece.name.removeprefix(ours))
            found.setdefault(name, []).append(piece)
        pieces = found | pieces
    stated = [row for row in rows if isinstance(row, Stated)]

    def stored(name: str, spec: TensorSpec) -> TensorSpec:
        number = next((number for row in stated if (number := row.number(name)) is not None), None)
        spec = spec if number is None else replace(spec, optional=True, number=number)
        return replace(spec, pieces=tuple(pieces.get(name, ())))

    return MappingProxyType({name: stored(name, spec) for name, spec in tensors.items()})


class Ending(NamedTuple):
    """A tensor whose name ends with a module, of which `*` is a place in a stack, and `weight` or `bias`."""

    name: str
    prefix: str
    place: int | None
    kind: str

    def sibling(self, module: str) -> str:
        """Name of the tensor of another module at the same place."""
        return f"{self.prefix}{module.replace('*', str(self.place))}.{self.kind}"


def ending(module: str, names: Iterable[str]) -> list[Ending]:
    """Find the tensors whose names end so."""
    module = re.escape(module).replace(r"\*", r"(\d+)")
    pattern = re.compile(rf"(|.*\.){module}\.(\w+)")
    found = []
    for name in names:
        if match := pattern.fullmatch(name):
            prefix, *place, kind = match.groups()
            found.append(Ending(name, prefix, int(place[0]) if place else None, kind))
    return found
