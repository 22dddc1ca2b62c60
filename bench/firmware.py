"""What a restart costs when the firmware is up already: against QEMU loading the kernel itself."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from kboot import process
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, MachineSettings, open_backend, power_on
from kboot.machine_spec import MachineSpec
from kboot.rootfs import tiny_initramfs

_LIMIT_S = 120
_PROMPT = b"linux login:"


def run(*, quick: bool) -> dict[str, Figure]:
    """``firmware_shortcut_ratio``: a power cycle to the login prompt, over a bare ``-kernel``."""
    kernel = read_kernel(Path(os.environ["KBOOT_TEST_KERNEL"]))
    initramfs = tiny_initramfs()
    with (
        tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder,
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(_LIMIT_S)) as server,
        power_on(
            backend,
            server,
            kernel,
            MachineSettings(initrds=(initramfs,), spec=MachineSpec(firmware_start="saved")),
            evidence_directory=Path(folder),
        ) as machine,
    ):
        machine.wait_until_ready()
        pairs = interleaved(
            lambda: _restart(machine),
            lambda: _bare(kernel, initramfs),
            rounds=1 if quick else 9,
        )
    return {"firmware_shortcut_ratio": median_ratio(pairs)}


def _restart(machine: Machine) -> float:
    """Seconds from the end of one life to the login prompt of the next."""
    machine.restart()
    boot = machine.boot
    return max(each.time for each in boot.reached.values()) - boot.start


def _bare(kernel: Kernel, initramfs: Path) -> float:
    """The same for a QEMU without firmware, network or server, and a loop that reads a socket."""
    serial, far = socket.socketpair()
    begin = time.monotonic()
    vm = subprocess.Popen(
        [
            process.find_program("qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,graphics=off", "-accel", "tcg", "-cpu", "max", "-m", "512M"),
            *("-chardev", f"socket,fd={far.fileno()},id=serial", "-serial", "chardev:serial"),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
            *("-append", "console=ttyS0 panic=-1"),
        ],
        pass_fds=[far.fileno()],
    )
    try:
        with serial, far:
            serial.settimeout(_LIMIT_S)
            seen = b""
            while _PROMPT not in seen:
                seen = seen[-len(_PROMPT) :] + serial.recv(65536)
            return time.monotonic() - begin
    finally:
        vm.kill()
        vm.wait()
