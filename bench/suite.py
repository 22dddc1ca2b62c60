"""What a whole suite gains: pristine machines against reboots, and two workers against one."""

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
_PARALLEL_TESTS = 40

#: A test that works its guest a little, as tests do; the reboot is what isolation costs otherwise.
_SUITE = """
import os
import pytest

REBOOTS = bool(os.environ.get("BENCH_REBOOTS"))
WORK = os.environ.get("BENCH_WORK", "true")

@pytest.mark.parametrize("number", range({tests}))
def test_something(boot, number):
    if REBOOTS and number:
        boot.reset()
    boot.guest.succeed(WORK)
    assert boot.guest.succeed(f"echo {{number}}").strip() == str(number)
"""

#: About a second of a processor under emulation.
_WORK = "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done"


def run(*, quick: bool) -> dict[str, Figure]:
    """``isolated_suite_speedup`` and ``parallel_efficiency_2``; see docs/performance.md."""
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
        tests = 8 if quick else _PARALLEL_TESTS
        pairs = interleaved(
            lambda: _seconds(directory, "-n1", tests=tests, BENCH_WORK=_WORK),
            lambda: _seconds(directory, "-n2", tests=tests, BENCH_WORK=_WORK),
            rounds=1 if quick else 5,
        )
    efficiencies = tuple(one / (2 * two) for one, two in pairs)
    return {
        "isolated_suite_speedup": median_ratio(speedups),
        "parallel_efficiency_2": Figure(
            value=statistics.median(efficiencies), unit="x", runs=efficiencies
        ),
    }


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
