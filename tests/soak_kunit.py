"""A kernel with KUnit, and kselftests of the same source: ``python -m tests.soak_kunit DIRECTORY``.

The directory is what ``make kunit-kernel`` builds. KUnit's counts have to be those that the
kernel's own kunit.py has of the same log, of its own test logs, and of `tests.ktap_logs`. The
kselftests are run by pytest, spread over two workers, with a program among them that panics and
one that does not end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from kboot.machine import MachineSettings
from kboot.machine.kunit import KUnit
from kboot.results.cases import in_words
from kboot.results.ktap import read_log
from kboot.rootfs import tiny_initramfs
from tests.ktap_logs import ODD_LOGS, Counts, counts_as_kunit
from tests.saved_machines import open_place

#: kselftest's programs that are not run, as ``--kboot-kselftest-skip`` takes them.
_SKIPPED = """\
timers:nsleep-lat           # its limits are for hardware
timers:set-timer-lat        # its limits are for hardware
timers:inconsistency-check  # takes minutes
timers:raw_skew             # takes minutes
timers:threadtest           # takes minutes
timers:rtcpie               # the machine's clock has no periodic interrupt
"""

#: Of the kernel with KUnit.
_MOST_BOOTS = 5

#: Programs of ours beside them: one panics, and one does not end in its collection's time.
_OURS = {
    "kboot/panics": "#!/bin/sh\necho c >/proc/sysrq-trigger\nsleep 60\n",
    "kboot/sleeps": "#!/bin/sh\nsleep 600\n",
    "kboot/settings": "timeout=5\n",
}


def kernels_own_counts(directory: Path, log: Path) -> Counts:
    """What kunit.py counts in a log."""
    # It wants to lie where it does in the kernel's source.
    tool = directory.resolve() / "tools" / "testing" / "kunit" / "kunit.py"
    command = [sys.executable, str(tool), "parse", str(log.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if "Testing complete" in line), "")
    assert line, done.stdout + done.stderr
    found = {name: int(number) for name, number in re.findall(r"(\w+): (\d+)", line)}
    return Counts(*(found.get(name, 0) for name in Counts._fields))


def compare_logs(directory: Path, folder: Path) -> None:
    """What `tests.ktap_logs` says of kunit.py is so, and of its own test logs we count the same."""
    for name, odd in ODD_LOGS.items():
        log = folder / "odd.log"
        log.write_text(odd.text, newline="")
        theirs = kernels_own_counts(directory, log)
        assert theirs == odd.counts, f"{name}: kunit.py counts {theirs}, and not {odd.counts}"
    otherwise = sum(odd.ours is not None for odd in ODD_LOGS.values())
    logs = sorted((directory / "tools" / "testing" / "kunit" / "test_data").glob("*.log"))
    assert logs
    for log in logs:
        ours = counts_as_kunit(read_log(log.read_bytes(), comments=False)[0])
        theirs = kernels_own_counts(directory, log)
        assert ours == theirs, f"{log.name}: ours are {ours}, and those of kunit.py {theirs}"
    print(
        f"kunit.py counts {len(ODD_LOGS)} odd logs as was said ({otherwise} of them we count "
        f"otherwise); its own {len(logs)} logs we count as it does",
        flush=True,
    )


def run_kunit(directory: Path, folder: Path) -> None:
    """What is built in has run when the kernel booted; modules run when they are loaded.

    Where this host is busy, the serial line loses a byte of some boots, which kunit.py does not
    survive as we do. The kernel is the same, so we have to count the same in each boot, and so has
    kunit.py in one of them.
    """
    settings = MachineSettings(initrds=(tiny_initramfs(),))
    seen = set()
    for _ in range(_MOST_BOOTS):
        with (
            open_place(directory, folder) as place,
            place.machine(settings) as machine,
        ):
            kunit = KUnit(machine)
            results = kunit.boot()
            log = folder / "boot.log"
            log.write_bytes(machine.console.raw(0))
            theirs = kernels_own_counts(directory, log)
            ours = counts_as_kunit(list(results.cases))
            print(f"{results.source}: {in_words(results.counts)}; kunit.py: {theirs}", flush=True)
            seen.add(ours)
            bad = [f"{case.full_name}: {case.reason}" for case in results.cases if case.bad]
            assert (len(seen), bad) == (1, []), "\n".join([*bad, log.read_text(errors="replace")])
            if ours == theirs:
                run_modules(kunit)
                return
    raise AssertionError(f"kunit.py counts otherwise in each of {_MOST_BOOTS} boots")


def run_modules(kunit: KUnit) -> None:
    """Suites that are modules run when they are loaded."""
    for module in ("kunit-test", "kunit-example-test"):
        loaded = kunit.load(module)
        print(f"{loaded.source}: {in_words(loaded.counts)}", flush=True)
        loaded.check()
    print(f"suites: {' '.join(kunit.suites())}", flush=True)


def run_kselftests(directory: Path, folder: Path, workers: int) -> None:
    """By pytest; a crash and a program that does not end are theirs alone."""
    tree = shutil.copytree(directory / "kselftest", folder / "kselftest")
    for name, text in _OURS.items():
        file = tree / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    listing = tree / "kselftest-list.txt"
    # First, so that all others come after them.
    listing.write_text(f"kboot:panics\nkboot:sleeps\n{listing.read_text()}")
    (folder / "skip").write_text(_SKIPPED)
    (folder / "empty").mkdir()
    command = [
        *(sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider"),
        *(f"--kernel={directory.resolve()}", f"--kboot-kselftest={tree}"),
        *("--kboot-kselftest-skip=skip", "--junitxml=junit.xml", "--kboot-accel=tcg"),
        *(("-n", str(workers)) if workers > 1 else ()),
        "empty",
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if "test_kselftest" in line]
    print("\n".join(lines), flush=True)
    found = {
        case.attrib["name"]: _outcome(case)
        for case in ET.parse(folder / "junit.xml").iter("testcase")  # noqa: S314  our own
        if case.attrib["name"].startswith("test_kselftest[")
    }
    told = {name.partition("[")[2].rstrip("]"): outcome for name, outcome in found.items()}
    assert len(told) == len(listing.read_text().split())
    for name, status in (("kboot:panics", "crashed"), ("kboot:sleeps", "timeout")):
        outcome = told.pop(name)
        assert outcome.startswith("failed"), f"{name}: {outcome}"
        assert outcome.endswith(status), f"{name}: {outcome}"
    assert {told["size:get_size"], told["kcmp:kcmp_test"]} == {"passed"}
    assert told["timers:nsleep-lat"] == "skipped"
    # Some measure latencies, and fail under emulation; but the host and the kernel do not.
    assert "crash" not in "".join(told.values())
    print(f"kselftest: {done.stdout.splitlines()[-1].strip(' =')}", flush=True)


def _outcome(case: ET.Element) -> str:
    for tag in ("failure", "error", "skipped"):
        if (node := case.find(tag)) is not None:
            if tag == "skipped":
                return "skipped"
            return f"{tag.replace('failure', 'failed')}: {node.attrib.get('message', '')}"
    return "passed"


def main() -> None:
    """Run it."""
    directory = Path(sys.argv[1])
    workers = int(sys.argv[2]) if sys.argv[2:] else 2
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as name:
        folder = Path(name)
        compare_logs(directory, folder)
        run_kunit(directory, folder)
        run_kselftests(directory, folder, workers)


if __name__ == "__main__":
    main()
