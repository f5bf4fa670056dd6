"""Plain text as users write it, on any system."""

from __future__ import annotations

import pytest

from quantkit.errors import OptionError
from quantkit.generation.text.plain import decode_text, decode_utf8


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"a\nb", "a\nb"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"\xef\xbb\xbfa\xef\xbb\xbf", "a\ufeff"),
        ("süß 学".encode(), "süß 学"),
    ],
)
def test_marks_and_line_ends_are_no_text(raw: bytes, text: str) -> None:
    assert decode_text(raw, "file") == text


def test_characters_as_they_are() -> None:
    assert decode_utf8(b"\xef\xbb\xbfa\r\n", "file") == "\ufeffa\r\n"


@pytest.mark.parametrize("raw", ["a".encode("utf-16"), b"caf\xe9", b"\xed\xa0\x80"])
def test_other_encodings_are_refused_by_name(raw: bytes) -> None:
    with pytest.raises(OptionError, match=r"^file: not UTF-8 text \(.* at byte \d+\)$"):
        decode_text(raw, "file")
