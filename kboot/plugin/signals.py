"""SIGTERM and SIGHUP end a test run as Ctrl-C does: machines and servers are stopped.

pytest itself is killed by them at once. A CI system sends SIGTERM to each job that it cancels.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)

#: The signal that has ended this process's run, once one has.
_ENDED_BY = pytest.StashKey[int]()


class EndedBySignal(KeyboardInterrupt):
    """A signal asks us to end. pytest stops as for Ctrl-C, and takes all fixtures down."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")


class Unwinding:
    """Made by `unwinding`."""

    def __init__(self, stash: pytest.Stash, forward: Callable[[int], None]) -> None:
        self._stash = stash
        self._forward = forward
        self._held = False

    def hold(self) -> None:
        """From now on a signal is only remembered: all is being taken down already."""
        self._held = True

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Once is enough: a second signal must not cut the cleaning up short."""
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_IGN)
        self._stash[_ENDED_BY] = number
        self._forward(number)
        if not self._held:
            raise EndedBySignal(number)


@contextlib.contextmanager
def unwinding(
    stash: pytest.Stash, forward: Callable[[int], None] = lambda _number: None
) -> Iterator[Unwinding]:
    """For the length of the ``with``, have those signals end the run in good order.

    `stash` is that of pytest's configuration, and `forward` passes a signal on. A handler that
    somebody else has set stays; so does SIGHUP ignored, by nohup.
    """
    wanted = Unwinding(stash, forward)
    free = [number for number in _NUMBERS if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        free = []
    for number in free:
        signal.signal(number, wanted.handle)
    try:
        yield wanted
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def exit_status(config: pytest.Config) -> int | None:
    """What to exit with after a signal, as shells have it; None if none has ended the run."""
    number = config.stash.get(_ENDED_BY, None)
    return None if number is None else 128 + number
