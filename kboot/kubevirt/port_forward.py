"""A guest's TCP port, reached from this host through KubeVirt's port-forward."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from kboot.backend import Stream
from kboot.errors import ClusterError
from kboot.log import logger

_PIECE_BYTES = 65536


@contextlib.contextmanager
def forwarded(connect: Callable[[], Stream]) -> Iterator[tuple[str, int]]:
    """An address on loopback whose connections go where `connect` leads, one stream for each.

    A connection that `connect` refuses is closed at once.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        forwarder = threading.Thread(
            target=_accept, args=(listener, connect), name="kboot-forward", daemon=True
        )
        forwarder.start()
        try:
            host, port = listener.getsockname()
            yield host, port
        finally:
            # A closed socket would leave the thread waiting for ever; a shut one wakes it.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            forwarder.join(timeout=10)


def _accept(listener: socket.socket, connect: Callable[[], Stream]) -> None:
    """Take connections until nobody listens any more; then end them all."""
    connections: list[_Connection] = []
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            break
        ended = [each for each in connections if not each.is_alive]
        for each in ended:
            each.end()
        connections = [each for each in connections if each not in ended]
        try:
            far = connect()
        except Exception as error:
            # Whatever it is: the next connection may find the guest.
            expected = isinstance(error, ClusterError)
            logger.debug("no connection to the guest's port: %s", error, exc_info=not expected)
            near.close()
            continue
        connections.append(_Connection(near, far))
    for each in connections:
        each.end()


class _Connection:
    """Carries bytes both ways until one side ends."""

    def __init__(self, near: socket.socket, far: Stream) -> None:
        self._near, self._far = near, far
        self._threads = [
            threading.Thread(target=self._carry, args=way, name="kboot-forward", daemon=True)
            for way in ((near.recv, far.sendall), (far.recv, near.sendall))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it carries bytes still."""
        return any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        """Close both sides."""
        self._hang_up()
        for thread in self._threads:
            thread.join(timeout=5)
        self._near.close()

    def _carry(self, receive: Callable[[int], bytes], send: Callable[[bytes], None]) -> None:
        try:
            while data := receive(_PIECE_BYTES):
                send(data)
        except OSError as error:
            logger.debug("a connection to the guest's port was lost: %s", error)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)
        self._far.close()
