"""Each case of a test suite in the guest as a subtest of the test that ran it, and in JUnit's file.

pytest has subtests from 9 on. With an older one the test itself tells of the cases that are bad.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from kboot.crash import CrashReport
    from kboot.results.cases import Case, SuiteResults

#: The attribute of a subtest's report that says which case it is, as pytest-xdist can carry it.
_CASE = "kboot_case"
#: The user property of a test that ran suites.
PROPERTY = "kboot.suite"


def summary(results: SuiteResults) -> str:
    """One line on a suite."""
    from kboot.results.cases import in_words  # noqa: PLC0415  only with a machine

    return f"{results.source}: {in_words(results.counts)}"


def summary_lines(reports: Iterable[object]) -> list[str]:
    """What test suites have given, for the end of the run."""
    return [
        f"{report.nodeid}: {value}"
        for report in reports
        if isinstance(report, pytest.TestReport) and not hasattr(report, _CASE)
        for name, value in report.user_properties
        if name == PROPERTY and report.when == "call"
    ]


def reports_of(
    item: pytest.Item,
    suites: Sequence[SuiteResults],
    tolerates: Callable[[CrashReport], bool],
) -> Iterator[pytest.TestReport]:
    """A subtest's report for each case of these suites; while one is used, nothing is captured.

    A case that passed while the kernel reported what `tolerates` does not let pass has failed.
    """
    try:
        from _pytest.subtests import SubtestContext, SubtestReport  # noqa: PLC0415  pytest 9
    except ImportError:
        return
    from kboot.results.cases import to_report  # noqa: PLC0415  only with a machine

    capture = item.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled if capture else contextlib.nullcontext
    for case in (case for results in suites for case in to_report(results.cases)):
        base = _report(item, case, tolerates)
        context = SubtestContext(msg=case.full_name, kwargs={})
        # There is no public way to a subtest that has run elsewhere.
        report = SubtestReport._new(base, context, captured_output=None, captured_logs=None)
        with shown():
            yield report


def _report(
    item: pytest.Item, case: Case, tolerates: Callable[[CrashReport], bool]
) -> pytest.TestReport:
    """A case as pytest reports one."""
    from kboot.results import junit  # noqa: PLC0415  only with a machine
    from kboot.results.cases import Status  # noqa: PLC0415

    message = junit.message(case)
    path, line, _ = item.location
    complaints = [each.title for each in case.reports if not tolerates(each)]
    outcome: Any = "failed"
    longrepr: Any = f"{case.full_name}: {message}"
    extra: dict[str, Any] = {}
    if case.status is Status.EXPECTED_FAILURE:
        outcome, extra["wasxfail"] = "skipped", case.reason
    elif case.status in {Status.SKIPPED, Status.NOT_RUN, Status.EMPTY}:
        outcome, longrepr = "skipped", (path, (line or 0) + 1, message)
    elif not case.bad and complaints:
        longrepr = f"{case.full_name}: the kernel reported: {complaints[0]}"
    elif not case.bad:
        outcome, longrepr = "passed", None
    now, duration_s = time.time(), case.duration_s or 0.0
    extra[_CASE] = {
        "name": junit.legal(case.label),
        "path": [junit.legal(each) for each in case.path],
        "type": case.status.replace(" ", "-"),
        "message": junit.legal(message),
    }
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome=outcome,
        longrepr=longrepr,
        when="call",
        sections=_sections(case),
        duration=duration_s,
        start=now - duration_s,
        stop=now,
        **extra,
    )


def case_type(report: object) -> str:
    """How a case of a suite ended, such as ``not-run``; empty for other reports."""
    case: dict[str, Any] = getattr(report, _CASE, {})
    return str(case.get("type", ""))


def case_message(report: object) -> str:
    """Why, in one line; empty for other reports."""
    case: dict[str, Any] = getattr(report, _CASE, {})
    return str(case.get("message", ""))


def _sections(case: Case) -> list[tuple[str, str]]:
    """For a failure: what was printed in the case's time."""
    found = [
        ("kboot diagnostics", "\n".join(case.diagnostics)),
        ("kboot kernel messages and other output", "\n".join(case.messages)),
        *((f"kboot crash: {report.title}", report.text) for report in case.reports),
    ]
    return [(name, text) for name, text in found if text]


def split_junit(config: pytest.Config, report: pytest.TestReport) -> list[Element]:
    """Give a case a ``<testcase>`` of its own. Returns what JUnit's file says of this report.

    pytest (9) puts what subtests say into that of their test, without their names, and those that
    passed nowhere.
    """
    case: dict[str, Any] | None = getattr(report, _CASE, None)
    from _pytest.junitxml import _NodeReporter, xml_key  # noqa: PLC0415

    xml = config.stash.get(xml_key, None)
    if xml is None or report.when == "teardown":
        return []
    test = xml.node_reporter(report)
    if case is None:
        return test.nodes
    test.duration -= report.duration
    own = _NodeReporter(test.id, xml)
    own.attrs = {
        "classname": ".".join((*_address(test.attrs, report), *case["path"])),
        "name": case["name"],
    }
    own.duration = report.duration
    if not report.passed and test.nodes:
        node = test.nodes.pop()
        node.attrib |= {"type": case["type"], "message": case["message"]}
        text = "\n\n".join(f"{name}\n{content}" for name, content in report.sections)
        node.text = "\n\n".join(filter(None, (node.text, _legal(text))))
        own.nodes.append(node)
    if report.failed and report in xml.open_reports:
        xml.open_reports.remove(report)
    xml.node_reporters_ordered.append(own)
    return own.nodes


def _legal(text: str) -> str:
    from kboot.results import junit  # noqa: PLC0415  only where there are cases

    return junit.legal(text)


def _address(attributes: dict[str, str], report: pytest.TestReport) -> list[str]:
    """The class name of a test's cases: where the test is, and its name."""
    if "classname" in attributes:
        return [attributes["classname"], attributes["name"]]
    from _pytest.junitxml import mangle_test_address  # noqa: PLC0415

    return mangle_test_address(report.nodeid)
