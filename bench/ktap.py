"""How fast the results of test suites are read: ``python -m bench.ktap``."""

from __future__ import annotations

import statistics
import sys
import time

from bench.figure import Figure
from kboot.results import junit
from kboot.results.ktap import read_log

_CASES_PER_SUITE = 100


def kunit_log(cases: int) -> bytes:
    """A kernel's log with so many cases of KUnit, each with a line of its own before its result."""
    suites = cases // _CASES_PER_SUITE
    lines = ["KTAP version 1", f"1..{suites}"]
    for suite in range(1, suites + 1):
        lines += ["    KTAP version 1", f"    # Subtest: suite_{suite}"]
        lines.append(f"    1..{_CASES_PER_SUITE}")
        for case in range(1, _CASES_PER_SUITE + 1):
            lines += [f"    # case_{case}: initializing", f"    ok {case} case_{case}"]
        lines.append(f"ok {suite} suite_{suite}")
    return b"".join(
        f"[{1 + at // 10_000:5d}.{at % 10_000:04d}00][    T1] {line}\r\n".encode()
        for at, line in enumerate(lines)
    )


def kselftest_log(cases: int) -> bytes:
    """The same number of cases as kselftest's runner prints them, in comments."""
    programs = cases // _CASES_PER_SUITE
    lines = ["TAP version 13", f"1..{programs}"]
    for program in range(1, programs + 1):
        name = f"selftests: bench: program_{program}"
        lines += [f"# {name}", "# TAP version 13", f"# 1..{_CASES_PER_SUITE}"]
        lines += [f"# ok {case} case {case}" for case in range(1, _CASES_PER_SUITE + 1)]
        lines.append(f"ok {program} {name}")
    return "".join(f"{line}\n" for line in lines).encode()


def cases_per_second(log: bytes, cases: int) -> float:
    """How fast one core reads a log, with a look for crashes."""
    start = time.process_time()
    found, _ = read_log(log)
    duration_s = time.process_time() - start
    counted = sum(not case.suite for case in found)
    if counted != cases:
        raise AssertionError(f"{counted} cases were read, and {cases} written")
    return cases / duration_s


def run(*, quick: bool) -> dict[str, Figure]:
    """``ktap_kunit_cases_s``, ``ktap_kselftest_cases_s``, ``ktap_junit_cases_s``."""
    cases = 10_000 if quick else 50_000
    logs = {"kunit": kunit_log(cases), "kselftest": kselftest_log(cases)}
    figures = {}
    for name, log in logs.items():
        runs = tuple(cases_per_second(log, cases) for _ in range(5))
        figures[f"ktap_{name}_cases_s"] = Figure(
            value=statistics.median(runs), unit="cases/s", runs=runs
        )
    found, _ = read_log(logs["kunit"])
    start = time.process_time()
    junit.document(found, name="bench")
    rate = cases / (time.process_time() - start)
    figures["ktap_junit_cases_s"] = Figure(value=rate, unit="cases/s", runs=(rate,))
    return figures


if __name__ == "__main__":
    for _name, _figure in run(quick="--quick" in sys.argv).items():
        _runs = " ".join(f"{value:.0f}" for value in _figure.runs)
        sys.stdout.write(f"{_name} {_figure.value:.0f} {_figure.unit} ({_runs})\n")
