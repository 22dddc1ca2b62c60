"""Kernels as people have them - files, packages, build trees - read into a `Kernel`."""

from __future__ import annotations

from kboot.artifacts.cache import sha256_of
from kboot.artifacts.kernel import Kernel, require_architecture
from kboot.artifacts.reading import local_path, read_kernel

__all__ = ["Kernel", "local_path", "read_kernel", "require_architecture", "sha256_of"]
