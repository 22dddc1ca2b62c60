"""Kernels compressed or in a container: firmware boots none of these, so they are unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kboot.cache import keep_directory, sha256_of
from kboot.errors import ConfigError
from kboot.kernel.compression import LZ4_FRAME, READABLE, compression_of, decompressed
from kboot.kernel.image import (
    HEAD_SIZE,
    is_image,
    looks_like,
    not_a_kernel,
    read_image,
    unreadable_compression,
)
from kboot.state import cache_directory

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


_CHUNK_SIZE = 1 << 20
#: An Image.gz in a U-Boot image has two.
_MOST_LAYERS = 3


def bare_image(path: Path, *, label: str = "") -> Path:
    """The kernel image in `path` that firmware can boot: `path` itself, or unpacked in the cache.

    `ConfigError`, about `label` if that is given, if `path` is compressed or a container, and has
    no kernel in it. A file that is neither is returned as it is, whatever it may be.
    """
    label = label or str(path)

    def fill(directory: Path) -> None:
        outer = path
        for layer in range(_MOST_LAYERS):
            inner = directory / f"layer{layer}"
            if not _unwrap(outer, inner, label):
                break
            if outer != path:
                outer.unlink()
            outer = inner
        # What is kept is a kernel.
        read_image(outer, label=label)
        outer.rename(directory / "Image")

    with path.open("rb") as file:
        if _layer_of(file, label) is None:
            return path
    return keep_directory(cache_directory("kernels") / sha256_of(path) / "boot", fill) / "Image"


def _unwrap(outer: Path, inner: Path, label: str) -> bool:
    """Write what is in `outer` to `inner`; False if it wraps nothing."""
    with outer.open("rb") as file:
        layer = _layer_of(file, label)
        if layer is None:
            return False
        with _content(file, layer, label) as content:
            head = content.read(HEAD_SIZE)
            name = layer if isinstance(layer, str) else layer.container
            if not is_image(head) and compression_of(head) is None:
                raise not_a_kernel(label, f"{name}; in it, {looks_like(head)}")
            with inner.open("wb") as target:
                target.write(head)
                while chunk := content.read(_CHUNK_SIZE):
                    target.write(chunk)
    return True


def _layer_of(file: IO[bytes], label: str) -> str | Part | None:
    """What is around the kernel: a compression, or a container; None for a bare file."""
    head = file.read(HEAD_SIZE)
    if is_image(head):
        return None
    form = "lz4" if head.startswith(LZ4_FRAME) else compression_of(head)
    if form in READABLE:
        return form
    if form is not None:
        raise unreadable_compression(label, form)
    return find_kernel_part(file, label)


@contextlib.contextmanager
def _content(file: IO[bytes], layer: str | Part, label: str) -> Iterator[IO[bytes]]:
    if isinstance(layer, Part):
        file.seek(layer.offset)
        yield io.BufferedReader(Section(file, layer.size), 1 << 16)
        return
    file.seek(0)
    with decompressed(file, layer, label) as content:
        yield content


FDT_MAGIC = b"\xd0\x0d\xfe\xed"
_UIMAGE_MAGIC = b"\x27\x05\x19\x56"
_ANDROID_MAGIC = b"ANDROID!"
#: More than any real devicetree whose images lie outside it, or that carries a kernel.
_FDT_LIMIT = 512 << 20
#: ``IH_TYPE_KERNEL`` and ``IH_TYPE_MULTI``.
_UIMAGE_KERNEL, _UIMAGE_MULTI = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The kernel in such a file."""

    #: What the file is.
    container: str
    offset: int
    size: int


