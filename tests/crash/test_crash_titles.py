"""Titles are a promise: people file bugs and count by them. Change one only on purpose.

A new title for what had another one before is a line in CHANGELOG.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.crash.crash_logs import DATA, GOLDEN, encode, reports
from tests.crash.traces import expand

CALM = ("random: crng init done", "e1000e 0000:00:02.0 eth0: NIC Link is Up 1000 Mbps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Lines, and what is found in them."""

    titles: tuple[str, ...]
    lines: tuple[str, ...]
    #: Lines that stand before the first report's first one.
    before: int


def _rows() -> Iterator[Row]:
    text = (DATA / "titles.txt").read_text(encoding="utf-8")
    for part in text.split("\n== ")[1:]:
        head, *body = part.rstrip("\n").split("\n")
        more = [line for line in body if line.startswith("== ")]
        lines = [line.removeprefix("~ ") for line in body if line not in more]
        before = [line.removeprefix("~ ") for line in body if line.startswith("~ ")]
        yield Row(
            titles=() if head == "nothing" else tuple(head.split(" // ")),
            lines=tuple(expand(lines)),
            before=len(list(expand(before))),
        )


ROWS = tuple(_rows())
FORMS = ("[   42.{:06}] {}", "[   42.{:06}][   T77] {}", "{1}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.lines[row.before][:60])
def test_a_report_has_the_title_that_it_always_had(row: Row) -> None:
    lines = [*CALM, *row.lines, *["audit: type=1400"] * 40]
    for form in FORMS:
        found = reports(encode([form.format(*each) for each in enumerate(lines)]))
        assert tuple(report.title for report in found) == row.titles
        assert [each.start_line for each in found[:1]] == [3 + row.before] * bool(row.titles)


def test_so_many_titles_are_held() -> None:
    assert len(ROWS) + len(GOLDEN) > 300
    assert len({title for row in ROWS for title in row.titles}) > 100
