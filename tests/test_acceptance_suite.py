"""``kboot test``: the acceptance suite, from anywhere, on a real kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def kboot_test(cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # A project around it, with settings of its own, must not matter.
    (cwd / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    return subprocess.run(
        [sys.executable, "-m", "kboot", "test", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_a_good_kernel_passes_it_all(debian_kernel: Path, tmp_path: Path) -> None:
    done = kboot_test(tmp_path, debian_kernel)
    assert done.returncode == 0, done.stdout
    assert " 8 passed in " in done.stdout
    assert "test_boots_under_uefi PASSED" in done.stdout


def test_a_kernel_that_fails_is_1(quick_kernel: Path, tmp_path: Path) -> None:
    arguments = ("--cmdline", "console=tty0", "--firmware-start=saved")
    done = kboot_test(tmp_path, quick_kernel, *arguments, "--", "-k", "both_witnesses")
    assert done.returncode == 1, done.stdout
    assert "no console=ttyS0" in done.stdout


def test_bad_input_is_2(tmp_path: Path) -> None:
    done = kboot_test(tmp_path, tmp_path / "vmlinuz")
    assert done.returncode == 2, done.stdout
    assert "vmlinuz" in done.stderr


def test_a_broken_host_is_3_and_skipped_by_git_bisect(quick_kernel: Path, tmp_path: Path) -> None:
    arguments = ("--nginx", "no-such-nginx", "--", "-k", "both_witnesses")
    done = kboot_test(tmp_path, quick_kernel, *arguments)
    assert done.returncode == 3, done.stdout
    assert "no-such-nginx not found" in done.stdout
    assert kboot_test(tmp_path, "--git-bisect", quick_kernel, *arguments).returncode == 125
