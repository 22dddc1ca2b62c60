"""A serial line for any number of readers, each from where it likes, and one who types."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kboot.console import Console
from kboot.errors import ConfigError, ConsoleClosed, GuestError
from kboot.log import logger

#: Rows and columns.
Size = tuple[int, int]


class Keyboard:
    """The right to type. A holder's keys wait while it is taken away."""

    def __init__(self) -> None:
        self._mine = threading.Lock()
        self._state = threading.Lock()
        self._holder: int | None = None
        self._size: Size | None = None

    @property
    def holder(self) -> int | None:
        """The process id of who may type; None if nobody wants to."""
        with self._state:
            return self._holder

    @property
    def size(self) -> Size | None:
        """Rows and columns of the holder's terminal, if they are known."""
        with self._state:
            return self._size

    def resize(self, pid: int, size: Size) -> bool:
        """The terminal of `pid` has another size; whether that is the holder's."""
        with self._state:
            if self._holder == pid:
                self._size = size
            return self._holder == pid

    @contextlib.contextmanager
    def held_by(self, pid: int, size: Size | None = None) -> Iterator[None]:
        """`pid` may type, for the length of the ``with``. `ConfigError` if another one does."""
        with self._state:
            if self._holder is not None:
                raise ConfigError(
                    f"process {self._holder} types on this console already; "
                    "one can, any number can read: --read-only"
                )
            self._holder, self._size = pid, size
        try:
            yield
        finally:
            with self._state:
                self._holder = self._size = None

    @contextlib.contextmanager
    def taken_away(self, why: str) -> Iterator[None]:
        """kboot itself types, for the length of the ``with``; keys of the holder wait."""
        logger.debug("the keyboard is taken away: %s", why)
        with self._mine:
            yield

    @contextlib.contextmanager
    def free(self) -> Iterator[None]:
        """One key of the holder's; waits while the keyboard is taken away."""
        with self._mine:
            yield


def set_size(size: Size) -> str:
    """The command that sets the size of the guest's serial terminal, from outside of it."""
    rows, columns = size
    active = "/sys/class/tty/console/active"
    return f"stty -F /dev/$(sed 's/.* //' {active}) rows {rows} cols {columns}"


_PIECE = 1 << 16
#: How soon a reader that waits for the guest is asked whether it still lives.
_LOOK_S = 0.5


class SharedConsole:
    """Serves the record of a console, from its file: no reader is too slow."""

    def __init__(self, console: Console, record: Path, keyboard: Keyboard) -> None:
        self._console = console
        self._record = record
        self._keyboard = keyboard

    def position(self, since: object, *, machine: int) -> tuple[int, int]:
        """The position that a reader asks for, and the end of the record.

        ``start`` (of the record), ``boot`` (the present one), ``now``, or a position.
        """
        size = self._console.mark()
        match since:
            case "start":
                return 0, size
            case "boot":
                return min(machine, size), size
            case "now":
                return size, size
            case int() if not isinstance(since, bool) and since >= 0:
                return min(since, size), size
            case _:
                raise ConfigError(f"no position: {since!r}; say start, boot, now, or a number")

    def read(self, client: socket.socket, offset: int, stopping: Callable[[], bool]) -> None:
        """Send the record from `offset` on, and go on until the client leaves."""
        with self._sending(client, offset, stopping), contextlib.suppress(OSError):
            # What a reader types is nobody's business.
            while client.recv(_PIECE):
                pass

    def talk(self, client: socket.socket, offset: int, stopping: Callable[[], bool]) -> None:
        """As `read`, and type what the client sends."""
        with (
            self._sending(client, offset, stopping),
            contextlib.suppress(OSError, ConsoleClosed, GuestError),
        ):
            while data := client.recv(_PIECE):
                with self._keyboard.free():
                    self._console.send(data, echoed=False)

    @contextlib.contextmanager
    def _sending(
        self, client: socket.socket, offset: int, stopping: Callable[[], bool]
    ) -> Iterator[None]:
        """Send the record, until the end of the ``with`` or until the machine is stopped."""
        left = threading.Event()
        # It may wait for the guest for a moment longer; nobody waits for it.
        threading.Thread(
            target=self._send,
            args=(client, offset, lambda: stopping() or left.is_set()),
            daemon=True,
        ).start()
        try:
            yield
        finally:
            left.set()

    def _send(self, client: socket.socket, offset: int, done: Callable[[], bool]) -> None:
        with contextlib.suppress(OSError), self._record.open("rb") as record:
            while not done():
                offset = self._send_what_is_there(client, record, offset)
                self._console.wait_for_more(offset, _LOOK_S)
            self._send_what_is_there(client, record, offset)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _send_what_is_there(self, client: socket.socket, record: BinaryIO, offset: int) -> int:
        """Send the bytes from `offset` on; the position after them."""
        record.seek(offset)
        while data := record.read(_PIECE):
            client.sendall(data)
            offset += len(data)
        # What a full disk keeps out of the file is in memory still, or lost.
        end = self._console.mark()
        while offset < end:
            offset = max(offset, self._console.memory_start)
            data = self._console.raw(offset, min(end, offset + _PIECE))
            client.sendall(data)
            offset += len(data)
        return offset
