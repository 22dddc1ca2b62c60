"""What a guest without udev needs to find its disks: modules, and links by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kboot.machine_spec import Disk

#: With what says in a configuration that it is built in.
_MODULES: Mapping[str, Mapping[str, str]] = {
    "virtio": {"virtio_pci": "CONFIG_VIRTIO_PCI", "virtio_blk": "CONFIG_VIRTIO_BLK"},
    "nvme": {"nvme": "CONFIG_BLK_DEV_NVME"},
    "scsi": {
        "virtio_pci": "CONFIG_VIRTIO_PCI",
        "virtio_scsi": "CONFIG_SCSI_VIRTIO",
        "sd_mod": "CONFIG_BLK_DEV_SD",
    },
}
_FILE_SYSTEMS = {
    "ext4": "CONFIG_EXT4_FS",
    "xfs": "CONFIG_XFS_FS",
    "btrfs": "CONFIG_BTRFS_FS",
    "f2fs": "CONFIG_F2FS_FS",
    "squashfs": "CONFIG_SQUASHFS",
    "erofs": "CONFIG_EROFS_FS",
}


def disk_modules(disks: Iterable[Disk]) -> list[str]:
    """The modules that these disks need, where they are not built into the kernel."""
    needed = (name for disk in disks for name in _MODULES[disk.bus])
    return list(dict.fromkeys(needed))


def root_drivers(disk: Disk, file_system: str) -> Mapping[str, str]:
    """What a root file system on this disk takes: modules, and the options that build them in.

    An empty `file_system` is one that nobody has looked at.
    """
    known = {file_system: _FILE_SYSTEMS[file_system]} if file_system in _FILE_SYSTEMS else {}
    return {**_MODULES[disk.bus], **known}


def disk_links(disks: Sequence[Disk]) -> Mapping[str, bytes]:
    """For `overlay_initramfs`: the tiny system waits for these disks, and links them as udev does.

    In ``/dev/disk/by-id``: ``virtio-NAME``, ``nvme-QEMU_NVMe_Ctrl_NAME``,
    ``scsi-0QEMU_QEMU_HARDDISK_NAME``.
    """
    if not disks:
        return {}
    listing = "".join(f"{disk.bus} {disk.name}\n" for disk in disks)
    return {"/etc/kboot/disks": listing.encode()}
