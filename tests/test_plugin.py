"""The pytest plugin as its users meet it: pytest is run, and what it shows is read."""

from __future__ import annotations

import inspect
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path

import pytest

from kboot.config import SETTINGS, Config
from kboot.machine import settings as settings_module
from kboot.machine_spec import MachineSpec
from kboot.plugin.options import OF_MACHINES
from kboot.plugin.reporting import hide_our_frames

UNRELATED = "def test_nothing():\n    assert True\n"


@pytest.fixture(autouse=True)
def in_a_process_of_its_own(pytester: pytest.Pytester) -> None:
    """With no settings of a project around."""
    pytester.makeini("[pytest]\n")


def run(pytester: pytest.Pytester, *arguments: str | Path) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *map(str, arguments))


def test_without_a_kernel_it_is_not_to_be_seen(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNRELATED)
    result = run(pytester)
    result.assert_outcomes(passed=1)
    assert "kboot:" not in result.stdout.str()


def test_unused_it_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            heavy = {"jinja2", "pexpect", "kubernetes", "paramiko", "requests", "click"}
            assert not heavy & set(sys.modules)
            assert "kboot.machine" not in sys.modules
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_a_fixture_without_a_kernel_says_what_to_do(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(kernel):\n    pass\n")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no kernel was named; say which: --kernel=FILE*"])


def test_a_wrong_kernel_ends_the_run_at_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNRELATED)
    result = run(pytester, "--kernel=nowhere/vmlinuz")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: kboot: *nowhere/vmlinuz*"])
    assert "Traceback" not in result.stderr.str()


def test_a_wrong_option_names_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNRELATED)
    result = run(pytester, "--kernel=vmlinuz", "--kboot-memory=lots")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: kboot: --kboot-memory: 'lots' is not *"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--kboot-retry=-1", "*-retry: '-1' is not a whole number*"),
        ("--kboot-kselftest=tree", "*-kselftest: say with which kernel: --kernel=FILE"),
    ],
)
def test_a_wrong_option_names_itself_without_a_kernel_too(
    pytester: pytest.Pytester, given: str, words: str
) -> None:
    pytester.makepyfile("def test_it(machine):\n    pass\n")
    result = run(pytester, given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: kboot: {words}"])


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("kboot(memry='2G')", "*has no setting memry*"),
        ("kboot(cpus='many')", "*'many' is not *"),
        ("kboot('2G')", "*takes settings by name*"),
        ("kboot(backend='kubevirt')", "*of the whole run*--kboot-backend*"),
    ],
)
def test_a_mistake_in_a_marker_ends_the_run_before_it_starts(
    pytester: pytest.Pytester, marker: str, words: str
) -> None:
    pytester.makepyfile(
        f"import pytest\n\n@pytest.mark.{marker}\ndef test_it(machine):\n    pass\n"
    )
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*kboot: *test_it: {words}"])


def test_every_setting_that_makes_a_machine_can_be_chosen_by_a_test() -> None:
    used = set(re.findall(r"config\.(\w+)", inspect.getsource(settings_module)))
    used |= {each.name for each in fields(MachineSpec)} & {each.name for each in fields(Config)}
    names = {setting.name for setting in SETTINGS if setting.field in used}
    assert len(names) == len(used) > 5
    # Where files are fetched from changes no machine; the others are of the whole run.
    of_run = {"debian_mirror", "cluster_patch", "kernel", "boot"}
    assert names - of_run <= OF_MACHINES


def test_kernel_alone_runs_the_acceptance_suite_beside_the_projects_tests(
    pytester: pytest.Pytester, quick_kernel: Path
) -> None:
    pytester.makepyfile(UNRELATED)
    result = run(pytester, f"--kernel={quick_kernel}", "--collect-only", "-q")
    result.stdout.fnmatch_lines(
        [
            "*::test_nothing",
            "*test_acceptance.py::test_recovers_from_a_panic_by_itself",
        ]
    )


def test_with_arguments_only_those_are_run(pytester: pytest.Pytester, quick_kernel: Path) -> None:
    path = pytester.makepyfile(UNRELATED)
    result = run(pytester, f"--kernel={quick_kernel}", "--collect-only", "-q", path)
    assert "acceptance" not in result.stdout.str()


