"""Requests between processes of one user: a server and a client, over a socket in a directory.

JSON, one object a line. The server greets with ``{"hello": 1}``. A client then sends a request,
``{"verb": ..., ...}``, and is answered with any number of ``{"event": ...}`` and one
``{"result": ...}`` or ``{"error": ...}``; then it may send the next one. After the result of a verb
that takes the connection over (see `Request.take_connection`), bytes follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError, KbootError
from kboot.log import logger

_SOCKET = "control"
_VERSION = 1
_CLASSES: dict[int, type[KbootError]] = {
    kind.exit_code: kind for kind in (GuestError, ConfigError, InfraError)
}
#: A request is a line of some hundred bytes, or has a boot script or a command in it.
REQUEST_LIMIT_BYTES = 16 << 20
#: An answer has the output of a command in it.
_ANSWER_LIMIT_BYTES = 256 << 20

#: From its first byte, or from the greeting, until a request is complete.
_REQUEST_LIMIT_S = 10.0
#: Before the next client is let in where there are too many open files.
_ACCEPT_PAUSE_S = 0.2
#: For the answers that are under way when the server ends.
_LAST_ANSWERS_S = 2.0
#: With two files for each, half of what a process may usually have open.
_MAX_CLIENTS = 256

_CANCELLED = "cancelled: client disconnected"


class Wire:
    """One connection. Not for two threads at a time, but one may send while one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one object. OSError if nobody is there any more."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(
        self, *, limit_s: float | None = None, limit_bytes: int = _ANSWER_LIMIT_BYTES
    ) -> dict[str, Any] | None:
        """The next object; None if the other side has ended.

        OSError (TimeoutError after `limit_s`), ValueError if it is too long or not an object.
        """
        deadline = None if limit_s is None else Deadline(limit_s)
        pieces, size = [self._rest], len(self._rest)
        while b"\n" not in pieces[-1]:
            if size > limit_bytes:
                raise ValueError(f"a message of more than {limit_bytes >> 20} MiB")
            data = self._read(deadline)
            if not data:
                return None
            pieces.append(data)
            size += len(data)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"a message that is no object: {line[:80]!r}")  # noqa: TRY004
        return message

    def _read(self, deadline: Deadline | None) -> bytes:
        if deadline is None:
            return self.socket.recv(1 << 16)
        before = self.socket.gettimeout()
        # 0 would mean not to wait at all, and then it is no TimeoutError.
        self.socket.settimeout(max(deadline.remaining, 0.001))
        try:
            return self.socket.recv(1 << 16)
        finally:
            self.socket.settimeout(before)

    def wait(self) -> None:
        """Wait for the beginning of the next object, or for the end."""
        if not self._rest:
            self.socket.recv(1, socket.MSG_PEEK)

    @property
    def is_open(self) -> bool:
        """Whether the other side has not ended."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

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


# ------------------------------------------------------------------------------------- the server


class Request:
    """A verb with its arguments, and the way back to the client."""

    def __init__(
        self, wire: Wire, arguments: dict[str, Any], *, on_taken: Callable[[], None]
    ) -> None:
        self._wire = wire
        self._on_taken = on_taken
        self.arguments = arguments
        self.taken = False

    @property
    def verb(self) -> str:
        """What is to be done."""
        return self.text("verb")

    def text(self, name: str) -> str:
        """A required argument."""
        value = self.arguments.get(name)
        if not isinstance(value, str):
            raise ConfigError(f"the request has no {name}")
        return value

    def seconds(self, name: str) -> float:
        """A required argument that is a time."""
        value = self.arguments.get(name)
        if not isinstance(value, int | float):
            raise ConfigError(f"the request has no {name}")
        return float(value)

    def check_client(self) -> None:
        """`InfraError` if nobody waits for the answer any more."""
        if not self._wire.is_open:
            raise InfraError(_CANCELLED)

    def send_event(self, event: dict[str, Any]) -> None:
        """Tell the client something before the result. `InfraError` if it has disconnected."""
        self.check_client()
        self._send(event)

    def take_connection(self, result: object) -> socket.socket:
        """Answer, and have the connection for other bytes; it is closed when the verb returns."""
        self._send({"result": result})
        self.taken = True
        self._on_taken()
        return self._wire.socket

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._wire.send(message)
        except OSError as error:
            raise InfraError(_CANCELLED) from error

    @property
    def client_pid(self) -> int:
        """The process that asks."""
        return _credentials(self._wire.socket)[0]


#: Does what is asked for, and returns the result; on the thread of the client.
Answer = Callable[[Request], Any]


@contextlib.contextmanager
def serving(
    directory: Path,
    answer: Answer,
    *,
    max_clients: int = _MAX_CLIENTS,
    request_limit_s: float = _REQUEST_LIMIT_S,
) -> Iterator[None]:
    """For the length of the ``with``, answer this user's processes that connect in `directory`.

    Each has a thread of its own, which may outlive the ``with``.
    """
    with contextlib.closing(_listen(directory)) as listener:
        server = _Server(answer, max_clients=max_clients, request_limit_s=request_limit_s)
        thread = threading.Thread(
            target=server.accept, args=(listener,), name="kboot-rpc", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.stopping.set()
            # Closing it would not wake up the thread that waits there.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            # Who has asked for our end hears that it was heard.
            server.wait_for_answers(_LAST_ANSWERS_S)


class _Server:
    def __init__(self, answer: Answer, *, max_clients: int, request_limit_s: float) -> None:
        self._answer = answer
        self._request_limit_s = request_limit_s
        self._max_clients = max_clients
        self._free = threading.Semaphore(max_clients)
        self._answering = 0
        self._answered = threading.Condition()
        self.stopping = threading.Event()

    def accept(self, listener: socket.socket) -> None:
        """Let clients in until `stopping`, whatever happens."""
        trouble = None
        while not self.stopping.is_set():
            try:
                connection, _ = listener.accept()
                trouble = None
            except OSError as error:
                # EMFILE, ENFILE, ENOBUFS: the client waits in the queue, and is let in later.
                if not self.stopping.is_set() and error.errno != trouble:
                    logger.warning("no client can be let in: %s; trying again", error)
                    trouble = error.errno
                self.stopping.wait(_ACCEPT_PAUSE_S)
                continue
            self._begin(connection)

    def wait_for_answers(self, limit_s: float) -> None:
        """Until every request is answered that was being answered, or for so many seconds."""
        with self._answered:
            self._answered.wait_for(lambda: self._answering == 0, limit_s)

    def _count_answers(self, change: int) -> None:
        with self._answered:
            self._answering += change
            self._answered.notify_all()

    def _begin(self, connection: socket.socket) -> None:
        if not self._free.acquire(blocking=False):
            fault = InfraError(f"there are {self._max_clients} clients already; try again later")
            _refuse(connection, fault)
            return
        try:
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            _refuse(connection, InfraError(f"no thread for another client: {error}"))

    def _serve(self, connection: socket.socket) -> None:
        """One client, until it ends. It may vanish at any time."""
        try:
            with connection, contextlib.suppress(OSError):
                pid, uid = _credentials(connection)
                if uid not in {os.geteuid(), 0}:
                    _refuse(connection, _foreign(pid, uid))
                    return
                wire = Wire(connection)
                wire.send({"hello": _VERSION})
                while self._serve_one(wire):
                    wire.wait()
        finally:
            self._free.release()

    def _serve_one(self, wire: Wire) -> bool:
        """One request; whether there may be another one."""
        try:
            arguments = wire.receive(limit_s=self._request_limit_s, limit_bytes=REQUEST_LIMIT_BYTES)
        except (TimeoutError, ValueError) as error:
            why = "it did not come in time" if isinstance(error, TimeoutError) else str(error)
            wire.send({"error": describe(ConfigError(f"no request: {why}"))})
            return False
        if arguments is None:
            return False
        self._count_answers(1)
        request = Request(wire, arguments, on_taken=lambda: self._count_answers(-1))
        try:
            result = self._answer(request)
        except Exception as error:
            logger.debug("a request failed", exc_info=True)
            if not request.taken:
                wire.send({"error": describe(error)})
        else:
            if not request.taken:
                wire.send({"result": result})
        finally:
            if not request.taken:
                self._count_answers(-1)
        return not request.taken


def _refuse(connection: socket.socket, fault: KbootError) -> None:
    with connection, contextlib.suppress(OSError):
        # What fits into an empty buffer is not waited for.
        connection.setblocking(False)
        Wire(connection).send({"error": describe(fault)})


def _foreign(pid: int, uid: int) -> ConfigError:
    return ConfigError(
        f"process {pid} runs as user {uid}, and what it asks is user {os.geteuid()}'s; "
        "run it as that user"
    )


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """The process at the other end, and its user."""
    # struct ucred: pid, uid, gid (unix(7)).
    ids = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", ids)
    return pid, uid


def _listen(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory) as path:
            listener.bind(path)
            # Nobody can connect before it listens.
            os.chmod(path, 0o600)  # noqa: PTH101  not a path to keep
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


# ------------------------------------------------------------------------------------- the client

OnEvent = Callable[[dict[str, Any]], None]


class Client:
    """A connection to a server. One request at a time; more threads wait for each other."""

    def __init__(
        self, wire: Wire, lost: Callable[[], KbootError], *, answer_limit_s: float | None = None
    ) -> None:
        """`lost` tells what to raise when the server has hung up, or is too slow."""
        self.wire = wire
        self._answer_limit_s = answer_limit_s
        self._lost = lost
        self._lock = threading.Lock()

    @property
    def server_pid(self) -> int:
        """The process that listens at the other end."""
        pid, _ = _credentials(self.wire.socket)
        return pid

    def close(self) -> None:
        """Disconnect. What was asked for may be cancelled by it."""
        self.wire.socket.close()

    def ask(self, verb: str, *, on_event: OnEvent = lambda _event: None, **arguments: Any) -> Any:
        """What the server answers; `on_event` is called with what it tells before that.

        Raises what went wrong there, as one of the three families of errors.
        """
        with self._lock:
            try:
                self.wire.send({"verb": verb, **arguments})
            except OSError as error:
                raise self._lost() from error
            while True:
                message = self._receive()
                if "event" in message:
                    on_event(message)
                elif "error" in message:
                    raise to_error(message["error"])
                else:
                    return message.get("result")

    def _receive(self) -> dict[str, Any]:
        try:
            message = self.wire.receive(limit_s=self._answer_limit_s)
        except (OSError, ValueError) as error:
            raise self._lost() from error
        if message is None:
            raise self._lost()
        return message


def connect(directory: Path, *, limit_s: float = 20.0) -> Wire:
    """A connection to the server in this directory, which has greeted us.

    OSError if there is none; `InfraError` if it does not answer, and what it says if it refuses us.
    """
    deadline = Deadline(limit_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(connection, directory, deadline)
        wire = Wire(connection)
        greeting = wire.receive(limit_s=deadline.remaining)
    except TimeoutError as error:
        connection.close()
        raise InfraError(
            f"the process that listens in {directory} does not answer in {limit_s:g} s"
        ) from error
    except BaseException:
        connection.close()
        raise
    if greeting is None or "hello" not in greeting:
        connection.close()
        if greeting and "error" in greeting:
            raise to_error(greeting["error"])
        raise ConnectionResetError(f"{directory}: the server has hung up")
    return wire


def _connect(connection: socket.socket, directory: Path, deadline: Deadline) -> None:
    """TimeoutError if its queue stays full."""
    connection.setblocking(False)
    for _ in deadline.poll(0.05):
        with contextlib.suppress(BlockingIOError), _short(directory) as path:
            connection.connect(path)
            connection.setblocking(True)
            return
    raise TimeoutError


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """The socket's path. An address has 108 bytes (unix(7)), and directories may be deep."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)
