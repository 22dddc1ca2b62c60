"""Run commands over ssh: a `Runner` that leaves the serial line to the kernel."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable

from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout
from kboot.guest.guest import Ended, OnProgress, ignore_progress
from kboot.ssh import Connection, Session

#: How long the reading of an answer takes from the looking at the console.
_POLL_S = 0.05
#: How long after the loss of the connection the console gets to say why.
_AUTOPSY_S = 3.0

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
            self.ask_the_console()
            raise
        return session

    def ask_the_console(self) -> None:
        """Raise why the guest is gone, if the console tells it within a few seconds."""
        limit = Deadline(_AUTOPSY_S)
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
        self._runner.ask_the_console()
        raise GuestError(
            "the ssh connection to the guest was lost: what became of the command cannot be told"
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
