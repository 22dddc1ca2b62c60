"""QEMU's control socket: commands, answers and events, as lines of JSON.

The format is docs/interop/qmp-spec.txt in QEMU's sources. The client on PyPI, ``qemu.qmp``, wants
an event loop of its own; kboot waits in threads and sends a handful of commands, which is this
page.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import InfraError

#: Seconds; a socket's time-out of 0 would be another mode of the socket.
_AT_ONCE = 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class QmpEvent:
    """Something QEMU reports by itself: ``RESET``, ``SHUTDOWN``, ``STOP``, ``WATCHDOG``..."""

    name: str
    data: dict[str, Any]
    #: Seconds since the epoch, by QEMU's clock.
    time: float


class QmpClosed(InfraError):
    """QEMU closed its control socket: it has ended."""


class Qmp:
    """One connected control socket, in command mode. Not safe for several threads at once."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._socket = connection
        self._buffer = b""
        self._events: list[QmpEvent] = []
        self._serial = 0
        greeting = self._receive(deadline.remaining)
        if greeting is None:
            raise InfraError("QEMU does not greet on its control socket")
        version = greeting["QMP"]["version"]["qemu"]
        #: QEMU's version, such as ``7.2.22``.
        self.version = f"{version['major']}.{version['minor']}.{version['micro']}"
        self.execute("qmp_capabilities", deadline)

    def execute(self, command: str, deadline: Deadline, **arguments: object) -> Any:
        """Run a command and return its answer; `InfraError` if QEMU refuses or does not answer."""
        return self._ask(command, arguments, deadline)

    def hand_over(self, name: str, descriptor: int, deadline: Deadline) -> None:
        """Give QEMU a duplicate of an open file, which commands then know by `name`."""
        self._ask("getfd", {"fdname": name}, deadline, descriptors=[descriptor])

    def events(self) -> list[QmpEvent]:
        """The events since the last call, without waiting; `QmpClosed` when QEMU has ended."""
        try:
            while self._receive(_AT_ONCE) is not None:
                pass
        except QmpClosed:
            # What came before the end is worth more than the end: that is told at the next call.
            if not self._events:
                raise
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Close our side."""
        self._socket.close()

    def _ask(
        self,
        command: str,
        arguments: Mapping[str, object],
        deadline: Deadline,
        descriptors: Sequence[int] = (),
    ) -> Any:
        self._serial += 1
        request: dict[str, object] = {"execute": command, "id": self._serial}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.settimeout(max(deadline.remaining, _AT_ONCE))
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(self._socket, [line], descriptors)
            self._socket.sendall(line[sent:])
        except TimeoutError as error:
            raise InfraError(f"QEMU does not take the command {command}") from error
        except OSError as error:
            raise QmpClosed("QEMU closed its control socket") from error
        while True:
            message = self._receive(deadline.remaining)
            if message is None:
                raise InfraError(f"QEMU does not answer {command} on its control socket")
            if message.get("id") != self._serial:
                continue
            if "error" in message:
                raise InfraError(f"QEMU refused {command}: {message['error']['desc']}")
            return message["return"]

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None if there is none in time. Events are put aside on the way."""
        while b"\n" not in self._buffer:
            try:
                self._socket.settimeout(max(timeout_s, _AT_ONCE))
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            except OSError as error:
                raise QmpClosed("QEMU closed its control socket") from error
            if not data:
                raise QmpClosed("QEMU closed its control socket")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            stamp = message["timestamp"]
            self._events.append(
                QmpEvent(
                    name=message["event"],
                    data=message.get("data", {}),
                    time=stamp["seconds"] + stamp["microseconds"] / 1e6,
                )
            )
        return message
