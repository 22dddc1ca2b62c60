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
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kboot.cli.options import machine_argument
from kboot.errors import ConfigError, KbootError

if TYPE_CHECKING:
    from kboot.supervisor.client import Attachment

_Function = TypeVar("_Function", bound=Callable[..., Any])


_raw_option = click.option(
    "--raw", is_flag=True, help="Every byte as it came, with the frames of kboot's own commands."
)


def _since_option(default: str) -> Callable[[_Function], _Function]:
    return click.option(
        "--since",
        default=default,
        metavar="WHERE",
        help=f"start (power-on), boot (the current one), now, or an offset.  [default: {default}]",
    )


@click.command()
@machine_argument
@click.option("-f", "--follow", is_flag=True, help="Keep printing what comes.")
@_since_option("start")
@_raw_option
def logs(*, name: str, follow: bool, since: str, raw: bool) -> None:
    """Print the console log of the machine NAME, from its power-on."""
    print_log(name, since, follow=follow, raw=raw)


def print_log(name: str, since: str, *, follow: bool, raw: bool) -> None:
    """Print the record of a console, and maybe go on with what comes."""
    from kboot.supervisor.client import attach, console_of  # noqa: PLC0415  --help does not need it

    position = int(since) if since.isdecimal() else since
    screen = _Screen(raw=raw)
    if follow:
        with attach(name, since=position) as line:
            for data in line.pieces():
                screen.show(data)
    else:
        for data in console_of(name, position):
            screen.show(data)
    screen.flush()


class _Screen:
    """Standard output. Without `raw`, it does not show the frames of commands."""

    def __init__(self, *, raw: bool) -> None:
        from kboot.guest.frames import FrameFilter  # noqa: PLC0415  --help does not need it

        self._frames = None if raw else FrameFilter()
        #: How long to wait for more before `flush`; None for ever.
        self.limit_s: float | None = None

    def show(self, data: bytes) -> None:
        """Show the next bytes. What may become a frame is held back."""
        self._write(self._frames.feed(data) if self._frames else data)
        self.limit_s = _PAUSE_S

    def flush(self) -> None:
        """Show what was held back: a tilde that somebody typed is no frame."""
        self._write(self._frames.flush() if self._frames else b"")
        self.limit_s = None

    def _write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


#: ctrl-]
_DETACH = b"\x1d"
_PIECE = 1 << 16
#: How often it is checked whether what is waited for has come.
_LOOK_S = 0.2
#: A frame comes in one piece; this much silence means that none is under way.
_PAUSE_S = 0.3


@click.command(
    epilog="""\
\b
Examples:
  kboot console                     attach; ctrl-] detaches
  kboot console m1 --read-only      watch; any number of users can
  kboot console --log >console.log  print what was logged so far

One user can type at a time. While kboot itself types, when a machine boots or runs a command, your
keys wait. The guest is told the size of your terminal when you attach, and when it changes while a
shell waits for a command; at other times, run stty rows R cols C yourself.
""",
)
@machine_argument
@click.option("--log", is_flag=True, help="Print what was logged so far, and exit.")
@click.option("--read-only", is_flag=True, help="Watch; type nothing.")
@_since_option("boot")
@_raw_option
def console(*, name: str, log: bool, read_only: bool, since: str, raw: bool) -> None:
    """Attach to the serial console of the machine NAME; ctrl-] detaches."""
    if log:
        print_log(name, since, follow=False, raw=raw)
        return
    if not read_only and not _has_terminal():
        raise ConfigError("there is no terminal to type at: say --read-only, or --log")
    attach_to(name, since, write=not read_only, raw=raw)


def attach_to(
    name: str,
    since: str,
    *,
    write: bool | None,
    raw: bool = False,
    until: threading.Event | None = None,
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
    screen = _Screen(raw=raw)
    with attach(name, since=position, write=writes, size=size) as line:
        if terminal:
            click.echo(f"{name}: attached; ctrl-] detaches", err=True)
            with _raw_terminal(), _told_of_resizing() as resized:
                _talk(name, line, screen, resized)
            click.echo(f"\n{name}: detached", err=True)
        else:
            _watch(line, screen, until)
    screen.flush()


def _talk(name: str, line: Attachment, screen: _Screen, resized: socket.socket) -> None:
    """Pass bytes both ways, until the user detaches or the machine is switched off."""
    screen.show(line.wire.take_rest())
    while True:
        ready, _, _ = select.select([line.wire.socket, 0, resized], [], [], screen.limit_s)
        if not ready:
            screen.flush()
        if line.wire.socket in ready:
            data = line.wire.socket.recv(_PIECE)
            if not data:
                return
            screen.show(data)
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


def _watch(line: Attachment, screen: _Screen, until: threading.Event | None) -> None:
    screen.show(line.wire.take_rest())
    while True:
        ended = until is not None and until.is_set()
        # Once more after the end: what was said before it may still be on its way.
        ready, _, _ = select.select([line.wire.socket], [], [], _LOOK_S if until else None)
        if ready:
            data = line.wire.socket.recv(_PIECE)
            if not data:
                return
            screen.show(data)
        elif ended:
            return


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