SUITE = """
import time

import pytest

from kboot.errors import InfraError


def test_passes(guest, kernel):
    assert guest.succeed("uname -r").strip() == kernel.release


def test_shares_the_machine(machine, guest):
    assert len(machine.boot_ids) == 1
    assert guest.succeed("echo one").strip() == "one"


def test_a_command_fails(guest):
    guest.run("seq 100")
    guest.succeed("ls /nowhere")


def test_the_host_is_at_fault(machine):
    raise InfraError("the host is on fire")


def test_does_not_look(machine):
    machine.panic()


def test_gets_another_machine(machine):
    assert machine.guest.succeed("echo two").strip() == "two"
    assert not machine.console.reports


@pytest.mark.kboot(ipxe_script="lost.ipxe")
def test_looks_at_a_boot_that_fails(request):
    with pytest.raises(InfraError, match="lost.ipxe ended at iPXE's prompt"):
        request.getfixturevalue("machine")


@pytest.mark.kboot(cmdline="console=tty0")
def test_never_begins(machine):
    pass
"""


@pytest.fixture(scope="module")
def suite(
    tmp_path_factory: pytest.TempPathFactory, quick_kernel: Path
) -> tuple[str, dict[str, ET.Element]]:
    """What a run of `SUITE` printed, and its JUnit test cases by name."""
    import subprocess

    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "lost.ipxe").write_text(
        "#!ipxe\necho kboot: script ${nonce}\nkernel http:// ${command_line} || shell\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-p", "no:cacheprovider", "test_suite.py"),
            f"--kernel={quick_kernel}",
            "--kboot-firmware-start=saved",
            "--junitxml=junit.xml",
            "--kboot-evidence=evidence",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    cases = ET.parse(folder / "junit.xml").iter("testcase")  # noqa: S314  our own run wrote it
    return done.stdout, {case.attrib["name"]: case for case in cases}


Suite = tuple[str, dict[str, ET.Element]]


def test_the_header_says_what_is_tested(suite: Suite) -> None:
    assert re.search(
        r"^kboot: Linux \S+ \(x86_64\) from .*; backend qemu, bios", suite[0], re.MULTILINE
    )


def test_the_kernels_fault_is_a_failure_and_the_hosts_an_error(suite: Suite) -> None:
    output, cases = suite
    assert "3 failed, 4 passed, 1 error" in output
    verdicts = {name: [child.tag for child in case] for name, case in cases.items()}
    assert "failure" in verdicts["test_a_command_fails"]
    assert "failure" in verdicts["test_does_not_look"]
    assert "failure" in verdicts["test_never_begins"]
    assert "error" in verdicts["test_the_host_is_at_fault"]
    assert "ERROR at call of test_the_host_is_at_fault" in output
    assert "ERROR test_suite.py::test_the_host_is_at_fault" in output
    assert "FAILED test_suite.py::test_never_begins" in output


def test_a_failed_test_shows_what_it_did(suite: Suite) -> None:
    output, _ = suite
    section = output.partition("_ test_a_command_fails _")[2].partition("\n____")[0]
    transcript = section.partition("kboot commands, last 10")[2].partition("kboot console")[0]
    assert re.search(
        r"^\$ seq 100\n\.\.\.\n91\n(9\d\n)+100\n\[exit status 0, \d+\.\d\d s\]\n"
        r"\$ ls /nowhere\nls: /nowhere: .*\n\[exit status 1, \d+\.\d\d s\]\n",
        transcript,
        re.MULTILINE,
    )
    # What earlier tests did on the same machine is theirs.
    assert "$ echo one" not in transcript


def test_a_failure_shows_the_tests_own_line_and_not_kboots(suite: Suite) -> None:
    output, _ = suite
    assert 'guest.succeed("ls /nowhere")' in output
    assert "No such file or directory" in output
    assert "kboot/guest/guest.py" not in output


def test_the_console_of_a_failure_has_no_frames_of_commands(suite: Suite) -> None:
    output, _ = suite
    section = output.partition("_ test_a_command_fails _")[2].partition("\n____")[0]
    assert "kboot console, last" in section
    assert not re.search(r"^~\d+:\d+:", section, re.MULTILINE)


def test_a_crash_nobody_looked_at_fails_the_test_and_is_shown(suite: Suite) -> None:
    output, _ = suite
    section = output.partition("_ test_does_not_look _")[2].partition("\n____")[0]
    assert "KernelCrash" in section
    assert "kboot crash:" in section
    assert "sysrq_handle_crash" in section
    assert "kboot console, last" in section


FORMER_CRASH = """
import pytest


def test_expects_a_crash(machine):
    with machine.expect_crash("panic"):
        machine.panic()
    machine.wait_for_reboot()


def test_fails_by_itself(machine):
    assert len(machine.boot_ids) == 2
    pytest.fail("it does")
"""


