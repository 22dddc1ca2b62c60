"""Kernel images: what a file is, what kernel is in it, and whether all of it is there.

Formats: Documentation/arch/x86/boot.rst, arch/arm64/booting.rst, arch/riscv/boot-image-header.rst
and drivers/firmware/efi/libstub/zboot-header.S in the Linux source.
"""

from __future__ import annotations

import io
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kboot import arch
from kboot.errors import ConfigError
from kboot.kernel.compression import LZ4_FRAME, compression_of, decompressed
from kboot.kernel.elf import parse_elf

HEAD_SIZE = 1024

#: Compression names in an EFI zboot header -> those in `MAGIC`.
_ZBOOT_COMPRESSION = {b"gzip": "gzip", b"xzkern": "xz", b"lzma": "lzma", b"zstd": "zstd"}
#: Where a zImage, of 32-bit arm, says what it is.
_ZIMAGE_AT, _ZIMAGE = 0x24, b"\x18\x28\x6f\x01"
#: A release, which becomes part of file names, and the rest.
_VERSION = re.compile(r"\d+\.\d+[^\s/]*(\s|$)")
_BANNER = re.compile(rb"Linux version (\d+\.\d+[^\s/\0]* [^\n\0]{0,1000})\n")
_BUILD_NUMBER = re.compile(rb" #\d")
_CHUNK_SIZE = 1 << 20
#: Bytes of no text.
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x80-\xff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What a kernel image says about itself."""

    #: As ``uname -m`` says it.
    architecture: str
    #: The whole version, from the release on: ``6.1.0-56-amd64 (who@where) #1 SMP ...``.
    version: str
    #: Whether UEFI can start it.
    has_efi_stub: bool

    @property
    def release(self) -> str:
        """What ``uname -r`` prints."""
        return self.version.split(maxsplit=1)[0]


def read_image(path: Path, *, label: str = "") -> ImageFacts:
    """Read a kernel image that firmware boots as it is.

    `ConfigError`, about `label` if that is given, if `path` is anything else, or not all of one.
    """
    label = label or str(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD_SIZE)
        if not head:
            raise ConfigError(f"{label}: empty file; was the copy or the download cut off?")
        if is_bzimage(head):
            return _read_bzimage(label, file, head, size)
        if (architecture := _raw_architecture(head)) is not None:
            return _read_raw(label, file, head, size, architecture)
        if _is_zboot(head):
            return _read_zboot(label, file, head, size)
        if head[_ZIMAGE_AT : _ZIMAGE_AT + 4] == _ZIMAGE:
            arch.of("32-bit arm", wanted_by=label)
    raise not_a_kernel(label, looks_like(head))


def is_image(head: bytes) -> bool:
    """Whether a file with these first bytes is, or claims to be, what `read_image` reads."""
    return is_bzimage(head) or _raw_architecture(head) is not None or _is_zboot(head)


def is_bzimage(head: bytes) -> bool:
    """Whether a file with these first bytes is an x86 kernel image (or claims to be one)."""
    return len(head) > 0x210 and head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS"


def _is_zboot(head: bytes) -> bool:
    return head[:2] == b"MZ" and head[4:8] == b"zimg"


def _read_bzimage(label: str, file: IO[bytes], head: bytes, size: int) -> ImageFacts:
    if len(head) < 0x250:
        raise ConfigError(f"{label}: truncated: {size} bytes, not even a whole header")
    setup_size = ((head[0x1F1] or 4) + 1) * 512
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    expected = setup_size + paragraphs * 16
    if size < expected:
        raise ConfigError(f"{label}: truncated: {size} bytes of {expected}; copy it again")
    protocol, _, _, version_offset = struct.unpack_from("<HIHH", head, 0x206)
    version = ""
    # The string lies in the setup code, which the offset counts from its second sector.
    if 0 < version_offset < setup_size - 0x200:
        file.seek(version_offset + 0x200)
        version = file.read(1000).split(b"\0", 1)[0].decode(errors="replace").strip()
    if not _VERSION.match(version):
        # iPXE's ipxe.lkrn and memtest86+ have the same header.
        raise not_a_kernel(label, f"an x86 boot image that calls itself {version[:60]!r}")
    (load_flags,) = struct.unpack_from("<H", head, 0x236)
    is_64_bit = protocol >= 0x20C and bool(load_flags & 1)
    return ImageFacts(
        architecture=arch.name_of_bzimage(is_64_bit=is_64_bit),
        version=version,
        has_efi_stub=_is_efi_program(head),
    )


def _is_efi_program(head: bytes) -> bool:
    """Whether it begins like one; what an ``Image`` begins with is an instruction as well."""
    at = int.from_bytes(head[0x3C:0x40], "little")
    return head[:2] == b"MZ" and head[at : at + 4] == b"PE\0\0"


def _efi_program_size(head: bytes) -> int:
    """How many bytes a UEFI program has at least, by its table of sections; 0 if it is none."""
    if not _is_efi_program(head):
        return 0
    at = int.from_bytes(head[0x3C:0x40], "little")
    count, optional_size = struct.unpack_from("<H12xH", head.ljust(at + 24, b"\0"), at + 6)
    table = head[at + 24 + optional_size :][: 40 * count]
    parts = [
        struct.unpack_from("<II", table, entry + 16) for entry in range(0, len(table) - 39, 40)
    ]
    return max((size + offset for size, offset in parts), default=0)


def _read_raw(label: str, file: IO[bytes], head: bytes, size: int, architecture: str) -> ImageFacts:
    # In all such headers, the lowest of the 64 bits of flags here tells big-endian ones.
    if head[24] & 1:
        raise ConfigError(
            f"{label}: a big-endian kernel for {architecture}, which UEFI does not start; "
            "build it with CONFIG_CPU_LITTLE_ENDIAN=y"
        )
    if size < (expected := _efi_program_size(head)):
        raise ConfigError(f"{label}: truncated: {size} bytes of {expected}; copy it again")
    return ImageFacts(
        architecture=architecture,
        version=_find_banner(label, file, head),
        has_efi_stub=_is_efi_program(head),
    )


def _raw_architecture(head: bytes) -> str | None:
    return arch.name_of_image(head[0x38:0x3C])


def _read_zboot(label: str, file: IO[bytes], head: bytes, size: int) -> ImageFacts:
    offset, payload_size = struct.unpack_from("<II", head.ljust(16, b"\0"), 8)
    if size < offset + payload_size:
        raise ConfigError(
            f"{label}: truncated: {size} bytes of {offset + payload_size}; copy it again"
        )
    (pe_offset,) = struct.unpack_from("<I", head.ljust(64, b"\0"), 0x3C)
    file.seek(pe_offset)
    pe = file.read(6)
    architecture = arch.name_of_pe(int.from_bytes(pe[4:6], "little"))
    if pe[:4] != b"PE\0\0" or architecture is None:
        raise not_a_kernel(label, "a compressed EFI image with no architecture that kboot knows")
    name = head[24:56].split(b"\0", 1)[0]
    form = _ZBOOT_COMPRESSION.get(name)
    if form is None:
        raise ConfigError(
            f"{label}: an EFI zboot kernel compressed with {name.decode(errors='replace')!r}, "
            "which kboot cannot read; give the Image it was made from"
        )
    file.seek(offset)
    payload = io.BytesIO(file.read(payload_size))
    with decompressed(payload, form, label) as content:
        return ImageFacts(
            architecture=architecture,
            version=_find_banner(label, content, b""),
            has_efi_stub=True,
        )


def _find_banner(label: str, file: IO[bytes], head: bytes) -> str:
    """The version in an uncompressed kernel: its `linux_banner`, which is plain text.

    Since Linux 6.2 there are two, and one of them, which is printed nowhere, has no build's number.
    """
    window, found = head, b""
    while chunk := file.read(_CHUNK_SIZE):
        window = window[-2000:] + chunk
        for match in _BANNER.finditer(window):
            found = match[1]
            if _BUILD_NUMBER.search(found):
                return found.decode(errors="replace")
    if last := _BANNER.search(window):
        found = last[1]
    if found:
        return found.decode(errors="replace")
    raise ConfigError(f'{label}: no "Linux version" in it; truncated, or not a Linux kernel')


def looks_like(head: bytes) -> str:
    """What a file with these first bytes (about 1 KiB of them) is, in a few words."""
    if elf := parse_elf(head):
        return f"ELF for {elf.architecture}"
    for at, magic, what in _LOOKS:
        if head[at : at + len(magic)] == magic:
            return what
    if form := compression_of(head):
        return f"{form}-compressed data"
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if _BINARY.search(head[:256]):
        return "unknown binary data"
    return "text"


_OLD_CPIO = "a cpio archive in a format that Linux does not unpack (it does that of cpio -H newc)"
#: Offset, the bytes there, and what has them.
_LOOKS = (
    (0, b"#!", "a script"),
    (0, b"070701", "an initramfs (cpio archive)"),
    (0, b"070702", "an initramfs (cpio archive)"),
    (0, b"070707", _OLD_CPIO),
    (0, b"\xc7\x71", _OLD_CPIO),
    (0, b"\x71\xc7", _OLD_CPIO),
    (0, b"!<arch>\n", "an ar archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a vmdk disk image"),
    (0, b"# Disk DescriptorFile", "a vmdk disk image"),
    (0, b"vhdxfile", "a vhdx disk image"),
    (0, b"conectix", "a vhd disk image"),
    (0, b"QED\0", "a qed disk image"),
    (0x40, b"\x7f\x10\xda\xbe", "a vdi disk image"),
    (0, b"LUKS\xba\xbe", "a disk image (an encrypted one, LUKS)"),
    (512, b"LABELONE", "a disk image (an LVM volume)"),
    (0, b"XFSB", "a disk image (xfs)"),
    (0, b"\xd0\x0d\xfe\xed", "a devicetree (dtb)"),
    (0, b"VNDRBOOT", "an Android vendor boot image"),
    (0, LZ4_FRAME, "lz4 data in a frame that Linux does not unpack (it does that of lz4 -l)"),
    (0, b"hsqs", "a squashfs file system"),
    (_ZIMAGE_AT, _ZIMAGE, "a kernel for 32-bit arm (zImage)"),
    (257, b"ustar", "a tar archive"),
    (0, b"MZ", "an EFI program"),
    (0x1FE, b"\x55\xaa", "a disk image (with a boot sector)"),
)

#: What unpacks the formats that kboot does not.
_UNPACKERS = {"lz4": "lz4 -d", "lzo": "lzop -d", "bzip2": "bunzip2 -k"}


def unreadable_compression(label: str, form: str) -> ConfigError:
    """What to tell about a kernel that is compressed in a way that kboot cannot read."""
    return ConfigError(
        f"{label}: {form}-compressed, which kboot does not unpack; "
        f"unpack it ({_UNPACKERS[form]} FILE) and give the kernel in it"
    )


def not_a_kernel(label: str, looks: str) -> ConfigError:
    """What to tell about a file that is something else, and how to go on."""
    remedy = "give a vmlinuz, bzImage or Image file, a kernel .deb, or a build tree"
    if looks.startswith("ELF"):
        remedy = "if it is a vmlinux, boot what is made of it: arch/*/boot/bzImage or Image"
    elif "initramfs" in looks or "compressed data" in looks:
        remedy += "; an initramfs belongs to --kboot-rootfs"
    return ConfigError(f"{label}: not a kernel: it looks like {looks}; {remedy}")
