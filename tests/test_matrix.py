"""Several kernels, or kinds of firmware, in one run: each test once for each combination."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kboot.kernel import read_kernel
from kboot.testing import write_kernel

SUITE = """
import pytest


@pytest.mark.parametrize("size", [1, 2])
def test_with_a_machine(machine, size):
    pass


@pytest.mark.kboot(firmware="uefi")
def test_that_chooses(machine):
    pass


def test_without():
    pass
"""

#: What boots is a recording; the kernels are those of the run.
REPLAYED = """
import pytest
from kboot import open_session
from kboot.plugin.options import read_config
from kboot.testing import FakeBackend


@pytest.fixture(scope="session")
def kboot_session(request, tmp_path_factory):
    config = read_config(request.config, request.param.settings)
    folder = tmp_path_factory.mktemp("kboot")
    with open_session(config, evidence=folder, backend=FakeBackend()) as session:
        yield session
"""


@pytest.fixture(autouse=True)
def in_a_project_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\n")


@pytest.fixture
def kernels(tmp_path: Path) -> list[Path]:
    """Two releases, and another build of the first."""
    return [
        write_kernel(tmp_path / name, release)
        for name, release in (("one", "6.1.0"), ("two", "6.12.0"), ("three", "6.1.0"))
    ]


def run(pytester: pytest.Pytester, *arguments: str | Path) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *map(str, arguments))


def ids(result: pytest.RunResult) -> list[str]:
    lines = [line.partition("::")[2] for line in result.outlines if "test_it.py::" in line]
    return [line.split()[0] for line in lines]


def collected(pytester: pytest.Pytester, *arguments: str | Path) -> list[str]:
    path = pytester.makepyfile(test_it=SUITE)
    return ids(run(pytester, path, "--collect-only", "-q", *arguments))


def test_one_kernel_leaves_the_tests_names_alone(
    pytester: pytest.Pytester, kernels: list[Path]
) -> None:
    assert collected(pytester, f"--kernel={kernels[0]}", f"--kernel={kernels[0]}") == [
        "test_with_a_machine[1]",
        "test_with_a_machine[2]",
        "test_that_chooses",
        "test_without",
    ]


def test_each_test_that_has_to_do_with_machines_runs_for_each_kernel(
    pytester: pytest.Pytester, kernels: list[Path]
) -> None:
    found = collected(pytester, *(f"--kernel={kernel}" for kernel in kernels))
    assert found == [
        "test_with_a_machine[6.1.0-1]",
        "test_with_a_machine[6.1.0-2]",
        "test_that_chooses[6.1.0]",
        "test_with_a_machine[6.12.0-1]",
        "test_with_a_machine[6.12.0-2]",
        "test_that_chooses[6.12.0]",
        # Another build of the first release.
        "test_with_a_machine[6.1.0-three-1]",
        "test_with_a_machine[6.1.0-three-2]",
        "test_that_chooses[6.1.0-three]",
        "test_without",
    ]


def test_a_firmware_that_a_kernel_has_no_machine_with_is_left_out(
    pytester: pytest.Pytester, kernels: list[Path]
) -> None:
    # The made-up kernels have no EFI stub.
    options = [f"--kernel={kernels[0]}", "--kboot-firmware=bios", "--kboot-firmware=uefi"]
    result = run(pytester, pytester.makepyfile(test_it=SUITE), "--collect-only", *options)
    result.stdout.fnmatch_lines(
        ["kboot: backend qemu, rootfs tiny; each test with:", "  Linux 6.1.0 (*) from *one, bios"]
    )
    result.stdout.fnmatch_lines(["*test_that_chooses[[]6.1.0-bios]*"])
    result.stdout.no_fnmatch_line("*uefi*")


def test_a_run_of_which_nothing_is_left_says_why(
    pytester: pytest.Pytester, kernels: list[Path]
) -> None:
    options = [f"--kernel={kernel}" for kernel in kernels[:2]]
    result = run(pytester, "--kboot-firmware=uefi", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: kboot: *one: a kernel without an EFI stub*"])


def test_a_second_kernel_that_is_none_ends_the_run_at_once(
    pytester: pytest.Pytester, kernels: list[Path]
) -> None:
    result = run(pytester, f"--kernel={kernels[0]}", "--kernel=nowhere/vmlinuz")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: kboot: *nowhere/vmlinuz*"])


def test_junit_keeps_the_combinations_apart_in_a_parallel_run_too(
    pytester: pytest.Pytester, kernels: list[Path]
) -> None:
    pytester.makeconftest(REPLAYED)
    path = pytester.makepyfile("def test_it(machine, kernel): assert machine.kernel is kernel")
    options = [f"--kernel={kernel}" for kernel in kernels[:2]]
    run(pytester, path, "--junitxml=junit.xml", *options, "-n", "2").assert_outcomes(passed=2)
    releases = {
        case.attrib["name"]: each.attrib["value"]
        for case in ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314  our own
        for each in case.iter("property")
        if each.attrib["name"] == "kboot.kernel.release"
    }
    assert releases == {"test_it[6.1.0]": "6.1.0", "test_it[6.12.0]": "6.12.0"}


def test_junit_keeps_kernels_and_firmware_of_a_mixed_run_apart(
    pytester: pytest.Pytester, quick_kernel: Path, arm64_kernel: Path
) -> None:
    path = pytester.makepyfile(
        "def test_it(kernel, kboot_session, record_property):\n"
        "    record_property('release', kernel.release)\n"
        "    record_property('firmware', kboot_session.config.firmware)\n"
    )
    options = [f"--kernel={quick_kernel}", f"--kernel={arm64_kernel}"]
    options += ["--kboot-firmware=bios", "--kboot-firmware=uefi"]
    run(pytester, path, "--junitxml=junit.xml", *options).assert_outcomes(passed=3)
    cases = {
        case.attrib["name"]: {
            each.attrib["name"]: each.attrib["value"] for each in case.iter("property")
        }
        for case in ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314  our own
    }
    ours, other = (read_kernel(path).release for path in (quick_kernel, arm64_kernel))
    # Machines for arm64 have no BIOS.
    wanted = [(ours, "bios"), (ours, "uefi"), (other, "uefi")]
    assert list(cases) == [f"test_it[{release}-{firmware}]" for release, firmware in wanted]
    assert [(it["release"], it["firmware"]) for it in cases.values()] == wanted
