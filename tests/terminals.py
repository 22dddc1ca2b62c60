"""A terminal with a user at it, for commands that look and behave otherwise there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from kboot.deadline import Deadline


class Terminal:
    """A command that runs on a terminal. Made by `on_terminal`."""

    def __init__(self, master: int, child: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.child = child
        self._rest = b""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        # The kernel sends SIGWINCH to who is in the terminal's foreground.
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read_until(self, text: bytes, limit_s: float = 30.0) -> bytes:
        """What is shown up to the first `text`, and that."""
        seen = self._rest
        for left_s in Deadline(limit_s).poll(0):
            before, found, self._rest = seen.partition(text)
            if found:
                return before + found
            if select.select([self._master], [], [], left_s)[0]:
                seen += os.read(self._master, 65536)
        pytest.fail(f"no {text!r} in {seen!r}")

    def read_all(self, limit_s: float = 120.0) -> bytes:
        """All that is left until the command ends."""
        seen, self._rest = self._rest, b""
        for left_s in Deadline(limit_s).poll(0):
            if not select.select([self._master], [], [], left_s)[0]:
                continue
            try:
                data = os.read(self._master, 65536)
            except OSError:
                # That is how a terminal says that nobody has it open any more.
                return seen
            seen += data
        pytest.fail(f"no end after {seen!r}")


@contextmanager
def on_terminal(
    command: Sequence[str], env: Mapping[str, str], *, rows: int = 40, columns: int = 120
) -> Iterator[Terminal]:
    """Run a command as the leader of a terminal's session, as a shell would."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        with subprocess.Popen(
            # setsid makes the terminal the controlling one, for its signals.
            ["setsid", "--ctty", "--wait", *command],
            env={**env, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        ) as child:
            os.close(slave)
            slave = -1
            try:
                yield Terminal(master, child)
            finally:
                child.kill()
    finally:
        if slave >= 0:
            os.close(slave)
        os.close(master)
