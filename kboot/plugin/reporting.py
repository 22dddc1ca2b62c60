"""How results are told: what a failure shows, what JUnit's file gets, and the summary's lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kboot.machine import Machine

#: The name of the property that holds a report that a test allowed.
_ALLOWED = "kboot.allowed"
#: Whose frames stand between pytest and a test.
_RUNNERS = {"_pytest", "pluggy", "pytest"}
#: Whose frames stand below ours.
_LIBRARIES = {"urllib3", "kubernetes", "paramiko"}
_STANDARD = Path(contextlib.__file__).parent
_INSTALLED = {"site-packages", "dist-packages"}
#: How much of the console a failure shows.
_TAIL_LINES = 40
#: kboot's own code, but for the tests that it brings along.
_PACKAGE = Path(__file__).parent.parent


def hide_our_frames(error: BaseException) -> bool:
    """Leave the test's own lines in the traceback: the message says what ours did.

    Returns whether there are any; a boot that failed in a fixture has none. What led to the error
    is left out, too, unless the test has to do with it.
    """
    theirs = _hide_frames(error)
    link = error
    while led_to := link.__cause__ or (None if link.__suppress_context__ else link.__context__):
        if not _hide_frames(led_to):
            link.__cause__, link.__suppress_context__ = None, True
            break
        link = led_to
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


def sections(machine: Machine, known: int = 0) -> list[tuple[str, str]]:
    """For a failed test's report: what the kernel died of, the console's end, where more is.

    Of the kernel's reports, those after the first `known`, which are of earlier tests; and the one
    that it is dead of.
    """
    from kboot.guest.frames import without_frames  # noqa: PLC0415  only with a machine

    reports = machine.console.reports[known:]
    fatal = machine.console.fatal
    if fatal is not None and fatal not in reports:
        reports = (fatal, *reports)
    found = [(f"kboot crash: {report.title}", report.text) for report in reports]
    # What a command printed comes in frames, for programs to read.
    said = ((line.text, without_frames(line.text)) for line in machine.console.lines())
    shown = [rest for text, rest in said if rest or not text]
    tail = "\n".join(shown[-_TAIL_LINES:])
    found.append((f"kboot console, last {_TAIL_LINES} lines", tail))
    found.append(("kboot evidence", str(machine.evidence_directory)))
    return found


def properties(machine: Machine) -> list[tuple[str, object]]:
    """For JUnit's ``<property>`` elements."""
    phases = machine.boots[0].durations_s()
    return [
        ("kboot.kernel.release", machine.kernel.release),
        ("kboot.kernel.sha256", machine.kernel.sha256),
        ("kboot.machine", machine.machine_description),
        ("kboot.boot_s", round(sum(phases.values()), 3)),
        *((f"kboot.phase.{name}_s", seconds) for name, seconds in phases.items()),
        *([("kboot.restored_from", machine.restored_from)] if machine.restored_from else []),
        ("kboot.evidence", str(machine.evidence_directory)),
        *(
            (_ALLOWED, f"{each.report.title} ({each.by})")
            for each in machine.report_filter.take_allowed()
        ),
    ]


def allowed_lines(reports: Iterable[object]) -> list[str]:
    """What the kernel reported and tests had allowed, for the end of the run."""
    return [
        f"{report.nodeid}: {value}"
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == _ALLOWED
    ]
