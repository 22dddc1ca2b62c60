"""Directories of this host that a guest can mount: 9p over virtio."""

from __future__ import annotations

from collections.abc import Sequence

from kboot.machine_spec import Share


def words(shares: Sequence[Share]) -> list[str]:
    """QEMU's options for them. The guest's root is whoever runs QEMU, and can do no more."""
    found = []
    for number, share in enumerate(shares):
        access = "on" if share.read_only else "off"
        path = share.path.replace(",", ",,")
        # With remap, QEMU 7.2 makes inode numbers unique where the directory has mounts in it.
        found += [
            "-fsdev",
            f"local,id=share{number},path={path},security_model=none,readonly={access},"
            "multidevs=remap",
            "-device",
            f"virtio-9p-pci,fsdev=share{number},mount_tag={share.tag}",
        ]
    return found


def snapshot_fault(shares: Sequence[Share]) -> str | None:
    """None if a machine with these can be saved, or else why not."""
    if not shares:
        return None
    return f"the share {shares[0].tag} is mounted: QEMU cannot save that; use a disk"
