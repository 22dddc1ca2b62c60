"""Root file systems for the guest: initramfs images that kboot makes, and those that users give."""

from __future__ import annotations

from kboot.rootfs.debian import (
    DebianSystem,
    KeptSystem,
    debian_initramfs,
    foreign_fault,
    forget_system,
    is_debian,
    kept_systems,
    read_debian,
    remove_system,
)
from kboot.rootfs.disks import disk_links, disk_modules
from kboot.rootfs.modules import is_module_file, module_initramfs, module_name, modules_there
from kboot.rootfs.overlay import check_initrd, overlay_initramfs, resolve_rootfs
from kboot.rootfs.tiny import tiny_initramfs

__all__ = [
    "DebianSystem",
    "KeptSystem",
    "check_initrd",
    "debian_initramfs",
    "disk_links",
    "disk_modules",
    "foreign_fault",
    "forget_system",
    "is_debian",
    "is_module_file",
    "kept_systems",
    "module_initramfs",
    "module_name",
    "modules_there",
    "overlay_initramfs",
    "read_debian",
    "remove_system",
    "resolve_rootfs",
    "tiny_initramfs",
]
