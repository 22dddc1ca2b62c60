"""JUnit's XML for cases, as CI systems read it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from kboot.results.cases import Case, Status, count, to_report

#: What XML 1.0 cannot have, escaped or not.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: The child of ``<testcase>`` for each status; a case that passed has none.
_TAGS = {
    Status.FAILED: "failure",
    Status.TIMEOUT: "failure",
    Status.CRASHED: "failure",
    Status.SKIPPED: "skipped",
    Status.EXPECTED_FAILURE: "skipped",
    Status.NOT_RUN: "skipped",
    Status.EMPTY: "skipped",
}


def legal(text: str) -> str:
    """`text` as XML can have it: other characters by their numbers."""
    return _ILLEGAL.sub(lambda match: f"#x{ord(match[0]):02X}", text)


def message(case: Case) -> str:
    """How a case ended and why, in one line."""
    return f"{case.status}: {case.reason}" if case.reason else str(case.status)


def details(case: Case) -> str:
    """What was printed in its time, and what the kernel reported."""
    parts = []
    if case.diagnostics:
        parts.append("\n".join(case.diagnostics))
    if case.messages:
        parts.append("kernel messages and other output:\n" + "\n".join(case.messages))
    parts += [f"kernel report: {report.title}\n{report.text}" for report in case.reports]
    return "\n\n".join(parts)


def element(case: Case) -> ET.Element:
    """One ``<testcase>``."""
    found = ET.Element(
        "testcase",
        classname=legal(".".join(case.path)) or "ktap",
        name=legal(case.label),
        time=f"{case.duration_s or 0.0:.6f}",
    )
    if tag := _TAGS.get(case.status):
        attributes = {"message": legal(message(case)), "type": case.status.replace(" ", "-")}
        child = ET.SubElement(found, tag, attributes)
        child.text = legal(details(case))
    elif text := details(case):
        ET.SubElement(found, "system-out").text = legal(text)
    return found


def document(cases: Sequence[Case], *, name: str) -> bytes:
    """A whole file with one ``<testsuite>``: the cases, and suites that are bad by themselves."""
    shown = to_report(cases)
    tags = [_TAGS.get(case.status) for case in shown]
    suite = ET.Element(
        "testsuite",
        name=legal(name),
        tests=str(len(shown)),
        failures=str(tags.count("failure")),
        errors="0",
        skipped=str(tags.count("skipped")),
        time=f"{sum(case.duration_s or 0.0 for case in shown):.6f}",
    )
    properties = ET.SubElement(suite, "properties")
    for status, number in count(cases).items():
        ET.SubElement(
            properties,
            "property",
            name=f"kboot.cases.{status.replace(' ', '-')}",
            value=str(number),
        )
    suite.extend(map(element, shown))
    root = ET.Element("testsuites")
    root.append(suite)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written
