"""Archives that people pack kernels in: tar (of ``make tar-pkg``, Arch, Alpine) and RPM.

Formats: tar is the standard library's business, and Alpine's packages are tar archives in gzip
members one behind the other; RPM V4: https://rpm-software-management.github.io/rpm/manual/format_v4.html
and cpio(5) inside.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from kboot.errors import ConfigError
from kboot.kernel.compression import compression_of, decompressed

Kind = Literal["tar", "rpm"]

RPM_MAGIC = b"\xed\xab\xee\xdb"
_RPM_LEAD_SIZE = 96
_HEADER_MAGIC = b"\x8e\xad\xe8\x01"
_HEADER_INTRO = 16
_INDEX_ENTRY = 16
#: More than any header of a kernel's package.
_HEADER_LIMIT = 256 << 20
_CPIO_HEADER = 110
_REGULAR = 0o100000

#: A file's path below ``/``, and its content, to be read before the next one is asked for.
File = tuple[PurePosixPath, IO[bytes]]


def archive_kind(path: Path) -> Kind | None:
    """Which of these archives a file is, by its content; None for neither."""
    with path.open("rb") as file:
        head = file.read(512)
        if head.startswith(RPM_MAGIC):
            return "rpm"
        form = compression_of(head)
        if form is not None:
            file.seek(0)
            try:
                with decompressed(file, form, str(path)) as content:
                    head = content.read(512)
            except (ConfigError, OSError):
                return None
    return "tar" if head[257:262] == b"ustar" else None


def archive_files(path: Path, kind: Kind) -> Iterator[File]:
    """The regular files in an archive, in their order. `ConfigError` if it is broken or cut off."""
    return _tar_files(path) if kind == "tar" else _rpm_files(path)


def below_root(name: str) -> PurePosixPath | None:
    """A member's path below ``/``; None for one that leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute():
        path = path.relative_to("/")
    return path if path.parts and ".." not in path.parts else None


def _tar_files(path: Path) -> Iterator[File]:
    with path.open("rb") as file:
        form = compression_of(file.read(512))
        file.seek(0)
        try:
            with (
                decompressed(file, form, str(path)) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                for entry in archive:
                    name = below_root(entry.name)
                    content = archive.extractfile(entry) if entry.isfile() else None
                    if name is not None and content is not None:
                        yield name, content
                # Behind the archive's end are the checksums of what it is compressed with.
                while stream.read(1 << 20):
                    pass
        except tarfile.TarError as error:
            raise ConfigError(
                f"{path}: a tar archive that is corrupt or truncated: {error}"
            ) from error


def _rpm_files(path: Path) -> Iterator[File]:
    with path.open("rb") as file, ExitStack() as stack:
        file.seek(_RPM_LEAD_SIZE)
        _skip_header(file, path)
        # The signatures' header is padded to 8 bytes.
        file.seek(-(-file.tell() // 8) * 8)
        _skip_header(file, path)
        payload = file.tell()
        form = compression_of(file.read(16))
        file.seek(payload)
        stream = stack.enter_context(decompressed(file, form, str(path)))
        yield from _cpio_files(stream, path)


def _skip_header(file: IO[bytes], path: Path) -> None:
    intro = file.read(_HEADER_INTRO)
    if len(intro) < _HEADER_INTRO or not intro.startswith(_HEADER_MAGIC):
        raise ConfigError(f"{path}: an RPM package that is corrupt or cut off: no header")
    entries, size = struct.unpack(">8xII", intro)
    length = entries * _INDEX_ENTRY + size
    if length > _HEADER_LIMIT or len(file.read(length)) < length:
        raise ConfigError(
            f"{path}: an RPM package that is corrupt or cut off: its header ends early"
        )


def _cpio_files(stream: IO[bytes], path: Path) -> Iterator[File]:
    while True:
        header = _exactly(stream, _CPIO_HEADER, path)
        if header[:6] not in {b"070701", b"070702"}:
            raise ConfigError(f"{path}: an RPM package with a payload that is no cpio archive")
        fields = [int(header[at : at + 8], 16) for at in range(6, _CPIO_HEADER, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_bytes = _exactly(stream, name_size + -(_CPIO_HEADER + name_size) % 4, path)
        text = name_bytes[: name_size - 1].decode(errors="replace")
        if text == "TRAILER!!!":
            return
        content = _exactly(stream, size + -size % 4, path)[:size]
        name = below_root(text)
        if name is not None and mode & 0o170000 == _REGULAR:
            yield name, io.BytesIO(content)


def _exactly(stream: IO[bytes], size: int, path: Path) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            raise ConfigError(f"{path}: truncated; its payload ends too early")
        data += piece
    return data
