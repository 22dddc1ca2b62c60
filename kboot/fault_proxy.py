"""A network that misbehaves on purpose: a small HTTP proxy in front of the boot server.

It stands on the server's port only while there are faults; what none of them is about, it passes
on and back. nginx sends well-formed answers; a proxy of our own breaks off, lies and falls silent.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kboot.backend import Fetch, file_path
from kboot.errors import InfraError
from kboot.log import logger
from kboot.server_faults import Fault

#: A page as hotels and guest networks have them.
CAPTIVE_PORTAL = (
    b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head>\n"
    b"<body><h1>Please log in to use this network</h1></body></html>\n"
)

#: Of requests for what a machine will not get, or not so: nginx does not log them.
CONTENT_HEADER = b"X-Kboot-Content"

_PIECE_BYTES = 1 << 16
#: The longest head of a request that iPXE, or anybody, sends.
_HEAD_BYTES = 1 << 16
_CLIENT_LIMIT_S = 60.0
#: A connection that stands still is given up by us after so long, if not by the other side.
_STALL_LIMIT_S = 3600.0
_ZEROS = bytes(_PIECE_BYTES)
#: How often the port is tried that nginx is just giving up.
_PORT_ATTEMPTS = 100
_PORT_PAUSE_S = 0.02


@dataclass(slots=True)
class ActiveFault:
    """A fault that was set, and how often it has happened."""

    number: int
    fault: Fault
    hits: int = 0

    @property
    def left(self) -> bool:
        """Whether it is to happen again."""
        return self.fault.times is None or self.hits < self.fault.times


class FaultList:
    """The faults that are set, in the order in which they were. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[int, ActiveFault] = {}
        #: How often those have happened that were taken away.
        self._past: dict[int, int] = {}
        self._numbers = itertools.count(1)

    def add(self, fault: Fault) -> int:
        """Set a fault; its number."""
        with self._lock:
            number = next(self._numbers)
            self._active[number] = ActiveFault(number, fault)
            return number

    def remove(self, number: int | None) -> bool:
        """Take a fault away, or all of them; whether none is left."""
        with self._lock:
            for each in tuple(self._active) if number is None else (number,):
                if active := self._active.pop(each, None):
                    self._past[each] = active.hits
            return not self._active

    def hits(self, number: int) -> int:
        """How often a fault has happened, also after it was taken away."""
        with self._lock:
            active = self._active.get(number)
            return active.hits if active else self._past.get(number, 0)

    def take(self, path: str, query: str) -> Fault | None:
        """The fault that a request meets, which is one more hit."""
        with self._lock:
            for active in self._active.values():
                if active.left and active.fault.concerns(path, query):
                    active.hits += 1
                    return active.fault
            return None


@dataclass(slots=True)
class _Request:
    """The head of a request."""

    method: str
    target: str
    headers: list[bytes]
    user_agent: str = ""
    #: What a POST sends.
    content: bytes = b""
    path: str = field(init=False)
    query: str = field(init=False)

    def __post_init__(self) -> None:
        self.path, _, self.query = self.target.partition("?")

    def upstream(self, *, for_us: bool) -> bytes:
        """The same for the server, which is to end the connection.

        `for_us`: it is no request of the machine's, and does not belong into the log.
        """
        dropped = (b"connection:", CONTENT_HEADER.lower() + b":")
        kept = [each for each in self.headers if not each.lower().startswith(dropped)]
        first = f"{self.method} {self.target} HTTP/1.1".encode()
        own = [b"Connection: close"]
        if for_us:
            own.append(CONTENT_HEADER + b": 1")
        return b"\r\n".join([first, *kept, *own, b"", self.content])


