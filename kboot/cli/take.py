"""``kboot take``: look after a machine from here."""

from __future__ import annotations

from typing import Any

import click

from kboot.cli.naming import name_argument, place_options, say_state


@click.command(epilog="The process that has looked after it so far ends; the machine runs on.")
@name_argument
@place_options
def take(*, name: str, **place: Any) -> None:
    """Look after the machine NAME, which stays on a cluster, from this host from now on."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it
    from kboot.machines.finding import summon  # noqa: PLC0415

    summon(name, place, by_force=True)
    status = ask(name, "wait")
    click.echo(f"{name}: {say_state(status['state'], status['what'])}; {status['machine']}")
