"""The seams below `Guest`: what carries bytes, and what runs commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kboot.deadline import Deadline

#: Told of a file on its way: bytes done, bytes in all.
OnProgress = Callable[[int, int], None]


def ignore_progress(_done: int, _size: int) -> None:
    """For whoever does not want to know."""


class Channel(Protocol):
    """A line to a shell, with bytes both ways: `kboot.console.Console` is one."""

    def send(self, data: bytes, /, *, echoed: bool = True) -> None:
        """Type `data`. `echoed` says whether the terminal may repeat it."""

    def mark(self) -> int:
        """The present position: bytes received so far."""

    def read(self, position: int, deadline: Deadline, /, *, what: str) -> bytes:
        """Wait for bytes behind `position` and return all there are.

        Raises `GuestTimeout` at the deadline, saying that `what` did not come, and a better reason
        as soon as there is one: a crash, a dead host, a closed line.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended: exit status as shells give it (128 + signal), exact output."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class Job(Protocol):
    """A command that was started in the guest."""

    def wait(self, deadline: Deadline) -> bool:
        """Wait for its end; False when it still runs at the deadline."""

    def fetch(self, deadline: Deadline) -> Ended:
        """The outcome, once it has ended. `GuestError` if the output cannot be had exactly."""

    def kill(self, signal: str, deadline: Deadline) -> None:
        """Send a signal, ``TERM`` or ``KILL``, to the command and all it started."""

    def forget(self) -> None:
        """Give up what the guest keeps of it."""


class Runner(Protocol):
    """A way to run commands in a guest: over the serial line, or ssh."""

    def start(self, command: bytes, deadline: Deadline, *, loud: bool) -> Job:
        """Start a command with ``/bin/sh``; `loud` if somebody waits for its end at once."""

    def put(
        self,
        data: bytes,
        remote: str,
        mode: int,
        deadline: Deadline,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Write `data` to the file `remote` in the guest, with permissions `mode`.

        What `on_progress` raises ends it.
        """

    def close(self) -> None:
        """Leave the guest as it was."""