class FaultProxy:
    """Listens on the boot server's port and passes requests on to it, but for those with faults."""

    def __init__(
        self,
        *,
        port: int,
        upstream: str,
        prefix: str,
        faults: FaultList,
        on_fetch: Callable[[Fetch], None],
    ) -> None:
        """`upstream` is the server's socket in the file system, `prefix` what all paths begin with.

        `on_fetch` is told of each request that met a fault: the server has not seen it.
        """
        self._port = port
        self._upstream = upstream
        self._prefix = prefix
        self._faults = faults
        self._on_fetch = on_fetch
        self._closed = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve for the length of the ``with``. `InfraError` if somebody else has the port."""
        with self._listen() as listener:
            thread = threading.Thread(
                target=self._accept, args=(listener,), name="kboot-faults", daemon=True
            )
            thread.start()
            try:
                yield
            finally:
                self._closed.set()
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                listener.close()
                with self._lock:
                    open_ones = tuple(self._connections)
                for connection in open_ones:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                thread.join(timeout=5)

    def _listen(self) -> socket.socket:
        trouble: OSError | None = None
        for _ in range(_PORT_ATTEMPTS):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", self._port))
                listener.listen(64)
            except OSError as error:
                listener.close()
                trouble = error
                time.sleep(_PORT_PAUSE_S)
            else:
                return listener
        raise InfraError(f"the fault proxy cannot have port {self._port}: {trouble}")

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(connection,), name="kboot-fault", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_CLIENT_LIMIT_S)
                if request := _read_request(connection):
                    self._answer(connection, request)
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, connection: socket.socket, request: _Request) -> None:
        path = file_path(request.path).removeprefix(self._prefix)
        fault = self._faults.take(path, request.query)
        if fault is None:
            with self._ask(request, for_us=False) as answer:
                _relay(answer, connection)
            return
        logger.debug("fault %s for %s", fault.kind, path)
        sent = _Sent()
        case = _Case(self, connection, request, fault, sent)
        try:
            _ANSWERS[fault.kind](case)
        except _NotThere as answer:
            # Slow or short, there is no file all the same.
            case.whole(answer.status, b"")
        finally:
            self._on_fetch(
                Fetch(
                    time=time.time(),
                    path=path,
                    query=request.query,
                    status=sent.status,
                    size=sent.size,
                    complete=sent.complete,
                    user_agent=request.user_agent,
                    fault=fault.kind,
                )
            )

    @contextlib.contextmanager
    def _ask(self, request: _Request, *, for_us: bool) -> Iterator[socket.socket]:
        """The server's answer to a request."""
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(_CLIENT_LIMIT_S)
            server.connect(self._upstream)
            server.sendall(request.upstream(for_us=for_us))
            yield server

    def content(self, request: _Request) -> bytes:
        """What the server has there. `_NotThere` if that is nothing."""
        with self._ask(request, for_us=True) as server:
            pieces = iter(lambda: server.recv(_PIECE_BYTES), b"")
            head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 502
        if status != 200:
            raise _NotThere(status)
        return body

    def pause(self, seconds: float) -> None:
        """Wait; `OSError` once the proxy ends."""
        if self._closed.wait(seconds):
            raise OSError("the proxy ends")


class _NotThere(Exception):
    """The server has nothing of which an answer could be made."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class _Sent:
    """What was sent of an answer."""

    status: int = 0
    size: int = 0
    complete: bool = False


@dataclass(slots=True)
class _Case:
    """A request that meets a fault."""

    proxy: FaultProxy
    connection: socket.socket
    request: _Request
    fault: Fault
    sent: _Sent

    def content(self) -> bytes:
        """What would be the answer."""
        return self.proxy.content(self.request)

    def head(self, status: int, length: int, *lines: str) -> None:
        """Send the head of an answer."""
        self.sent.status = status
        words = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Fault')}",
            f"Content-Length: {length}",
            "Connection: close",
            *lines,
        ]
        self.connection.sendall("\r\n".join([*words, "", ""]).encode())

    def body(self, data: bytes) -> None:
        """Send a part of it."""
        self.connection.sendall(data)
        self.sent.size += len(data)

    def whole(self, status: int, data: bytes, *lines: str) -> None:
        """Send all of an answer."""
        self.head(status, len(data), *lines)
        self.body(data)
        self.sent.complete = True

    def reset(self) -> None:
        """Break the connection off: the other side gets an RST."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


