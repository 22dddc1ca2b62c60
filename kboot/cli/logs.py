"""``kboot logs``: what a machine's console has said."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from kboot.cli.naming import machine_argument


@click.command()
@machine_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option(
    "--since",
    default="start",
    metavar="WHERE",
    help="start (of the machine), boot (the present one), now, or a byte.  [default: start]",
)
def logs(*, name: str, follow: bool, since: str) -> None:
    """Print the console of the machine NAME, byte by byte as it came, from its power-on."""
    print_log(name, since, follow=follow)


def print_log(name: str, since: str, *, follow: bool) -> None:
    """Print the record of a console, and maybe go on with what comes."""
    from kboot.machines.client import attach, console_of  # noqa: PLC0415  --help does not need it

    position = int(since) if since.isdecimal() else since
    if not follow:
        _print(console_of(name, position))
        return
    with attach(name, since=position) as line:
        _print(line.pieces())


def _print(pieces: Iterable[bytes]) -> None:
    for data in pieces:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
