"""How results are reported: error or failure, what a failed test shows, JUnit, the summary."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from kboot.errors import GuestError, InfraError

if TYPE_CHECKING:
    from kboot.crash import CrashReport
    from kboot.guest import CommandRecord
    from kboot.machine import Machine
    from kboot.results.cases import SuiteResults

#: The name of the property that holds a report that a test allowed.
_ALLOWED = "kboot.allowed"
#: The name of the property that holds a row about a boot script.
_SCRIPT = "kboot.script"
#: The name of the property that holds why a machine cannot be saved.
_UNSAVED = "kboot.unsaved"
#: Whose frames stand between pytest and a test.
_RUNNERS = {"_pytest", "pluggy", "pytest"}
#: Whose frames stand below ours.
_LIBRARIES = {"urllib3", "kubernetes", "paramiko"}
_STANDARD = Path(contextlib.__file__).parent
_INSTALLED = {"site-packages", "dist-packages"}
#: How much of the console a failure shows, how many commands, and how much of their output.
_TAIL_LINES = 40
_COMMANDS = 10
_OUTPUT_LINES = 10
#: The attribute of a report that says whose fault it is.
_VERDICT = "kboot_verdict"
#: The attribute of one of a fault of the host's.
_INFRA = "kboot_infra"
#: kboot's own code, but for the tests that it brings along.
_PACKAGE = Path(__file__).parent.parent


def hide_our_frames(error: BaseException) -> bool:
    """Leave the test's own lines in the traceback: the message says what ours did.

    Returns whether there are any; a boot that failed in a fixture has none. What led to the error
    is left out, too, unless the test has to do with it.
    """
    theirs = _hide_frames(error)
    link, seen = error, {id(error)}
    while led_to := link.__cause__ or (None if link.__suppress_context__ else link.__context__):
        # One that is raised from another which it has led to before makes a circle.
        if id(led_to) in seen or not _hide_frames(led_to):
            link.__cause__, link.__suppress_context__ = None, True
            break
        link = led_to
        seen.add(id(link))
    return theirs


def _hide_frames(error: BaseException) -> bool:
    """Hide our frames of one exception; whether any of the test's own are left."""
    theirs = False
    before = error.__traceback__
    if before and not _is_hidden(before.tb_frame):
        theirs = not _is_runners(before.tb_frame)
    while before and before.tb_next:
        frame = before.tb_next.tb_frame
        if _is_hidden(frame):
            before.tb_next = before.tb_next.tb_next
        else:
            before = before.tb_next
            theirs = theirs or not _is_runners(frame)
    return theirs


