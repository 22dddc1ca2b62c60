"""A file that kboot takes for a kernel; no machine boots it."""

from __future__ import annotations

import struct
from pathlib import Path

#: Where the version lies in the setup code; an offset counts from the second sector.
_VERSION_AT = 0x400
_SETUP_SECTORS = 4


def write_kernel(path: Path, release: str = "6.1.0-fake") -> Path:
    """Write an x86_64 image that has a header, this release, and nothing to run; its path.

    Format: Documentation/arch/x86/boot.rst in the Linux source.
    """
    image = bytearray((_SETUP_SECTORS + 1) * 512)
    image[0x1F1] = _SETUP_SECTORS
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    # The protocol's version, and where the kernel's version is.
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x20E, _VERSION_AT - 0x200)
    # XLF_KERNEL_64: it has a 64-bit entry.
    struct.pack_into("<H", image, 0x236, 1)
    version = f"{release} (kboot@localhost) #1 SMP\0".encode()
    image[_VERSION_AT : _VERSION_AT + len(version)] = version
    path.write_bytes(image)
    return path
