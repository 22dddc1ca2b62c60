"""What goes over a socket between two processes of ours: JSON, one object a line; then maybe bytes.

A client sends a request, ``{"verb": ..., ...}``. It is answered with any number of
``{"event": ...}`` and then one ``{"result": ...}`` or ``{"error": ...}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError, GuestError, InfraError, KbootError

_SOCKET = "control"
_CLASSES: dict[int, type[KbootError]] = {
    kind.exit_code: kind for kind in (GuestError, ConfigError, InfraError)
}
#: A request is a line of some hundred bytes; an answer has the output of a command in it.
_LINE_LIMIT = 256 << 20


class Wire:
    """One connection. Not for two threads at a time, but one may send while one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one object. OSError if nobody is there any more."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next object; None if the other side has ended. OSError, ValueError."""
        pieces = [self._rest]
        while b"\n" not in pieces[-1]:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            pieces.append(data)
            if sum(map(len, pieces[-2:])) > _LINE_LIMIT:
                raise ValueError("a line without an end")
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise TypeError(f"no object: {message!r}")
        return message

    def take_rest(self) -> bytes:
        """What came behind the last line: the first bytes of a console."""
        rest, self._rest = self._rest, b""
        return rest


def describe(error: BaseException) -> dict[str, Any]:
    """An error as a value that goes over the wire, and into a file."""
    name = type(error).__name__
    if isinstance(error, KbootError):
        return {"class": name, "message": str(error), "exit_code": error.exit_code}
    return {
        "class": name,
        "message": f"a bug in kboot: {name}: {error}",
        "exit_code": InfraError.exit_code,
    }


def to_error(value: dict[str, Any]) -> KbootError:
    """The error that `describe` has described: one of the three families."""
    return _CLASSES.get(value.get("exit_code", 0), InfraError)(value.get("message", "unknown"))


def listen(directory: Path) -> socket.socket:
    """The socket of whom this directory belongs to, and who alone can be connected to there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(directory) as path:
        listener.bind(path)
    listener.listen(64)
    return listener


def connect(directory: Path) -> Wire:
    """A connection to the one who listens in this directory. OSError if there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return Wire(connection)


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """The socket's path. An address has 108 bytes (unix(7)), and directories may be deep."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)
