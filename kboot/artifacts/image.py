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

from kboot.artifacts.compression import MAGIC, compression_of, decompressed
from kboot.artifacts.elf import parse_elf
from kboot.errors import ConfigError

HEAD_SIZE = 1024

#: IMAGE_FILE_MACHINE_* of the PE header that EFI images have -> ``uname -m``.
_PE_MACHINES = {0x8664: "x86_64", 0xAA64: "aarch64", 0x5064: "riscv64", 0x6264: "loongarch64"}
#: Compression names in an EFI zboot header -> those in `MAGIC`.
_ZBOOT_COMPRESSION = {b"gzip": "gzip", b"xzkern": "xz", b"lzma": "lzma", b"zstd": "zstd"}
#: A release, which becomes part of file names, and the rest.
_VERSION = re.compile(r"\d+\.\d+[^\s/]*(\s|$)")
_BANNER = re.compile(rb"Linux version (\d+\.\d+[^\s/\0]* [^\n\0]{0,1000})\n")
_CHUNK_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What a kernel image says about itself."""

    #: As ``uname -m`` says it.
    architecture: str
    #: The whole version, from the release on: ``6.1.0-56-amd64 (who@where) #1 SMP ...``.
    version: str
    #: ``gzip`` if the file has to be decompressed before firmware can boot it, else None.
    wrapped_in: str | None = None

    @property
    def release(self) -> str:
        """What ``uname -r`` prints."""
        return self.version.split(maxsplit=1)[0]


def read_image(path: Path) -> ImageFacts:
    """Read a kernel image. `ConfigError` if `path` is anything else, or not all of one."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD_SIZE)
        if not head:
            raise ConfigError(f"{path}: empty file; was the copy or the download cut off?")
        if is_bzimage(head):
            return _read_bzimage(path, file, head, size)
        if (architecture := _raw_architecture(head)) is not None:
            return ImageFacts(architecture=architecture, version=_find_banner(path, file, head))
        if head[:2] == b"MZ" and head[4:8] == b"zimg":
            return _read_zboot(path, file, head, size)
        if head.startswith(MAGIC["gzip"]):
            return _read_gzipped(path, file)
    raise _not_a_kernel(path, looks_like(head))


def is_bzimage(head: bytes) -> bool:
    """Whether a file with these first bytes is an x86 kernel image (or claims to be one)."""
    return len(head) > 0x210 and head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS"


def _read_bzimage(path: Path, file: IO[bytes], head: bytes, size: int) -> ImageFacts:
    if len(head) < 0x250:
        raise ConfigError(f"{path}: truncated: {size} bytes, not even a whole header")
    setup_size = ((head[0x1F1] or 4) + 1) * 512
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    expected = setup_size + paragraphs * 16
    if size < expected:
        raise ConfigError(f"{path}: truncated: {size} bytes of {expected}; copy it again")
    protocol, _, _, version_offset = struct.unpack_from("<HIHH", head, 0x206)
    version = ""
    # The string lies in the setup code, which the offset counts from its second sector.
    if 0 < version_offset < setup_size - 0x200:
        file.seek(version_offset + 0x200)
        version = file.read(1000).split(b"\0", 1)[0].decode(errors="replace").strip()
    if not _VERSION.match(version):
        # iPXE's ipxe.lkrn and memtest86+ have the same header.
        raise _not_a_kernel(path, f"an x86 boot image that calls itself {version[:60]!r}")
    (load_flags,) = struct.unpack_from("<H", head, 0x236)
    is_64_bit = protocol >= 0x20C and bool(load_flags & 1)
    return ImageFacts(architecture="x86_64" if is_64_bit else "i686", version=version)


def _raw_architecture(head: bytes) -> str | None:
    if head[0x38:0x3C] == b"ARM\x64":
        return "aarch64"
    return "riscv64" if head[0x38:0x3C] == b"RSC\x05" else None


