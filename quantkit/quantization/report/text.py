"""Texts of strangers, such as names of tensors, made fit for a page: the one place where documents take them from."""

from __future__ import annotations


def shown(text: str) -> str:
    """Return a text in one line, with every character that does not print spelled out.

    None of what comes out ends a line, turns the order of others, or has no encoding. Markup is escaped elsewhere.
    """
    return (
        text if text.isprintable() else "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    )
