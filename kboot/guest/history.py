"""The commands that were run in a guest, for the transcript that people see when a test fails."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

#: Commands kept, and characters of each one's output.
_COMMANDS = 100
_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """A command that was run in the guest."""

    command: str
    #: None if it is unknown: it still runs, was killed, or the guest was gone before its end.
    exit_status: int | None
    duration_s: float
    #: The end of its standard output, followed by the end of its standard error.
    output_tail: str
    #: When it was started.
    time: datetime


class Entry:
    """A command that was begun; its record changes when it ends. Made by `CommandHistory.begin`."""

    def __init__(self, command: str) -> None:
        self._start = time.monotonic()
        self._ended = False
        self.record = CommandRecord(
            command=command,
            exit_status=None,
            duration_s=0.0,
            output_tail="",
            time=datetime.now(UTC),
        )

    def end(self, exit_status: int | None, output: str = "") -> None:
        """It has ended, or nobody waits for it any more; the first call counts."""
        if self._ended:
            return
        self._ended = True
        self.record = CommandRecord(
            command=self.record.command,
            exit_status=exit_status,
            duration_s=time.monotonic() - self._start,
            output_tail=output[-_TAIL:],
            time=self.record.time,
        )


class CommandHistory:
    """The last commands, oldest first. A machine's guests, one after the other, share one."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=_COMMANDS)
        self._lock = threading.Lock()

    def begin(self, command: str) -> Entry:
        """Add a command that is about to run."""
        entry = Entry(command)
        with self._lock:
            self._entries.append(entry)
        return entry

    @property
    def records(self) -> tuple[CommandRecord, ...]:
        """What was run so far; the oldest are forgotten after 100."""
        with self._lock:
            return tuple(entry.record for entry in self._entries)
