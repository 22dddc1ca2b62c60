"""Disk images for tests, made without root: partitioned, with a small system in them."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

from kboot.rootfs import tiny_initramfs

_SECTOR = 512
#: "Linux root (x86-64)", "Linux filesystem data", "EFI system".
ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


def tiny_tree(directory: Path) -> Path:
    """The files of the tiny system, so that they run as a root file system on a disk as well."""
    directory.mkdir()
    with subprocess.Popen(["zcat", tiny_initramfs()], stdout=subprocess.PIPE) as unpacked:
        subprocess.run(
            ["cpio", "--extract", "--quiet", "--no-absolute-filenames", "--make-directories"],
            stdin=unpacked.stdout,
            cwd=directory,
            check=True,
        )
    inittab = directory / "etc" / "inittab"
    inittab.write_text("::sysinit:/usr/bin/mount -t proc proc /proc\n::sysinit:/usr/bin/mount -a\n")
    with inittab.open("a") as file:
        file.write("::respawn:/usr/libexec/kboot/getty\n::ctrlaltdel:/usr/sbin/reboot\n")
    shutil.rmtree(directory / "dev")
    (directory / "dev").mkdir()
    (directory / "etc" / "hostname").write_text("on-disk\n")
    return directory


def ext4(target: Path, tree: Path, *, size_mib: int = 16, label: str = "") -> Path:
    """An ext4 file system with the files of a directory."""
    words = ("-q", "-L", label, "-d", str(tree), str(target), f"{size_mib}M")
    subprocess.run(["mkfs.ext4", *words], check=True)
    return target


def gpt(target: Path, *partitions: tuple[uuid.UUID, str, bytes]) -> Path:
    """A raw disk with a partition for each (type, name, content)."""
    entries, places, sector = b"", [], 2048
    for kind, name, content in partitions:
        size = -(-len(content) // _SECTOR)
        entries += struct.pack(
            "<16s16sQQQ72s",
            kind.bytes_le,
            uuid.uuid4().bytes_le,
            sector,
            sector + size - 1,
            0,
            name.encode("utf-16-le"),
        )
        places.append((sector, content))
        sector += size + (-size % 2048)
    entries = entries.ljust(128 * 128, b"\0")
    fields = (1, sector + 33, 34, sector, uuid.uuid4().bytes_le, 2, 128, 128, zlib.crc32(entries))

    def header(checksum: int) -> bytes:
        return struct.pack(
            "<8s4sIIIQQQQ16sQIII", b"EFI PART", b"\0\0\1\0", 92, checksum, 0, *fields
        )

    with target.open("wb") as file:
        # The protective MBR.
        file.write(bytes(446) + struct.pack("<4xB3xII", 0xEE, 1, sector) + bytes(48) + b"\x55\xaa")
        file.write(header(zlib.crc32(header(0))) + bytes(_SECTOR - 92) + entries)
        for place, content in places:
            file.seek(place * _SECTOR)
            file.write(content)
        file.truncate((sector + 34) * _SECTOR)
    return target
