"""KTAP to cases: every form in which kernels and their test programs print it, cut anywhere."""

from __future__ import annotations

import random
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kboot.results import junit
from kboot.results.cases import Case, Status, count, passed, to_report
from kboot.results.ktap import Parser, read_log
from tests.ktap_logs import ODD_LOGS, OddLog, check_cut, counts_as_kunit, panicking_log

PASSED, FAILED, SKIPPED = Status.PASSED, Status.FAILED, Status.SKIPPED


def read(text: str) -> list[Case]:
    return read_log(textwrap.dedent(text).encode())[0]


def results(text: str) -> dict[str, Status]:
    return {case.full_name: case.status for case in read(text) if not case.suite}


NESTED = """\
KTAP version 1
1..2
  KTAP version 1
  1..2
    KTAP version 1
    1..2
    not ok 1 test_1
    ok 2 test_2
  not ok 1 test_3
  ok 2 test_4 # SKIP no hardware
not ok 1 example_test_1
ok 2 example_test_2
"""

KSELFTEST = """\
TAP version 13
1..2
# timeout set to 45
# selftests: size: get_size
# TAP version 13
# # Testing system size.
# 1..1
# ok 1 get runtime memory use
# # System runtime memory report (units in Kilobytes):
#  ---
#  Total:  123456
ok 1 selftests: size: get_size
# timeout set to 45
# selftests: kcmp: kcmp_test
# pid1:  10 pid2:  11 FD:  1
# TAP version 13
# 1..3
# ok 1 a
# ok 2 # SKIP no b
# not ok 3 c # XFAIL known
# # Totals: pass:1 fail:0 xfail:1 xpass:0 skip:1 error:0
not ok 2 selftests: kcmp: kcmp_test # exit=139
"""

KUNIT = """\
[    0.060000] printk: console [ttyS0] enabled
[    0.061000][    T1] KTAP version 1
[    0.061000][    T1] 1..3
[    0.062000][    T1]     KTAP version 1
[    0.062000][    T1]     # Subtest: example
[    0.062000][    T1]     1..3
[    0.063000][    T1]     # example_simple_test: initializing
[    0.064000][    T1]     ok 1 example_simple_test
[    0.065000][   T21] usb 1-1: new device
[    0.066000][    T1]         KTAP version 1
[    0.066000][    T1]         # Subtest: example_params_test
[    0.067000][    T1]         ok 1 example value 2
[    0.068000][    T1]         ok 2 example value 1 # SKIP unsupported
[    0.069000][    T1]     # example_params_test: pass:1 fail:0 skip:1 total:2
[    0.069000][    T1]     ok 2 example_params_test
[    0.070000][    T1]     # example_crashes: about to
"""

OOPS = """\
[    0.071000][   T30] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    0.071000][   T30] #PF: supervisor write access in kernel mode
[    0.071000][   T30] Oops: 0002 [#1] PREEMPT SMP
[    0.071000][   T30] CPU: 0 PID: 30 Comm: kunit_try_catch Not tainted 6.1.0 #1
[    0.071000][   T30] RIP: 0010:example_crashes+0x5/0x10
[    0.071000][   T30] Call Trace:
[    0.071000][   T30]  <TASK>
[    0.071000][   T30]  kunit_try_run_case+0x5/0x10
[    0.071000][   T30]  </TASK>
[    0.072000][   T30] ---[ end trace 0000000000000000 ]---
"""

PANIC = "[    0.073000][   T30] Kernel panic - not syncing: Fatal exception\n"


def test_suites_within_suites_are_told_by_their_indentation() -> None:
    cases = {case.full_name: case for case in read(NESTED)}
    assert {name: case.status for name, case in cases.items()} == {
        "example_test_1/test_3/test_1": FAILED,
        "example_test_1/test_3/test_2": PASSED,
        "example_test_1/test_3": FAILED,
        "example_test_1/test_4": SKIPPED,
        "example_test_1": FAILED,
        "example_test_2": PASSED,
    }
    assert [name for name, case in cases.items() if case.suite] == [
        "example_test_1/test_3",
        "example_test_1",
    ]
    assert cases["example_test_1/test_4"].reason == "no hardware"


