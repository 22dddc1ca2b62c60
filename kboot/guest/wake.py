"""Get a prompt out of a terminal that another process has used, and left as it was."""

from __future__ import annotations

import contextlib

from kboot.boot_messages import LOGIN_PROMPTS
from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import GuestTimeout
from kboot.guest.agent import NOBODY, twice

#: For an answer; a loaded TCG guest takes its time.
_PATIENCE_S = 2.0

#: One after another, until there is a prompt. Each is harmless where the one before was right.
_KEYS = (
    # A getty, or a shell.
    b"\r",
    # An agent, whoever has started it.
    twice(f"@{NOBODY} 0 q") + b"\r",
    # A shell into which an agent was being typed, and a program that somebody has started.
    twice("exit") + b"\x03\r",
)


def wake_terminal(console: Console, deadline: Deadline) -> None:
    """Type what brings a prompt back, as far as that is possible."""
    for keys in _KEYS:
        since = console.mark()
        console.send(keys, echoed=False)
        with contextlib.suppress(GuestTimeout):
            console.expect_prompt(LOGIN_PROMPTS, deadline.within(_PATIENCE_S), since=since)
            return
