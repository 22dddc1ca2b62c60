"""The fixture ``kunit`` on a replayed machine whose kernel has run suites when it booted."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kboot.testing import RECORDED_BOOT
from tests.test_ktap import KUNIT, OOPS, PANIC
from tests.test_testing import machine_on

#: The rest of `KUNIT`: how it goes on without a crash.
REST = """\
[    0.070000][    T1]     ok 3 example_crashes
[    0.071000][    T1] # example: pass:2 fail:0 skip:1 total:3
[    0.071000][    T1] ok 1 example
[    0.072000][    T1] ok 2 second # SKIP no hardware
[    0.072000][    T1] not ok 3 third
"""

CONFTEST = """
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.session import open_session
from kboot.testing import FakeBackend, write_kernel


@pytest.fixture(scope="session")
def kboot_session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    kernel = write_kernel(folder / "vmlinuz", "6.99.1-mine")
    config = Config(kernel=str(kernel), isolation="none")
    backend = FakeBackend(Path(__file__).parent / "recording")
    with open_session(config, evidence=folder / "evidence", backend=backend) as session:
        yield session
"""


def recording(directory: Path, said: str, *, comes_up: bool = True) -> Path:
    """The recorded boot, with something that the kernel says before it starts init."""
    copy = directory / "recording"
    copy.mkdir()
    for name in ("boot.ipxe", "access.jsonl"):
        (copy / name).write_bytes((RECORDED_BOOT / name).read_bytes())
    console = (RECORDED_BOOT / "serial.log").read_bytes()
    at = console.rindex(b"\n", 0, console.index(b"Run /init as init process")) + 1
    text = said.replace("\n", "\r\n").encode()
    (copy / "serial.log").write_bytes(console[:at] + text + (console[at:] if comes_up else b""))
    return copy


def test_what_ran_at_boot_is_read_from_the_console(tmp_path: Path) -> None:
    from kboot.machine.kunit import KUnit

    with machine_on(tmp_path, recording=recording(tmp_path, KUNIT + REST)) as machine:
        results = KUnit(machine).boot()
    assert [(case.full_name, str(case.status)) for case in results.cases if not case.suite] == [
        ("example/example_simple_test", "passed"),
        ("example/example_params_test/example value 2", "passed"),
        ("example/example_params_test/example value 1", "skipped"),
        ("example/example_crashes", "passed"),
        ("second", "skipped"),
        ("third", "failed"),
    ]


def test_a_kernel_without_kunit_is_told(tmp_path: Path) -> None:
    from kboot import GuestError
    from kboot.machine.kunit import KUnit

    with machine_on(tmp_path) as machine, pytest.raises(GuestError, match="CONFIG_KUNIT=y"):
        KUnit(machine).boot()


def test_a_suite_runs_again_by_debugfs(tmp_path: Path) -> None:
    from kboot.machine.kunit import KUnit

    said = "    # Subtest: list\n    1..2\n    ok 1 a\n    not ok 2 b\nnot ok 1 list\n"

    def guest(command: str) -> tuple[int, str] | None:
        if "&& ls /sys/kernel/debug/kunit" in command:
            return (0, "example\nlist\n")
        return (0, said) if "echo 1 >/sys/kernel/debug/kunit/list/run" in command else None

    with machine_on(tmp_path, commands=guest) as machine:
        kunit = KUnit(machine)
        assert kunit.suites() == ["example", "list"]
        results = kunit.run("list")
    assert results.source == "KUnit suite list"
    assert [(case.full_name, str(case.status)) for case in results.cases if not case.suite] == [
        ("list/a", "passed"),
        ("list/b", "failed"),
    ]


def run(pytester: pytest.Pytester, said: str, *, comes_up: bool) -> tuple[str, dict[str, str]]:
    """What a test of KUnit prints, and JUnit's test cases with what each has."""
    recording(pytester.path, said, comes_up=comes_up)
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_kunit(kunit):\n    kunit.boot()\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--junitxml=junit.xml")
    cases = ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314  our own run
    tags = {
        case.attrib["name"]: " ".join(
            child.attrib.get("type", child.tag) for child in case if child.tag != "properties"
        )
        for case in cases
    }
    return result.stdout.str(), tags


def test_each_case_of_a_boot_is_a_subtest(pytester: pytest.Pytester) -> None:
    output, cases = run(pytester, KUNIT + REST, comes_up=True)
    assert "SUBFAILED[third]" in output
    assert "KUnit at boot: 3 passed, 1 failed, 2 skipped" in output
    assert cases["third"] == "failed"
    assert cases["example_simple_test"] == ""
    assert cases["test_kunit"] == "failure"


def test_a_crash_while_a_kernel_boots_is_the_fault_of_the_case_that_ran(
    pytester: pytest.Pytester,
) -> None:
    output, cases = run(pytester, KUNIT + OOPS + PANIC, comes_up=False)
    assert "SUBFAILED[example/example_crashes]" in output
    assert "crashed: NULL pointer dereference in example_crashes" in output
    assert cases["example_crashes"] == "crashed"
    assert cases["case 3"] == "not-run"
    assert cases["example_simple_test"] == ""
