"""A kernel for another architecture than this host's, beside one for it, in one run of pytest."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

SUITE = """
import pytest


@pytest.mark.kboot(fresh=True)
def test_boots_and_is_saved(machine, kernel):
    assert machine.guest.succeed("uname -m -r").split() == [kernel.release, kernel.architecture]
    assert machine.boot.contradiction() is None
    assert str(machine.boot.reached["script"].witness) == "server"


def test_goes_on_from_there(machine, kernel):
    assert machine.restored_from
    first = machine.guest.succeed("od -A n -N 16 -t x1 /dev/urandom")
    assert len(first.split()) == 16
    # The interface of busybox that was fetched.
    assert machine.guest.succeed("readlink -f /proc/self/exe").strip() == "/usr/bin/busybox"


def test_panics(machine):
    assert machine.restored_from
    with machine.expect_crash("panic") as crash:
        machine.panic()
    assert crash.report.function == "sysrq_handle_crash"
"""


@pytest.fixture(scope="module")
def cases(
    quick_kernel: Path, arm64_kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ET.Element]:
    """A run's cases by name, as JUnit has them; both kernels passed it all."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_suite.py").write_text(SUITE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_suite.py"),
            *("--kboot-accel=tcg", "--kboot-isolation=test", "--junitxml=junit.xml"),
            *(f"--kernel={arm64_kernel}", f"--kernel={quick_kernel}"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 6 passed" in done.stdout
    found = ET.parse(folder / "junit.xml").iter("testcase")  # noqa: S314  our own run wrote it
    return {case.attrib["name"]: case for case in found}


def properties(case: ET.Element) -> Mapping[str, str]:
    return {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}


def test_each_kernel_boots_on_a_machine_of_its_own_architecture(
    cases: Mapping[str, ET.Element],
) -> None:
    booted = [name for name in cases if name.startswith("test_boots_and_is_saved[")]
    releases = [properties(cases[name])["kboot.kernel.release"] for name in booted]
    assert [release.rpartition("-")[2] for release in releases] == ["arm64", "amd64"]
    assert booted == [f"test_boots_and_is_saved[{release}]" for release in releases]


def test_a_machine_of_another_architecture_is_saved_and_restored(
    cases: Mapping[str, ET.Element],
) -> None:
    restored = [name for name, case in cases.items() if "kboot.restored_from" in properties(case)]
    assert len(restored) == 4
    assert sum("arm64" in name for name in restored) == 2
