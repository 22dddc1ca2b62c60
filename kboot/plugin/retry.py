"""Failed tests again, on pristine machines: what fails only sometimes is flaky, and never passed.

A fault of the host's says nothing about the kernel: such runs are repeated and counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import pytest
from _pytest.runner import call_and_report

from kboot.errors import ConfigError
from kboot.plugin.options import read_config
from kboot.plugin.reporting import is_infra

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: The attribute of a report that says how often the test failed: ``1/2``.
_FLAKY = "kboot_flaky"
#: The user property of a test that was run more than once.
PROPERTY = "kboot.retry"

_RUN = pytest.StashKey[int]()
#: Reports of subtests, until it is known whether the run of their test is the one that is shown.
_HELD = pytest.StashKey[list[pytest.TestReport]]()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a test."""

    reports: tuple[pytest.TestReport, ...]
    subtests: tuple[pytest.TestReport, ...]

    @property
    def verdict(self) -> Literal["passed", "failed", "infra"]:
        """How it went; what was skipped has not failed."""
        failed = [report for report in self.reports if report.failed and report.when != "teardown"]
        if any(map(is_infra, failed)):
            return "infra"
        return "failed" if failed else "passed"


def applies(item: pytest.Item) -> bool:
    """Whether a test that fails is to be run again: one that has a machine of ours."""
    if "machine" not in getattr(item, "fixturenames", ()):
        return False
    try:
        return read_config(item.config).retry > 0
    except ConfigError:
        # Its set-up tells it.
        return False


def is_repeated(item: pytest.Item) -> bool:
    """Whether the test has been run before."""
    return item.stash.get(_RUN, 1) > 1


def hold(item: pytest.Item, report: pytest.TestReport) -> bool:
    """Keep a subtest's report back, if it is not known yet whether it counts."""
    held = item.stash.get(_HELD, None)
    if held is None:
        return False
    held.append(report)
    return True


def run(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Run a test, and again while it fails; report how it went."""
    limit = read_config(item.config).retry
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runs: list[Run] = []
    while not runs or _again(runs, limit):
        _forget(item, number=len(runs) + 1)
        runs.append(_run_once(item, nextitem, runs, limit))
    del item.stash[_HELD]
    for report in _verdict(runs):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _again(runs: list[Run], limit: int) -> bool:
    """Whether to run it once more: each kind of fault may come `limit` times."""
    last = runs[-1].verdict
    return last != "passed" and sum(each.verdict == last for each in runs) <= limit


def _forget(item: pytest.Item, number: int) -> None:
    """Have nothing of an earlier run in the reports of the next one."""
    item.stash[_RUN] = number
    item.stash[_HELD] = []
    if number > 1:
        item.user_properties.clear()
        item._report_sections.clear()


def _run_once(
    item: pytest.Item, nextitem: pytest.Item | None, before: list[Run], limit: int
) -> Run:
    """Set-up, call and tear-down; what modules and the session have stays for the next run."""
    function = cast("pytest.Function", item)
    if not getattr(function, "_request", None):
        function._initrequest()
    try:
        reports = [call_and_report(item, "setup", log=False)]
        if reports[0].passed:
            reports.append(call_and_report(item, "call", log=False))
        stays = _again([*before, Run(tuple(reports), ())], limit)
        keep = cast("pytest.Item", item.parent) if stays else nextitem
        if item.session.shouldfail or item.session.shouldstop:
            keep = None
        reports.append(call_and_report(item, "teardown", log=False, nextitem=keep))
    finally:
        function._request = False  # type: ignore[assignment]  # as pytest's runner does
        function.funcargs = None  # type: ignore[assignment]
    held = item.stash[_HELD]
    return Run(tuple(reports), tuple(held))


def _verdict(runs: list[Run]) -> Iterable[pytest.TestReport]:
    """The reports that count: of the first run that failed, or else of the last one."""
    counted = [each for each in runs if each.verdict != "infra"]
    failed = [each for each in counted if each.verdict == "failed"]
    shown = failed[0] if failed else runs[-1]
    faults = len(runs) - len(counted)
    words = [f"failed {len(failed)}/{len(counted)}"] if failed and len(counted) > 1 else []
    words += [f"{faults} infrastructure faults" if faults > 1 else "1 infrastructure fault"] * (
        faults > 0 and len(runs) > 1
    )
    is_flaky = 0 < len(failed) < len(counted)
    for report in shown.subtests:
        if is_flaky and report.failed:
            setattr(report, _FLAKY, f"{len(failed)}/{len(counted)}")
        yield report
    for report in (*shown.reports[:-1], runs[-1].reports[-1]):
        if words and report.when != "teardown" and (report.failed or report.when == "call"):
            kind = "flaky: " if is_flaky else ""
            report.user_properties.append((PROPERTY, kind + ", ".join(words)))
        if is_flaky and report.failed and report.when != "teardown":
            setattr(report, _FLAKY, f"{len(failed)}/{len(counted)}")
        yield report


def flaky(report: object) -> str | None:
    """How often the test of a report failed, of how many runs: ``1/2``; None if it is not flaky."""
    counts: str | None = getattr(report, _FLAKY, None)
    return counts


def mark_junit(nodes: Iterable[Element], report: pytest.TestReport) -> None:
    """Have these elements of JUnit's file, a report's own, say that its test is flaky."""
    counts = flaky(report)
    for element in nodes if counts else ():
        if element.tag in {"failure", "error"}:
            element.attrib["type"] = "flaky"
            element.attrib["message"] = f"flaky {counts}: {element.attrib['message']}"


def summary_lines(reports: Iterable[object]) -> list[str]:
    """Tests that were run more than once, for the end of the run."""
    return [
        f"{report.nodeid}: {value}"
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when in {"setup", "call"}
        for name, value in report.user_properties
        if name == PROPERTY
    ]
