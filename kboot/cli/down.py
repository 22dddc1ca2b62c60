"""``kboot down``: switch a machine off that was to stay."""

from __future__ import annotations

import click

from kboot.cli.naming import machine_argument


@click.command()
@machine_argument
@click.option("--all", "everything", is_flag=True, help="All machines.")
def down(*, name: str, everything: bool) -> None:
    """Switch the machine NAME off; nothing of it stays but the record of its console."""
    from kboot.machines.client import switch_off  # noqa: PLC0415  --help does not need it
    from kboot.machines.places import places  # noqa: PLC0415

    names = [place.name for place in places()] if everything else [name]
    for each in names:
        click.echo(f"{each} is off; its console and logs: {switch_off(each)}")
    if not names:
        click.echo("there are no machines")