def _is_runners(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in _RUNNERS


def _is_hidden(frame: FrameType) -> bool:
    """Whether a frame is ours, or of the libraries that we use: contextlib's come in pages."""
    path = Path(frame.f_code.co_filename)
    if _PACKAGE in path.parents:
        return _PACKAGE / "acceptance" not in path.parents
    standard = _STANDARD in path.parents and not _INSTALLED.intersection(path.parts)
    return standard or frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES


class Handover:
    """A machine as a test got it: what was there before is not this test's."""

    def __init__(self, machine: Machine, check: Callable[[], None] | None = None) -> None:
        """`check` raises what is wrong with it, unless that is `Machine.check_reports`."""
        self.machine = machine
        self.check = check or machine.check_reports
        #: How many reports of the kernel earlier tests have had.
        self.known = machine.report_filter.seen
        self.time = datetime.now(UTC)
        #: In bytes of the console's record.
        self.console_start = machine.console.mark()
        #: How many reports the hooks were given.
        self.told = self.known
        self._suites_before = len(machine.suites)
        #: It has not come up: who has seen that error, as a test may, is told nothing more.
        self.failed = False

    @property
    def suites(self) -> Sequence[SuiteResults]:
        """What the test's own test suites have given."""
        return self.machine.suites[self._suites_before :]


def new_reports(handover: Handover) -> Sequence[CrashReport]:
    """The kernel's reports since the last call, or since the test got its machine."""
    reports = handover.machine.console.reports[handover.told :]
    handover.told += len(reports)
    return reports


def sections(handover: Handover, *, named: bool = False) -> list[tuple[str, str]]:
    """For a failed test's report: crashes, commands, the console's end, where the evidence is.

    Of the kernel's reports, those since the test got its machine, and the one that it died of.
    With `named`, each says of which machine it is.
    """
    from kboot.guest.frames import without_frames  # noqa: PLC0415  only with a machine

    machine = handover.machine
    reports = machine.console.reports[handover.known :]
    fatal = machine.console.fatal
    if fatal is not None and fatal not in reports:
        reports = (fatal, *reports)
    found = [(f"kboot crash: {report.title}", report.text) for report in reports]
    if commands := [each for each in machine.commands if each.time >= handover.time]:
        found.append((f"kboot commands, last {_COMMANDS}", transcript(commands[-_COMMANDS:])))
    # What a command printed comes in frames, for programs to read.
    said = ((line.text, without_frames(line.text)) for line in machine.console.lines())
    shown = [rest for text, rest in said if rest or not text]
    tail = "\n".join(shown[-_TAIL_LINES:])
    found.append((f"kboot console, last {_TAIL_LINES} lines", tail))
    found.append(("kboot evidence", str(machine.evidence_directory)))
    return [(f"{machine.name}: {title}", text) for title, text in found] if named else found


def transcript(commands: Iterable[CommandRecord]) -> str:
    """Commands as a terminal would show them, each with the end of its output and how it ended."""
    lines = []
    for each in commands:
        output = each.output_tail.splitlines()
        cut = ["..."] if len(output) > _OUTPUT_LINES else []
        status = "unknown" if each.exit_status is None else each.exit_status
        lines += [
            f"$ {each.command}",
            *cut,
            *output[-_OUTPUT_LINES:],
            f"[exit status {status}, {each.duration_s:.2f} s]",
        ]
    return "\n".join(lines)


def mark_verdict(report: pytest.TestReport, error: BaseException | None) -> None:
    """Note whose fault a failure is, where pytest would get it from when it happened.

    To pytest, what fails in its call has failed, and what fails in its set-up is an error.
    """
    if isinstance(error, InfraError):
        setattr(report, _INFRA, True)
    if isinstance(error, InfraError) and report.when == "call":
        setattr(report, _VERDICT, "error")
    if isinstance(error, GuestError) and report.when == "setup":
        setattr(report, _VERDICT, "failed")


def is_infra(report: object) -> bool:
    """Whether a report is of a fault of the host's."""
    return getattr(report, _INFRA, False)


def verdict_of(report: object) -> str | None:
    """What `mark_verdict` has noted: ``error``, ``failed``, or None for pytest's own view.

    pytest-xdist carries it from the worker, as it does with all attributes of a report.
    """
    verdict: str | None = getattr(report, _VERDICT, None)
    return verdict


def correct_junit(config: pytest.Config, report: pytest.TestReport) -> None:
    """Have JUnit's file say ``error`` or ``failure`` as `verdict_of` does.

    pytest (8 and 9) decides by `report.when` alone, and has no public way to choose.
    """
    from _pytest.junitxml import xml_key  # noqa: PLC0415

    verdict, junit = verdict_of(report), config.stash.get(xml_key, None)
    if verdict is None or junit is None:
        return
    was, now = ("failure", "error") if verdict == "error" else ("error", "failure")
    for element in reversed(junit.node_reporter(report).nodes):
        if element.tag == was:
            element.tag = now
            junit.stats[was] -= 1
            junit.stats[now] += 1
            return


def properties(machine: Machine) -> list[tuple[str, object]]:
    """For JUnit's ``<property>`` elements."""
    phases = machine.boots[0].durations_s()
    return [
        ("kboot.kernel.release", machine.kernel.release),
        ("kboot.kernel.sha256", machine.kernel.sha256),
        ("kboot.machine", machine.machine_description),
        ("kboot.boot_s", round(sum(phases.values()), 3)),
        *((f"kboot.phase.{name}_s", seconds) for name, seconds in phases.items()),
        *_ipxe_properties(machine),
        *([("kboot.restored_from", machine.restored_from)] if machine.restored_from else []),
        ("kboot.evidence", str(machine.evidence_directory)),
        *(
            (_ALLOWED, f"{each.report.title} ({each.by})")
            for each in machine.report_filter.take_allowed()
        ),
    ]


def _ipxe_properties(machine: Machine) -> list[tuple[str, object]]:
    build = machine.ipxe
    if build is None:
        return []
    features = " ".join(build.features)
    return [("kboot.ipxe.version", build.version), ("kboot.ipxe.features", features)]


def unsaved(fault: str | None) -> list[tuple[str, object]]:
    """The property of a test whose machine cannot be saved: why not."""
    return [] if fault is None else [(_UNSAVED, fault)]


def unsaved_lines(reports: Iterable[object]) -> list[str]:
    """Why machines could not be saved, and of how many tests, for the end of the run."""
    faults = Counter(
        str(value)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "setup"
        for name, value in report.user_properties
        if name == _UNSAVED
    )
    return [
        f"{fault} (of {count} {'test' if count == 1 else 'tests'})"
        for fault, count in faults.items()
    ]


def script_lines(reports: Iterable[object]) -> list[str]:
    """How the boot script took each fault, as a table, for the end of the run."""
    rows = [
        str(value)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == _SCRIPT
    ]
    if not rows:
        return []
    from kboot.machine.script_trial import table  # noqa: PLC0415  only where there are some

    return table(rows)


def allowed_lines(reports: Iterable[object]) -> list[str]:
    """What the kernel reported and tests had allowed, for the end of the run."""
    return [
        f"{report.nodeid}: {value}"
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == _ALLOWED
    ]
