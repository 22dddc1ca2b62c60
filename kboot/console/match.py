"""What a wait looks for, and what it found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Pattern = str | re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What `Console.expect` found. pexpect's ``before``, ``after`` and ``match`` are all here."""

    #: Which of the patterns it was, from 0.
    index: int
    match: re.Match[str]
    #: The text of the line it was found in.
    text: str
    #: Seconds on the monotonic clock when that line ended (for a prompt: when it was seen).
    time_s: float
    #: The position behind the line, for ``since=``.
    end: int
    #: What came between the start of the wait and the match: its last 1000 lines.
    before: str

    @property
    def after(self) -> str:
        """The text that matched."""
        return self.match.group()


def describe(patterns: Sequence[Pattern]) -> str:
    """The patterns in an error message."""
    texts = [pattern if isinstance(pattern, str) else pattern.pattern for pattern in patterns]
    return " or ".join(repr(text) for text in texts)
