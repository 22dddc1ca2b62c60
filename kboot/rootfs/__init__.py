"""Root file systems for the guest: initramfs images that kboot makes, and those that users give."""

from __future__ import annotations

from kboot.rootfs.modules import is_module_file, module_initramfs, module_name
from kboot.rootfs.overlay import check_initrd, overlay_initramfs, resolve_rootfs
from kboot.rootfs.tiny import tiny_initramfs

__all__ = [
    "check_initrd",
    "is_module_file",
    "module_initramfs",
    "module_name",
    "overlay_initramfs",
    "resolve_rootfs",
    "tiny_initramfs",
]