class Section(io.RawIOBase):
    """The next `size` bytes of a file: decompressors would read on into the member behind."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__()
        self._file = file
        self._left = size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read the next bytes into `buffer`; how many."""
        view = memoryview(buffer)
        data = self._file.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def find_kernel_part(file: IO[bytes], label: str) -> Part | None:
    """The kernel in a container; None if `file` is none.

    `ConfigError` about `label` for a container without a kernel, or one that was cut off.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(1024)
    part = None
    if head.startswith(_ANDROID_MAGIC):
        part = _in_android_image(head, label)
    elif head.startswith(_UIMAGE_MAGIC):
        part = _in_uimage(head, label)
    elif head.startswith(FDT_MAGIC):
        part = _in_fit(file, size, label)
    elif head.startswith(b"MZ"):
        part = _in_uki(file, head)
    file.seek(0)
    if part is not None and part.offset + part.size > size:
        raise ConfigError(
            f"{label}: truncated: {part.container} of at least {part.offset + part.size} bytes, "
            f"but {size} are there; copy it again"
        )
    return part


def _in_android_image(head: bytes, label: str) -> Part:
    fields = head.ljust(48, b"\0")
    (kernel_size,) = struct.unpack_from("<I", fields, 8)
    version, page_size = struct.unpack_from("<I", fields, 40)[0], 4096
    if version not in {3, 4}:
        # Up to version 2 the header says how long a page is; it fills the first one.
        (page_size,) = struct.unpack_from("<I", fields, 36)
    if not kernel_size:
        raise ConfigError(f"{label}: an Android boot image without a kernel; give boot.img")
    return Part(container="an Android boot image", offset=page_size, size=kernel_size)


def _in_uimage(head: bytes, label: str) -> Part:
    fields = head.ljust(72, b"\0")
    (data_size,) = struct.unpack_from(">I", fields, 12)
    kind = fields[30]
    offset = 64
    if kind == _UIMAGE_MULTI:
        # A list of sizes, which a zero ends; the kernel comes first.
        count = next((n for n in range(200) if not any(head[64 + 4 * n : 68 + 4 * n])), 0)
        (data_size,) = struct.unpack_from(">I", fields, 64)
        offset += 4 * (count + 1)
    elif kind != _UIMAGE_KERNEL:
        raise ConfigError(f"{label}: a U-Boot image (uImage), but not of a kernel; give the kernel")
    return Part(container="a U-Boot image (uImage)", offset=offset, size=data_size)


def _in_uki(file: IO[bytes], head: bytes) -> Part | None:
    (pe_offset,) = struct.unpack_from("<I", head.ljust(64, b"\0"), 0x3C)
    file.seek(pe_offset)
    header = file.read(24)
    if len(header) < 24 or header[:4] != b"PE\0\0":
        return None
    section_count, optional_size = struct.unpack_from("<H12xH", header, 6)
    file.seek(pe_offset + 24 + optional_size)
    table = file.read(40 * section_count)
    for at in range(0, len(table) - 39, 40):
        if table[at : at + 8].rstrip(b"\0") == b".linux":
            virtual_size, _, raw_size, offset = struct.unpack_from("<IIII", table, at + 8)
            size = min(virtual_size, raw_size) or raw_size
            return Part(container="a unified kernel image (UKI)", offset=offset, size=size)
    return None


def _in_fit(file: IO[bytes], size: int, label: str) -> Part | None:
    file.seek(4)
    total = int.from_bytes(file.read(4), "big")
    if not 40 <= total <= min(size, _FDT_LIMIT):
        raise ConfigError(f"{label}: truncated: a devicetree of {total} bytes; copy it again")
    file.seek(0)
    images: dict[str, dict[str, tuple[int, bytes]]] = {}
    for path, name, offset, value in _properties(file.read(total)):
        if path[:1] == ("images",) and len(path) == 2:
            images.setdefault(path[1], {})[name] = (offset, value)
    if not images:
        return None
    container = "a U-Boot flat image tree (FIT)"
    for image in images.values():
        if image.get("type", (0, b""))[1] in {b"kernel\0", b"kernel_noload\0"}:
            if "data" in image:
                offset, value = image["data"]
                return Part(container=container, offset=offset, size=len(value))
            # mkimage -E puts the data behind the tree, which is padded to four bytes.
            base = (total + 3) & ~3 if "data-offset" in image else 0
            where = image.get("data-offset") or image.get("data-position")
            if where and "data-size" in image:
                return Part(
                    container=container,
                    offset=base + int.from_bytes(where[1], "big"),
                    size=int.from_bytes(image["data-size"][1], "big"),
                )
    raise ConfigError(f"{label}: {container} without a kernel; give the kernel")


def _properties(tree: bytes) -> Iterator[tuple[tuple[str, ...], str, int, bytes]]:
    """Path of the node, name, offset in the file and value of each property of a devicetree."""
    begin_node, end_node, property_, end = 1, 2, 3, 9
    at, names = struct.unpack_from(">II", tree, 8)
    path: list[str] = []
    while at + 4 <= len(tree):
        (token,) = struct.unpack_from(">I", tree, at)
        at += 4
        if token == begin_node:
            name = tree[at : tree.find(b"\0", at)]
            path.append(name.decode(errors="replace"))
            at += (len(name) + 4) & ~3
        elif token == end_node and path:
            path.pop()
        elif token == property_ and at + 8 <= len(tree):
            length, name_offset = struct.unpack_from(">II", tree, at)
            start = names + name_offset
            name = tree[start : tree.find(b"\0", start)]
            value = tree[at + 8 : at + 8 + length]
            yield tuple(path[1:]), name.decode(errors="replace"), at + 8, value
            at += 8 + ((length + 3) & ~3)
        elif token == end:
            return
