"""ssh to a guest: the connection, and running commands over it.

A `Runner` that leaves the serial line to the kernel. The only home of paramiko, which is loaded
when it is used first.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout
from kboot.guest.guest import Ended, OnProgress, ignore_progress
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


#: How long the reading of an answer takes from the looking at the console.
_POLL_S = 0.05
#: How long after the loss of the connection the console gets to say why.
_REASON_LIMIT_S = 3.0

# It prints the process group of the command when it runs, its exit status and the sizes of both
# outputs when it has ended, and then the outputs. They go through files: what the command leaves in
# the background may keep them open.
_SCRIPT = """
umask 077
d=$(mktemp -d) || exit 1
cat >"$d/c"
s=
command -v setsid >/dev/null 2>&1 && s=setsid
$s sh "$d/c" </dev/null >"$d/o" 2>"$d/e" &
p=$!
echo "$p"
wait "$p"
s=$?
o=$(wc -c <"$d/o")
e=$(wc -c <"$d/e")
echo "$s" $o $e
exec 3<"$d/o" 4<"$d/e"
rm -rf "$d"
head -c "$o" <&3
head -c "$e" <&4
"""


class SshRunner:
    """Runs each command in a session of its own.

    `pause` lets time pass, and raises what is wrong with guest or host meanwhile: see
    `kboot.console.Console.watch`.
    """

    def __init__(self, connection: Connection, pause: Callable[[float], None]) -> None:
        self._connection = connection
        self.pause = pause

    def start(self, command: bytes, deadline: Deadline, *, loud: bool) -> SshJob:
        """Start a command."""
        if b"\0" in command:
            raise ValueError("a command cannot contain a NUL byte")
        job = SshJob(self, self.session(_SCRIPT, command, deadline))
        job.wait_for_start(deadline)
        return job

    def put(
        self,
        data: bytes,
        remote: str,
        mode: int,
        deadline: Deadline,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Write a file, in one go."""
        target = shlex.quote(remote)
        script = f"cat >{target} && chmod {mode:o} {target} && sha256sum <{target}"
        answer = Answer(self, self.session(f"{{ {script}; }} 2>&1", data, deadline))
        printed = answer.rest(deadline).decode(errors="replace").strip()
        if printed.partition(" ")[0] != hashlib.sha256(data).hexdigest():
            raise GuestError(f"the guest cannot write {remote}: {printed or 'wrong checksum'}")
        on_progress(len(data), len(data))

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def session(self, script: str, data: bytes, deadline: Deadline) -> Session:
        """A shell that runs `script`, with `data` as its input."""
        self.pause(0)
        command = f"exec /bin/sh -c {shlex.quote(script)}"
        try:
            session = self._connection.start(command.encode(errors="surrogateescape"), deadline)
            session.send(data, deadline)
        except GuestError:
            self.raise_reason()
            raise
        return session

    def raise_reason(self) -> None:
        """Raise why the guest is gone, if the console tells it within a few seconds."""
        limit = Deadline(_REASON_LIMIT_S)
        while not limit.expired:
            self.pause(limit.remaining)


class Answer:
    """What a session prints, taken in pieces."""

    def __init__(self, runner: SshRunner, session: Session) -> None:
        self._runner = runner
        self._session = session
        self._data = b""
        self._ended = False

    def line(self, deadline: Deadline) -> bytes | None:
        """The next line without its end, or None if it is not there in time."""
        if not self._until(lambda: b"\n" in self._data, deadline):
            return None
        line, _, self._data = self._data.partition(b"\n")
        return line

    def take(self, size: int, deadline: Deadline) -> bytes:
        """The next `size` bytes. `GuestTimeout`."""
        if not self._until(lambda: len(self._data) >= size, deadline):
            raise GuestTimeout(f"ssh: the output did not come in {deadline.seconds:g} s")
        data, self._data = self._data[:size], self._data[size:]
        return data

    def rest(self, deadline: Deadline) -> bytes:
        """All that it prints until it ends. `GuestTimeout`."""
        while not self._ended:
            if deadline.expired:
                raise GuestTimeout(f"ssh: no end in {deadline.seconds:g} s")
            self._read()
        return self._data

    def _until(self, done: Callable[[], bool], deadline: Deadline) -> bool:
        while not done():
            if self._ended:
                self._lost()
            if deadline.expired:
                return False
            self._read()
        return True

    def _read(self) -> None:
        data = self._session.receive(_POLL_S)
        if data is None:
            self._runner.pause(0)
        else:
            self._data += data
            self._ended = not data

    def _lost(self) -> None:
        """Raise why the session ended too early."""
        self._runner.raise_reason()
        raise GuestError(
            "the ssh connection to the guest was lost: the command's result is unknown"
        )


class SshJob:
    """A command that was started by `SshRunner.start`."""

    def __init__(self, runner: SshRunner, session: Session) -> None:
        self._runner = runner
        self._session = session
        self._answer = Answer(runner, session)
        self._group = 0
        self._outcome: list[int] | None = None

    def wait_for_start(self, deadline: Deadline) -> None:
        """Wait until the guest says that it runs. `GuestTimeout`."""
        line = self._answer.line(deadline)
        if line is None:
            raise GuestTimeout(f"ssh: the command did not start in {deadline.seconds:g} s")
        self._group = int(line)

    def wait(self, deadline: Deadline) -> bool:
        """Wait for its end; False when it still runs at the deadline."""
        if self._outcome is None and (line := self._answer.line(deadline)) is not None:
            self._outcome = [int(word) for word in line.split()]
        return self._outcome is not None

    def fetch(self, deadline: Deadline) -> Ended:
        """The outcome, once it has ended."""
        if self._outcome is None:
            raise GuestError("the command has not ended")
        status, stdout_size, stderr_size = self._outcome
        return Ended(
            exit_status=status,
            stdout=self._answer.take(stdout_size, deadline),
            stderr=self._answer.take(stderr_size, deadline),
        )

    def kill(self, signal: str, deadline: Deadline) -> None:
        """Send a signal to the command and all it started."""
        group = self._group
        script = f"kill -{signal} -- -{group} 2>/dev/null || kill -{signal} {group} 2>/dev/null"
        Answer(self._runner, self._runner.session(script, b"", deadline)).rest(deadline)

    def forget(self) -> None:
        """The guest has dropped its files already."""
        self._session.close()
