"""ssh to a guest: the only home of paramiko, which is loaded when it is used first."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout
from kboot.state import cache_directory

if TYPE_CHECKING:
    import paramiko

#: For each step of a connection. A guest that has just come up takes its time.
_STEP_LIMIT_S = 15.0
#: Between two attempts to connect: the server may not be up yet.
_RETRY_S = 0.3


def authorized_key() -> str:
    """The line for a guest's ``authorized_keys`` that lets us in."""
    key = _key()
    return f"{key.get_name()} {key.get_base64()} kboot"


def key_file() -> Path:
    """The private key that lets us in, for another ssh client."""
    _key()
    return cache_directory("ssh") / "key"


class Session:
    """One program that runs at the other end: bytes in, bytes out. Made by `Connection.start`."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Give `data` to its standard input, and end that. `GuestTimeout`.

        A program that does not want it has its reasons, which it prints.
        """
        self._channel.settimeout(max(deadline.remaining, 0.01))
        try:
            self._channel.sendall(data)
            self._channel.shutdown_write()
        except TimeoutError as error:
            raise GuestTimeout(
                f"ssh: the guest takes no input in {deadline.seconds:g} s"
            ) from error
        except OSError:
            return

    def receive(self, at_most_s: float) -> bytes | None:
        """What it printed; None if nothing came in time, empty at its end."""
        self._channel.settimeout(at_most_s)
        try:
            return self._channel.recv(1 << 16)
        except TimeoutError:
            return None

    def close(self) -> None:
        """Give it up."""
        self._channel.close()


class Connection:
    """A way into a guest by its ssh server. Made by `connect`."""

    def __init__(self, host: str, port: int, user: str) -> None:
        self._address = (host, port)
        self._user = user
        self._transports: list[paramiko.Transport] = []
        self._used: set[paramiko.Transport] = set()

    def start(self, command: bytes, deadline: Deadline) -> Session:
        """Run a command with the user's shell. `GuestError` if the server does not let us."""
        import paramiko  # noqa: PLC0415  where it is used

        try:
            channel = self._channel(deadline)
            channel.settimeout(_limit(deadline))
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise GuestError(f"ssh: the guest runs no command: {error or 'no answer'}") from error
        return Session(channel)

    def add_transport(self, deadline: Deadline) -> paramiko.Transport:
        """Connect once more. Raises as `connect`."""
        transport = _transport(self._address, self._user, deadline)
        self._transports.append(transport)
        return transport

    def close(self) -> None:
        """End it, and all that runs over it."""
        for transport in self._transports:
            transport.close()

    def _channel(self, deadline: Deadline) -> paramiko.Channel:
        import paramiko  # noqa: PLC0415  where it is used

        self._transports = [transport for transport in self._transports if transport.is_active()]
        self._used.intersection_update(self._transports)
        for transport in self._transports:
            if transport in self._used and "dropbear" in transport.remote_version:
                # It runs one command over a connection, and then closes it.
                continue
            self._used.add(transport)
            with contextlib.suppress(paramiko.ChannelException):
                return transport.open_session(timeout=_limit(deadline))
        transport = self.add_transport(deadline.within(_STEP_LIMIT_S))
        self._used.add(transport)
        return transport.open_session(timeout=_limit(deadline))


def connect(host: str, port: int, user: str, deadline: Deadline) -> Connection:
    """Connect with our key. `GuestTimeout` if no server answers, `GuestError` if it refuses us.

    The host's key is not looked at: the guest made it when it booted, and nobody else knows it.
    """
    # What it logs, a banner that has not come yet for one, is raised as well; ours is the word.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    connection = Connection(host, port, user)
    connection.add_transport(deadline)
    return connection


def _transport(address: tuple[str, int], user: str, deadline: Deadline) -> paramiko.Transport:
    import paramiko  # noqa: PLC0415  where it is used

    reason: Exception | None = None
    for _ in deadline.poll(_RETRY_S):
        with contextlib.ExitStack() as stack:
            try:
                wire = socket.create_connection(address, timeout=_limit(deadline))
                stack.callback(wire.close)
                transport = paramiko.Transport(wire)
                stack.callback(transport.close)
                transport.banner_timeout = transport.auth_timeout = _limit(deadline)
                transport.start_client(timeout=_limit(deadline))
                transport.auth_publickey(user, _key())
            except paramiko.AuthenticationException as error:
                raise GuestError(f"ssh: the guest refuses our key for {user!r}: {error}") from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                # "Error reading SSH protocol banner" and the like: nobody listens there yet.
                reason = error
                continue
            stack.pop_all()
            return transport
    raise GuestTimeout(f"ssh: no server in the guest in {deadline.seconds:g} s: {reason}")


def _limit(deadline: Deadline) -> float:
    return max(0.01, min(_STEP_LIMIT_S, deadline.remaining))


def _key() -> paramiko.PKey:
    """Our key, which is kept: a guest that is saved knows the same one when it is restored."""
    import paramiko  # noqa: PLC0415  where it is used

    path = cache_directory("ssh") / "key"
    if not path.exists():
        _make_key(path)
    return paramiko.ECDSAKey.from_private_key_file(str(path))


def _make_key(path: Path) -> None:
    import paramiko  # noqa: PLC0415  where it is used

    draft = path.with_name(f".key.{os.getpid()}")
    # Readable by us alone from its first byte on: paramiko makes the file so.
    paramiko.ECDSAKey.generate(bits=256).write_private_key_file(str(draft))
    # Another process may have been faster; then its key is the one.
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
