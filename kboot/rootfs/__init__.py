"""Root file systems for the guest: initramfs images that kboot makes, and those that users give."""

from __future__ import annotations

from kboot.rootfs.tiny import tiny_initramfs

__all__ = ["tiny_initramfs"]