def test_what_kselftest_puts_into_comments_are_cases_too() -> None:
    cases = {case.full_name: case for case in read(KSELFTEST)}
    kcmp = "selftests: kcmp: kcmp_test"
    assert {name: case.status for name, case in cases.items() if not case.suite} == {
        "selftests: size: get_size/get runtime memory use": PASSED,
        f"{kcmp}/a": PASSED,
        f"{kcmp}/no b": SKIPPED,
        f"{kcmp}/c": Status.EXPECTED_FAILURE,
    }
    assert cases["selftests: size: get_size/get runtime memory use"].diagnostics == (
        "Testing system size.",
    )
    assert cases[kcmp].reason == "exit=139"


def test_a_program_that_died_behind_its_last_case_is_bad_itself() -> None:
    cases = read(KSELFTEST)
    assert not passed(cases)
    assert [case.full_name for case in to_report(cases) if case.bad] == [
        "selftests: kcmp: kcmp_test"
    ]


def test_kunits_results_in_the_kernels_log_have_messages_and_times() -> None:
    cases = {case.full_name: case for case in read(KUNIT)}
    simple = cases["example/example_simple_test"]
    assert simple.status is PASSED
    assert simple.diagnostics == ("example_simple_test: initializing",)
    assert simple.duration_s == pytest.approx(0.002)
    assert cases["example/example_params_test/example value 1"].status is SKIPPED
    assert cases["example/example_params_test"].messages == ("usb 1-1: new device",)


def test_a_log_that_ends_leaves_the_planned_cases_not_run() -> None:
    cases = [case for case in read(KUNIT) if case.status is Status.NOT_RUN and not case.suite]
    assert [case.full_name for case in cases] == ["example/example_crashes", "case 2", "case 3"]


@pytest.mark.parametrize("died", [OOPS + PANIC, OOPS])
def test_a_crash_is_the_fault_of_the_case_that_ran(died: str) -> None:
    cases = [case for case in read(KUNIT + died) if case.bad and not case.suite]
    assert [(case.full_name, case.status) for case in cases] == [
        ("example/example_crashes", Status.CRASHED),
        ("case 2", Status.NOT_RUN),
        ("case 3", Status.NOT_RUN),
    ]
    assert cases[0].reason == "NULL pointer dereference in example_crashes"
    assert "NULL pointer dereference" in cases[1].reason


def test_an_oops_that_the_kernel_survives_stays_with_its_case() -> None:
    rest = "[    0.080000]     not ok 3 example_crashes\n[    0.080000] not ok 1 example\n"
    cases = {case.full_name: case for case in read(KUNIT + OOPS + rest)}
    case = cases["example/example_crashes"]
    assert case.status is FAILED
    assert [report.title for report in case.reports] == [
        "NULL pointer dereference in example_crashes"
    ]


def test_a_machine_that_begins_anew_ends_all_suites() -> None:
    again = "[    0.000000] Linux version 6.1.0 (a@b) (gcc 12) #1 SMP\n"
    counts = count(read(KUNIT + OOPS + PANIC + again + KUNIT))
    assert counts[Status.CRASHED] == 1
    assert counts[PASSED] == 4
    assert counts[Status.NOT_RUN] == 5


def test_a_reset_without_a_word_is_the_fault_of_the_case_that_ran() -> None:
    banner = "[    0.000000][    T0] Linux version 6.1.0 (a@b) (gcc 12) #1 SMP\n"
    booted = "".join(f"[    0.1000{n:02}][    T0] another line {n}\n" for n in range(20))
    cases = read(banner + KUNIT + banner + booted)
    crashed = [case for case in cases if case.status is Status.CRASHED and not case.suite]
    assert [case.full_name for case in crashed] == ["example/example_crashes"]
    assert "reset" in crashed[0].reason


