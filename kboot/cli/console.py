"""``kboot console``: talk to a machine over its serial line."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from kboot.cli.naming import machine_argument
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.machines.client import Attachment

#: ctrl-]
_DETACH = b"\x1d"
_PIECE = 1 << 16


@click.command(
    epilog="""\
\b
Examples:
  kboot console                     type, and detach with ctrl-]
  kboot console --read-only         watch; any number can
  kboot console --log >console.log  what it has said so far

One can type at a time. While kboot itself types, when a machine boots or runs a command, your keys
wait.
""",
)
@machine_argument
@click.option("--log", is_flag=True, help="Print what it has said so far, and end.")
@click.option("--read-only", is_flag=True, help="Watch; type nothing.")
@click.option(
    "--since",
    default="boot",
    metavar="WHERE",
    help="start (of the machine), boot (the present one), now, or a byte.  [default: boot]",
)
def console(*, name: str, log: bool, read_only: bool, since: str) -> None:
    """Attach to the console of the machine NAME; ctrl-] detaches."""
    if log:
        from kboot.cli.logs import print_log  # noqa: PLC0415

        print_log(name, since, follow=False)
        return
    if not read_only and not sys.stdin.isatty():
        raise ConfigError("there is no terminal to type at: say --read-only, or --log")
    attach_to(name, since, write=not read_only)


def attach_to(name: str, since: str, *, write: bool) -> None:
    """Show a machine's console, and pass on what is typed, until the user detaches."""
    from kboot.machines.client import attach  # noqa: PLC0415  --help does not need it

    position = int(since) if since.isdecimal() else since
    with attach(name, since=position, write=write) as line:
        if sys.stdin.isatty():
            click.echo(f"{name}: attached; ctrl-] detaches", err=True)
            with _raw_terminal():
                _talk(line)
            click.echo(f"\n{name}: detached", err=True)
        else:
            _watch(line)


def _talk(line: Attachment) -> None:
    """Pass bytes both ways, until the user detaches or the machine is switched off."""
    _show(line.wire.take_rest())
    while True:
        ready, _, _ = select.select([line.wire.socket, 0], [], [])
        if line.wire.socket in ready:
            data = line.wire.socket.recv(_PIECE)
            if not data:
                return
            _show(data)
        if 0 in ready:
            keys = os.read(0, _PIECE)
            typed, detach, _ = keys.partition(_DETACH)
            if typed and line.writes:
                line.wire.socket.sendall(typed)
            if detach or not keys:
                return


def _watch(line: Attachment) -> None:
    for data in line.pieces():
        _show(data)


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, ctrl-C too."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
