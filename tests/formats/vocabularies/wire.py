"""Writes `tokenizer.model` files of SentencePiece, as `sentencepiece_model.proto` defines them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE, WORD = 1, 2, 3

Piece = tuple[str, float, int]


def varint(value: int) -> bytes:
    value %= 2**64
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def piece(spelling: str, score: float = 0.0, kind: int = NORMAL) -> bytes:
    kinds = b"" if kind == NORMAL else number(3, kind)  # which is the default, and is not written
    return text(1, text(1, spelling.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + kinds)


SPECIAL: Sequence[Piece] = (("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL))
BYTES: Sequence[Piece] = tuple((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))


def model(
    pieces: Sequence[Piece], *, kind: int = BPE, trainer: bytes = b"", prefix: bool = True, normalizer: bytes = b""
) -> bytes:
    """Return a file whose pieces stand behind those of `SPECIAL`; by default no white space is removed."""
    has_bytes = any(kind == BYTE for *_, kind in pieces)
    settings = number(3, kind) + number(35, has_bytes) + number(43, -1) + trainer
    spaces = number(3, prefix) + number(4, False) + normalizer
    return b"".join(piece(*one) for one in (*SPECIAL, *pieces)) + text(2, settings) + text(3, spaces)
