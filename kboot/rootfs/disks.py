"""What a guest without udev needs to find its disks: modules, and links by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kboot.machine_spec import Disk

_MODULES = {
    "virtio": ("virtio_pci", "virtio_blk"),
    "nvme": ("nvme",),
    "scsi": ("virtio_pci", "virtio_scsi", "sd_mod"),
}


def disk_modules(disks: Iterable[Disk]) -> list[str]:
    """The modules that these disks need, where they are not built into the kernel."""
    needed = (name for disk in disks for name in _MODULES[disk.bus])
    return list(dict.fromkeys(needed))


def disk_links(disks: Sequence[Disk]) -> Mapping[str, bytes]:
    """For `overlay_initramfs`: the tiny system waits for these disks, and links them as udev does.

    In ``/dev/disk/by-id``: ``virtio-NAME``, ``nvme-QEMU_NVMe_Ctrl_NAME``,
    ``scsi-0QEMU_QEMU_HARDDISK_NAME``.
    """
    if not disks:
        return {}
    listing = "".join(f"{disk.bus} {disk.name}\n" for disk in disks)
    return {"/etc/kboot/disks": listing.encode()}
