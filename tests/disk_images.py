"""Disk images for tests, made without root: partitioned, with a small system in them."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

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


def gpt(target: Path, *partitions: tuple[uuid.UUID, str, bytes | Path]) -> Path:
    """A raw disk with a partition for each (type, name, content or file)."""
    entries, places, sector = b"", [], 2048
    for kind, name, content in partitions:
        length = len(content) if isinstance(content, bytes) else content.stat().st_size
        size = -(-length // _SECTOR)
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
            with (
                io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source
            ):
                while chunk := source.read(1 << 20):
                    # What is empty takes no room.
                    if any(chunk):
                        file.write(chunk)
                    else:
                        file.seek(len(chunk), os.SEEK_CUR)
        file.truncate((sector + 34) * _SECTOR)
    return target


#: "BIOS boot partition": where GRUB lies that a BIOS starts.
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
_FIRST = 2048
_BOOT_CODE = 440
_GRUB_MODULES = ("part_gpt", "fat", "ext2", "normal", "linux", "search", "search_label")


def fat(target: Path, files: Mapping[str, Path], *, size_mib: int = 64) -> Path:
    """A FAT file system with these files."""
    target.write_bytes(b"")
    os.truncate(target, size_mib << 20)
    subprocess.run(["mformat", "-i", target, "-T", str(size_mib << 11), "::"], check=True)
    directories = {f"::/{each}" for name in files for each in list(PurePosixPath(name).parents)}
    for directory in sorted(directories - {"::/."}):
        subprocess.run(["mmd", "-i", target, directory], check=True)
    for name, file in files.items():
        subprocess.run(["mcopy", "-i", target, file, f"::/{name}"], check=True)
    return target


def grub(target: Path, platform: str, *, prefix: str, extra: tuple[str, ...] = ()) -> Path:
    """GRUB for a platform; it reads ``grub.cfg`` in its prefix."""
    subprocess.run(
        ["grub-mkimage", "-O", platform, "-o", target, "-p", prefix, *_GRUB_MODULES, *extra],
        check=True,
    )
    return target


def bootable(
    target: Path, configuration: str, files: Mapping[str, Path], root: Path | None = None
) -> Path:
    """A raw disk that boots by GRUB, from a BIOS and from UEFI, as `configuration` says.

    The `files` are in its second partition, the EFI system partition; the third one is `root`.
    """
    place = target.parent
    (place / "grub.cfg").write_text(configuration)
    core = grub(place / "core.img", "i386-pc", prefix="(hd0,gpt2)/grub", extra=("biosdisk",))
    program = grub(place / "grub.efi", "x86_64-efi", prefix="(hd0,gpt2)/grub")
    given = {**files, "grub/grub.cfg": place / "grub.cfg", "EFI/BOOT/BOOTX64.EFI": program}
    esp = fat(place / "esp.fat", given)
    # As grub-bios-setup does it: the first sector leads to the rest, and its first to its others.
    content = bytearray(core.read_bytes())
    content[500:508] = struct.pack("<Q", _FIRST + 1)
    partitions: list[tuple[uuid.UUID, str, bytes | Path]] = [(BIOS_BOOT, "", bytes(content))]
    partitions += [(ESP, "", esp), *([(ROOT, "", root)] if root else [])]
    gpt(target, *partitions)
    code = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes())
    code[0x5C:0x64] = struct.pack("<Q", _FIRST)
    with target.open("r+b") as file:
        file.write(code[:_BOOT_CODE])
    return target
