"""Who may type on a serial line: one at a time, and nobody while kboot types itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from kboot.errors import ConfigError
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
