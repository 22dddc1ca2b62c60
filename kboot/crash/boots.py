"""Where each boot in a log of several begins."""

from __future__ import annotations

from kboot import boot_messages
from kboot.crash.lines import parse

_BANNER = b"Linux version "
#: A longer line is no kernel's first one.
_LONG_LINE = 16384


class BootFinder:
    """Finds the kernels' first lines in a log's bytes, which may come in pieces of any size."""

    def __init__(self) -> None:
        #: Bytes before the first line of each boot's kernel.
        self.starts: list[int] = []
        self._partial = b""
        self._offset = 0
        self._last = b""
        self._last_end = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        data = self._partial + data
        end = data.rfind(b"\n") + 1
        position = data.find(_BANNER, 0, end)
        while position >= 0:
            start = data.rfind(b"\n", 0, position) + 1
            line_end = data.find(b"\n", position) + 1
            self._see(data[start:line_end], self._offset + start)
            position = data.find(_BANNER, line_end, end)
        self._partial = data[end:]
        self._offset += end
        if len(self._partial) > _LONG_LINE:
            # Its end cannot begin a boot: the banner comes first in its line.
            self._offset += len(self._partial)
            self._partial = b""

    def _see(self, raw: bytes, start: int) -> None:
        # Two consoles on one line print every line twice.
        again = raw == self._last and start == self._last_end
        self._last, self._last_end = raw, start + len(raw)
        line = parse(raw, 0, start, start + len(raw))
        if not again and boot_messages.begins_with_banner(line.text.lstrip()):
            self.starts.append(start)

    def start_of(self, number: int) -> int | None:
        """Where boot `number` begins, from 1, or from the last one backwards with -1.

        The first boot has what comes before its kernel. None where there is no such boot.
        """
        if number in (1, -len(self.starts), -1 if not self.starts else 1):
            return 0
        index = number if number < 0 else number - 1
        if not -len(self.starts) <= index < len(self.starts):
            return None
        return self.starts[index]
