"""A command line reaches the kernel whole, or kboot says before anything starts that it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kboot import open_session
from kboot.config import Config
from kboot.errors import ConfigError
from kboot.ipxe import command_line
from kboot.kernel import read_kernel
from kboot.machine import settings_for

#: COMMAND_LINE_SIZE of x86, less the zero at its end.
X86_LIMIT = 2047


def text_of(size: int, *, firmware: str) -> str:
    """Parameters for a kernel that make a whole command line of this size."""
    ours = command_line(
        nonce="0" * 16, architecture="x86_64", firmware=firmware, initrd_count=1, extra="x"
    )
    return "a.b=".ljust(size - len(ours) + 1 - len(" e.f"), "x") + " e.f"


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_the_longest_command_line_reaches_the_kernel_whole(
    firmware: str, quick_kernel: Path, tmp_path: Path
) -> None:
    # Of iPXE's builds, some take one byte less under BIOS.
    size = X86_LIMIT - (len("kernel ") if firmware == "uefi" else 1)
    config = Config(
        kernel=str(quick_kernel),
        accel="tcg",
        firmware_start="saved",
        firmware=firmware,  # type: ignore[arg-type]
        isolation="none",
        cmdline=text_of(size, firmware=firmware),
    )
    with open_session(config, evidence=tmp_path) as session:
        machine = session.machine(session.settings(config), name="longest")
        line = machine.guest.succeed("cat /proc/cmdline").strip()
    assert line.endswith(config.cmdline), len(line)
    with pytest.raises(ConfigError, match=r"shorten it by 1$"):
        settings_for(session.kernel, Config(firmware=config.firmware, cmdline=config.cmdline + "y"))


def test_what_is_not_ascii_counts_by_its_bytes(quick_kernel: Path) -> None:
    kernel = read_kernel(quick_kernel)
    half = "a.b=" + "é" * (X86_LIMIT // 2)
    with pytest.raises(ConfigError, match="2046 and drops the rest"):
        settings_for(kernel, Config(cmdline=half))


def test_a_command_line_that_is_too_long_is_refused_before_anything_starts(
    quick_kernel: Path,
) -> None:
    command = [sys.executable, "-m", "kboot", "boot", str(quick_kernel), "--cmdline", "x" * 2500]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "takes 2046 and drops the rest; shorten it by" in line
    assert "scheduled" not in done.stdout
