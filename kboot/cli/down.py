"""``kboot down``: switch a machine off that was to stay."""

from __future__ import annotations

from typing import Any

import click

from kboot.cli.naming import name_argument, place_options


@click.command()
@name_argument
@click.option("--all", "everything", is_flag=True, help="All machines that this host knows of.")
@place_options
def down(*, name: str, everything: bool, **place: Any) -> None:
    """Switch the machine NAME off; nothing of it stays but the record of its console."""
    from kboot.machines.finding import remove  # noqa: PLC0415  --help does not need it
    from kboot.machines.whereabouts import known_names  # noqa: PLC0415

    names = known_names() if everything else [name]
    for each in names:
        click.echo(f"{each} is off; {remove(each, place)}")
    if not names:
        click.echo("there are no machines")
