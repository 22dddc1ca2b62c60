"""How results are told: what a failure shows, what JUnit's file gets, and the summary's lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kboot.boot import Boot

#: The name of the property that holds a report that a test allowed.
_ALLOWED = "kboot.allowed"
#: Whose frames stand between pytest and a test.
_RUNNERS = {"_pytest", "pluggy", "pytest"}
#: How much of the console a failure shows.
_TAIL_LINES = 40
#: kboot's own code, but for the tests that it brings along.
_PACKAGE = Path(__file__).parent.parent


def hide_our_frames(error: BaseException) -> bool:
    """Leave the test's own lines in the traceback: the message says what ours did.

    Returns whether there are any; a boot that failed in a fixture has none.
    """
    theirs = False
    before = error.__traceback__
    while before and before.tb_next:
        frame = before.tb_next.tb_frame
        if _is_ours(Path(frame.f_code.co_filename)):
            before.tb_next = before.tb_next.tb_next
        else:
            before = before.tb_next
            theirs = theirs or frame.f_globals.get("__name__", "").partition(".")[0] not in _RUNNERS
    return theirs


def _is_ours(path: Path) -> bool:
    return _PACKAGE in path.parents and _PACKAGE / "acceptance" not in path.parents


def sections(attempt: Boot) -> list[tuple[str, str]]:
    """For a failed test's report: what the kernel died of, the console's end, where more is."""
    from kboot.guest.frames import without_frames  # noqa: PLC0415  only with a machine

    found = [(f"kboot crash: {report.title}", report.text) for report in attempt.console.reports]
    # What a command printed comes in frames, for programs to read.
    said = ((line.text, without_frames(line.text)) for line in attempt.console.lines())
    shown = [rest for text, rest in said if rest or not text]
    tail = "\n".join(shown[-_TAIL_LINES:])
    found.append((f"kboot console, last {_TAIL_LINES} lines", tail))
    found.append(("kboot evidence", str(attempt.evidence_directory)))
    return found


def properties(attempt: Boot) -> list[tuple[str, object]]:
    """For JUnit's ``<property>`` elements."""
    phases = attempt.history[0].durations_s()
    return [
        ("kboot.kernel.release", attempt.kernel.release),
        ("kboot.kernel.sha256", attempt.kernel.sha256),
        ("kboot.machine", attempt.machine_description),
        ("kboot.boot_s", round(sum(phases.values()), 3)),
        *((f"kboot.phase.{name}_s", seconds) for name, seconds in phases.items()),
        *([("kboot.restored_from", attempt.restored_from)] if attempt.restored_from else []),
        ("kboot.evidence", str(attempt.evidence_directory)),
        *((_ALLOWED, f"{each.report.title} ({each.by})") for each in attempt.judge.take_allowed()),
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
