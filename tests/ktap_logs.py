"""Odd logs, and what the kernel's own kunit.py counts in each.

They follow the kernel's Documentation/dev-tools/ktap.rst and what test programs make of it; the
tool is that of Linux 6.1.
`tests.test_ktap` holds our counts against these numbers, and `tests.soak_kunit` these numbers
against the tool itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kboot.results.cases import Case, Status, count
from kboot.results.ktap import read_log


class Counts(NamedTuple):
    """As kunit.py tells them: what has no result is `crashed`."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    crashed: int = 0


def counts_as_kunit(cases: list[Case]) -> Counts:
    """Our counts, by the names of kunit.py."""
    counts = count(cases)
    return Counts(
        passed=counts[Status.PASSED],
        failed=counts[Status.FAILED] + counts[Status.TIMEOUT],
        skipped=counts[Status.SKIPPED],
        crashed=counts[Status.CRASHED] + counts[Status.NOT_RUN],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OddLog:
    """One of them."""

    text: str
    counts: Counts
    #: Ours, where they are others, and why.
    ours: Counts | None = None
    why: str = ""


def _stamped(text: str) -> str:
    """As the kernel prints it."""
    return "".join(f"[    1.{number:06}] {line}\n" for number, line in enumerate(text.splitlines()))


_TWO_SUITES = """\
KTAP version 1
1..2
    # Subtest: first
    1..2
    ok 1 a
    not ok 2 b
# first: pass:1 fail:1 skip:0 total:2
not ok 1 first
    # Subtest: second
    1..1
    ok 1 c # SKIP no hardware
# second: pass:0 fail:0 skip:1 total:1
ok 2 second # SKIP no hardware
"""

_OOPS = """\
[    2.071000] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    2.071000] #PF: supervisor write access in kernel mode
[    2.071000] Oops: 0002 [#1] PREEMPT SMP
[    2.071000] CPU: 0 PID: 30 Comm: kunit_try_catch Not tainted 6.1.0 #1
[    2.071000] RIP: 0010:example_crashes+0x5/0x10
[    2.071000] Call Trace:
[    2.071000]  <TASK>
[    2.071000]  kunit_try_run_case+0x5/0x10
[    2.071000]  </TASK>
[    2.072000] ---[ end trace 0000000000000000 ]---
"""

_PANIC = "[    2.080000] Kernel panic - not syncing: Fatal exception\n"
_BANNER = "[    0.000000] Linux version 6.1.0 (a@b) (gcc 12) #1 SMP\n"


#: The results of cases in turn, and how they are read.
_RESULTS = (
    ("ok {0} case_{0}", Status.PASSED),
    ("not ok {0} case_{0}", Status.FAILED),
    ("ok {0} case_{0} # SKIP no hardware", Status.SKIPPED),
)
#: One case in so many panics.
PANICS = 50


def panicking_log(boots: int) -> bytes:
    """So many boots of a kernel whose suite has `PANICS` cases, of which the last one panics."""
    results = [_RESULTS[n % len(_RESULTS)][0].format(n) for n in range(1, PANICS)]
    lines = ["KTAP version 1", f"1..{PANICS}", *results, f"# case_{PANICS}: about to"]
    boot = _BANNER + _stamped("".join(f"{line}\n" for line in lines)) + _OOPS + _PANIC
    return (boot * boots).encode()


def check_cut(data: bytes, end: int) -> None:
    """Where the log of `panicking_log` is cut, no case of it is lost, and none invented."""
    cases = [case for case in read_log(data[:end])[0] if not case.suite]
    whole = data[: data.rfind(b"\n", 0, end) + 1]
    begun = whole.count(f"1..{PANICS}\n".encode())
    assert [case.number for case in cases] == [*range(1, PANICS + 1)] * begun, end
    ended = whole.count(b"ok ")
    died = whole.count(b"end trace")
    for case in cases:
        if case.number == PANICS:
            # A report may be read before its last line.
            crashed = case.status is Status.CRASHED
            assert crashed or case.status is Status.NOT_RUN, end
            died -= crashed
        elif case.status is not Status.NOT_RUN:
            assert case.status is _RESULTS[case.number % len(_RESULTS)][1], end
            ended -= 1
    assert ended == 0, end
    assert died <= 0, end


ODD_LOGS: Mapping[str, OddLog] = {
    "two suites": OddLog(text=_TWO_SUITES, counts=Counts(1, 1, 1)),
    "times before each line": OddLog(text=_stamped(_TWO_SUITES), counts=Counts(1, 1, 1)),
    "carriage returns": OddLog(text=_TWO_SUITES.replace("\n", "\r\n"), counts=Counts(1, 1, 1)),
    "tabs instead of spaces": OddLog(
        text=_TWO_SUITES.replace("    ", "\t"), counts=Counts(1, 1, 1)
    ),
    "two spaces": OddLog(text=_TWO_SUITES.replace("    ", "  "), counts=Counts(1, 1, 1)),
    "hyphens": OddLog(
        text="TAP version 14\n1..3\nok 1 - a\nnot ok 2 - b-c\nok 3 - - d\n", counts=Counts(2, 1)
    ),
    "words before it": OddLog(
        text=f"Linux version 6.1.0\nok is no result\nok 1is none\n{_TWO_SUITES}",
        counts=Counts(1, 1, 1),
    ),
    "results before it": OddLog(
        text=f"1..2\nok 1 a\n{_TWO_SUITES}",
        counts=Counts(1, 1, 1),
        ours=Counts(2, 1, 1, 1),
        why="results without a version line are read",
    ),
    "kernel messages in its midst": OddLog(
        text=_TWO_SUITES.replace(
            "    not ok 2", "random: crng init done\n  indented words\n    not ok 2"
        ),
        counts=Counts(1, 1, 1),
    ),
    "numbers that begin anew": OddLog(
        text="TAP version 13\n1..3\nok 1 a\nok 1 b\nok 1 c\n", counts=Counts(3)
    ),
    "numbers that go back": OddLog(
        text="TAP version 13\n1..3\nok 3 a\nok 2 b\nnot ok 1 c\n", counts=Counts(2, 1)
    ),
    "numbers with a gap": OddLog(
        text="TAP version 13\n1..3\nok 1 a\nok 3 c\n", counts=Counts(2, 0, 0, 1)
    ),
    "large numbers": OddLog(text="TAP version 13\n1..2\nok 41 a\nok 42 b\n", counts=Counts(2)),
    "no plan": OddLog(text="TAP version 13\nok 1 a\nnot ok 2 b\nok 3 c\n", counts=Counts(2, 1)),
    "a plan at the end": OddLog(
        text="TAP version 13\nok 1 a\nnot ok 2 b\n1..2\n", counts=Counts(1, 1)
    ),
    "fewer than planned": OddLog(
        text="TAP version 13\n1..5\nok 1 a\nnot ok 2 b\n", counts=Counts(1, 1, 0, 3)
    ),
    "fewer than planned in a suite": OddLog(
        text="KTAP version 1\n1..2\n    # Subtest: s\n    1..3\n    ok 1 a\nnot ok 1 s\nok 2 t\n",
        counts=Counts(2, 0, 0, 2),
    ),
    "cut in a suite": OddLog(
        text="KTAP version 1\n1..2\n    # Subtest: s\n    1..3\n    ok 1 a\n    not ok 2 b\n",
        counts=Counts(1, 1, 0, 2),
    ),
    "cut behind the plan": OddLog(text="KTAP version 1\n1..4\n", counts=Counts(0, 0, 0, 4)),
    "an oops that ends it": OddLog(
        text=_stamped("KTAP version 1\n1..2\nok 1 a\n# crashes: about to\n") + _OOPS,
        counts=Counts(1, 0, 0, 1),
    ),
    "a panic that ends it": OddLog(
        text=_stamped("KTAP version 1\n1..3\nnot ok 1 a\n")
        + _OOPS
        + "[    2.080000] Kernel panic - not syncing: Fatal exception\n",
        counts=Counts(0, 1, 0, 2),
    ),
    "an oops that the kernel survives": OddLog(
        text=_stamped("KTAP version 1\n1..2\n# crashes: about to\n")
        + _OOPS
        + "[    2.090000] not ok 1 crashes\n[    2.091000] ok 2 b\n",
        counts=Counts(1, 1),
    ),
    "the panic of a kernel without a root file system": OddLog(
        text=_stamped(_TWO_SUITES)
        + "[    3.000000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block"
        "(0,0)\n",
        counts=Counts(1, 1, 1),
    ),
    "results behind the end": OddLog(
        text=f"{_TWO_SUITES}reboot: System halted\nKTAP version 1\n1..1\nok 1 z\n",
        counts=Counts(1, 1, 1),
        ours=Counts(2, 1, 1),
        why="every text of a log is read",
    ),
    "two texts": OddLog(
        text=f"{_TWO_SUITES}{_TWO_SUITES}",
        counts=Counts(1, 1, 1),
        ours=Counts(2, 2, 2),
        why="every text of a log is read",
    ),
    "a suite that gives up": OddLog(
        text="TAP version 13\n1..4\nok 1 a\nBail out! no memory\n", counts=Counts(1, 0, 0, 3)
    ),
    "skipped behind ok and not ok": OddLog(
        text="KTAP version 1\n1..4\nok 1 a # SKIP why\nnot ok 2 b # SKIP why\nok 3 c # SKIP\n"
        "ok 4 d # SKIPPED\n",
        counts=Counts(0, 0, 4),
    ),
    "a directive in small letters": OddLog(
        text="TAP version 13\n1..1\nok 1 a # skip why\n",
        counts=Counts(1),
        ours=Counts(0, 0, 1),
        why="TAP's directives may be in small letters",
    ),
    "words that only look like a directive": OddLog(
        text="KTAP version 1\n1..3\nok 1 skip this\nnot ok 2 SKIP\nok 3 a # skips=0\n",
        counts=Counts(2, 1),
    ),
    "other directives": OddLog(
        text="KTAP version 1\n1..3\nnot ok 1 a # TIMEOUT 30 seconds\nnot ok 2 b # ERROR no root\n"
        "ok 3 c # rcode=0\n",
        counts=Counts(1, 2),
    ),
    "failures that are expected": OddLog(
        text="KTAP version 1\n1..3\nnot ok 1 a # XFAIL known\nnot ok 2 b # TODO later\nok 3 c\n",
        counts=Counts(1, 2),
        ours=Counts(1),
        why="expected failures are counted apart",
    ),
    "no description": OddLog(
        text="KTAP version 1\n1..2\nok 1\nnot ok 2\n",
        counts=Counts(0, 0, 0, 2),
        ours=Counts(1, 1),
        why="a description is optional, says ktap.rst; the tool of 6.1 wants one",
    ),
    "results in comments": OddLog(
        text="TAP version 13\n1..1\n# selftests: size: get_size\n# TAP version 13\n# 1..1\n"
        "# ok 1 get size\nok 1 selftests: size: get_size\n",
        counts=Counts(1),
    ),
    "suites of suites": OddLog(
        text="KTAP version 1\n1..1\n    # Subtest: outer\n    1..2\n        # Subtest: inner\n"
        "        1..2\n        ok 1 a\n        not ok 2 b\n    not ok 1 inner\n    ok 2 c\n"
        "not ok 1 outer\n",
        counts=Counts(2, 1),
    ),
    "suites without names": OddLog(
        text="KTAP version 1\n1..2\n  KTAP version 1\n  1..2\n    KTAP version 1\n    1..2\n"
        "    not ok 1 a\n    ok 2 b\n  not ok 1 c\n  ok 2 d # SKIP\nnot ok 1 e\nok 2 f\n",
        counts=Counts(2, 1, 1),
    ),
    "parameters": OddLog(
        text="KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    # module: m\n"
        "    1..2\n        KTAP version 1\n        # Subtest: p\n        ok 1 one\n"
        "        ok 2 two # SKIP no\n        # p: pass:1 fail:0 skip:1 total:2\n    ok 1 p\n"
        "    # q.speed: slow\n    ok 2 q\n# s: pass:2 fail:0 skip:0 total:2\n"
        "# Totals: pass:2 fail:0 skip:1 total:3\nok 1 s\n",
        counts=Counts(2, 0, 1),
    ),
    "a suite of that name twice": OddLog(
        text="KTAP version 1\n1..2\n    # Subtest: s\n    1..1\n    ok 1 a\nok 1 s\n"
        "    # Subtest: s\n    1..1\n    not ok 1 a\nnot ok 2 s\n",
        counts=Counts(1, 1),
    ),
    "a suite without cases": OddLog(
        text="TAP version 14\n1..2\n    # Subtest: s\n    1..0\nok 1 - s\nok 2 - t\n",
        counts=Counts(1),
    ),
    "a suite of fewer lines than its name promises": OddLog(
        text="KTAP version 1\n1..2\n    # Subtest: ok 1 a\n    1..1\n    ok 1 b\nok 1 ok 1 a\n"
        "ok 2 c\n",
        counts=Counts(2),
    ),
    "a case whose suite says otherwise": OddLog(
        text="KTAP version 1\n1..1\n    # Subtest: s\n    1..1\n    not ok 1 a\nok 1 s\n",
        counts=Counts(0, 1),
    ),
    "a suite that failed without its cases": OddLog(
        text="KTAP version 1\n1..1\n    # Subtest: s\n    1..1\n    ok 1 a\nnot ok 1 s\n",
        counts=Counts(1),
    ),
}
