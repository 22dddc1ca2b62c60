"""Large logs of test suites, and logs cut at every byte: ``python -m tests.soak_ktap [CASES]``.

As many cases (50,000) as a kernel has with all its suites, 1 in 50 of them bad: all are in the
table of ``kboot ktap``, in JUnit's file, and as subtests in a run's JUnit and on its page, which a
browser opens.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from tests.browser import open_browser
from tests.ktap_logs import check_cut, panicking_log
from tests.test_report import CONFTEST

_PER_SUITE = 100
_ONE_BAD_IN = 50

_TEST = """
def test_suites(machine):
    machine.ktap("suites", timeout=3600)
"""


def large_log(cases: int) -> str:
    """A log of suites in which one case in 50 fails."""
    lines = ["KTAP version 1", f"1..{cases // _PER_SUITE}"]
    for suite in range(1, cases // _PER_SUITE + 1):
        lines += ["  KTAP version 1", f"  # Subtest: suite_{suite}", f"  1..{_PER_SUITE}"]
        for case in range(1, _PER_SUITE + 1):
            bad = case % _ONE_BAD_IN == 0
            lines += [f"  # case_{case}: EXPECTATION FAILED at lib/x.c:{case}"] * bad
            lines.append(f"  {'not ok' if bad else 'ok'} {case} case_{case}")
        lines.append(f"not ok {suite} suite_{suite}")
    return "".join(f"{line}\n" for line in lines)


def cut_everywhere() -> None:
    """A log in which one case in 50 panics, cut at every byte."""
    data = panicking_log(2)
    for end in range(len(data) + 1):
        check_cut(data, end)
    print(f"a log of {len(data)} bytes was cut at each of them: no case lost, none invented")


def by_command(folder: Path, cases: int) -> None:
    """``kboot ktap`` with JUnit's file."""
    start = time.monotonic()
    command = [sys.executable, "-m", "kboot", "ktap", "suites.log", "--junit", "ktap.xml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - start
    bad = cases // _ONE_BAD_IN
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == f"{cases - bad} passed, {bad} failed"
    check_junit(folder / "ktap.xml", cases, bad)
    print(f"kboot ktap --junit: {cases} cases in {took_s:.0f} s", flush=True)


def by_pytest(folder: Path, cases: int) -> None:
    """As subtests of a test, with JUnit's file and a page."""
    answer = "commands=lambda text: open('suites.log').read() if 'sh -c suites' in text else None"
    (folder / "conftest.py").write_text(CONFTEST.replace("commands=COMMANDS", answer))
    (folder / "test_suites.py").write_text(_TEST)
    start = time.monotonic()
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"),
        *("--kboot-evidence=evidence", "--kboot-report=report.html", "--junitxml=junit.xml"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - start
    bad = cases // _ONE_BAD_IN
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr
    # The test itself is one more.
    check_junit(folder / "junit.xml", cases + 1, bad + 1)
    size = (folder / "report.html").stat().st_size
    print(f"pytest: {cases} subtests in {took_s:.0f} s, a page of {size / 1e6:.1f} MB", flush=True)
    start = time.monotonic()
    with open_browser() as browser, browser.open(folder / "report.html") as opened:
        shown = opened.page.text_content("#shown")
        assert shown.startswith(f"{cases + 1} of {cases + 1}"), shown
        last = f"suite_{cases // _PER_SUITE}/case_{_PER_SUITE}"
        opened.page.fill("#filter", last)
        assert [name.count(last) for name in opened.shown()] == [1]
        assert opened.faults == []
    print(f"a browser opens and filters it in {time.monotonic() - start:.1f} s", flush=True)


def check_junit(path: Path, cases: int, bad: int) -> None:
    """All are in JUnit's file, and none twice."""
    found = list(ET.parse(path).iter("testcase"))  # noqa: S314  our own
    names = Counter((case.attrib["classname"], case.attrib["name"]) for case in found)
    failures = sum(case.find("failure") is not None for case in found)
    assert (len(found), len(names), failures) == (cases, cases, bad)


def main() -> None:
    """Run it."""
    cases = int(sys.argv[1]) if sys.argv[1:] else 50_000
    cut_everywhere()
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as name:
        folder = Path(name)
        (folder / "suites.log").write_text(large_log(cases))
        by_command(folder, cases)
        by_pytest(folder, cases)


if __name__ == "__main__":
    main()
