"""Where the root file system is in a disk image: partition tables and superblocks, read here.

Formats: UEFI 2.10, chapter 5 (GPT, MBR); the partition types of
https://uapi-group.org/specifications/specs/discoverable_partitions_specification/; the places of
the file systems' magic numbers are those of libblkid.
"""

from __future__ import annotations

import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kboot import process
from kboot.disks.images import Image
from kboot.errors import ConfigError
from kboot.machine_spec import Firmware

#: Offset, magic, the name that ``mount -t`` takes.
_FILE_SYSTEMS = (
    (0x438, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
)
#: What holds file systems that an initramfs of ours does not open.
_CONTAINERS = (
    (0, b"LUKS\xba\xbe", "an encrypted partition (LUKS)"),
    (512, b"LABELONE", "an LVM volume"),
)
#: A superblock is within these first bytes.
_HEAD_SIZE = 0x10048
_SECTOR = 512
#: "Root partition", for each architecture that people boot.
_ROOT_TYPES = {
    uuid.UUID(text)
    for text in (
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "b921b045-1df0-41c3-af44-4c6f280d3fae",
        "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
        "44479540-f297-41b2-9af7-d131d5f0458a",
    )
}
_ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
#: The same in a partition table of the old kind.
_ESP_MBR_TYPE = 0xEF
#: Of a first sector: the rest is the partition table.
_BOOT_CODE_SIZE = 440
_ROOT_NAMES = {"root", "rootfs", "/", "cloudimg-rootfs"}

#: The bytes of a disk: offset and size to what is there.
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition, or the whole disk."""

    #: From 1; 0 for the whole disk.
    number: int
    offset: int
    #: Of the partition table; else of the file system.
    label: str = ""
    is_root: bool = False
    #: Whether it is an EFI system partition.
    is_esp: bool = False
    #: As ``mount -t`` takes it; empty for none that is known.
    file_system: str = ""
    #: What it is, if it is none that can be mounted.
    container: str = ""


def find_root(image: Image, *, what: str) -> Partition:
    """The root file system in a disk image. `ConfigError`, about `what`, if it cannot be told."""
    return choose_root(partitions(reader(image)), what=f"{what}: {image.path}")


def choose_root(found: list[Partition], *, what: str) -> Partition:
    """The partition with the root file system: by its type, its label, or as the only one."""
    by_type = [each for each in found if each.is_root]
    by_label = [each for each in found if each.label in _ROOT_NAMES]
    usable = [each for each in found if each.file_system]
    chosen = next((each for each in (by_type, by_label, usable) if len(each) == 1), None)
    if chosen and chosen[0].file_system:
        return chosen[0]
    if chosen and chosen[0].container:
        raise ConfigError(
            f"{what}: its root is {chosen[0].container}, which kboot does not open; give an image "
            "with a plain file system"
        )
    if usable:
        there = ", ".join(f"{each.number} ({each.file_system})" for each in usable)
        raise ConfigError(
            f"{what}: the root file system may be any of the partitions {there}; name it: "
            "--cmdline root=/dev/disk/by-id/virtio-root-partN"
        )
    others = ", ".join(each.container for each in found if each.container)
    raise ConfigError(
        f"{what}: no file system that kboot knows is in it"
        + (f" (but {others})" if others else "")
        + f"; it takes {', '.join(name for _, _, name in _FILE_SYSTEMS)}"
    )


def partitions(read: Read) -> list[Partition]:
    """The partitions of a disk with what is in them; the whole disk if it has none."""
    whole = _look(read, Partition(number=0, offset=0))
    if whole.file_system or whole.container:
        return [whole]
    found = list(_gpt(read)) or list(_mbr(read))
    return [_look(read, each) for each in found] or [whole]


def boot_loaders(image: Image) -> frozenset[Firmware]:
    """The kinds of firmware that may find a boot loader on a disk, as far as its tables tell."""
    read = reader(image)
    sector = read(0, _SECTOR)
    found: set[Firmware] = set()
    if sector[510:512] == b"\x55\xaa" and any(sector[:_BOOT_CODE_SIZE]):
        found.add("bios")
    # A whole disk may be one FAT file system, which UEFI reads as well.
    is_fat = sector[54:57] == b"FAT" or sector[82:87] == b"FAT32"
    if is_fat or any(each.is_esp for each in [*_gpt(read), *_mbr(read)]):
        found.add("uefi")
    return frozenset(found)


def _look(read: Read, partition: Partition) -> Partition:
    head = read(partition.offset, _HEAD_SIZE)

    def first(known: tuple[tuple[int, bytes, str], ...]) -> str:
        matches = (name for at, magic, name in known if head[at : at + len(magic)] == magic)
        return next(matches, "")

    return Partition(
        number=partition.number,
        offset=partition.offset,
        label=partition.label or _label(head),
        is_root=partition.is_root,
        is_esp=partition.is_esp,
        file_system=first(_FILE_SYSTEMS),
        container=first(_CONTAINERS),
    )


def _label(head: bytes) -> str:
    """Of an ext file system or XFS."""
    raw = b""
    if head[0x438:0x43A] == b"\x53\xef":
        raw = head[0x478:0x488]
    elif head.startswith(b"XFSB"):
        raw = head[108:120]
    return raw.rstrip(b"\0").decode(errors="replace")


def _gpt(read: Read) -> Iterator[Partition]:
    header = read(_SECTOR, _SECTOR)
    if not header.startswith(b"EFI PART"):
        return
    first, count, size = struct.unpack_from("<QII", header, 72)
    if not (128 <= size <= 4096 and count <= 1024):
        return
    entries = read(first * _SECTOR, count * size)
    for number in range(count):
        entry = entries[number * size : (number + 1) * size]
        kind = uuid.UUID(bytes_le=entry[:16].ljust(16, b"\0"))
        if kind.int:
            (begin,) = struct.unpack_from("<Q", entry, 32)
            yield Partition(
                number=number + 1,
                offset=begin * _SECTOR,
                label=entry[56:128].decode("utf-16-le", errors="replace").rstrip("\0"),
                is_root=kind in _ROOT_TYPES,
                is_esp=kind == _ESP_TYPE,
            )


def _mbr(read: Read) -> Iterator[Partition]:
    """The primary partitions."""
    sector = read(0, _SECTOR)
    if sector[510:512] != b"\x55\xaa":
        return
    for number in range(4):
        kind, begin, size = struct.unpack_from("<4xB3xII", sector, 446 + 16 * number)
        if kind and size:
            yield Partition(number=number + 1, offset=begin * _SECTOR, is_esp=kind == _ESP_MBR_TYPE)


def reader(image: Image) -> Read:
    """Reads an image, of whatever format; what is beyond its end is empty."""
    if image.format == "raw":

        def read_raw(offset: int, size: int) -> bytes:
            with image.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        return read_raw

    def read_any(offset: int, size: int) -> bytes:
        begin, skipped = offset // _SECTOR, offset % _SECTOR
        count = -(-(skipped + size) // _SECTOR)
        with tempfile.TemporaryDirectory(prefix="kboot-read-") as folder:
            out = Path(folder, "part")
            words = [f"if={image.path}", f"of={out}", f"bs={_SECTOR}", f"skip={begin}"]
            # It counts from the beginning of the image, with what is skipped.
            words.append(f"count={begin + count}")
            argv = ["qemu-img", "dd", "-U", "-f", image.format, "-O", "raw", *words]
            process.run(argv, timeout_s=60)
            return out.read_bytes()[skipped : skipped + size]

    return read_any
