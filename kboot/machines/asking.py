"""A client of a supervisor: what it asks for, and the way back to it."""

from __future__ import annotations

import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

from kboot.backend import Progress
from kboot.errors import ConfigError, InfraError
from kboot.wire import Wire

#: Between two reports of a file's progress.
_PROGRESS_S = 0.1


class Request:
    """A verb with its arguments, and the way back to who asked."""

    def __init__(self, wire: Wire, message: dict[str, Any]) -> None:
        self.wire = wire
        self.message = message

    def text(self, name: str) -> str:
        """An argument that has to be there."""
        value = self.message.get(name)
        if not isinstance(value, str):
            raise ConfigError(f"the request has no {name}")
        return value

    def seconds(self, name: str) -> float:
        """An argument that is a time."""
        value = self.message.get(name)
        if not isinstance(value, int | float):
            raise ConfigError(f"the request has no {name}")
        return float(value)

    def check_presence(self) -> None:
        """`InfraError` if nobody waits for the answer any more."""
        ready, _, _ = select.select([self.wire.socket], [], [], 0)
        if ready and self.wire.socket.recv(1, socket.MSG_PEEK) == b"":
            raise InfraError("it was given up by who asked for it")

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event. `InfraError` if nobody waits for it any more."""
        self.check_presence()
        try:
            self.wire.send(event)
        except OSError as error:
            raise InfraError("it was given up by who asked for it") from error

    @property
    def pid(self) -> int:
        """The process that asks."""
        # struct ucred: pid, uid, gid (unix(7)).
        ids = self.wire.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("3i", ids)[0]
        return pid


class Reporter:
    """Tells a client how far its files are, as often as a person can read it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        #: When the next report of a file and step is due.
        self._next: dict[tuple[Path, str], float] = {}

    def report(self, progress: Progress) -> None:
        """A `kboot.backend.OnProgress`. `InfraError` if the client has left."""
        now = time.monotonic()
        file = (progress.file, progress.step)
        if now < self._next.get(file, now) and progress.done < progress.size:
            return
        self._next[file] = now + _PROGRESS_S
        self._request.tell(
            {
                "event": "progress",
                "file": str(progress.file),
                "step": progress.step,
                "done": progress.done,
                "size": progress.size,
            }
        )
