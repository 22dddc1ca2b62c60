"""Build the zoo's kernel module, and boot a machine that has it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from kboot import arch
from kboot.cache import keep_directory
from kboot.errors import KbootError
from kboot.kernel import read_kernel
from kboot.machine import Machine, MachineSettings
from kboot.machine_spec import MachineSpec
from kboot.rootfs import overlay_initramfs, tiny_initramfs
from tests.saved_machines import Place, open_place

_SOURCES = Path(__file__).parent
_FETCHED = _SOURCES.parent.parent / "build" / "kernel"

#: The kernel that the module is built for: of Debian's, the one that boots soonest.
KERNEL = _FETCHED / "cloud.deb"

#: Inits for machines that do not come up; chosen by rdinit=.
SHORT_INIT = "/sbin/short-init"
RESETTING_INIT = "/sbin/resetting-init"
_INITS: dict[str, bytes | Path] = {
    SHORT_INIT: b"#!/bin/sh\nexit 3\n",
    RESETTING_INIT: b"#!/bin/sh\nmount -t proc proc /proc\necho b > /proc/sysrq-trigger\n",
}


_MODULE = "kboot_zoo.ko"


def module(headers: Path = _FETCHED / "cloud-headers", *, cross: Sequence[str] = ()) -> Path:
    """The module, built by whoever needs it first: once for its sources and these headers.

    `cross` is what tells ``make`` of another architecture and its compiler.
    """
    headers = headers / "build"
    assert headers.exists(), f"no kernel headers at {headers}: run make kernel"
    sources = [_SOURCES / name for name in ("Kbuild", "kboot_zoo.c")]
    digest = hashlib.sha256(headers.resolve().name.encode())
    for source in sources:
        digest.update(source.read_bytes())

    def build(directory: Path) -> None:
        for source in sources:
            shutil.copy(source, directory)
        command = ["make", "-C", str(headers), f"M={directory}", *cross, "modules"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return keep_directory(_FETCHED / "zoo" / digest.hexdigest()[:16], build) / _MODULE


@contextlib.contextmanager
def open_zoo(
    directory: Path, store: Path, *, package: Path = KERNEL, built: Path | None = None
) -> Iterator[Zoo]:
    """A machine with the module, for several tests; its evidence in `directory`.

    Among those who share `store`, one boots it. For the kernel in another `package` give the
    module that was `built` for that.
    """
    kernel = read_kernel(package)
    row = arch.of(kernel.architecture)
    files: dict[str, bytes | Path] = {f"/lib/{_MODULE}": built or module(), **_INITS}
    settings = MachineSettings(
        spec=MachineSpec(
            name="zoo",
            memory_mib=256,
            architecture=row.name,
            firmware=row.firmware("auto"),
        ),
        initrds=(
            tiny_initramfs(architecture=row.name),
            overlay_initramfs(files),
        ),
    )
    with open_place(package, directory, store=store) as place:
        place.save_once(settings)
        with contextlib.closing(Zoo(place, settings)) as zoo:
            yield zoo


class Zoo:
    """A machine that crashes on demand. One that has died is replaced by its pristine twin."""

    def __init__(self, place: Place, settings: MachineSettings) -> None:
        self._place = place
        self._settings = settings
        self._power = contextlib.ExitStack()
        self._count = 0
        self._is_on = False
        self.machine: Machine

    def open(self) -> Machine:
        """The machine, up and with the module loaded, whatever was done to it before."""
        if not self._is_well():
            self.close()
            self._count += 1
            twin = self._place.restored(self._settings, f"zoo{self._count}")
            self.machine = self._power.enter_context(twin)
            self._is_on = True
        machine = self.machine
        machine.guest.succeed("[ -e /proc/kboot_zoo ] || insmod /lib/kboot_zoo.ko")
        machine.report_filter.sort(machine.console.reports)
        return machine

    def close(self) -> None:
        """Switch it off; who opens it next has a pristine one."""
        self._is_on = False
        self._power.close()

    def _is_well(self) -> bool:
        if not self._is_on:
            return False
        try:
            self.machine.check()
            self.machine.guest.succeed("true", timeout=10)
        except KbootError:
            return False
        return True

    def meet(self, *animals: str, before: str = ":") -> None:
        """Run a command in the guest, and then have a process for each animal meet it."""
        for animal in animals:
            self.machine.guest.run(f"{before}; echo {animal} > /proc/kboot_zoo", timeout=60)

    def change_script(self, old: str, new: str) -> None:
        """Replace a text in the script that the machine boots from."""
        assert old in self.machine.command_line
        script = (self.machine.evidence_directory / "boot.ipxe").read_text(encoding="utf-8")
        name = f"{self.machine.name}/boot.ipxe"
        self.machine.server.write(name, script.replace(old, new))
