"""pexpect as the matching engine, fed with lines instead of a file descriptor.

pexpect searches a buffer of characters, which may end in the middle of a line, and copies all of it
for every read unless told otherwise. Here each read replaces the buffer by one line, so a pattern
never sees half a line or two, and the work is linear in the length of the log.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pexpect
from pexpect.spawnbase import SpawnBase

from kboot.console.text import LINE_LIMIT

if TYPE_CHECKING:
    # Generic in the type stubs only.
    _Spawn = SpawnBase[str]
else:
    _Spawn = SpawnBase


class LineEngine(_Spawn):
    """A pexpect spawn whose child is a source of lines.

    `next_text` waits for the next text to look at. It raises what ends the wait.
    """

    def __init__(self, next_text: Callable[[], str]) -> None:
        super().__init__(
            timeout=None, searchwindowsize=2 * LINE_LIMIT, encoding="utf-8", codec_errors="replace"
        )
        # By default pexpect sleeps 0.1 ms after each read, here: for each line of the log.
        self.delayafterread = None
        self._next_text = next_text

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> str:
        """Hand out one line and forget the one before it; pexpect calls this."""
        text = self._next_text()
        self.buffer = ""
        self._before = io.StringIO()
        return text


def search(
    patterns: Sequence[str | re.Pattern[str]], next_text: Callable[[], str]
) -> tuple[int, re.Match[str]]:
    """The index of the first of `patterns` found in a text, and its match.

    Strings are regular expressions, compiled by pexpect's rules (``re.DOTALL``).
    """
    engine = LineEngine(next_text)
    # pexpect looks at its buffer before it reads, and an empty one would match `.*`.
    engine.buffer = next_text()
    index = engine.expect(list(patterns))
    match = engine.match
    if not isinstance(match, re.Match):
        raise pexpect.ExceptionPexpect(f"no match for pattern {index}")
    return index, match
