"""The tiny system and its modules in a real machine, with a real kernel."""

from __future__ import annotations

import socket
from pathlib import Path

from kboot.deadline import Deadline
from kboot.kernel import Kernel, read_kernel
from kboot.process import Process, spawn
from kboot.rootfs import module_initramfs, overlay_initramfs, tiny_initramfs

MODULES = ("virtio_pci", "virtio_console", "i6300esb", "e1000e")
DEVICES = (
    *("-device", "virtio-serial"),
    *("-device", "i6300esb"),
    *("-netdev", "user,id=n0", "-device", "e1000e,netdev=n0"),
)


def qemu(kernel: Path, initramfs: Path, serial: socket.socket) -> list[str]:
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,graphics=off", "-accel", "tcg", "-m", "512"),
        *("-chardev", f"socket,id=serial,fd={serial.fileno()}", "-serial", "chardev:serial"),
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 panic=-1 quiet"),
        *DEVICES,
    ]


class Line:
    """The near end of a serial line: say something, read up to an answer."""

    def __init__(self, wire: socket.socket, deadline: Deadline) -> None:
        self._wire = wire
        self._deadline = deadline
        self._unread = b""

    def send(self, text: str) -> None:
        self._wire.sendall(text.encode() + b"\n")

    def read_until(self, end: str) -> str:
        while end.encode() not in self._unread:
            assert not self._deadline.expired, f"no {end!r} in {self._unread!r}"
            self._wire.settimeout(self._deadline.remaining)
            data = self._wire.recv(65536)
            assert data, f"QEMU hung up; no {end!r} in {self._unread!r}"
            self._unread += data
        before, _, self._unread = self._unread.partition(end.encode())
        return before.decode(errors="replace")


def test_the_tiny_system_boots_logs_in_loads_modules_and_reboots(
    debian_kernel: Path, tmp_path: Path
) -> None:
    kernel = read_kernel(debian_kernel)
    images = [
        tiny_initramfs(password="s3cret"),
        module_initramfs(kernel, MODULES),
        overlay_initramfs({"/etc/kboot/network": b"", "/bin/hello": b"#!/bin/sh\necho he''llo\n"}),
    ]
    together = tmp_path / "initramfs"
    together.write_bytes(b"".join(image.read_bytes() for image in images))

    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = qemu(kernel.image, together, theirs)
        with spawn(argv, log=tmp_path / "qemu.log", pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            use_it(Line(ours, Deadline(60)), kernel, process)


def loadable(kernel: Kernel) -> set[str]:
    """Those of the modules that are files: which ones are built in changes with kernels."""
    assert kernel.modules is not None
    (listing,) = kernel.modules.rglob("modules.builtin")
    built_in = {Path(line).stem.replace("-", "_") for line in listing.read_text().splitlines()}
    return set(MODULES) - built_in


def use_it(line: Line, kernel: Kernel, process: Process) -> None:
    line.read_until("linux login: ")
    line.send("root")
    line.read_until("Password: ")
    line.send("s3cret")
    line.read_until("root@linux:~# ")

    line.send("uname -r; lsmod; hello; cat /proc/sys/kernel/sysrq; echo do''ne")
    answer = line.read_until("done")
    assert kernel.release in answer
    assert "\nhello\r\n1\r\n" in answer
    wanted = loadable(kernel)
    assert {"e1000e", "i6300esb"} <= wanted
    assert all(f"\n{module} " in answer for module in wanted)

    line.send("until ip -4 addr show dev eth0 | grep 10.0.2.15; do sleep 0.1; done; echo do''ne")
    line.read_until("done")

    line.send("reboot")
    # Told to leave instead of rebooting (-no-reboot), QEMU ends well.
    assert process.wait(20) == 0
