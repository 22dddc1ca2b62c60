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
from dataclasses import dataclass, replace
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
#: Where their labels are: offset and size.
_LABELS = {"ext4": (0x478, 16), "xfs": (108, 12), "btrfs": (0x1012B, 256), "erofs": (1088, 16)}
#: What holds file systems that an initramfs of ours does not open.
_CONTAINERS = (
    (0, b"LUKS\xba\xbe", "an encrypted partition (LUKS)"),
    (512, b"LABELONE", "an LVM volume"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of a RAID array"),
)
#: A superblock is within these first bytes.
_HEAD_SIZE = 0x10230
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
#: There, what holds the logical partitions, in a chain.
_EXTENDED_TYPES = {0x05, 0x0F, 0x85}
_MOST_LOGICAL = 60
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
    #: Of the partition table, and of the file system.
    name: str = ""
    label: str = ""
    #: What ``PARTUUID=`` calls it, in small letters; empty for a whole disk.
    uuid: str = ""
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
    by_label = [each for each in found if _ROOT_NAMES & {each.name, each.label}]
    usable = [each for each in found if each.file_system]
    # Beside one that cannot be opened, the only one that can is as likely the one for /boot.
    only = [each for each in found if each.file_system or each.container]
    chosen = next((each for each in (by_type, by_label, only) if len(each) == 1), None)
    if chosen and chosen[0].file_system:
        return chosen[0]
    if chosen and chosen[0].container:
        raise ConfigError(
            f"{what}: its root is {chosen[0].container}, which kboot does not open; give an image "
            "with a plain file system"
        )
    if usable:
        there = ", ".join(f"{each.number} ({each.file_system or each.container})" for each in only)
        raise ConfigError(
            f"{what}: the root file system may be any of the partitions {there}; name it: "
            "--cmdline root=/dev/disk/by-id/virtio-root-partN"
            + (" (one with a plain file system)" if len(usable) < len(only) else "")
        )
    others = ", ".join(each.container for each in found if each.container)
    raise ConfigError(
        f"{what}: no file system that kboot knows is in it"
        + (f" (but {others})" if others else "")
        + f"; it takes {', '.join(name for _, _, name in _FILE_SYSTEMS)}"
    )


def named_root(found: list[Partition], name: str, *, what: str) -> Partition | None:
    """The partition that ``root=PARTUUID=...`` or ``root=PARTLABEL=...`` names.

    None for a `name` of another kind. `ConfigError`, about `what`, if no partition is called so.
    """
    kind, _, value = name.partition("=")
    match kind:
        case "PARTUUID":
            matches = [each for each in found if each.uuid == value.lower()]
        case "PARTLABEL":
            matches = [each for each in found if each.name == value]
        case _:
            return None
    if len(matches) != 1:
        there = (f"{each.number} (PARTUUID={each.uuid} PARTLABEL={each.name})" for each in found)
        raise ConfigError(f"{what}: no one partition is root={name}; there are {', '.join(there)}")
    return matches[0]


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

    file_system = first(_FILE_SYSTEMS)
    at, size = _LABELS.get(file_system, (0, 0))
    return replace(
        partition,
        label=head[at : at + size].split(b"\0", 1)[0].decode(errors="replace"),
        file_system=file_system,
        container="" if file_system else first(_CONTAINERS),
    )


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
                name=entry[56:128].decode("utf-16-le", errors="replace").split("\0", 1)[0],
                uuid=str(uuid.UUID(bytes_le=entry[16:32])),
                is_root=kind in _ROOT_TYPES,
                is_esp=kind == _ESP_TYPE,
            )


def _mbr(read: Read) -> Iterator[Partition]:
    """The primary partitions, then the logical ones."""
    sector = read(0, _SECTOR)
    if sector[510:512] != b"\x55\xaa":
        return
    (disk,) = struct.unpack_from("<I", sector, _BOOT_CODE_SIZE)

    def found(number: int, kind: int, begin: int) -> Partition:
        return Partition(
            number=number,
            offset=begin * _SECTOR,
            uuid=f"{disk:08x}-{number:02x}",
            is_esp=kind == _ESP_MBR_TYPE,
        )

    extended = 0
    for at, (kind, begin, size) in enumerate(_mbr_entries(sector)):
        if kind in _EXTENDED_TYPES:
            extended = extended or begin
        elif kind and size:
            yield found(at + 1, kind, begin)
    link = extended
    for number in range(5, 5 + _MOST_LOGICAL):
        sector = read(link * _SECTOR, _SECTOR) if link else b""
        if sector[510:512] != b"\x55\xaa":
            return
        (kind, begin, size), (_, further, more), *_ = _mbr_entries(sector)
        if kind and size:
            yield found(number, kind, link + begin)
        link = extended + further if more else 0


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Type, first sector and length of each of the four."""
    return [struct.unpack_from("<4xB3xII", sector, 446 + 16 * at) for at in range(4)]


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
