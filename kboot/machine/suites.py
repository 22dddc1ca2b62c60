"""Test suites in the guest of a machine: commands that print KTAP."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kboot.errors import CommandFailed, GuestError, GuestTimeout, KernelCrash
from kboot.guest.frames import without_frames
from kboot.guest.guest import COMMAND_TIMEOUT_S, CommandResult
from kboot.results import ktap_command, ltp
from kboot.results.cases import Case, Status, SuiteResults, expect_failures
from kboot.results.ktap import ConsoleLine, read_console, read_log

if TYPE_CHECKING:
    from kboot.console import Console
    from kboot.machine.machine import Machine

#: A command that was run by ssh has ended before its last lines have come from the serial line.
_CATCH_UP_S = 0.5
#: With these, programs of kselftest tell that they passed, failed as expected or were skipped
#: (tools/testing/selftests/kselftest.h); 1 is told by their cases.
_GOOD_STATUSES = frozenset({0, 2, 3, 4})
_SHOWN = 500


def run(
    machine: Machine,
    command: str,
    timeout: float | None,
    expected: Mapping[str, str],
    *,
    source: str = "",
    report: str | None = None,
) -> SuiteResults:
    """As `Machine.ktap`; the results come from `source`, unless given from the command."""
    start = machine.console.line_start()
    seconds = COMMAND_TIMEOUT_S if timeout is None else timeout
    entry = machine.channels.history.begin(command)
    result: CommandResult | None = None
    error: GuestError | None = None
    try:
        result = _run(machine, command, seconds)
        entry.end(result.exit_status, _printed(machine.console, start, result))
    except GuestError as fault:
        error = fault
    finally:
        entry.end(None, _printed(machine.console, start, None))
    if report is None:
        cases = _read(machine, start, result, error, seconds)
    else:
        # Of a kernel that has died, nobody has it.
        cases = [] if error else _read_report(machine, report)
    if not cases:
        printed = _printed(machine.console, start, result)
        raise error or _no_results(command, printed, result, report)
    if result and (case := _ended_badly(source or command, result, cases)):
        cases.append(case)
    results = SuiteResults(
        source=source or command,
        cases=tuple(expect_failures(cases, expected)),
        exit_status=result.exit_status if result else None,
        error=error,
    )
    machine.suites.append(results)
    return results


def read(
    machine: Machine, start: int, *, end: str = "", status: Status | None = None
) -> list[Case]:
    """The cases on a machine's console, from position `start` on; see `read_console`."""
    console = machine.console
    reports = [each for each in console.reports if each.start_offset >= start]
    lines = console_lines(console, start)
    return read_console(lines, reports, end=end or "there is no result", status=status)


def console_lines(console: Console, start: int) -> Iterator[ConsoleLine]:
    """What was printed from position `start` on, without our own typing and its answers."""
    for line in console.lines(start):
        text = line.text if line.echo or "~" not in line.text else without_frames(line.text)
        if text and not line.echo:
            yield ConsoleLine(text, line.time_s, line.start)


def _run(machine: Machine, command: str, seconds: float) -> CommandResult:
    """Run it to its end; what the kernel has died of meanwhile is raised."""
    console = machine.console
    script = ktap_command.script(command, f"/dev/{machine.expected.console}")
    result = machine.guest.unrecorded().run(script, timeout=seconds)
    if machine.guest is not machine.console_guest:
        while console.wait_for_more(console.mark(), _CATCH_UP_S):
            pass
    console.check()
    return result


def _read(
    machine: Machine,
    start: int,
    result: CommandResult | None,
    error: GuestError | None,
    seconds: float,
) -> list[Case]:
    """Its cases, from the console, or from its output if it could not write there."""
    if result and result.stdout:
        return read_log(result.stdout_bytes, complete=True)[0]
    match error:
        case None:
            return read(machine, start)
        case GuestTimeout():
            late = f"the command did not end in {seconds:g} s"
            return read(machine, start, end=late, status=Status.TIMEOUT)
        case KernelCrash():
            return read(machine, start, end=error.report.title, status=Status.CRASHED)
    return read(machine, start, end=str(error), status=Status.CRASHED)


def _read_report(machine: Machine, path: str) -> list[Case]:
    """The cases in a file of the guest; none if it is not there."""
    with tempfile.TemporaryDirectory(prefix="kboot-") as directory:
        local = Path(directory) / "report"
        try:
            machine.guest.unrecorded().get(path, local)
        except CommandFailed:
            return []
        data = local.read_bytes()
    cases = ltp.read(data)
    return read_log(data, complete=True)[0] if cases is None else cases


def _printed(console: Console, start: int, result: CommandResult | None) -> str:
    if result and (result.stdout or result.stderr):
        return result.stdout + result.stderr
    return "".join(f"{line.text}\n" for line in console_lines(console, start))


def _no_results(
    command: str, printed: str, result: CommandResult | None, report: str | None
) -> GuestError:
    status = result.exit_status if result else "unknown"
    lacks = f"left no results in {report}" if report else "printed no results of tests (KTAP, TAP)"
    return GuestError(
        f"{command!r} {lacks}; exit status {status}; it printed: {printed.strip()[-_SHOWN:]!r}"
    )


def _ended_badly(source: str, result: CommandResult, cases: list[Case]) -> Case | None:
    """For a command that tells by its exit status that something went wrong, and no case does."""
    if result.exit_status in _GOOD_STATUSES or any(case.bad for case in cases):
        return None
    return Case(
        status=Status.FAILED,
        name=source,
        number=1,
        suite=True,
        reason=f"exit status {result.exit_status}",
    )
