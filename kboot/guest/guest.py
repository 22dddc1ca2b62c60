"""A booted system to run commands in, and the seams below: what carries bytes, what runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kboot.deadline import Deadline, time_limit
from kboot.errors import CommandFailed, GuestError, GuestTimeout, InfraError, KernelCrash
from kboot.guest.history import CommandHistory, CommandRecord, Entry
from kboot.log import logger

#: Told of a file on its way: bytes done, bytes in all.
OnProgress = Callable[[int, int], None]


def ignore_progress(_done: int, _size: int) -> None:
    """For whoever does not want to know."""


class Channel(Protocol):
    """A line to a shell, with bytes both ways: `kboot.console.Console` is one."""

    def send(self, data: bytes, /, *, echoed: bool = True) -> None:
        """Type `data`. `echoed` says whether the terminal may repeat it."""

    def mark(self) -> int:
        """The present position: bytes received so far."""

    def read(self, position: int, /, *, what: str, deadline: Deadline) -> bytes:
        """Wait for bytes behind `position` and return all there are.

        Raises `GuestTimeout` at the deadline, saying that `what` did not come, and a better reason
        as soon as there is one: a crash, a dead host, a closed line.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended: exit status as shells give it (128 + signal), exact output."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class Job(Protocol):
    """A command that was started in the guest."""

    def wait(self, deadline: Deadline) -> bool:
        """Wait for its end; False when it still runs at the deadline."""

    def fetch(self, deadline: Deadline) -> Ended:
        """The outcome, once it has ended. `GuestError` if the output cannot be had exactly."""

    def kill(self, signal: str, deadline: Deadline) -> None:
        """Send a signal, ``TERM`` or ``KILL``, to the command and all it started."""

    def forget(self) -> None:
        """Give up what the guest keeps of it."""


