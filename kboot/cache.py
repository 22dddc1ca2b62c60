"""What kboot made once and keeps, below `kboot.state.cache_directory`.

An entry appears whole, by a rename, or not at all. One maker at a time works in a directory, behind
a lock that the kernel lifts when its holder dies; whatever a killed maker left half done is
cleared by the next one, because everybody uses the same name for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kboot.errors import InfraError
from kboot.locks import lock_file


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What a file has another one of once it was written to, or another was put in its place."""

    path: Path
    device: int
    inode: int
    size: int
    modified_ns: int
    #: Of its inode: nobody can set it back.
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The one that a file has now. OSError if there is none."""
        found = path.stat()
        return cls(
            path=path,
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            modified_ns=found.st_mtime_ns,
            changed_ns=found.st_ctime_ns,
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_directory(target: Path, fill: Callable[[Path], None]) -> Path:
    """Return the directory `target`, made by `fill` (given an empty one) if it is not there yet.

    `InfraError` if the cache cannot be written; what `fill` raises passes through.
    """
    if not target.is_dir():
        with _sole_maker(target.parent) as partial:
            if not target.is_dir():
                partial.mkdir()
                fill(partial)
                partial.rename(target)
    return target


def keep_file(directory: Path, name: str, chunks: Iterable[bytes]) -> Path:
    """Keep the concatenated `chunks` in `directory`, as `name` with their sha256 before its suffix.

    ``tiny.cpio.gz`` becomes ``tiny-1d7e1a9cc191da3899907822fa2f13e5.cpio.gz``.

    `InfraError` if the cache cannot be written.
    """
    with _sole_maker(directory) as partial:
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        stem, dot, suffix = name.partition(".")
        target = directory / f"{stem}-{digest.hexdigest()[:32]}{dot}{suffix}"
        # Who reads it now may look at whether it is still the same file.
        is_there = target.is_file() and target.stat().st_size == partial.stat().st_size
        return target if is_there else partial.rename(target)


def remove_unused(directory: Path, since: float) -> tuple[int, int]:
    """Remove the entries of `directory` that nobody has read since then, in seconds of the epoch.

    How many there were, and their bytes. Where the file system does not note when a file was read,
    those made before that go.
    """
    count = size = 0
    if not directory.is_dir():
        return 0, 0
    with _sole_maker(directory):
        for entry in directory.iterdir():
            if entry.name.startswith("."):
                continue
            files = [path for path in (entry, *entry.rglob("*")) if path.is_file()]
            if any(_used(path) >= since for path in files):
                continue
            count, size = count + 1, size + sum(path.stat().st_size for path in files)
            _remove(entry)
    return count, size


def _used(path: Path) -> float:
    found = path.stat()
    return max(found.st_atime, found.st_mtime, found.st_ctime)


@contextlib.contextmanager
def _sole_maker(directory: Path) -> Iterator[Path]:
    """The name to build the next entry of `directory` under, ours alone for the ``with``."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with lock_file(directory / ".lock"):
            partial = directory / ".partial"
            _remove(partial)
            try:
                yield partial
            finally:
                _remove(partial)
    except OSError as error:
        raise InfraError(
            f"the cache {directory} cannot be written: {error.strerror or error}; "
            "make room there, or set XDG_CACHE_HOME"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
