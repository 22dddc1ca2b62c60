"""Disk images on this host: what they are, writable layers above them, and those that are kept."""

from __future__ import annotations

from kboot.disks.images import Image, conversion, empty_layer, in_use_fault, read_image
from kboot.disks.kept import (
    KeptDisk,
    LocalDisks,
    clone_kept,
    clone_of,
    find_kept,
    keep,
    kept_base,
    kept_directory,
    kept_disks,
    remove_kept,
)
from kboot.disks.partitions import (
    Partition,
    boot_loaders,
    find_root,
    named_root,
    partitions,
    reader,
)

__all__ = [
    "Image",
    "KeptDisk",
    "LocalDisks",
    "Partition",
    "boot_loaders",
    "clone_kept",
    "clone_of",
    "conversion",
    "empty_layer",
    "find_kept",
    "find_root",
    "in_use_fault",
    "keep",
    "kept_base",
    "kept_directory",
    "kept_disks",
    "named_root",
    "partitions",
    "read_image",
    "reader",
    "remove_kept",
]
