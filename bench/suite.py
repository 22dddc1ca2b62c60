"""What a whole suite gains: pristine machines against reboots, and two workers against one.

And what is left of the wait for a pristine machine when one stands by.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from kboot import process

_TESTS = 30
#: With a standby machine, one worker uses a second processor as well.
_ALONE = "--kboot-standby=off"
_PARALLEL_TESTS = 40

#: A test that works its guest a little, as tests do; the reboot is what isolation costs otherwise.
_SUITE = """
import os
import pytest

REBOOTS = bool(os.environ.get("BENCH_REBOOTS"))
WORK = os.environ.get("BENCH_WORK", "true")

@pytest.mark.parametrize("number", range({tests}))
def test_something(machine, number):
    if REBOOTS and number:
        machine.reset()
    machine.guest.succeed(WORK)
    assert machine.guest.succeed(f"echo {{number}}").strip() == str(number)
"""

#: About a second of a processor under emulation.
_WORK = "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done"

#: About half a second of it.
_HALF_A_SECOND = "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done"

#: Notes how long each test has waited for its fixtures.
_CONFTEST = """
from pathlib import Path

def pytest_runtest_logreport(report):
    if report.when == "setup":
        with Path("waits").open("a") as file:
            print(report.duration, file=file)
"""


def run(*, quick: bool) -> dict[str, Figure]:
    """``isolated_suite_speedup``, ``standby_wait_ms``, ``parallel_efficiency_2``.

    See docs/performance.md.
    """
    with tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder:
        directory = Path(folder)
        tests = 4 if quick else _TESTS
        # The first run boots, and saves the machine: that is not what is measured.
        _seconds(directory, tests=1)
        speedups = interleaved(
            lambda: _seconds(
                directory, "--kboot-isolation=session", tests=tests, BENCH_REBOOTS="1"
            ),
            lambda: _seconds(directory, "--kboot-isolation=test", tests=tests),
            rounds=1,
        )
        waits = _waits_ms(directory, tests=tests)
        tests = 8 if quick else _PARALLEL_TESTS
        pairs = interleaved(
            lambda: _seconds(directory, "-n1", _ALONE, tests=tests, BENCH_WORK=_WORK),
            lambda: _seconds(directory, "-n2", _ALONE, tests=tests, BENCH_WORK=_WORK),
            rounds=1 if quick else 5,
        )
    efficiencies = tuple(one / (2 * two) for one, two in pairs)
    return {
        "isolated_suite_speedup": median_ratio(speedups),
        "standby_wait_ms": Figure(value=statistics.median(waits), unit="ms", runs=waits),
        "parallel_efficiency_2": Figure(
            value=statistics.median(efficiencies), unit="x", runs=efficiencies
        ),
    }


def _waits_ms(directory: Path, *, tests: int) -> tuple[float, ...]:
    """How long each test has waited for its machine, but the first, which waits for QEMU."""
    conftest, noted = directory / "conftest.py", directory / "waits"
    conftest.write_text(_CONFTEST, encoding="utf-8")
    try:
        _seconds(directory, tests=tests, BENCH_WORK=_HALF_A_SECOND)
        lines = noted.read_text(encoding="ascii").split()
    finally:
        conftest.unlink()
        noted.unlink(missing_ok=True)
    return tuple(1000 * float(line) for line in lines[1:])


def _seconds(directory: Path, *options: str, tests: int, **environment: str) -> float:
    """How long pytest takes for a suite of so many tests."""
    suite = directory / "test_suite.py"
    suite.write_text(_SUITE.format(tests=tests), encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    argv = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        f"--kernel={Path(os.environ['KBOOT_TEST_KERNEL']).resolve()}",
        "--kboot-accel=tcg",
        *options,
        str(suite),
    ]
    begin = time.monotonic()
    done = process.run(argv, timeout_s=1800, cwd=directory, env=environment, check=False)
    if done.exit_status != 0:
        raise RuntimeError(f"the suite failed: {done.stdout.decode(errors='replace')[-4000:]}")
    return time.monotonic() - begin
