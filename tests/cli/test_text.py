"""Sizes and tables as commands print them."""

from __future__ import annotations

import pytest

from quantkit.cli.text import size, table


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (999_499, "999 KB"),
        (999_600, "1 MB"),
        (90_500_000, "90.5 MB"),
        (2e12, "2 TB"),
    ],
)
def test_sizes_have_three_digits(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


def test_tables_are_aligned() -> None:
    assert table(("kind", "n"), [("int4", 12), ("f32", 3)]) == "kind   n\nint4  12\nf32    3"


def test_markdown_tables_keep_their_alignment() -> None:
    assert table(("kind", "n"), [("int4", 12)], markdown=True) == "| kind |  n |\n| ---- | -: |\n| int4 | 12 |"