def test_a_crash_when_no_case_runs_is_nobodys() -> None:
    cases, parser = read_log(b"TAP version 13\n1..1\nok 1 a\n" + (OOPS + PANIC).encode())
    assert passed(cases)
    assert parser.unblamed[-1].title == "panic: Fatal exception"


def test_a_crash_behind_the_last_case_is_its_suites() -> None:
    begun = "TAP version 13\n1..2\n  # Subtest: a\n  1..1\n  ok 1 b\n"
    cases = read(begun + OOPS)
    assert [(case.full_name, case.status, case.suite) for case in cases] == [
        ("a/b", PASSED, False),
        ("a", Status.CRASHED, True),
        ("case 2", Status.NOT_RUN, False),
    ]


@pytest.mark.parametrize(
    ("line", "status", "name", "reason"),
    [
        ("ok 1 a", PASSED, "a", ""),
        ("ok 1 - a", PASSED, "a", ""),
        ("not ok 1 - a b # rcode=3", FAILED, "a b", "rcode=3"),
        ("ok 1 a # SKIP why", SKIPPED, "a", "why"),
        ("not ok 1 a # skipped: why", SKIPPED, "a", "why"),
        ("not ok 1 a # TODO later", Status.EXPECTED_FAILURE, "a", "later"),
        ("ok 1 a # TODO later", PASSED, "a", "later"),
        ("ok 1 a # XFAIL known", Status.EXPECTED_FAILURE, "a", "known"),
        ("not ok 1 a # TIMEOUT 45 seconds", Status.TIMEOUT, "a", "45 seconds"),
        ("not ok 1 a # ERROR no root", FAILED, "a", "no root"),
        ("ok 1 a # errors=0", PASSED, "a", "errors=0"),
        ("ok 1 # SKIP a", SKIPPED, "a", "a"),
        ("ok 1", PASSED, "", ""),
        ("ok 1 issue \\#3", PASSED, "issue #3", ""),
    ],
)
def test_a_result_line_says(line: str, status: Status, name: str, reason: str) -> None:
    (case,) = read(f"KTAP version 1\n1..1\n{line}\n")
    assert (case.status, case.name, case.reason) == (status, name, reason)


@pytest.mark.parametrize(
    "line", ["ok", "okay 1 a", "ok one a", "ok 1a", "not  ok 1 a", "1..two", "TAP version", "ok1 a"]
)
def test_what_only_looks_like_a_result_is_none(line: str) -> None:
    assert results(f"KTAP version 1\n1..1\n{line}\n") == {"case 1": Status.NOT_RUN}


@pytest.mark.parametrize(
    "prefix",
    [
        "[    0.060000] ",
        "[    0.060000][    T1] ",
        "<6>[    0.060000] ",
        "2024-01-02T03:04:05.678Z ",
        "2024-01-02T03:04:05Z [    0.060000] ",
        "[00:01:02] ",
        "Jan  2 03:04:05 host kernel: [    0.060000] ",
        "board-7> ",
        "  ",
    ],
)
def test_what_stands_before_each_line_does_not_matter(prefix: str) -> None:
    text = "TAP version 13\n1..2\n    # Subtest: s\n    1..1\n    ok 1 a\nok 1 s\nok 2 b\n"
    lines = "".join(f"{prefix}{line}\n" for line in text.splitlines())
    assert {c.full_name: c.status for c in read_log(lines.encode())[0] if not c.suite} == {
        "s/a": PASSED,
        "b": PASSED,
    }


def test_a_kernel_message_in_the_midst_of_a_line_does_not_lose_the_result() -> None:
    cases = read("TAP version 13\n1..2\nok 1 fo[    1.200000] usb 1-1: hi\no bar\nnot ok 2 b\n")
    assert [(case.name, case.status) for case in cases] == [("foo bar", PASSED), ("b", FAILED)]
    assert cases[0].messages == ("usb 1-1: hi",)


