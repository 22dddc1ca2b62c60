"""Who may type on a serial line: one at a time, and nobody while kboot types itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from kboot.errors import ConfigError
from kboot.log import logger


class Keyboard:
    """The right to type. A holder's keys wait while it is taken away."""

    def __init__(self) -> None:
        self._mine = threading.Lock()
        self._state = threading.Lock()
        self._holder: int | None = None

    @property
    def holder(self) -> int | None:
        """The process id of who may type; None if nobody wants to."""
        with self._state:
            return self._holder

    @contextlib.contextmanager
    def held_by(self, pid: int) -> Iterator[None]:
        """`pid` may type, for the length of the ``with``. `ConfigError` if another one does."""
        with self._state:
            if self._holder is not None:
                raise ConfigError(
                    f"process {self._holder} types on this console already; "
                    "one can, any number can read: --read-only"
                )
            self._holder = pid
        try:
            yield
        finally:
            with self._state:
                self._holder = None

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