#: How the plugin's reports are made does not depend on what the machine is.
REPLAYED = """
import pytest
from kboot import Config, open_session
from kboot.testing import FakeBackend, write_kernel


@pytest.fixture(scope="session")
def kboot_session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kboot")
    config = Config(kernel=str(write_kernel(folder / "vmlinuz")), isolation="none")
    with open_session(config, evidence=folder, backend=FakeBackend()) as session:
        yield session
"""


def test_a_failure_does_not_show_what_an_earlier_test_expected(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(REPLAYED)
    path = pytester.makepyfile(FORMER_CRASH)
    result = run(pytester, path, "--kboot-isolation=none")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*kboot console, last 40 lines*"])
    result.stdout.no_fnmatch_line("*kboot crash:*")


def test_errors_that_led_to_each_other_in_a_circle_are_shown_all_the_same() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__cause__ = second, first
    hide_our_frames(first)
    itself = ValueError("raised from itself")
    itself.__cause__ = itself
    hide_our_frames(itself)
    assert itself.__cause__ is None


def test_a_boot_that_failed_shows_its_console_and_its_evidence(suite: Suite) -> None:
    output, _ = suite
    section = output.partition("_ test_never_begins _")[2]
    assert "no console=ttyS0" in section
    assert "kboot: handoff" in section
    (evidence,) = re.findall(r"^(/.*/evidence/\d+-test_never_begins)$", section, re.MULTILINE)
    assert b"kboot: handoff" in (Path(evidence) / "serial.log").read_bytes()
    assert '"verdict": "failed"' in (Path(evidence) / "result.json").read_text()


def test_junit_has_the_kernel_and_the_time_of_its_boot(suite: Suite) -> None:
    _, cases = suite
    properties = {
        each.attrib["name"]: each.attrib["value"] for each in cases["test_passes"].iter("property")
    }
    assert properties["kboot.kernel.release"].startswith("6.")
    assert float(properties["kboot.boot_s"]) > 1
    assert float(properties["kboot.phase.linux_s"]) > 0
    assert Path(properties["kboot.evidence"]).is_dir()


HOOKS = """
import pytest


def told(config, line):
    with (config.rootpath / "told").open("a") as file:
        print(line, file=file)


def pytest_kboot_machine_ready(item, machine):
    told(item.config, f"ready {item.name} {machine.guest.succeed('uname -r') and 'there'}")


def pytest_kboot_crash_seen(item, report):
    told(item.config, f"seen {item.name} {report.kind}")
    if item.name == "test_objected":
        raise AssertionError("the hook objects")


def pytest_kboot_evidence_written(config, directory):
    told(config, f"written {directory.name} {(directory / 'result.json').is_file()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        told(item.config, f"failed {item.name} in {report.when}")
    return report
"""

HOOKED = """
import pytest

from kboot import GuestError, InfraError


def test_expected(machine):
    with machine.expect_crash("panic"):
        machine.panic()
    machine.wait_for_reboot()


def test_the_host(machine):
    raise InfraError("on fire")


def test_objected(machine):
    with machine.expect_crash("panic"):
        machine.panic()
    machine.wait_for_reboot()


@pytest.fixture
def boot_that_fails(machine):
    raise GuestError("it never came up")


def test_never_begins(boot_that_fails):
    pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_hooks_are_told_and_verdicts_are_kept_also_by_workers(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    pytester.makeconftest(REPLAYED + HOOKS)
    path = pytester.makepyfile(HOOKED)
    result = run(pytester, path, "--junitxml=junit.xml", *workers)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    told = (pytester.path / "told").read_text().splitlines()
    assert [line for line in told if not line.startswith("written")] == [
        "ready test_expected there",
        "seen test_expected panic",
        "ready test_the_host there",
        # When it happened is told as it was.
        "failed test_the_host in call",
        "ready test_objected there",
        "seen test_objected panic",
        "failed test_objected in call",
        "ready test_never_begins there",
        "failed test_never_begins in setup",
    ]
    written = [line.split() for line in told if line.startswith("written")]
    # One machine for all of them.
    assert [name[4:] for _, name, _ in written] == ["test_expected"]
    assert {there for _, _, there in written} == {"True"}
    root = ET.parse(pytester.path / "junit.xml").getroot()  # noqa: S314  our own run wrote it
    (suite,) = root.iter("testsuite")
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("2", "1")
    verdicts = {
        case.attrib["name"]: {child.tag for child in case} & {"failure", "error"}
        for case in root.iter("testcase")
    }
    assert verdicts == {
        "test_expected": set(),
        "test_the_host": {"error"},
        "test_objected": {"failure"},
        "test_never_begins": {"failure"},
    }
