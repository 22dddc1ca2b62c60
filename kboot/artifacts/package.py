"""Debian packages: the kernel and the modules in one, unpacked into the cache.

Formats: deb(5), ar(5); the tar inside is the standard library's business. Packages are tens of
megabytes, so they are streamed, and sizes in their headers are held against the file before use.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from kboot.artifacts.cache import keep_directory
from kboot.artifacts.compression import compression_of, decompressed
from kboot.errors import ConfigError
from kboot.log import step
from kboot.state import cache_directory

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AR_MAGIC = b"!<arch>\n"
_AR_HEADER_SIZE = 60
_CONTROL_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArMember:
    """A file in an ar archive; all of it lies within the archive."""

    name: str
    offset: int
    size: int


def ar_members(file: IO[bytes], label: str) -> Iterator[ArMember]:
    """The members of the ar archive `file`, in order. `ConfigError` if it is broken or cut off."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(AR_MAGIC)) != AR_MAGIC:
        raise ConfigError(f"{label}: not an ar archive")
    at = len(AR_MAGIC)
    while at < end:
        file.seek(at)
        header = file.read(_AR_HEADER_SIZE)
        if len(header) < _AR_HEADER_SIZE:
            raise _truncated(label, end, at + _AR_HEADER_SIZE)
        size_field = header[48:58].rstrip(b" ")
        if header[58:] != b"`\n" or not size_field.isdigit():
            raise ConfigError(f"{label}: corrupt: no ar header at byte {at}")
        at += _AR_HEADER_SIZE
        size = int(size_field)
        if at + size > end:
            raise _truncated(label, end, at + size)
        name = header[:16].decode("ascii", errors="replace").rstrip().removesuffix("/")
        yield ArMember(name=name, offset=at, size=size)
        at += size + size % 2


def _truncated(label: str, size: int, expected: int) -> ConfigError:
    return ConfigError(f"{label}: truncated: {size} bytes of {expected}; download it again")


def unpack_image(package: Path, sha256: str) -> Path:
    """Unpack ``/boot`` (image, configuration) of a kernel package into the cache; its directory.

    `sha256` is that of `package`. `ConfigError` if that is not a whole package with a kernel.
    """

    def fill(directory: Path) -> None:
        for name, content in _files(package):
            if name.parent == PurePosixPath("boot") and name.name.startswith(
                ("vmlinuz-", "config-")
            ):
                _write(directory / name.name, content)
            # Both come early; the modules behind them take seconds to decompress.
            if any(directory.glob("vmlinuz-*")) and any(directory.glob("config-*")):
                return
        if not any(directory.glob("vmlinuz-*")):
            raise _no_kernel(package)

    with step(f"unpack the kernel in {package.name}"):
        return keep_directory(cache_directory("kernels") / sha256 / "boot", fill)


def unpack_modules(package: Path, sha256: str, release: str) -> Path | None:
    """Unpack ``lib/modules`` of a kernel package into the cache; the directory of `release`.

    None if the package has no modules (Ubuntu keeps them in ``linux-modules-...``).
    """

    def fill(directory: Path) -> None:
        for name, content in _files(package):
            parts = name.parts[1:] if name.parts[0] == "usr" else name.parts
            if parts[:2] == ("lib", "modules") and len(parts) > 3:
                target = directory.joinpath(*parts[2:])
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(target, content)

    with step(f"unpack the modules in {package.name}"):
        modules = keep_directory(cache_directory("kernels") / sha256 / "modules", fill) / release
    return modules if modules.is_dir() else None


def _write(target: Path, content: IO[bytes]) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _files(package: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The regular files a package installs, with paths below ``/``, each to be read at once."""
    with _tar(package, "data.tar") as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            if name.is_absolute():
                name = name.relative_to("/")
            if entry.isfile() and name.parts and ".." not in name.parts:
                content = archive.extractfile(entry)
                if content is not None:
                    yield name, content


@contextlib.contextmanager
def _tar(package: Path, stem: str) -> Iterator[tarfile.TarFile]:
    """Open the tar archive called `stem` plus a suffix in `package`, as a stream."""
    with package.open("rb") as file:
        members = list(ar_members(file, str(package)))
        if not members or members[0].name != "debian-binary":
            raise ConfigError(f"{package}: an ar archive, but not a Debian package")
        found = next((m for m in members if m.name.split(".")[:2] == stem.split(".")), None)
        if found is None:
            raise ConfigError(f"{package}: not a whole Debian package: it has no {stem}")
        file.seek(found.offset)
        form = compression_of(file.read(min(8, found.size)))
        file.seek(found.offset)
        content = io.BufferedReader(_Part(file, found.size), 1 << 16)
        label = f"{package} ({found.name})"
        try:
            with (
                decompressed(content, form, label) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                yield archive
        except tarfile.TarError as error:
            raise ConfigError(f"{label}: corrupt or truncated: {error}") from error


class _Part(io.RawIOBase):
    """The next `size` bytes of a file: decompressors would read on into the member behind."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__()
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._file.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def control_fields(package: Path) -> dict[str, str]:
    """The fields of a package's control file (``Package``, ``Depends``, ...)."""
    with _tar(package, "control.tar") as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            if PurePosixPath(entry.name) == PurePosixPath("control") and content is not None:
                text = content.read(_CONTROL_LIMIT).decode(errors="replace")
                return dict(re.findall(r"^([A-Za-z-]+): *(.*)$", text, re.MULTILINE))
    return {}


def _no_kernel(package: Path) -> ConfigError:
    fields = control_fields(package)
    name = fields.get("Package", "of no name")
    real = re.findall(r"\blinux-image-[^\s,|()]+(?:\s*\([^)]*\))?", fields.get("Depends", ""))
    if real:
        return ConfigError(
            f"{package}: {name} is a meta package without a kernel; it depends on {real[0]}: "
            f"apt-get download {real[0].split()[0]}, and give that file"
        )
    return ConfigError(
        f"{package}: package {name} has no kernel (no /boot/vmlinuz-*); "
        "give a linux-image-* package"
    )
