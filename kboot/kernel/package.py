"""Packages: the kernel and the modules in one, unpacked into the cache.

Formats: deb(5), ar(5), with a tar archive inside that is the standard library's business; and those
of `kboot.kernel.archives`. Packages are tens of megabytes, so they are streamed, and sizes in their
headers are held against the file before use.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from kboot.cache import keep_directory, sha256_of
from kboot.errors import ConfigError
from kboot.kernel.archives import archive_files, archive_kind, below_root
from kboot.kernel.compression import broken_data, compression_of, decompressed
from kboot.kernel.containers import Section
from kboot.kernel.elf import MAGIC as ELF_MAGIC
from kboot.log import step
from kboot.state import cache_directory

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


def is_package(path: Path) -> bool:
    """Whether a file is a package that may hold a kernel, by its content."""
    with path.open("rb") as file:
        if file.read(len(AR_MAGIC)) == AR_MAGIC:
            return True
    return archive_kind(path) is not None


def companions(package: Path, *kinds: str) -> list[Path]:
    """The packages beside a kernel's that hold other parts of it, as far as they are there.

    Debian (from Linux 7 on) and Ubuntu spread a kernel over packages that differ in one word:
    ``linux-binary-<release>_<version>_<architecture>.deb``, ``linux-modules-...``.
    """
    # A link may have any name.
    package = package.resolve()
    match = re.fullmatch(r"linux-(?:image|image-unsigned|binary)-(\d.*\.deb)", package.name)
    if match is None:
        return []
    candidates = [package.with_name(f"linux-{kind}-{match[1]}") for kind in kinds]
    return [path for path in candidates if path.is_file()]


def unpack_image(package: Path) -> Path:
    """Unpack image and configuration of a kernel package into the cache; their directory.

    They are called ``vmlinuz-<release>`` and ``config-<release>`` there. ``System.map-<release>``
    is with them where the package has it before these. `ConfigError` if that is not a whole
    package with a kernel.
    """
    packages = [*(companions(package, "binary") or [package]), *companions(package, "base")]

    def fill(directory: Path) -> None:
        with _broken_named(package), contextlib.closing(_files(packages)) as files:
            for name, content in files:
                if target := _boot_name(name):
                    _write(directory / target, content)
                    _call_image(directory / target)
                # Both come early; the modules behind them take seconds to decompress.
                if any(directory.glob("vmlinuz-*")) and any(directory.glob("config-*")):
                    return
        if not any(directory.glob("vmlinuz-*")):
            raise _no_kernel(package)

    with step(f"unpack the kernel in {package.name}"):
        return keep_directory(_cache_of(packages) / "boot", fill)


def unpack_modules(package: Path, release: str) -> Path | None:
    """Unpack the modules of a kernel package into the cache; the directory of `release`.

    None if neither the package nor one beside it (see `companions`) has any.
    """
    packages = [package, *companions(package, "modules", "modules-extra", "base")]

    def fill(directory: Path) -> None:
        with _broken_named(package), contextlib.closing(_files(packages)) as files:
            for name, content in files:
                below = _below_modules(name)
                if len(below) > 1:
                    target = directory.joinpath(*below)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write(target, content)

    with step(f"unpack the modules in {package.name}"):
        modules = keep_directory(_cache_of(packages) / "modules", fill) / release
    return modules if (modules / "kernel").is_dir() else None


def extract_file(package: Path, path: str, target: IO[bytes]) -> bool:
    """Write a file that the package installs, by its path below ``/``; False if it has none."""
    with _broken_named(package), contextlib.closing(_files([package])) as files:
        for name, content in files:
            if name == PurePosixPath(path):
                shutil.copyfileobj(content, target, 1 << 20)
                return True
    return False


def _broken_content() -> tuple[type[Exception], ...]:
    return (OSError, tarfile.TarError, *broken_data())


@contextlib.contextmanager
def _broken_named(package: Path) -> Iterator[None]:
    """What is broken in the content of a package's file is a `ConfigError`."""
    try:
        yield
    except _broken_content() as error:
        # That of bz2 has no number; any other one is the host's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ConfigError(
            f"{package}: corrupt or truncated: {error}; copy or download it again"
        ) from error


def _cache_of(packages: Sequence[Path]) -> Path:
    digests = [sha256_of(package) for package in packages]
    together = hashlib.sha256("".join(digests).encode()).hexdigest()
    return cache_directory("kernels") / together


def _call_image(file: Path) -> None:
    """Rename a ``vmlinux-<release>`` that is no ELF file: Debian calls bare images so, too."""
    name = file.name.replace("vmlinux-", "vmlinuz-")
    if name != file.name:
        with file.open("rb") as opened:
            is_elf = opened.read(len(ELF_MAGIC)) == ELF_MAGIC
        if not is_elf:
            file.rename(file.with_name(name))


def _boot_name(name: PurePosixPath) -> str | None:
    """``vmlinuz-<release>``, ``vmlinux-...``, ``config-...``, ``System.map-...``; else None."""
    wanted = ("vmlinuz-", "vmlinux-", "config-", "System.map-")
    if name.parent == PurePosixPath("boot") and name.name.startswith(wanted):
        return name.name
    match _below_modules(name):
        case (release, "vmlinuz" | "config" | "System.map" as kind):
            return f"{kind}-{release}"
    return None


def _below_modules(name: PurePosixPath) -> tuple[str, ...]:
    """The parts of a path behind ``lib/modules``; empty if it is elsewhere."""
    parts = name.parts[1:] if name.parts[0] == "usr" else name.parts
    return parts[2:] if parts[:2] == ("lib", "modules") else ()


def _write(target: Path, content: IO[bytes]) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _files(packages: Iterable[Path]) -> Generator[tuple[PurePosixPath, IO[bytes]]]:
    """The regular files that packages install, by path below ``/``, each to be read at once."""
    for package in packages:
        if kind := archive_kind(package):
            yield from archive_files(package, kind)
            continue
        with _tar(package, "data.tar") as archive:
            yield from _files_in(archive)


def _files_in(archive: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    for entry in archive:
        name = below_root(entry.name)
        content = archive.extractfile(entry) if entry.isfile() else None
        if name is not None and content is not None:
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
        content = io.BufferedReader(Section(file, found.size), 1 << 16)
        label = f"{package} ({found.name})"
        try:
            with (
                decompressed(content, form, label) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                yield archive
        except tarfile.TarError as error:
            raise ConfigError(f"{label}: corrupt or truncated: {error}") from error


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
    if kind := archive_kind(package):
        what = {"tar": "a tar archive", "rpm": "an RPM package"}[kind]
        return ConfigError(
            f"{package}: {what} without a kernel (no boot/vmlinuz-*, no lib/modules/*/vmlinuz); "
            "give the one with the kernel"
        )
    fields = control_fields(package)
    name = fields.get("Package", "of no name")
    depends = re.findall(r"\blinux-(?:image|binary|modules)-[^\s,|()]+", fields.get("Depends", ""))
    if depends:
        needed = " ".join(depends)
        return ConfigError(
            f"{package}: {name} is a meta package without a kernel; it depends on {needed}: "
            f"apt-get download {needed}, and give the file of {depends[0]}"
        )
    return ConfigError(
        f"{package}: package {name} has no kernel (no vmlinuz); give a linux-image-* package"
    )
