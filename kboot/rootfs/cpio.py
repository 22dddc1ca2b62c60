"""Write cpio archives in the ``newc`` format, the one that the kernel unpacks as an initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst in the Linux source. The same
entries give the same bytes: dated 1970, and unless they say otherwise owned by root.
"""

from __future__ import annotations

import gzip
import io
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kboot.errors import ConfigError

_SIZE_LIMIT = 0xFFFFFFFF
#: Directories whose mode is not 0755.
_DIRECTORY_MODES = {"root": 0o700, "tmp": 0o1777, "proc": 0o555, "sys": 0o555}
#: With merged /usr, as every distribution has it now, these are links to the same below /usr.
#: An entry that called one of them a directory would make the kernel replace the link.
_MERGED_INTO_USR = frozenset({"bin", "sbin", "lib", "lib64"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of an initramfs."""

    #: Relative to the root, without ``.`` and ``..``: ``etc/passwd``.
    path: str
    #: Type and permissions, as in ``st_mode``.
    mode: int
    #: A regular file's bytes or where to read them from; a symbolic link's target.
    content: bytes | Path = b""
    #: Major and minor number of a device.
    device: tuple[int, int] = (0, 0)
    #: User and group.
    owner: tuple[int, int] = (0, 0)


def regular(path: str, content: bytes | Path, *, executable: bool = False) -> Entry:
    """A file of mode 0644, or 0755 if `executable`."""
    permissions = 0o755 if executable else 0o644
    return Entry(path=path, mode=stat.S_IFREG | permissions, content=content)


def directory(path: str) -> Entry:
    """A directory, with the mode it usually has."""
    return Entry(path=path, mode=stat.S_IFDIR | _DIRECTORY_MODES.get(path, 0o755))


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, content=target.encode())


def character_device(path: str, major: int, minor: int, permissions: int) -> Entry:
    """A character device node."""
    return Entry(path=path, mode=stat.S_IFCHR | permissions, device=(major, minor))


def guest_path(path: str) -> str:
    """An absolute or relative path in the guest as an `Entry` has it: merged into ``/usr``.

    `ConfigError` if it names no file below the root.
    """
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    if not parts or ".." in parts or "\0" in path:
        raise ConfigError(f"{path!r}: not a path of a file in an initramfs; give it from / on")
    return "/".join(["usr", *parts] if parts[0] in _MERGED_INTO_USR else parts)


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """`entries`, each path once (the last one wins), with the directories above them, sorted."""
    chosen = {entry.path: entry for entry in entries}
    for path in list(chosen):
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                chosen.setdefault(str(parent), directory(str(parent)))
    return [chosen[path] for path in sorted(chosen)]


def archive(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The archive of `entries`, in their order, in pieces.

    `ConfigError` for a file that cannot be read or is too large for the format (4 GiB).
    """
    for inode, entry in enumerate(entries, start=1):
        yield from _member(entry, inode)
    yield from _member(Entry(path="TRAILER!!!", mode=0), 0)


def gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """`chunks` as one gzip member without name and date, in pieces, padded to 4 bytes."""
    buffer = io.BytesIO()
    size = 0
    with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=6) as packer:
        for chunk in chunks:
            packer.write(chunk)
            size += buffer.tell()
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    size += buffer.tell()
    # The kernel looks for a plain archive behind this one only at a multiple of 4 bytes.
    yield buffer.getvalue() + bytes(-size % 4)


def write_zstd(target: Path, chunks: Iterable[bytes], *, level: int) -> None:
    """Write `chunks` as one zstd frame, padded to 4 bytes."""
    import zstandard  # noqa: PLC0415  heavy, and only large images need it

    packer = zstandard.ZstdCompressor(level=level, threads=-1)
    with target.open("wb") as file:
        with packer.stream_writer(file, closefd=False) as stream:
            for chunk in chunks:
                stream.write(chunk)
        # As in `gzipped`.
        file.write(bytes(-file.tell() % 4))


def _member(entry: Entry, inode: int) -> Iterator[bytes]:
    content = _read(entry.content)
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        *(inode, entry.mode, *entry.owner, links, 0, len(content)),  # the date is 0
        *(0, 0, *entry.device, len(name), 0),
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    yield header + bytes(-len(header) % 4)
    yield content
    yield bytes(-len(content) % 4)


def _read(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        if content.stat().st_size > _SIZE_LIMIT:
            raise ConfigError(f"{content}: too large for an initramfs (4 GiB)")
        return content.read_bytes()
    except OSError as error:
        raise ConfigError(f"{content}: cannot be read: {error.strerror or error}") from error
