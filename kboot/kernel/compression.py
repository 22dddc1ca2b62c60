"""Compressed streams: telling them apart by their first bytes, and reading them piece by piece."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from typing import IO

from kboot.errors import ConfigError

#: The first bytes of each format.
MAGIC = {
    "gzip": b"\x1f\x8b",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh",
    "lz4": b"\x02\x21\x4c\x18",  # the legacy frame, the only one that Linux unpacks
    "lzma": b"\x5d\0\0",
    "lzo": b"\x89LZO",
}

#: What ``lz4`` writes unless it is told ``-l``; Linux does not unpack that.
LZ4_FRAME = b"\x04\x22\x4d\x18"

#: The formats that `decompressed` reads.
READABLE = ("gzip", "xz", "lzma", "zstd")


def compression_of(head: bytes) -> str | None:
    """The name of the format that a file with these first bytes has, as in `MAGIC`, or None."""
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), None)


def broken_data() -> tuple[type[Exception], ...]:
    """What a stream of `decompressed` raises where its data are broken; read them in its ``with``.

    Who is given a stream by a generator reads outside of that ``with``.
    """
    # Only what was imported has been raised.
    zstandard = sys.modules.get("zstandard")
    ours = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
    return (*ours, zstandard.ZstdError) if zstandard else ours


@contextlib.contextmanager
def decompressed(file: IO[bytes], form: str | None, label: str) -> Iterator[IO[bytes]]:
    """A stream of what `file` holds, to be read forward; `form` as in `MAGIC`, or None for plain.

    What is broken in the data, even when it shows only later in the ``with``, is a `ConfigError`
    about `label`; so is a format that Python cannot read.
    """
    with _broken_data_named(label):
        match form:
            case None:
                yield file
            case "gzip":
                with io.BufferedReader(gzip.open(file, "rb")) as unzipped:
                    yield unzipped
            case "xz" | "lzma":
                with lzma.open(file, "rb") as unpacked:
                    yield unpacked
            case "bzip2":
                with bz2.open(file, "rb") as unpacked:
                    yield unpacked
            case "zstd":
                with _unzstd(file, label) as stream:
                    yield stream
            case _:
                raise ConfigError(f"{label}: {form} compression is not supported; unpack it first")


@contextlib.contextmanager
def _broken_data_named(label: str) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise ConfigError(f"{label}: truncated; its compressed data ends too early") from error
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{label}: corrupt: {error}") from error


@contextlib.contextmanager
def _unzstd(file: IO[bytes], label: str) -> Iterator[IO[bytes]]:
    import zstandard  # noqa: PLC0415  # heavy, and only this format needs it

    try:
        unpacker = zstandard.ZstdDecompressor()
        with unpacker.stream_reader(file, read_across_frames=True, closefd=False) as stream:
            yield stream
    except zstandard.ZstdError as error:
        raise ConfigError(f"{label}: corrupt: {error}") from error
