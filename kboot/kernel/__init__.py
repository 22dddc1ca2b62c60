"""Kernels as people have them - files, packages, build trees - read into a `Kernel`."""

from __future__ import annotations

from kboot.cache import sha256_of
from kboot.kernel.kernel import (
    Kernel,
    kernel_on_disk,
    local_path,
    read_kernel,
    require_architecture,
)

__all__ = [
    "Kernel",
    "kernel_on_disk",
    "local_path",
    "read_kernel",
    "require_architecture",
    "sha256_of",
]
