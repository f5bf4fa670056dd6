"""What a repository on the hub holds at a commit, and which of its files a model needs: one set of weights, no more.

Left are pickles, what other libraries want (`original/`, `onnx/`, `consolidated.safetensors`, ...) and second copies of
the weights. Nothing is downloaded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.hub.names import HubName
from quantkit.formats.magic import Magic
from quantkit.formats.output import CARD, PACKED_MANIFEST
from quantkit.formats.safetensors.folder import (
    CONFIG,
    INDEX,
    MODELOPT,
    NUMBERED,
    PIPELINE,
    SIDECARS,
    SINGLE,
    without_weights,
)
from quantkit.formats.vocabularies import VOCABULARIES

SMALL = (CONFIG, CARD, MODELOPT, PACKED_MANIFEST, PIPELINE, *SIDECARS)
"""Files beside the weights that say something of a model."""
TOKENIZERS = ("tokenizer.json", *VOCABULARIES)
COPY = "consolidated"
"""How the files begin that Mistral's own library wants: a second copy of the weights."""
SUFFIXES = {
    ".safetensors": Magic.SAFETENSORS,
    ".gguf": Magic.GGUF,
    ".bin": Magic.PICKLE,
    ".pt": Magic.PICKLE,
    ".pth": Magic.PICKLE,
    ".ckpt": Magic.PICKLE,
}
"""What a file is, as far as its name says it; its contents are looked at when they are here."""


class HubFile(NamedTuple):
    """A file of a repository.

    Attributes
    ----------
    name : str
        Its path in the repository.
    size : int
        Bytes.
    etag : str
        SHA-256 of the contents in hexadecimal digits; for files that git keeps by itself its SHA-1 of them.
    """

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Contents:
    """What a repository holds at a commit: all of it, as the hub lists it, or what is here of it."""

    name: HubName
    commit: str
    files: Mapping[str, HubFile]

    def small(self) -> list[HubFile]:
        """Return the files that say something of a model."""
        return [self.files[name] for name in SMALL if name in self.files]

    def tokenizer(self) -> list[HubFile]:
        """Return the files that a tokenizer may need; raises `CheckpointError` where GGUF files alone hold one."""
        if self.files.keys().isdisjoint(TOKENIZERS) and (several := self._gguf_files()):
            raise self._several(several)
        return self.small()

    def weights(self, shards: Iterable[str]) -> list[HubFile]:
        """Return the files of weights, one set; `shards` are those that the index names, if there is one.

        Raises
        ------
        UnsupportedError
            The weights are pickles alone, or the repository is that of a diffusion pipeline.
        CheckpointError
            There are none, GGUF files alone, or not all shards.
        """
        if SINGLE in self.files:
            return [self.files[SINGLE]]
        names = set(shards) if INDEX in self.files else self._unindexed()
        if missing := sorted(name for name in names if name not in self.files or "/" in name):
            raise CheckpointError(f"{self.name}: has no file {missing[0]!r:.100}, which belongs to its weights")
        return [self.files[name] for name in sorted(names)]

    def _unindexed(self) -> set[str]:
        """Return the safetensors files of a repository without an index: one, or all shards of a set."""
        kinds = {name: SUFFIXES.get(Path(name).suffix, Magic.UNKNOWN) for name in self.files if "/" not in name}
        found = sorted(name for name, kind in kinds.items() if kind is Magic.SAFETENSORS)
        found = [name for name in found if not name.startswith(COPY)] or found
        if len(found) == 1:
            number = NUMBERED.fullmatch(found[0])
            return set(found) if number is None else _all_of(number)
        if found:
            numbers = [NUMBERED.fullmatch(name) for name in found]
            if numbers[0] and {number and number.group(1, 3) for number in numbers} == {numbers[0].group(1, 3)}:
                return _all_of(numbers[0])
            raise CheckpointError(f"{self.name}: has neither {SINGLE} nor {INDEX}, but {', '.join(found)}")
        if PIPELINE in self.files:
            raise UnsupportedError(f"{self.name}: is a diffusion pipeline ({PIPELINE}), no language model")
        if several := self._gguf_files():
            raise self._several(several)
        raise without_weights(str(self.name), kinds)

    def gguf(self) -> list[HubFile]:
        """Return the GGUF file that is meant, with the other parts of it if it is one of several, the first one first.

        Raises
        ------
        CheckpointError
            There is no such file, or a part is missing.
        """
        wanted, several = self.name.file, self._gguf_files()
        if wanted not in self.files:
            word = re.compile(rf"(.*[-._/])?{re.escape(wanted)}([-._/].*)?\.gguf", re.IGNORECASE)
            several = [file for file in several if word.fullmatch(file.name)]
            if len(several) != 1:
                choices = self._choices(several or self._gguf_files())
                raise CheckpointError(
                    f"{self.name}: is not the name of one file; its GGUF files are {choices}"
                    if choices
                    else f"{self.name}: has no GGUF file"
                )
            wanted = several[0].name
        elif Path(wanted).suffix != ".gguf":
            raise CheckpointError(f"{self.name}: is no GGUF file")
        number = NUMBERED.fullmatch(wanted)
        names = sorted(_all_of(number)) if number else [wanted]
        if missing := [name for name in names if name not in self.files]:
            raise CheckpointError(f"{self.name}: is one part of {len(names)}; {missing[0]!r} is not in the repository")
        return [self.files[name] for name in names]

    def _gguf_files(self) -> list[HubFile]:
        """Return the GGUF files that may be models; of those in parts the first, with the size of all."""
        found: dict[str, HubFile] = {}
        for name, file in sorted(self.files.items()):
            number = NUMBERED.fullmatch(name)
            first = f"{number[1]}-{1:0{len(number[2])}}-of-{number[3]}{number[4]}" if number else name
            if name.endswith(".gguf") and not Path(name).name.startswith("mmproj"):
                held = found.get(first, HubFile(first, 0, file.etag))
                found[first] = held._replace(size=held.size + file.size)
        return list(found.values())

    def _several(self, files: Sequence[HubFile]) -> CheckpointError:
        return CheckpointError(f"{self.name}: holds GGUF files; name one of them: {self._choices(files)}")

    def _choices(self, files: Sequence[HubFile]) -> str:
        return ", ".join(f"{HubName(self.name.repo, self.name.revision, name)} ({gb(size)})" for name, size, _ in files)


def _all_of(number: re.Match[str]) -> set[str]:
    """Names of all files of a set of which one is known."""
    stem, digits, count, suffix = number.groups("")
    return {f"{stem}-{at:0{len(digits)}}-of-{count}{suffix}" for at in range(1, min(int(count), 99_999) + 1)}


def gb(nbytes: int) -> str:
    """Return a number of bytes in words."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