def test_the_kernels_suites_do_not_disturb_those_of_the_program_that_starts_them() -> None:
    text = """\
        TAP version 13
        1..2
        # selftests: kunit: kunit.sh
        [    9.000000] KTAP version 1
        [    9.000000] 1..1
        [    9.000000]     # Subtest: s
        [    9.000000]     1..1
        [    9.000000]     ok 1 a
        [    9.000000] ok 1 s
        ok 1 selftests: kunit: kunit.sh
        ok 2 selftests: kunit: other
    """
    assert results(text) == {
        "s/a": PASSED,
        "selftests: kunit: kunit.sh": PASSED,
        "selftests: kunit: other": PASSED,
    }


def test_a_plan_may_come_last() -> None:
    assert results("TAP version 13\nok 1 a\nok 2 b\n1..3\n") == {
        "a": PASSED,
        "b": PASSED,
        "case 3": Status.NOT_RUN,
    }


def test_a_suite_that_is_skipped_as_a_whole_is_one_skipped_case() -> None:
    assert results("TAP version 13\n1..0 # SKIP no root\n") == {"case 1": SKIPPED}


def test_a_suite_without_cases_has_not_passed_one() -> None:
    cases = read("TAP version 14\n1..1\n    # Subtest: s\n    1..0\nok 1 - s\n")
    assert [(case.name, case.status) for case in cases] == [("s", Status.EMPTY)]


def test_a_suite_that_gives_up_tells_why_the_rest_was_not_run() -> None:
    cases = read("TAP version 13\n1..3\nok 1 a\nBail out! no memory\n")
    assert [case.reason for case in cases[1:]] == ["the suite gave up: no memory"] * 2


def test_results_without_a_version_line_are_read() -> None:
    assert results("hello\nok 1 a\nnot ok 2 b\n1..2\n") == {"a": PASSED, "b": FAILED}


def test_a_log_cut_at_its_start_does_not_make_a_failure_a_success() -> None:
    lost = "TAP version 13\n1..3\nok 1 a\nnot ok 2 b\nok 3 c\n"
    tail = lost[lost.index("ok 2 b") :]
    assert results(tail) == {"c": PASSED}


def test_a_plan_that_was_damaged_does_not_fill_the_memory() -> None:
    assert len(read("TAP version 13\n1..999999999\nok 1 a\n")) == 1


def test_a_last_line_without_its_end_counts_where_all_is_complete_with_it() -> None:
    assert results("TAP version 13\n1..2\nok 1 a\nok 2 b") == {"a": PASSED, "b": PASSED}
    assert results("TAP version 13\n1..3\nok 1 a\nok 2 b") == {
        "a": PASSED,
        "case 2": Status.NOT_RUN,
        "case 3": Status.NOT_RUN,
    }


@pytest.mark.parametrize("text", [NESTED, KSELFTEST, KUNIT + OOPS + PANIC])
def test_the_pieces_in_which_a_log_comes_do_not_matter(text: str) -> None:
    data = text.encode()
    whole = Parser()
    expected = whole.feed(data) + whole.close()
    for size in (1, 7, 50):
        parser = Parser()
        found: list[Case] = []
        for start in range(0, len(data), size):
            found += parser.feed(data[start : start + size])
        assert found + parser.close() == expected


# ------------------------------------------------------------------- logs of random suites, cut


