"""Build the zoo's kernel module, and boot a machine that has it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kboot.artifacts import read_kernel
from kboot.boot import Boot, BootSettings, open_backend, power_on
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import KbootError
from kboot.rootfs import module_initramfs, overlay_initramfs, tiny_initramfs

_SOURCES = Path(__file__).parent
_FETCHED = _SOURCES.parent.parent / "build" / "kernel"

#: The kernel that the module is built for: the one whose headers ``make kernel`` fetches.
KERNEL = _FETCHED / "debian.deb"

#: Inits for machines that do not come up; chosen by rdinit=.
SHORT_INIT = "/sbin/short-init"
RESETTING_INIT = "/sbin/resetting-init"
_INITS: dict[str, bytes | Path] = {
    SHORT_INIT: b"#!/bin/sh\nexit 3\n",
    RESETTING_INIT: b"#!/bin/sh\nmount -t proc proc /proc\necho b > /proc/sysrq-trigger\n",
}


def build(directory: Path) -> Path:
    """Build the module in `directory`; its path."""
    headers = _FETCHED / "headers" / "build"
    assert headers.exists(), f"no kernel headers at {headers}: run make kernel"
    for name in ("Kbuild", "kboot_zoo.c"):
        shutil.copy(_SOURCES / name, directory)
    command = ["make", "-C", str(headers), f"M={directory}", "modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "kboot_zoo.ko"


@contextlib.contextmanager
def machine(directory: Path) -> Iterator[Zoo]:
    """A machine with the module and a watchdog, for several tests; its evidence in `directory`."""
    kernel = read_kernel(KERNEL)
    files: dict[str, bytes | Path] = {"/lib/kboot_zoo.ko": build(directory), **_INITS}
    settings = BootSettings(
        machine_name="zoo",
        initrds=(
            tiny_initramfs(),
            module_initramfs(kernel, ["i6300esb"]),
            overlay_initramfs(files),
        ),
        extra_arguments=("-device", "i6300esb"),
    )
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend, server, kernel, settings, evidence_directory=directory / "evidence"
        ) as boot,
    ):
        boot.wait_until_ready()
        yield Zoo(boot)


@dataclasses.dataclass(frozen=True, slots=True)
class Zoo:
    """A machine that crashes on demand."""

    boot: Boot

    def open(self) -> Boot:
        """The machine, up and with the module loaded, whatever was done to it before."""
        boot = self.boot
        try:
            boot.check()
            boot.guest.succeed("true", timeout_s=10)
        except KbootError:
            self._write_script("", "")
            boot.reset()
        boot.guest.succeed("[ -e /proc/kboot_zoo ] || insmod /lib/kboot_zoo.ko")
        boot.judge.sort(boot.console.reports)
        return boot

    def meet(self, *animals: str, before: str = ":") -> None:
        """Run a command in the guest, and then have a process for each animal meet it."""
        for animal in animals:
            self.boot.guest.run(f"{before}; echo {animal} > /proc/kboot_zoo", timeout_s=60)

    def change_script(self, old: str, new: str) -> None:
        """Replace a text in the script that the machine boots from."""
        assert old in self.boot.command_line
        self._write_script(old, new)

    def _write_script(self, old: str, new: str) -> None:
        script = (self.boot.evidence_directory / "boot.ipxe").read_text(encoding="utf-8")
        name = f"{self.boot.settings.machine_name}/boot.ipxe"
        self.boot.server.write(name, script.replace(old, new))
