"""Every golden log is read right, plain and in every disguise."""

from __future__ import annotations

import pytest

from kboot.crash import CrashReport
from tests.crash.crash_logs import (
    GOLDEN,
    PREFIXES,
    UNKNOWN,
    Golden,
    disguise,
    encode,
    openings,
    reports,
    scan,
)

each_golden = pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)


def what(report: CrashReport) -> tuple[str, str, str | None, int]:
    return report.kind.value, report.title, report.function, report.start_line


def wanted(golden: Golden, shift: int = 0) -> tuple[str, str, str | None, int]:
    return golden.kind, golden.title, golden.function, golden.line + shift


@each_golden
def test_a_golden_log_is_read_right(golden: Golden) -> None:
    assert what(reports(encode(golden.lines))[0]) == wanted(golden)


@each_golden
def test_the_guilty_function_is_among_the_frames(golden: Golden) -> None:
    report = reports(encode(golden.lines))[0]
    if report.function is not None:
        assert report.function in {frame.function for frame in report.frames}


@each_golden
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_changes_nothing(golden: Golden, prefix: str) -> None:
    assert what(reports(encode(disguise(golden, prefix)))[0]) == wanted(golden, shift=2)


@pytest.mark.parametrize(
    "golden", [g for g in GOLDEN if g.function], ids=lambda golden: golden.name
)
@pytest.mark.parametrize("prefix", UNKNOWN)
def test_an_unknown_prefix_is_learnt_from_the_first_line(golden: Golden, prefix: str) -> None:
    assert what(reports(encode(disguise(golden, prefix)))[0]) == wanted(golden, shift=2)


@each_golden
@pytest.mark.parametrize("glue", ["login: ", "root@guest:~# ", "/ # ", "executing program "])
def test_text_glued_to_the_first_line_changes_nothing(golden: Golden, glue: str) -> None:
    for prefix in ("bare", "time"):
        lines = disguise(golden, prefix)
        lines[golden.line + 1] = glue + lines[golden.line + 1]
        assert what(reports(encode(lines))[0]) == wanted(golden, shift=2)


@each_golden
def test_another_cpus_lines_in_between_change_nothing(golden: Golden) -> None:
    other = [f"[    9.{n:06}][    C3] usb 1-1: new device number {n}" for n in range(999)]
    mixed = [
        line
        for number, own in enumerate(disguise(golden, "time and task"))
        for line in (own, other[number])
    ]
    report = reports(encode(mixed))[0]
    assert what(report)[:3] == wanted(golden)[:3]
    assert "usb 1-1" not in report.text


@each_golden
def test_two_reports_mixed_line_by_line_are_told_apart(golden: Golden) -> None:
    other = next(g for g in GOLDEN if g.name == "warning-6.1")
    if golden.kind == other.kind:
        other = next(g for g in GOLDEN if g.name == "divide")
    left = [f"[    9.000001][  T417] {line}" for line in golden.lines]
    right = [f"[    9.000001][   T99] {line}" for line in other.lines]
    mixed: list[str] = []
    while left or right:
        mixed += left[:1] + right[:1]
        left, right = left[1:], right[1:]
    found = {what(report)[:3] for report in reports(encode(mixed))}
    assert {wanted(golden)[:3], wanted(other)[:3]} <= found


@each_golden
@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_the_size_of_the_pieces_changes_nothing(golden: Golden, size: int) -> None:
    data = encode(disguise(golden, "time and task"))
    assert scan(data, size) == scan(data)


@each_golden
def test_a_report_is_announced_once_and_before_it_is_complete(golden: Golden) -> None:
    events = scan(encode(golden.lines))
    report = next(event for event in events if isinstance(event, CrashReport))
    announced = [e for e in openings(events) if e.line == report.start_line]
    assert len(announced) == 1
    assert events.index(announced[0]) < events.index(report)
    assert announced[0].offset == report.start_offset


@each_golden
def test_extent_and_text_agree_with_the_log(golden: Golden) -> None:
    data = encode(golden.lines)
    for report in reports(data):
        part = data[report.start_offset : report.end_offset]
        assert part == b"".join(
            data.splitlines(keepends=True)[report.start_line - 1 : report.end_line]
        )
        assert report.text.splitlines()[0] == golden.lines[report.start_line - 1].strip()


@each_golden
def test_a_log_cut_anywhere_after_the_first_line_still_gives_its_kind(golden: Golden) -> None:
    for end in range(golden.line, len(golden.lines) + 1, 3):
        cut = [f"[    9.000001] {line}" for line in golden.lines[:end]]
        assert reports(encode(cut))[0].start_line == golden.line


@each_golden
@pytest.mark.parametrize("prefix", ["bare", "time"])
def test_other_messages_in_between_change_nothing(golden: Golden, prefix: str) -> None:
    other = PREFIXES[prefix](7) + "eth0: renamed from veth1"
    mixed = [line for own in disguise(golden, prefix) for line in (own, other)]
    report = reports(encode(mixed))[0]
    assert what(report)[:3] == wanted(golden)[:3]
    assert report.start_line == 2 * (golden.line + 2) - 1
