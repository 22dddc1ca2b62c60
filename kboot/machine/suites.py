"""Test suites in the guest of a machine: commands that print KTAP."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout, KernelCrash
from kboot.guest.frames import FrameFilter
from kboot.guest.guest import COMMAND_TIMEOUT_S, CommandResult
from kboot.results import ktap_command
from kboot.results.cases import Case, Status, SuiteResults, expect_failures
from kboot.results.ktap_command import ConsoleLine

if TYPE_CHECKING:
    from kboot.machine.machine import Machine

#: The console may be behind a command whose result came another way.
_CATCH_UP_S = 5.0
#: With these, programs of kselftest tell that they passed, failed as expected or were skipped
#: (tools/testing/selftests/kselftest.h); 1 is told by their cases.
_GOOD_STATUSES = frozenset({0, 2, 3, 4})
_SHOWN = 500


def run(
    machine: Machine, command: str, timeout: float | None, expected: Mapping[str, str]
) -> SuiteResults:
    """As `Machine.ktap`."""
    nonce = secrets.token_hex(4)
    console, start = machine.console, machine.console.line_start()
    seen = len(console.reports)
    result: CommandResult | None = None
    error: GuestError | None = None
    seconds = COMMAND_TIMEOUT_S if timeout is None else timeout
    entry = machine.channels.history.begin(command)
    try:
        script = ktap_command.script(command, nonce)
        result = machine.guest.unrecorded().run(script, timeout=seconds)
        entry.end(result.exit_status, result.stdout)
        _catch_up(console, start, nonce)
        console.check()
    except GuestError as fault:
        error = fault
    finally:
        entry.end(None)
    cases = ktap_command.read_command(
        console_lines(console, start),
        nonce,
        stdout=result.stdout if result else None,
        reports=console.reports[seen:],
        end=_end(error, seconds),
        timed_out=isinstance(error, GuestTimeout),
    )
    if not cases:
        raise error or _no_results(command, result)
    if result and (case := _ended_badly(command, result, cases)):
        cases.append(case)
    results = SuiteResults(
        source=command,
        cases=tuple(expect_failures(cases, expected)),
        exit_status=result.exit_status if result else None,
        error=error,
    )
    machine.suites.append(results)
    return results


def console_lines(console: Console, start: int) -> Iterator[ConsoleLine]:
    """What was printed from position `start` on, without the frames of our own commands."""
    frames = FrameFilter()
    position = max(start, console.memory_start)
    for line in console.raw(position).splitlines(keepends=True):
        shown = frames.feed(line) + frames.flush()
        if shown.strip():
            yield ConsoleLine(start=position, data=shown)
        position += len(line)


def _catch_up(console: Console, start: int, nonce: str) -> None:
    """Wait until the console has come to the command's end, if it was told of its beginning."""
    deadline = Deadline(_CATCH_UP_S)
    text = console.raw(start).decode(errors="replace")
    while ktap_command.mark(nonce) in text and not ktap_command.has_ended(text, nonce):
        if deadline.expired:
            return
        console.wait_for_more(console.mark(), deadline.remaining)
        text = console.raw(start).decode(errors="replace")


def _end(error: GuestError | None, seconds: float) -> str:
    match error:
        case None:
            return ""
        case KernelCrash():
            return error.report.title
        case GuestTimeout():
            return f"the command did not end in {seconds:g} s"
        case _:
            return str(error)


def _no_results(command: str, result: CommandResult | None) -> GuestError:
    status = result.exit_status if result else "unknown"
    printed = (result.stdout or result.stderr).strip()[-_SHOWN:] if result else ""
    return GuestError(
        f"{command!r} printed no results of tests (KTAP, TAP); exit status {status}; "
        f"it printed: {printed!r}"
    )


def _ended_badly(command: str, result: CommandResult, cases: list[Case]) -> Case | None:
    """For a command that tells by its exit status that something went wrong, and no case does."""
    if result.exit_status in _GOOD_STATUSES or any(case.bad for case in cases):
        return None
    return Case(
        status=Status.FAILED,
        name=command,
        number=1,
        suite=True,
        reason=f"exit status {result.exit_status}",
    )
