"""`quantkit rm`: remove models that `run` packed on the way."""

from __future__ import annotations

import click

from quantkit.cli.options import Command, text
from quantkit.cli.streams import echo


@click.command("rm", cls=Command, short_help="Remove packed models that run keeps.")
@click.argument("names", metavar="[NAME]...", nargs=-1, type=text)
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
def command(names: tuple[str, ...], everything: bool) -> None:
    """Remove models from the user's cache, by the names that `quantkit list` shows.

    What they were packed from stays: `run` packs it again. Downloads from the Hugging Face hub are in the hub's own
    cache, which `hf cache` lists and clears; a packed model runs without them.
    """
    if bool(names) == everything:
        raise click.UsageError("give names, as quantkit list shows them, or --all")
    from quantkit.cli.text import size
    from quantkit.quantization.packed_copies import list_copies, remove_copies

    for copy in remove_copies([copy.name for copy in list_copies()] if everything else names):
        echo(f"{copy.name}: removed, {size(copy.nbytes)}")
