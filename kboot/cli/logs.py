"""``kboot logs``: what a machine's console has said."""

from __future__ import annotations

import sys

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
    from kboot.machines.client import attach  # noqa: PLC0415  --help does not need it

    position = int(since) if since.isdecimal() else since
    with attach(name, since=position) as line:
        left = line.size - line.offset
        for data in line.pieces() if follow or left else ():
            sys.stdout.buffer.write(data if follow else data[:left])
            sys.stdout.buffer.flush()
            left -= len(data)
            if not follow and left <= 0:
                break
