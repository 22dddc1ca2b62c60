"""Small initramfs images that are appended to another one, and images that users bring."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kboot import arch
from kboot.cache import keep_file
from kboot.errors import ConfigError, refusal_named
from kboot.kernel.compression import MAGIC, compression_of
from kboot.kernel.image import HEAD_SIZE, is_image, looks_like
from kboot.rootfs.cpio import Entry, archive, guest_path, regular, with_parents
from kboot.rootfs.debian import debian_initramfs, is_debian, read_debian
from kboot.rootfs.tiny import tiny_initramfs
from kboot.state import cache_directory

_CPIO_MAGIC = (b"070701", b"070702")


def overlay_initramfs(files: Mapping[str, bytes | Path]) -> Path:
    """An initramfs (plain cpio) with `files`: absolute path in the guest -> content or a file here.

    Appended to another initramfs it adds files to it, or replaces them. A file that is executable
    here, begins with ``#!`` or is given as the content of a program (ELF) is executable there.
    Paths in ``/bin``, ``/lib`` and ``/sbin`` go below ``/usr``, for these are links in the tiny
    system as in every distribution. The same files give the same bytes, kept in the cache.
    `ConfigError` names a file that cannot be read.
    """
    entries = [_entry(guest_path(path), content) for path, content in files.items()]
    return keep_file(cache_directory("rootfs"), "overlay.cpio", archive(with_parents(entries)))


def resolve_rootfs(
    value: str,
    *,
    architecture: str = arch.DEFAULT.name,
    password: str = "kboot",  # noqa: S107  # as in `tiny_initramfs`
    mirror: str = arch.DEBIAN_MIRROR,
) -> list[Path]:
    """The initramfs images, in order, that a user asks for.

    ``tiny``, ``debian[:SUITE][+PACKAGE,...]``, or the path of one. `password` is root's in the
    first two; `mirror` is Debian's, see `tiny_initramfs`. `ConfigError` if the path is no file, or
    no initramfs that a kernel would unpack. For Debian's errors see `debian_initramfs`.
    """
    if value == "tiny":
        return [tiny_initramfs(architecture=architecture, password=password, mirror=mirror)]
    if is_debian(value):
        wanted = read_debian(value, password=password, mirror=mirror, architecture=architecture)
        return [debian_initramfs(wanted)]
    path = Path(value).expanduser()
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "no such file"
        raise ConfigError(
            f"rootfs {value}: {problem}; give tiny, debian, or the path of an initramfs, a disk "
            "image or a directory"
        )
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_SIZE)
    except OSError as error:
        raise ConfigError(f"rootfs {value}: cannot be read: {error.strerror or error}") from error
    if not head.startswith(_CPIO_MAGIC) and compression_of(head) is None:
        what = looks_like(head) if head else "an empty file"
        raise ConfigError(
            f"rootfs {value}: not an initramfs: it looks like {what}; "
            f"give a cpio archive (newc), plain or compressed with {', '.join(MAGIC)}, or a disk "
            "image (raw, qcow2 or vmdk)"
        )
    return [path]


def check_initrd(path: Path) -> None:
    """`ConfigError` if `path` is surely nothing that a kernel takes as an initrd."""
    with refusal_named(f"initrd {path}"):
        if not path.is_file():
            problem = "is a directory" if path.is_dir() else "no such file"
            raise ConfigError(f"initrd {path}: {problem}; give an initramfs image")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_SIZE)
    except OSError as error:
        raise ConfigError(f"initrd {path}: cannot be read: {error.strerror or error}") from error
    what = "an empty file" if not head else "a kernel" if is_image(head) else looks_like(head)
    # Also a file system is one, of which there are many.
    if what.startswith(_NO_INITRDS):
        raise ConfigError(f"initrd {path}: it looks like {what}; give an initramfs image")


_NO_INITRDS = (
    *("an empty file", "a kernel", "a script", "text", "ELF", "an ar archive", "an RPM package"),
    *("a zip archive", "a tar archive", "a qcow2 disk image", "an EFI program"),
    "a cpio archive in a format that Linux does not unpack",
)


def _entry(path: str, content: bytes | Path) -> Entry:
    if isinstance(content, bytes):
        return regular(path, content, executable=content.startswith((b"#!", b"\x7fELF")))
    if not content.is_file():
        raise ConfigError(f"{content}: no such file; it was to become /{path} in the guest")
    return regular(path, content, executable=os.access(content, os.X_OK) or _is_script(content))


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"
