"""`quantkit verify`: is every byte of a packed folder what was written?"""

from __future__ import annotations

import click

from quantkit.cli.models import local_path
from quantkit.cli.options import Command, model_argument
from quantkit.cli.streams import echo


@click.command("verify", cls=Command, short_help="Check a packed model against its checksums.")
@model_argument
def command(model: str) -> None:
    """Check every tensor of the packed folder MODEL against its checksum."""
    from quantkit.formats.packed import verify

    checked = verify(local_path(model, packed=True))
    echo(f"{model}: {len(checked)} tensors are what was written")
