"""`quantkit list`: the models that `run` packed on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantkit.cli.options import Command, json_option
from quantkit.cli.streams import echo

if TYPE_CHECKING:
    from quantkit.quantization.packed_copies import PackedCopy


@click.command("list", cls=Command, short_help="List the packed models that run keeps.")
@json_option
def command(as_json: bool) -> None:
    """List the models that `run` packed into the user's cache, last used first.

    `quantkit rm` removes them. Downloads from the Hugging Face hub are in the hub's own cache, which `hf cache` lists
    and clears.
    """
    from quantkit.quantization.packed_copies import list_copies

    (_print_json if as_json else _print_table)(list_copies())


def _print_table(copies: list[PackedCopy]) -> None:
    from datetime import datetime

    from quantkit import user_cache
    from quantkit.cli.text import size, table
    from quantkit.formats.hub.cache import cache_folder

    rows = [
        (
            copy.name,
            copy.source,
            copy.kind if copy.complete else "unfinished",
            size(copy.nbytes),
            f"{datetime.fromtimestamp(copy.used):%Y-%m-%d %H:%M}",
        )
        for copy in copies
    ]
    if rows:
        echo(table(("name", "source", "kind", "size", "last used"), rows, left=2) + "\n")
    models = "1 packed model" if len(copies) == 1 else f"{len(copies)} packed models"
    echo(f"{models}, {size(sum(copy.nbytes for copy in copies))}, in {user_cache.root() / 'models'}")
    if downloads := cache_folder():
        echo(f"downloads from the hub are in {downloads}; `hf cache` lists and removes them", err=True)


def _print_json(copies: list[PackedCopy]) -> None:
    import json
    from dataclasses import asdict

    echo(json.dumps([{**asdict(copy), "path": str(copy.path)} for copy in copies], indent=2))
