"""Token ids to text as they arrive: the streaming counterpart of `Tokenizer.decode`.

The `decoder` section of a `tokenizer.json` says how pieces become text. Here it is applied to one token at a time, in
constant time per token. Which ids a checkpoint has and how text becomes ids is `tokenizer.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from encodings.utf_8 import IncrementalDecoder
from functools import partial
from pathlib import Path
from typing import Any, Self

from quantkit.errors import UnsupportedError


class Detokenizer:
    """Turns token ids into text as they arrive, in constant time per token.

    Bytes go through an incremental UTF-8 decoder: a character whose bytes are spread over several tokens appears with
    the last of them. U+FFFD appears only for bytes that no further token can mend, or for an unfinished character at
    the end. Special tokens are silent.
    """

    def __init__(self, bytes_of: Mapping[int, bytes], lead: str) -> None:
        self._bytes_of = bytes_of
        self._lead = lead
        self._utf8 = IncrementalDecoder("replace")

    def add(self, token: int) -> str:
        """Return the text that `token` completes, possibly none."""
        new = self._bytes_of[token]
        # Most tokens need no decoder: characters of a byte, when none is unfinished.
        simple = new.isascii() and not self._utf8.buffer
        text = new.decode() if simple else self._utf8.decode(new)
        return self._trimmed(text) if self._lead else text

    def finish(self) -> str:
        """Return what is left: U+FFFD when the text ends inside of a character, otherwise nothing."""
        return self._trimmed(self._utf8.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if text:
            text, self._lead = text.removeprefix(self._lead), ""
        return text


class TokenBytes(dict[int, bytes]):
    """Token id -> the UTF-8 bytes that it stands for, found when first asked for."""

    def __init__(self, piece_of: Callable[[int], str | None], decoding: Decoding, skipped: frozenset[int]) -> None:
        super().__init__(dict.fromkeys(skipped, b""))
        self._piece_of, self._decoding = piece_of, decoding

    def __missing__(self, token: int) -> bytes:
        piece = self._piece_of(token)
        found = self[token] = b"" if piece is None else self._decoding.bytes_of(piece)
        return found


class Decoding:
    """The `decoder` section of a `tokenizer.json`, applied to one piece at a time.

    A piece stays a str through the steps; raw bytes travel in it as surrogate escapes (PEP 383) until `bytes_of`.
    """

    def __init__(self, steps: Sequence[Callable[[str], str]], lead: str) -> None:
        self._steps = steps
        self.lead = lead  # what is taken off the beginning of a whole text

    @classmethod
    def of(cls, decoder: Mapping[str, Any] | None, file: Path) -> Self:
        """Read the section, which may be missing; raises `UnsupportedError` for a decoder that cannot be streamed."""
        if decoder is None:
            return cls([], "")
        steps: list[Callable[[str], str]] = []
        lead = ""
        for section in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
            match section:
                case {"type": "ByteLevel"}:
                    steps.append(_byte_level)
                case {"type": "ByteFallback"}:
                    steps.append(_byte_fallback)
                case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                    steps.append(partial(_replace, old=pattern, new=content))
                case {"type": "Metaspace", "replacement": mark}:
                    steps.append(partial(_replace, old=mark, new=" "))
                    lead = "" if section.get("prepend_scheme") == "never" else " "
                case {"type": "Strip", "content": content, "start": 0 | 1 as start, "stop": 0}:
                    lead = content * start
                case {"type": "Fuse"}:
                    continue
                case _:
                    known = "ByteLevel, ByteFallback, Replace, Metaspace, Strip, Fuse and sequences of them"
                    raise UnsupportedError(f"{file}: cannot stream the decoder {dict(section)}; supported: {known}")
        return cls(steps, lead)

    def bytes_of(self, piece: str) -> bytes:
        for step in self._steps:
            piece = step(piece)
        return piece.encode("utf-8", "surrogateescape")


def _byte_alphabet() -> dict[str, int]:
    # GPT-2's bytes_to_unicode: printable Latin-1 stands for itself, the other bytes for 256, 257, ...
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_level(piece: str) -> str:
    try:
        return bytes([_BYTE_OF[char] for char in piece]).decode("utf-8", "surrogateescape")
    except KeyError:
        return piece  # an added token, written as it reads


def _replace(piece: str, old: str, new: str) -> str:
    return piece.replace(old, new)


def _byte_fallback(piece: str) -> str:
    byte = _BYTE_TOKEN.fullmatch(piece)
    return bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape") if byte else piece