_REASONS = {
    302: "Found",
    200: "OK",
    403: "Forbidden",
    404: "Not Found",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def _status(case: _Case) -> None:
    case.whole(case.fault.status, b"")


def _refused(case: _Case) -> None:
    # Of a listening port, nobody can refuse single requests: it is broken off before any answer.
    case.reset()


def _reset(case: _Case) -> None:
    data = case.content()
    case.head(200, len(data))
    case.body(data[: min(case.fault.after, max(0, len(data) - 1))])
    # What was sent is to arrive first.
    case.proxy.pause(0.2)
    case.reset()


def _slow(case: _Case) -> None:
    data = case.content()
    case.head(200, len(data))
    step = max(1, case.fault.rate // 20)
    for begin in range(0, len(data), step):
        case.body(data[begin : begin + step])
        case.proxy.pause(step / case.fault.rate)
    case.sent.complete = True


def _stalled(case: _Case) -> None:
    data = case.content()
    case.head(200, len(data))
    case.body(data[: min(case.fault.after, max(0, len(data) - 1))])
    case.connection.settimeout(_STALL_LIMIT_S)
    # Until the other side gives up, or the proxy ends.
    case.connection.recv(1)


def _truncated(case: _Case) -> None:
    data = case.content()
    case.head(200, len(data))
    case.body(data[: min(case.fault.after, max(0, len(data) - 1))])


def _wrong_length(case: _Case) -> None:
    data = case.content()
    case.head(200, len(data) // 2)
    case.body(data)


def _redirect(case: _Case) -> None:
    case.whole(302, b"", f"Location: {case.fault.location or case.request.target}")


def _captive(case: _Case) -> None:
    case.whole(200, CAPTIVE_PORTAL, "Content-Type: text/html")


def _gzip(case: _Case) -> None:
    case.whole(200, gzip.compress(case.content(), 1), "Content-Encoding: gzip")


def _huge(case: _Case) -> None:
    case.head(200, case.fault.size)
    for _ in range(case.fault.size // _PIECE_BYTES):
        case.body(_ZEROS)
    case.body(_ZEROS[: case.fault.size % _PIECE_BYTES])
    case.sent.complete = True


def _empty(case: _Case) -> None:
    case.whole(200, b"")


_ANSWERS: dict[str, Callable[[_Case], None]] = {
    "status": _status,
    "refused": _refused,
    "reset": _reset,
    "slow": _slow,
    "stalled": _stalled,
    "truncated": _truncated,
    "wrong-length": _wrong_length,
    "redirect": _redirect,
    "redirect-loop": _redirect,
    "captive-portal": _captive,
    "gzip": _gzip,
    "huge": _huge,
    "empty": _empty,
}


def _read_request(connection: socket.socket) -> _Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(_PIECE_BYTES)
        if not piece or len(data) > _HEAD_BYTES:
            return None
        data += piece
    head, _, content = data.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    words = first.decode("latin1").split(" ")
    if len(words) != 3:
        return None
    length = _value(headers, b"content-length:") or "0"
    if not length.isdecimal() or int(length) > _HEAD_BYTES:
        return None
    while len(content) < int(length):
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            return None
        content += piece
    return _Request(words[0], words[1], headers, _value(headers, b"user-agent:"), content)


def _value(headers: list[bytes], name: bytes) -> str:
    """The value of the first header with this name, in small letters; empty if there is none."""
    found = [each for each in headers if each.lower().startswith(name)]
    return found[0].partition(b":")[2].strip().decode("latin1") if found else ""


def _relay(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(_PIECE_BYTES):
        target.sendall(data)
