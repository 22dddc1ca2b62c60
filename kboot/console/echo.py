"""Tell the terminal's echo of what we typed from what the guest has to say.

``sendline("echo 'Kernel panic - not syncing'")`` comes back as a line; it is no panic.
"""

from __future__ import annotations

import re
from collections import deque

from kboot.crash.lines import without_escapes

# White space is left out on both sides: line editors break long lines with spaces, carriage
# returns and newlines of their own.
_INVISIBLE = re.compile(rb"[\x00-\x20\x7f]")

#: Shorter lines are let through: they look like no crash, and ``root`` may well be an answer.
_SHORTEST = 8

#: Part of a line we typed, alone at the end of a row of the terminal, is told from chance by its
#: length.
_FRAGMENT = 24


def _squash(data: bytes) -> bytes:
    return _INVISIBLE.sub(b"", without_escapes(data))


class EchoFilter:
    """Remembers the lines that were sent and knows them when they come back."""

    #: A line that has not come back after so many others were sent never will.
    MEMORY_LINES = 16

    def __init__(self) -> None:
        self._expected: deque[bytes] = deque(maxlen=self.MEMORY_LINES)
        self._typing = b""

    def sent(self, data: bytes) -> None:
        """Note bytes that were typed."""
        *lines, self._typing = (self._typing + data.replace(b"\r", b"\n")).split(b"\n")
        squashed = (_squash(line) for line in lines)
        self._expected.extend(line for line in squashed if len(line) >= _SHORTEST)

    def take(self, line: bytes) -> bool:
        """Whether this whole line is an echo. Each line that was sent comes back once."""
        if not self._expected:
            return False
        seen = _squash(line)
        for index, expected in enumerate(self._expected):
            if seen.endswith(expected):
                self._forget(index + 1)
                return True
            if overlap := _overlap(seen, expected):
                self._forget(index)
                self._expected[0] = expected[overlap:]
                return True
        return False

    def without(self, unfinished: str) -> str:
        """An unfinished line without the echo that has come so far at its end."""
        typed = [*self._expected, *filter(None, [_squash(self._typing)])]
        if not typed:
            # As during a boot, when it is asked for time and again.
            return unfinished
        cut = len(unfinished)
        for start in range(max(0, cut - 256), cut):
            rest = _squash(unfinished[start:].encode())
            if rest and any(expected.startswith(rest) for expected in typed):
                return unfinished[:start]
        return unfinished

    def _forget(self, count: int) -> None:
        for _ in range(count):
            self._expected.popleft()


def _overlap(seen: bytes, expected: bytes) -> int:
    """How many bytes of `expected` stand at the end of `seen`; 0 if too few to mean anything."""
    for length in range(min(len(seen), len(expected)), _FRAGMENT - 1, -1):
        if seen.endswith(expected[:length]):
            return length
    return 0
