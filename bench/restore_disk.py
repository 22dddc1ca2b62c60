"""What a disk costs a restore: a machine with one of 2 GiB against one without."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from bench.restore import opened
from kboot.kernel import read_kernel
from kboot.machine import MachineSettings
from kboot.machine_spec import Disk, MachineSpec
from kboot.rootfs import (
    disk_links,
    disk_modules,
    module_initramfs,
    modules_there,
    overlay_initramfs,
    tiny_initramfs,
)

_ROUNDS = 40
_DISK = Disk(name="data", kind="blank", size_mib=2048)
#: What the saved machine has written to its disk.
_FILL = "dd if=/dev/urandom of=/dev/disk/by-id/virtio-data bs=1M count=16 2>/dev/null; sync"


def run(*, quick: bool) -> dict[str, Figure]:
    """``restore_disk_ratio``: the time of a restore with the disk over one without it."""
    kernel = read_kernel(Path(os.environ["KBOOT_TEST_KERNEL"]))
    modules = module_initramfs(kernel, modules_there(kernel, disk_modules([_DISK])))
    images = (tiny_initramfs(), overlay_initramfs(disk_links([_DISK])), modules)
    with_disk = MachineSettings(initrds=images, spec=MachineSpec(disks=(_DISK,)))
    without = MachineSettings(initrds=(tiny_initramfs(), modules))
    with opened(kernel, with_disk, _FILL) as one, opened(kernel, without) as other:
        pairs = interleaved(one.restore_s, other.restore_s, rounds=2 if quick else _ROUNDS)
    seconds = tuple(first for first, _ in pairs)
    return {
        "restore_disk_ratio": median_ratio(pairs),
        "restore_disk_s": Figure(value=statistics.median(seconds), unit="s", runs=seconds),
    }