def _read_zboot(path: Path, file: IO[bytes], head: bytes, size: int) -> ImageFacts:
    offset, payload_size = struct.unpack_from("<II", head.ljust(16, b"\0"), 8)
    if size < offset + payload_size:
        raise ConfigError(
            f"{path}: truncated: {size} bytes of {offset + payload_size}; copy it again"
        )
    (pe_offset,) = struct.unpack_from("<I", head.ljust(64, b"\0"), 0x3C)
    file.seek(pe_offset)
    pe = file.read(6)
    architecture = _PE_MACHINES.get(int.from_bytes(pe[4:6], "little"))
    if pe[:4] != b"PE\0\0" or architecture is None:
        raise _not_a_kernel(path, "a compressed EFI image with no architecture that kboot knows")
    name = head[24:56].split(b"\0", 1)[0]
    form = _ZBOOT_COMPRESSION.get(name)
    if form is None:
        raise ConfigError(
            f"{path}: an EFI zboot kernel compressed with {name.decode(errors='replace')!r}, "
            "which kboot cannot read; give the Image it was made from"
        )
    file.seek(offset)
    payload = io.BytesIO(file.read(payload_size))
    with decompressed(payload, form, str(path)) as content:
        return ImageFacts(architecture=architecture, version=_find_banner(path, content, b""))


def _read_gzipped(path: Path, file: IO[bytes]) -> ImageFacts:
    file.seek(0)
    with decompressed(file, "gzip", str(path)) as content:
        head = content.read(HEAD_SIZE)
        architecture = _raw_architecture(head)
        if architecture is None:
            raise _not_a_kernel(path, f"gzip; in it, {looks_like(head)}")
        version = _find_banner(path, content, head)
        while content.read(_CHUNK_SIZE):  # to the end, where the checksum is
            pass
    return ImageFacts(architecture=architecture, version=version, wrapped_in="gzip")


def _find_banner(path: Path, file: IO[bytes], head: bytes) -> str:
    """The version in an uncompressed kernel: its `linux_banner`, which is plain text."""
    window = head
    while chunk := file.read(_CHUNK_SIZE):
        window = window[-2000:] + chunk
        if match := _BANNER.search(window):
            return match[1].decode(errors="replace")
    if match := _BANNER.search(window):
        return match[1].decode(errors="replace")
    raise ConfigError(f'{path}: no "Linux version" in it; truncated, or not a Linux kernel')


def looks_like(head: bytes) -> str:
    """What a file with these first bytes (about 1 KiB of them) is, in a few words."""
    if elf := parse_elf(head):
        return f"ELF for {elf.architecture}"
    for magic, what in _LOOKS:
        if head.startswith(magic):
            return what
    if form := compression_of(head):
        return f"{form}-compressed data"
    if not head.strip(b"\0"):
        return "nothing but zeros"
    try:
        head[:256].decode("ascii")
    except UnicodeDecodeError:
        return "unknown binary data"
    return "text"


_LOOKS = (
    (b"#!", "a script"),
    (b"070701", "an initramfs (cpio archive)"),
    (b"070702", "an initramfs (cpio archive)"),
    (b"!<arch>\n", "an ar archive"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"PK\x03\x04", "a zip archive"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"MZ", "an EFI program"),
)


def _not_a_kernel(path: Path, looks: str) -> ConfigError:
    remedy = "give a vmlinuz, bzImage or Image file, a kernel .deb, or a build tree"
    if looks.startswith("ELF"):
        remedy = "if it is a vmlinux, boot the bzImage instead: arch/x86/boot/bzImage"
    elif "initramfs" in looks or "compressed data" in looks:
        remedy += "; an initramfs belongs to --kboot-rootfs"
    elif looks == "an RPM package":
        remedy = "unpack it (rpm2cpio FILE | cpio -id) and give the vmlinuz in it"
    return ConfigError(f"{path}: not a kernel: it looks like {looks}; {remedy}")
