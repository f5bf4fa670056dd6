"""Plain text that a user wrote: prompts, and what is read to measure or to calibrate."""

from __future__ import annotations

from quantkit.errors import OptionError


def decode_text(raw: bytes, origin: str) -> str:
    """Return a text without a byte order mark, and with line feeds alone ending its lines.

    Raises
    ------
    OptionError
        It is not UTF-8; the message names `origin`.
    """
    return decode_utf8(raw, origin).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def decode_utf8(raw: bytes, origin: str) -> str:
    """Return characters as they are; raises as `decode_text`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{origin}: not UTF-8 text ({error.reason} at byte {error.start})") from None