def written(rng: random.Random, style: str) -> tuple[str, dict[str, Status]]:
    """A log of some suites in the form of KUnit or of kselftest, and what is in it."""
    lines: list[str] = []
    expected: dict[str, Status] = {}
    stamp = "[    1.000000] " if style == "kunit" else ""
    inner = f"{stamp}    " if style == "kunit" else "# "
    suites = rng.randint(1, 4)
    lines += [f"{stamp}TAP version 13", f"{stamp}1..{suites}"]
    for number in range(1, suites + 1):
        suite = f"suite_{number}" if style == "kunit" else f"selftests: t: prog_{number}"
        lines.append(f"{inner}# Subtest: {suite}" if style == "kunit" else f"# {suite}")
        if style == "kselftest":
            lines.append(f"{inner}TAP version 13")
        cases = rng.randint(1, 5)
        lines.append(f"{inner}1..{cases}")
        verdicts = [rng.choice([PASSED, FAILED, SKIPPED]) for _ in range(cases)]
        for place, verdict in enumerate(verdicts, 1):
            name = f"case_{number}_{place}"
            if rng.random() < 0.5:
                lines.append(f"{inner}# {name}: some words")
            if rng.random() < 0.3:
                lines.append(f"[    1.500000] usb 1-{place}: a message of the kernel's")
            said = "not ok" if verdict is FAILED else "ok"
            lines.append(f"{inner}{said} {place} {name}" + " # SKIP why" * (verdict is SKIPPED))
            expected[f"{suite}/{name}"] = verdict
        bad = FAILED in verdicts
        lines.append(f"{stamp}{'not ok' if bad else 'ok'} {number} {suite}")
    return "\n".join(lines) + "\n", expected


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), style=st.sampled_from(["kunit", "kselftest"]))
def test_what_was_written_is_read(seed: int, style: str) -> None:
    text, expected = written(random.Random(seed), style)
    cases = read_log(text.encode())[0]
    assert {case.full_name: case.status for case in cases if not case.suite} == expected


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), style=st.sampled_from(["kunit", "kselftest"]))
def test_a_log_cut_at_any_byte_loses_no_case_and_invents_none(seed: int, style: str) -> None:
    text, expected = written(random.Random(seed), style)
    data = text.encode()
    for end in range(len(data)):
        cases = [case for case in read_log(data[:end])[0] if not case.suite]
        ended = [case for case in cases if case.status is not Status.NOT_RUN]
        for case in ended:
            assert expected[case.full_name] is case.status
        # Every result whose line is whole is there, and every plan that is whole is kept.
        whole = data[: data.rfind(b"\n", 0, end) + 1].decode()
        assert len(ended) >= sum(
            f" {name.rpartition('/')[2]}\n" in whole
            or f" {name.rpartition('/')[2]} # SKIP" in whole
            for name in expected
        )
        if "1.." in whole:
            planned = int(whole.partition("1..")[2].partition("\n")[0])
            assert len({c.path[0] if c.path else c.label for c in cases}) == planned


