"""A kernel with KUnit, and kselftests of the same source: ``python -m tests.soak_kunit DIRECTORY``.

The directory is what ``make kunit-kernel`` builds. KUnit's counts have to be those that the
kernel's own kunit.py has of the same log.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from kboot.kselftest import read_tree
from kboot.machine import Machine, MachineSettings
from kboot.machine.kunit import KUnit
from kboot.results.cases import Status, SuiteResults, in_words
from kboot.rootfs import tiny_initramfs
from tests.saved_machines import open_place

#: What takes minutes under emulation, or needs hardware that the machine does not have.
_SKIPPED = frozenset(
    {"nsleep-lat", "set-timer-lat", "inconsistency-check", "raw_skew", "threadtest", "rtcpie"}
)


def kernels_own_counts(directory: Path, log: Path) -> dict[str, int]:
    """What kunit.py counts in a log."""
    # It wants to lie where it does in the kernel's source.
    tool = directory.resolve() / "tools" / "testing" / "kunit" / "kunit.py"
    command = [sys.executable, str(tool), "parse", str(log.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if "Testing complete" in line), "")
    assert line, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"(\w+): (\d+)", line)}


def compare(results: SuiteResults, counted: dict[str, int]) -> None:
    """Our counts are the kernel's own."""
    counts = results.counts
    crashed = counts[Status.CRASHED] + counts[Status.NOT_RUN]
    ours = {
        "passed": counts[Status.PASSED],
        "failed": counts[Status.FAILED],
        "skipped": counts[Status.SKIPPED],
        "crashed": crashed,
    }
    theirs = {name: counted.get(name, 0) for name in ours}
    assert ours == theirs, f"{ours} are our counts, and {theirs} those of kunit.py"


def kselftests(machine: Machine, directory: Path) -> None:
    """Run kselftest's programs: some measure latencies, and fail under emulation; none crashes."""
    for program in read_tree(directory / "kselftest").programs:
        if program.name not in _SKIPPED:
            results = machine.ktap(program.command, timeout=300)
            print(f"{program.id}: {in_words(results.counts)}", flush=True)
            assert results.counts[Status.CRASHED] == 0


def main() -> None:
    """Run it."""
    directory = Path(sys.argv[1])
    tree = read_tree(directory / "kselftest")
    settings = MachineSettings(initrds=(tiny_initramfs(), tree.initramfs))
    with (
        tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder,
        open_place(directory, Path(folder)) as place,
        place.machine(settings) as machine,
    ):
        kunit = KUnit(machine)
        results = kunit.boot()
        print(f"{results.source}: {in_words(results.counts)}", flush=True)
        log = Path(folder) / "boot.log"
        log.write_bytes(machine.console.raw(0))
        compare(results, kernels_own_counts(directory, log))
        for module in ("kunit-test", "kunit-example-test"):
            loaded = kunit.load(module)
            print(f"{loaded.source}: {in_words(loaded.counts)}", flush=True)
            loaded.check()
        print(f"suites: {' '.join(kunit.suites())}", flush=True)
        kselftests(machine, directory)


if __name__ == "__main__":
    main()
