"""What kboot costs a boot: against a bare QEMU and a bare nginx that do the identical one."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from kboot import ipxe, nginx, process
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kernel import Kernel, read_kernel
from kboot.machine import MachineSettings, Phase, open_backend, power_on
from kboot.machine_spec import MachineSpec
from kboot.qemu import GUEST_GATEWAY
from kboot.qemu.argv import Wiring, argv
from kboot.rootfs import tiny_initramfs

_MARKER = "Run /init as init process"
_LIMIT_S = 120


def run(*, quick: bool) -> dict[str, Figure]:
    """``cold_boot_overhead``: time to the init marker with kboot, over that without."""
    kernel = read_kernel(Path(os.environ["KBOOT_TEST_KERNEL"]))
    initramfs = tiny_initramfs()
    pairs = interleaved(
        lambda: _with_kboot(kernel, initramfs),
        lambda: _bare(kernel, initramfs),
        rounds=1 if quick else 7,
    )
    return {"cold_boot_overhead": median_ratio(pairs)}


def _with_kboot(kernel: Kernel, initramfs: Path) -> float:
    """Seconds from nothing to the init marker, with all that kboot does on the way."""
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder,
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(_LIMIT_S)) as server,
        power_on(
            backend,
            server,
            kernel,
            MachineSettings(initrds=(initramfs,)),
            evidence_directory=Path(folder),
        ) as machine,
    ):
        machine.wait_for_line(_MARKER)
        return machine.boot.reached[Phase.INIT].time - begin


def _bare(kernel: Kernel, initramfs: Path) -> float:
    """The same seconds for two programs, their files, and a loop that reads a socket."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder:
        prefix = Path(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://{GUEST_GATEWAY}:{port}/bare"
        _lay_out(prefix, kernel, initramfs, url=url, port=port)
        serial, far = socket.socketpair()
        spec = MachineSpec(name="bare", boot_file=f"{url}/boot.ipxe")
        command = argv(
            spec,
            program="qemu-system-x86_64",
            accelerator="tcg",
            wiring=Wiring(serial=f"socket,fd={far.fileno()}", control=None),
            flash=None,
        )
        server = subprocess.Popen(
            [process.find_program("nginx"), "-e", "stderr", "-p", folder, "-c", "nginx.conf"],
            stderr=subprocess.DEVNULL,
        )
        vm = subprocess.Popen(command, pass_fds=[far.fileno()])
        try:
            with serial, far:
                serial.settimeout(_LIMIT_S)
                seen = b""
                while _MARKER.encode() not in seen:
                    seen = seen[-len(_MARKER) :] + serial.recv(65536)
                return time.monotonic() - begin
        finally:
            for child in (vm, server):
                child.kill()
                child.wait()


def _lay_out(prefix: Path, kernel: Kernel, initramfs: Path, *, url: str, port: int) -> None:
    """nginx's configuration and the very script and files that kboot would serve."""
    files = prefix / "files"
    files.mkdir()
    (prefix / "tmp").mkdir()
    (files / "kernel").write_bytes(kernel.image.read_bytes())
    (files / "initrd").write_bytes(initramfs.read_bytes())
    conf = nginx.configuration(port=port, token="bare")  # noqa: S106  a part of a path
    (prefix / "nginx.conf").write_text("user root;\n" + conf if os.geteuid() == 0 else conf)
    line = ipxe.command_line(
        nonce="0" * 16, architecture="x86_64", firmware="bios", initrd_count=1, extra=""
    )
    text = ipxe.boot_script(
        nonce="0" * 16,
        query="m=bare&b=0",
        kernel_url=f"{url}/kernel",
        initrd_urls=[f"{url}/initrd"],
        beacon_url=f"{url}/beacon",
        command_line=line,
    )
    (files / "boot.ipxe").write_text(text)
