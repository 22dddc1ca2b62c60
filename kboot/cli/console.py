"""``kboot console`` and ``kboot logs``: a machine's serial console."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from kboot.cli.machines import machine_argument
from kboot.errors import ConfigError, KbootError

if TYPE_CHECKING:
    from kboot.supervisor.client import Attachment


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
    from kboot.supervisor.client import attach, console_of  # noqa: PLC0415  --help does not need it

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


#: ctrl-]
_DETACH = b"\x1d"
_PIECE = 1 << 16
#: How often it is looked whether what is waited for has come.
_LOOK_S = 0.2


@click.command(
    epilog="""\
\b
Examples:
  kboot console                     type, and detach with ctrl-]
  kboot console --read-only         watch; any number can
  kboot console --log >console.log  what it has said so far

One can type at a time. While kboot itself types, when a machine boots or runs a command, your keys
wait. The guest is told the size of your terminal when you attach, and when it changes while a shell
waits for a command; at other times, say stty rows R cols C yourself.
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
        print_log(name, since, follow=False)
        return
    if not read_only and not _has_terminal():
        raise ConfigError("there is no terminal to type at: say --read-only, or --log")
    attach_to(name, since, write=not read_only)


def attach_to(
    name: str, since: str, *, write: bool | None, until: threading.Event | None = None
) -> None:
    """Show a machine's console, and pass on what is typed, until the user detaches.

    With `write` None, what is typed is passed on if there is a terminal to type at. Without a
    terminal, it ends when `until` is set.
    """
    from kboot.supervisor.client import attach  # noqa: PLC0415  --help does not need it

    terminal = _has_terminal()
    writes = terminal if write is None else write
    position = int(since) if since.isdecimal() else since
    size = _size() if writes and terminal else None
    with attach(name, since=position, write=writes, size=size) as line:
        if terminal:
            click.echo(f"{name}: attached; ctrl-] detaches", err=True)
            with _raw_terminal(), _told_of_resizing() as resized:
                _talk(name, line, resized)
            click.echo(f"\n{name}: detached", err=True)
        else:
            _watch(line, until)


def _talk(name: str, line: Attachment, resized: socket.socket) -> None:
    """Pass bytes both ways, until the user detaches or the machine is switched off."""
    _show(line.wire.take_rest())
    while True:
        ready, _, _ = select.select([line.wire.socket, 0, resized], [], [])
        if line.wire.socket in ready:
            data = line.wire.socket.recv(_PIECE)
            if not data:
                return
            _show(data)
        if resized in ready:
            resized.recv(_PIECE)
            if line.writes:
                _tell_size(name)
        if 0 in ready:
            keys = os.read(0, _PIECE)
            typed, detach, _ = keys.partition(_DETACH)
            if typed and line.writes:
                line.wire.socket.sendall(typed)
            if detach or not keys:
                return


def _watch(line: Attachment, until: threading.Event | None) -> None:
    _show(line.wire.take_rest())
    while True:
        ended = until is not None and until.is_set()
        # Once more after the end: what was said before it may still be on its way.
        ready, _, _ = select.select([line.wire.socket], [], [], _LOOK_S if until else None)
        if ready:
            data = line.wire.socket.recv(_PIECE)
            if not data:
                return
            _show(data)
        elif ended:
            return


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _size() -> list[int] | None:
    """Rows and columns of the terminal; None if it does not know."""
    with contextlib.suppress(OSError):
        columns, rows = os.get_terminal_size(0)
        if rows and columns:
            return [rows, columns]
    return None


def _tell_size(name: str) -> None:
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    if size := _size():
        # It is a help, and no reason to end.
        with contextlib.suppress(KbootError):
            ask(name, "resize", size=size)


@contextlib.contextmanager
def _told_of_resizing() -> Iterator[socket.socket]:
    """A socket that has something to read when the terminal's size has changed."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.setblocking(False)

        def tell(_number: int, _frame: object) -> None:
            with contextlib.suppress(BlockingIOError):
                theirs.send(b"!")

        before = signal.signal(signal.SIGWINCH, tell)
        try:
            yield mine
        finally:
            signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, ctrl-C too."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _has_terminal() -> bool:
    """Whether somebody can type here; standard input may be closed."""
    return sys.stdin is not None and sys.stdin.isatty()
