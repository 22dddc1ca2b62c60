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

    A connection that `connect` refuses with a `ClusterError` is closed at once.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends: list[Callable[[], None]] = []
        thread = threading.Thread(
            target=_accept, args=(listener, connect, ends), name="kboot-forward", daemon=True
        )
        thread.start()
        try:
            host, port = listener.getsockname()
            yield host, port
        finally:
            # A closed socket would leave the thread waiting for ever; a shut one wakes it.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
            for end in ends:
                end()


def _accept(
    listener: socket.socket, connect: Callable[[], Stream], ends: list[Callable[[], None]]
) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = connect()
        except ClusterError as error:
            logger.debug("no connection to the guest's port: %s", error)
            near.close()
            continue
        ends.append(_join(near, far))


def _join(near: socket.socket, far: Stream) -> Callable[[], None]:
    """Carry bytes both ways until one side ends; returns a function that ends both."""

    def end() -> None:
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)
        far.close()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        near.close()

    def carry(receive: Callable[[int], bytes], send: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while data := receive(_PIECE_BYTES):
                send(data)
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)
        far.close()

    threads = [
        threading.Thread(target=carry, args=way, name="kboot-forward", daemon=True)
        for way in ((near.recv, far.sendall), (far.recv, near.sendall))
    ]
    for thread in threads:
        thread.start()
    return end