class Runner(Protocol):
    """A way to run commands in a guest: over the serial line, or ssh."""

    def start(self, command: bytes, deadline: Deadline, *, loud: bool) -> Job:
        """Start a command with ``/bin/sh``; `loud` if somebody waits for its end at once."""

    def put(
        self,
        data: bytes,
        remote: str,
        mode: int,
        deadline: Deadline,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Write `data` to the file `remote` in the guest, with permissions `mode`.

        What `on_progress` raises ends it.
        """

    def close(self) -> None:
        """Leave the guest as it was."""


#: How long a command may take for which no other limit was given, ...
COMMAND_TIMEOUT_S = 60.0
#: ... and a file: a serial line carries 10 kB/s where it is slow.
_FILE_TIMEOUT_S = 600.0

#: How long a command that ran out of time is given to end, and its output to come.
_INTERRUPT_S = 10.0
_TERM_GRACE_S = 2.0

_RETRY_S = 0.5

_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A command that ran to its end in the guest."""

    command: str
    exit_status: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    #: From the request to the last byte of the answer, as seen from here.
    duration_s: float

    @property
    def stdout(self) -> str:
        """Its standard output; bytes that are not UTF-8 are replaced."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its standard error; bytes that are not UTF-8 are replaced."""
        return self.stderr_bytes.decode(errors="replace")


class BackgroundCommand:
    """A command that was started with `Guest.spawn`."""

    def __init__(self, guest: Guest, job: Job, entry: Entry) -> None:
        self._guest = guest
        self._job = job
        self._entry = entry
        self._start = time.monotonic()
        self.command = entry.record.command

    def wait(
        self, *, timeout: float | None = None, deadline: Deadline | None = None
    ) -> CommandResult:
        """Wait for its end. `GuestTimeout` leaves it running: wait again, or `kill`."""
        limit = time_limit(timeout, deadline, COMMAND_TIMEOUT_S)
        self._guest.require_open()
        if not self._job.wait(limit):
            raise GuestTimeout(f"{self.command!r} still runs after {limit.seconds:g} s")
        ended = self._job.fetch(limit)
        result = _result(self.command, ended, self._start)
        self._entry.end(result.exit_status, _printed(result))
        return result

    def kill(self, signal: str = "TERM", *, timeout: float | None = None) -> None:
        """Send a signal to the command and all it started."""
        self._guest.require_open()
        self._job.kill(signal, time_limit(timeout, None, COMMAND_TIMEOUT_S))


class _OutOfTime(GuestTimeout):
    """A command did not end in its time, and was killed."""


class Guest:
    """Runs commands in the guest, one at a time, each in a ``sh`` of its own.

    A command's directory, variables and terminal settings end with it. Its standard input is empty,
    and its output goes to files in the guest first, so it sees no terminal. As in any background
    job, SIGINT and SIGQUIT are ignored.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        command_timeout_s: float = COMMAND_TIMEOUT_S,
        history: CommandHistory | None = None,
    ) -> None:
        """What it runs goes into `history`; without one, into a history of its own."""
        self._runner = runner
        self._command_timeout_s = command_timeout_s
        self._history = history or CommandHistory()
        #: Why no command can be run any more; None while one can.
        self._ended: str | None = None

    @property
    def runner(self) -> Runner:
        """What carries the commands."""
        return self._runner

    @property
    def history(self) -> tuple[CommandRecord, ...]:
        """The last commands that were run, oldest first, also those before a reboot."""
        return self._history.records

    def unrecorded(self) -> Guest:
        """The same guest, for commands that kboot runs for itself and nobody wants to read of."""
        return Guest(self._runner, command_timeout_s=self._command_timeout_s)

    def run(
        self,
        command: str | bytes,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Run a command to its end; the output and the exit status are exact.

        It has `timeout` seconds, 60 unless given. Then it is killed and `GuestTimeout` says what it
        printed. `CommandFailed` if it fails and `check` is set. `GuestError` if the result is
        unknown. A crash or a reset of the guest meanwhile is raised as itself.
        """
        self.require_open()
        raw = command.encode() if isinstance(command, str) else command
        entry = self._history.begin(raw.decode(errors="replace"))
        try:
            result = self._run(raw, self._budget(timeout, deadline), entry)
        finally:
            entry.end(None)
        if check and result.exit_status != 0:
            raise CommandFailed(failure_of(result), result)
        return result

    def succeed(
        self,
        command: str,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
    ) -> str:
        """Run a command that has to exit with 0; its standard output. Raises as `run`."""
        return self.run(command, timeout=timeout, deadline=deadline, check=True).stdout

    def wait_until_succeeds(
        self, command: str, *, timeout: float | None = None, deadline: Deadline | None = None
    ) -> str:
        """Run a command again and again until it exits with 0; its standard output then.

        It has `timeout` seconds in all, 60 unless given, and stands in the history once.
        """
        self.require_open()
        limit = time_limit(timeout, deadline, self._command_timeout_s)
        result: CommandResult | None = None
        entry = self._history.begin(command)
        try:
            for _ in limit.poll(_RETRY_S):
                budget = limit.within(limit.remaining)
                try:
                    result = self._run(command.encode(), budget, Entry(command))
                except _OutOfTime:
                    # How the one before it ended says more than that there was no time left.
                    if result is None:
                        raise
                    break
                if result.exit_status == 0:
                    return result.stdout
        finally:
            status, output = (result.exit_status, _printed(result)) if result else (None, "")
            entry.end(status, output)
        last = f"; the last time: {failure_of(result)}" if result else ""
        raise GuestTimeout(f"{command!r} did not succeed in {limit.seconds:g} s{last}")

    def spawn(self, command: str, *, timeout: float = 30.0) -> BackgroundCommand:
        """Start a command in the background. `timeout` is for the start alone."""
        self.require_open()
        entry = self._history.begin(command)
        job = self._runner.start(command.encode(), Deadline(timeout), loud=False)
        return BackgroundCommand(self, job, entry)

    def put(
        self,
        local: str | Path,
        remote: str,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Copy a file into the guest, permissions included; checked by a checksum there.

        `on_progress` is told the bytes that have arrived, and those in all; what it raises ends it.
        """
        self.require_open()
        limit = time_limit(timeout, deadline, _FILE_TIMEOUT_S)
        file = Path(local)
        mode = file.stat().st_mode & 0o777
        self._runner.put(file.read_bytes(), remote, mode, limit, on_progress=on_progress)

    def get(
        self,
        remote: str,
        local: str | Path,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Copy a file out of the guest; checked by a checksum."""
        limit = time_limit(timeout, deadline, _FILE_TIMEOUT_S)
        result = self.run(b"cat <" + _quote(remote), timeout=limit.remaining, check=True)
        Path(local).write_bytes(result.stdout_bytes)

    def close(self) -> None:
        """Give the guest's terminal back to the shell that was there, if it is ours still."""
        if self._ended is None:
            self._runner.close()
        self.end("it was closed")

    def end(self, reason: str) -> None:
        """Every call from now on raises `GuestError` with the first `reason` that was given."""
        self._ended = self._ended or reason

    def require_open(self) -> None:
        """`GuestError` if no command can be run with this guest any more."""
        if self._ended is not None:
            raise GuestError(f"this guest cannot be used any more: {self._ended}")

    def _budget(self, timeout: float | None, deadline: Deadline | None) -> Deadline:
        seconds = self._command_timeout_s if timeout is None else timeout
        return Deadline(seconds) if deadline is None else deadline.within(seconds)

    def _run(self, raw: bytes, budget: Deadline, entry: Entry) -> CommandResult:
        """Run a command to its end, whatever its exit status; complete its `entry`."""
        command = entry.record.command
        start = time.monotonic()
        # A request that is on its way is not dropped: nobody could tell whether it was carried out.
        grace = Deadline(budget.remaining + _INTERRUPT_S)
        job = self._runner.start(raw, grace, loud=True)
        if not job.wait(budget):
            raise self._interrupt(job, entry, budget)
        result = _result(command, job.fetch(Deadline(budget.remaining + _INTERRUPT_S)), start)
        entry.end(result.exit_status, _printed(result))
        job.forget()
        logger.debug("guest: %s: status %d", _brief(command), result.exit_status)
        return result

    def _interrupt(self, job: Job, entry: Entry, budget: Deadline) -> GuestError:
        """Kill a command that ran out of time; the error that says so."""
        message = f"{_brief(entry.record.command)!r} did not end in {budget.seconds:.3g} s"
        deadline = Deadline(_INTERRUPT_S)
        try:
            job.kill("TERM", deadline)
            if not job.wait(deadline.within(_TERM_GRACE_S)):
                job.kill("KILL", deadline)
            if not job.wait(deadline):
                return GuestTimeout(f"{message}, and cannot be killed")
            ended = job.fetch(deadline)
            job.forget()
        except (KernelCrash, InfraError):
            raise
        except GuestError as error:
            return GuestTimeout(f"{message}; then: {error}")
        printed = (ended.stdout + ended.stderr).decode(errors="replace")[-_SHOWN:]
        entry.end(None, printed)
        return _OutOfTime(f"{message}; it printed: {printed!r}")


def _result(command: str, ended: Ended, start: float) -> CommandResult:
    return CommandResult(
        command=command,
        exit_status=ended.exit_status,
        stdout_bytes=ended.stdout,
        stderr_bytes=ended.stderr,
        duration_s=time.monotonic() - start,
    )


def _printed(result: CommandResult) -> str:
    return result.stdout + result.stderr


def _quote(path: str) -> bytes:
    return b"'" + path.encode(errors="surrogateescape").replace(b"'", b"'\\''") + b"'"


def _brief(command: str) -> str:
    return command if len(command) <= 200 else f"{command[:200]}..."


def failure_of(result: CommandResult) -> str:
    """What a command that failed has printed, for a message."""
    printed = (result.stderr or result.stdout).strip()[-_SHOWN:]
    how = f"{_brief(result.command)!r} exited with {result.exit_status}"
    return f"{how}: {printed}" if printed else how
