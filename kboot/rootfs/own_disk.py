"""A machine that boots from its own disk: which one that is, and whether firmware can boot it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kboot.disks import boot_loaders, read_image
from kboot.errors import ConfigError, refusal_named
from kboot.machine_spec import Disk, Firmware
from kboot.rootfs.system import is_disk_image, root_first

_OF_DISK = re.compile(r"disk:(.+)")
_WHAT_THERE_IS = {
    "bios": "no boot code in its first sector",
    "uefi": "no EFI system partition",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnDisk:
    """The disk that a machine boots from, with all that it has."""

    disk: Disk
    disks: tuple[Disk, ...]

    def firmware(self, wanted: Firmware, *, chosen: bool) -> Firmware:
        """The firmware that boots it: what is `wanted`, or unless that was `chosen`, what can.

        `ConfigError` if it is known that the disk has no boot loader for it.
        """
        loaders = self._loaders()
        if loaders is None or wanted in loaders:
            return wanted
        other = next(iter(loaders), None)
        if other and not chosen:
            return other
        remedy = f"boot it with --firmware {other}" if other else "give a disk that boots"
        raise ConfigError(
            f"disk {self.disk.name}: {self.disk.source} has no boot loader for {wanted} "
            f"({_WHAT_THERE_IS[wanted]}); {remedy}"
        )

    def _loaders(self) -> frozenset[Firmware] | None:
        """The kinds of firmware that find a boot loader there; None where nobody can look."""
        if self.disk.kind != "image" or "://" in self.disk.source:
            return None
        return boot_loaders(read_image(Path(self.disk.source), what=f"disk {self.disk.name}"))


def own_disk(rootfs: str, disks: Sequence[Disk]) -> OwnDisk:
    """What the setting `rootfs` means for a machine that boots from its disk, with these disks.

    An image, ``disk:NAME``, or where nothing was chosen (``tiny``), the first disk. `ConfigError`
    if it names no disk that could be booted.
    """
    with refusal_named(f"rootfs {rootfs}"):
        return _own_disk(rootfs, tuple(disks))


def _own_disk(rootfs: str, all_disks: tuple[Disk, ...]) -> OwnDisk:
    if rootfs == "tiny" and all_disks:
        found: Disk | None = all_disks[0]
    elif named := _OF_DISK.fullmatch(rootfs):
        found = next((disk for disk in all_disks if disk.name == named[1]), None)
        if found is None:
            there = ", ".join(disk.name for disk in all_disks) or "none"
            raise ConfigError(f"rootfs {rootfs}: no disk is called so (there are: {there}); --disk")
    elif is_disk_image(Path(rootfs)):
        all_disks = root_first(rootfs, all_disks)
        found = all_disks[0]
    else:
        found = None
    if found is None:
        what = "there is none" if rootfs == "tiny" else f"rootfs {rootfs} is none"
        raise ConfigError(
            f"boot = disk boots what is on a disk, and {what}; give an image with a boot loader: "
            "--rootfs FILE.qcow2, or --disk"
        )
    if found.kind == "blank":
        raise ConfigError(f"boot = disk: the disk {found.name} is blank: nothing on it can boot")
    return OwnDisk(disk=found, disks=all_disks)
