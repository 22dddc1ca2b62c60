"""The logs that our own crashes left are read today as they were when they happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kboot.crash import CrashReport, Event, Scanner
from tests.zoo.records import EXPECTED, LOGS

LOG_FILES = sorted(LOGS.glob("*.log"))
SIZES = (1, 2, 3, 5, 13, 63, 64, 65, 997, 4096)

each_log = pytest.mark.parametrize("log", LOG_FILES, ids=lambda log: log.stem)


def scan(data: bytes, size: int) -> list[Event]:
    scanner = Scanner()
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    return [*(event for piece in pieces for event in scanner.feed(piece)), *scanner.close()]


def expected() -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads(EXPECTED.read_text(encoding="utf-8"))
    return content


def test_every_log_has_its_expectation() -> None:
    assert [log.stem for log in LOG_FILES] == sorted(expected())


@each_log
def test_a_log_of_ours_is_read_right(log: Path) -> None:
    data = log.read_bytes()
    reports = [event for event in scan(data, len(data)) if isinstance(event, CrashReport)]
    assert expected()[log.stem] == [
        {"kind": each.kind, "function": each.function, "title": each.title, "fatal": each.fatal}
        for each in reports
    ]


@each_log
@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_the_pieces_it_comes_in_changes_nothing(log: Path, size: int) -> None:
    data = log.read_bytes()
    assert scan(data, size) == scan(data, len(data))


@each_log
def test_its_extent_is_where_the_text_is(log: Path) -> None:
    data = log.read_bytes()
    lines = data.split(b"\n")
    for report in (event for event in scan(data, 4096) if isinstance(event, CrashReport)):
        first = lines[report.start_line - 1].decode(errors="replace")
        assert report.text.splitlines()[0].strip() in first
        assert data[: report.start_offset].count(b"\n") == report.start_line - 1
        assert data[: report.end_offset].rstrip(b"\n").count(b"\n") == report.end_line - 1
