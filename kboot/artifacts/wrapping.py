"""Kernels that are compressed, or in a container: firmware boots none, so they are unpacked."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kboot.artifacts.cache import keep_directory, sha256_of
from kboot.artifacts.compression import LZ4_FRAME, READABLE, compression_of, decompressed
from kboot.artifacts.containers import Part, Section, find_kernel_part
from kboot.artifacts.image import (
    HEAD_SIZE,
    is_image,
    looks_like,
    not_a_kernel,
    read_image,
    unreadable_compression,
)
from kboot.state import cache_directory

_CHUNK_SIZE = 1 << 20
#: An Image.gz in a U-Boot image has two.
_MOST_LAYERS = 3


def bare_image(path: Path) -> Path:
    """The kernel image in `path` that firmware can boot: `path` itself, or unpacked in the cache.

    `ConfigError` if `path` is compressed or a container, and has no kernel in it. A file that is
    neither is returned as it is, whatever it may be.
    """

    def fill(directory: Path) -> None:
        outer = path
        for layer in range(_MOST_LAYERS):
            inner = directory / f"layer{layer}"
            if not _unwrap(outer, inner, str(path)):
                break
            if outer != path:
                outer.unlink()
            outer = inner
        # What is kept is a kernel.
        read_image(outer, label=str(path))
        outer.rename(directory / "Image")

    with path.open("rb") as file:
        if _layer_of(file, str(path)) is None:
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
