"""The record of a serial line: every byte that came, and when."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kboot.errors import InfraError


class Record:
    """Every byte of a serial line, counted from 0.

    The newest bytes are kept in memory. With a `directory`, all of them go to ``serial.log`` as
    they came, and their times to ``serial.timing``, in the classic format of util-linux's
    scriptreplay: a line ``<seconds since the last one> <bytes>`` for each piece that was read.
    """

    #: Bytes kept in memory; up to twice as many between two trims.
    MEMORY_BYTES = 32 << 20

    def __init__(self, directory: Path | None, now: float) -> None:
        self._memory = bytearray()
        self._dropped = 0
        self._last = now
        self._files = contextlib.ExitStack()
        self._log = self._timing = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a killed run saw last is what its reader wants to know first.
            open_file = self._files.enter_context
            self._log = open_file((directory / "serial.log").open("wb", buffering=0))
            self._timing = open_file((directory / "serial.timing").open("wb", buffering=0))

    @property
    def size(self) -> int:
        """Bytes recorded so far."""
        return self._dropped + len(self._memory)

    def append(self, data: bytes, now: float) -> None:
        """Add bytes that came at `now`, monotonic seconds. `InfraError` when the disk is full."""
        self._memory += data
        if len(self._memory) > 2 * self.MEMORY_BYTES:
            excess = len(self._memory) - self.MEMORY_BYTES
            del self._memory[:excess]
            self._dropped += excess
        if self._log is not None and self._timing is not None:
            try:
                self._log.write(data)
                self._timing.write(b"%.6f %d\n" % (now - self._last, len(data)))
            except OSError as error:
                raise InfraError(f"{self._log.name}: {error.strerror}; make room there") from error
        self._last = now

    def read(self, start: int, end: int | None = None) -> bytes:
        """The bytes from `start` up to `end`, as far as they are still in memory."""
        last = self.size if end is None else end
        return bytes(self._memory[max(0, start - self._dropped) : max(0, last - self._dropped)])

    def close(self) -> None:
        """Close the files. The memory can still be read."""
        self._files.close()
        self._log = self._timing = None
