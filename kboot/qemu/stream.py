"""The serial line of a local machine."""

from __future__ import annotations

import contextlib
import socket


class SocketStream:
    """A connected socket as a `kboot.backend.Stream`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.sendall = connection.sendall

    def recv(self, size: int, /) -> bytes:
        """Wait for bytes; empty at the end of the stream."""
        try:
            return self._socket.recv(size)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Give the stream up; a `recv` that waits in another thread returns."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
