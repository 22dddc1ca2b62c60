"""A guest's port on this host's loopback interface, with real sockets on both sides."""

from __future__ import annotations

import contextlib
import socket
import threading

from kboot.backend import Stream
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.port_forward import forwarded


class Pipe:
    """A stream on a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def recv(self, size: int, /) -> bytes:
        return self._end.recv(size)

    def sendall(self, data: bytes, /) -> None:
        self._end.sendall(data)

    def close(self) -> None:
        # A closed socket would not wake who waits for it.
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)


class Guest:
    """Leads to a new pair of sockets each time, after what it is told to raise."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)
        self.ends: list[socket.socket] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self) -> Stream:
        if self.troubles:
            raise self.troubles.pop(0)
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        self._stack.enter_context(ours)
        self._stack.enter_context(theirs)
        self.ends.append(theirs)
        return Pipe(ours)


def test_a_connection_that_cannot_be_made_does_not_end_the_forward() -> None:
    troubles = ClusterError("the pod is gone"), KeyError("what nobody expects")
    with Guest(*troubles) as guest, forwarded(guest.connect) as address:
        for expected in (b"", b"", b"word"):
            with socket.create_connection(address, timeout=10) as connection:
                if expected:
                    connection.sendall(b"word")
                    for _ in Deadline(10).poll(0.01):
                        if guest.ends:
                            break
                    guest.ends[-1].sendall(guest.ends[-1].recv(4))
                assert connection.recv(4) == expected


def test_connections_that_have_ended_are_forgotten() -> None:
    before = threading.active_count()
    with Guest() as guest, forwarded(guest.connect) as address:
        for number in range(1, 6):
            with socket.create_connection(address, timeout=10):
                for _ in Deadline(10).poll(0.01):
                    if len(guest.ends) == number:
                        break
            assert guest.ends[-1].recv(1) == b""
        for _ in Deadline(10).poll(0.01):
            if threading.active_count() == before + 1:
                break
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