def test_where_one_case_in_50_panics_a_cut_loses_no_case_and_invents_none() -> None:
    data = panicking_log(2)
    panic = data.index(b"case_48"), data.index(b"KTAP", len(data) // 2)
    # All other bytes: python -m tests.soak_ktap.
    for end in sorted({*range(*panic), *range(0, len(data) + 1, 97)}):
        check_cut(data, end)


def test_a_panic_in_each_of_many_cases_loses_none() -> None:
    rng = random.Random(0)
    for _ in range(50):
        text, expected = written(rng, "kunit")
        lines = text.splitlines(keepends=True)
        at = rng.choice([n for n, line in enumerate(lines) if " ok " in line or "not ok" in line])
        log = "".join(lines[:at]) + OOPS + PANIC
        cases = read_log(log.encode())[0]
        assert not passed(cases)
        blamed = [case for case in cases if case.status is Status.CRASHED]
        assert len(blamed) == 1
        ended = {c.full_name: c.status for c in cases if not c.bad or c.status is FAILED}
        for name, status in ended.items():
            assert name.count("/") == 0 or expected[name] is status


def test_junit_has_every_case_and_why() -> None:
    cases = read(KUNIT + OOPS + PANIC)
    root = ET.fromstring(junit.document(cases, name="log"))  # noqa: S314  our own
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.attrib["tests"] == "6"
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("1", "3")
    kinds = {
        case.attrib["name"]: [child.attrib.get("type") for child in case]
        for case in suite.iter("testcase")
    }
    assert kinds["example_crashes"] == ["crashed"]
    assert kinds["case 3"] == ["not-run"]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.text is not None
    assert "BUG: kernel NULL pointer dereference" in failure.text


def test_junit_survives_what_xml_cannot_have() -> None:
    cases = read("TAP version 13\n1..1\n# \x01<b>&\nnot ok 1 a\x02]]>\n")
    root = ET.fromstring(junit.document(cases, name="x"))  # noqa: S314  our own
    assert root.find("testsuite/testcase").attrib["name"] == "a#x02]]>"  # type: ignore[union-attr]


def test_cases_that_a_program_has_only_counted_are_as_it_counts_them() -> None:
    begun = "TAP version 13\n1..1\n# selftests: kcmp: kcmp_test\n# TAP version 13\n# 1..3\n"
    counted = "# # Totals: pass:2 fail:0 xfail:0 xpass:0 skip:1 error:0\n"
    ended = "ok 1 selftests: kcmp: kcmp_test\n"
    assert [case.status for case in read(begun + counted + ended) if not case.suite] == [
        *(PASSED, PASSED, SKIPPED)
    ]
    assert count(read(begun + ended))[Status.NOT_RUN] == 3


# ------------------------------------------------- what a kernel that make kunit-kernel built said

BOOTED = (Path(__file__).parent / "data" / "ktap" / "kunit-6.1.192.log").read_bytes()


def test_the_counts_of_a_real_boot_are_those_of_the_kernels_own_kunit_py() -> None:
    """kunit.py parse: "Ran 180 tests: passed: 175, skipped: 5"."""
    cases = read_log(BOOTED)[0]
    counts = count(cases)
    assert (counts[PASSED], counts[SKIPPED]) == (175, 5)
    assert sum(counts.values()) == 180
    assert passed(cases)


def test_a_real_boot_cut_anywhere_keeps_what_it_had_told() -> None:
    whole = {case.full_name: case.status for case in read_log(BOOTED)[0]}
    for end in range(0, len(BOOTED), 97):
        for case in read_log(BOOTED[:end])[0]:
            if case.status is not Status.NOT_RUN:
                assert whole[case.full_name] is case.status


@pytest.mark.parametrize("number", [-1, 0, 1, 2, 9, 19])
def test_a_byte_that_is_lost_before_a_line_loses_and_invents_no_case(number: int) -> None:
    """Serial lines drop bytes where the host is busy: of the time, or of the indentation."""
    lines = BOOTED.splitlines(keepends=True)
    number += next(n for n, line in enumerate(lines) if line.endswith(b"# Subtest: hlist\r\n"))
    before, line, behind = b"".join(lines[:number]), lines[number], b"".join(lines[number + 1 :])
    whole = {case.full_name: case.status for case in read_log(BOOTED)[0]}
    indentation = line.index(b"]") + len("]     ")
    for lost in range(indentation):
        cases = read_log(before + line[:lost] + line[lost + 1 :] + behind)[0]
        assert {case.full_name: case.status for case in cases} == whole, lost


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [("# Subtest: list_sort", "# Subtest: lisort"), ("ok 16 stackinit", "ok 16 ackinit")],
)
def test_bytes_that_are_lost_in_a_suites_name_invent_no_case(whole: str, damaged: str) -> None:
    """It is said twice. A real boot on a busy host had the first."""
    assert BOOTED.count(whole.encode()) == 1
    cases = read_log(BOOTED.replace(whole.encode(), damaged.encode()))[0]
    undamaged = [(case.name, case.status) for case in read_log(BOOTED)[0]]
    assert [(case.name, case.status) for case in cases] == undamaged


# ------------------------------------------------------------------------------------ odd logs


@pytest.mark.parametrize("log", [pytest.param(log, id=name) for name, log in ODD_LOGS.items()])
def test_in_an_odd_log_the_counts_are_those_of_kunit_py(log: OddLog) -> None:
    cases, _ = read_log(log.text.encode(), comments=False)
    assert counts_as_kunit(cases) == (log.ours or log.counts), log.why
