"""A directory of saved machines, shared by all processes of a user.

An entry is a directory named by a digest of its *parts*: all that the saved machine depends on, by
name. In it: the files that the backend and the boot have written, and ``manifest.json`` with the
parts, the checksums of the files, and a note of the boot. It appears by a rename, complete, and
goes by a rename. Who uses an entry holds a shared lock on its directory; only what nobody uses is
removed. What a killed process has left half made or half removed, the next one removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kboot.cache import FileStamp
from kboot.deadline import Deadline
from kboot.locks import lock_directory, try_lock
from kboot.log import logger
from kboot.snapshots.sparse import digest

MANIFEST = "manifest.json"

#: Of the manifest and of what the files mean. Entries of another format are made anew.
_FORMAT = 1

#: Prefixes of what is being made, and of what is being removed.
_UNFINISHED = ".new-"
_REMOVED = ".old-"
_LOCK = ".lock"
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One saved machine."""

    directory: Path
    #: All that it depends on.
    parts: Mapping[str, str]
    #: What the boot has noted about it: JSON.
    note: Mapping[str, Any]
    #: Bytes on the disk.
    size: int
    #: Seconds since the epoch.
    created: float
    used: float

    @property
    def key(self) -> str:
        """Its name: a digest of the parts."""
        return self.directory.name


class SnapshotStore:
    """Saved machines in `directory`; the least recently used ones make room. A context manager.

    What was found or added stays until the end of the ``with``, whatever others do.
    """

    def __init__(self, directory: Path, *, limit_mib: int) -> None:
        self._directory = directory
        self._limit = limit_mib << 20
        self._held: dict[str, tuple[Entry, list[FileStamp]]] = {}
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with lock_directory(self._directory):
            self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all entries."""
        self._held.clear()
        self._locks.close()

    def find(self, parts: Mapping[str, str]) -> Entry | None:
        """The entry for exactly these parts; None if there is none.

        One that is damaged, or is not what its name says, is removed with a warning.
        """
        key = key_of(parts)
        directory = self._directory / key
        if key in self._held:
            entry, stamp = self._held[key]
            if _stamps(directory) == stamp:
                return entry
            del self._held[key]
        if not self._hold(directory):
            return None
        fault = _fault(directory, parts)
        if fault is not None:
            logger.warning("snapshot %s is refused and will be made anew: %s", key, fault)
            _remove(directory)
            return None
        return self._take(directory)

    def add(
        self, parts: Mapping[str, str], fill: Callable[[Path], Mapping[str, Any]]
    ) -> Entry | None:
        """Make an entry: `fill` writes files into an empty directory and returns the note.

        None if another process was faster with the same and its entry cannot be used. What `fill`
        raises leaves nothing behind. OSError when the disk is full.
        """
        new = self._directory / f"{_UNFINISHED}{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            # Nobody must sweep it away before we hold it.
            with lock_directory(self._directory):
                self._sweep()
                new.mkdir()
                stack.enter_context(lock_directory(new))
            try:
                note = fill(new)
                _write_manifest(new, parts, note)
                with contextlib.suppress(OSError):  # there is one already
                    new.rename(self._directory / key_of(parts))
            finally:
                shutil.rmtree(new, ignore_errors=True)
        entry = self.find(parts)
        self.trim()
        return entry

    @contextlib.contextmanager
    def making(self, parts: Mapping[str, str], deadline: Deadline) -> Iterator[None]:
        """Within this ``with``, others that want to make the same entry wait.

        For no longer than their `deadline`: an entry made twice does no harm.
        """
        path = self._directory / f"{key_of(parts)}{_LOCK}"
        lock = None
        for _ in deadline.poll(_POLL_S):
            path.touch(mode=0o600)
            # Whoever had it may remove it just now.
            with contextlib.suppress(FileNotFoundError):
                if (lock := try_lock(path)) is not None:
                    break
        try:
            yield
        finally:
            if lock is not None:
                path.unlink(missing_ok=True)
                os.close(lock)

    def entries(self) -> list[Entry]:
        """All entries, the least recently used ones first; their files are not checked."""
        found = []
        for directory in self._directory.iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if not directory.name.startswith(".") and directory.is_dir():
                    found.append(_read(directory))
        return sorted(found, key=lambda entry: entry.used)

    def remove(self, entry: Entry) -> bool:
        """Remove an entry; False if somebody uses it."""
        return _remove_unused(entry.directory)

    def discard(self, key: str) -> None:
        """Remove an entry that we found and that does not work, whoever uses it."""
        self._held.pop(key, None)
        _remove(self._directory / key)

    def trim(self) -> list[Entry]:
        """Remove the least recently used entries until the rest is within the limit."""
        entries = self.entries()
        excess = sum(entry.size for entry in entries) - self._limit
        removed = []
        for entry in entries:
            if excess <= 0:
                break
            if self.remove(entry):
                excess -= entry.size
                removed.append(entry)
        return removed

    def _hold(self, directory: Path) -> bool:
        try:
            self._locks.enter_context(lock_directory(directory, shared=True))
        except OSError:
            return False
        return True

    def _take(self, directory: Path) -> Entry:
        os.utime(directory / MANIFEST)
        entry = _read(directory)
        self._held[entry.key] = (entry, _stamps(directory))
        return entry

    def _sweep(self) -> None:
        """Remove what killed processes have left; needs the lock on the directory of them all."""
        for path in self._directory.iterdir():
            half = path.name.startswith((_UNFINISHED, _REMOVED))
            if half or path.name.endswith(_LOCK) or not (path / MANIFEST).is_file():
                _remove_unused(path)


def key_of(parts: Mapping[str, str]) -> str:
    """The name of the entry for these parts."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:32]


def _remove_unused(path: Path) -> bool:
    """Remove an entry, or what is none; False if somebody uses it, or it cannot be removed."""
    try:
        lock = try_lock(path)
    except OSError:
        return False
    if lock is None:
        return False
    try:
        return _remove(path)
    finally:
        os.close(lock)


def _remove(path: Path) -> bool:
    """Remove an entry or a lock file, which somebody may use, but so that it is never seen half."""
    try:
        if not path.is_dir():
            path.unlink()
            return True
        old = path.with_name(f"{_REMOVED}{secrets.token_hex(8)}")
        path.rename(old)
    except OSError as error:
        logger.debug("%s cannot be removed: %s", path, error)
        return False
    shutil.rmtree(old, ignore_errors=True)
    return True


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.name != MANIFEST)


def _stamps(directory: Path) -> list[FileStamp]:
    """Those of its files; none if the entry is gone."""
    try:
        return [FileStamp.of(path) for path in _files(directory)]
    except OSError:
        return []


def _write_manifest(directory: Path, parts: Mapping[str, str], note: Mapping[str, Any]) -> None:
    manifest = {
        "format": _FORMAT,
        "created": time.time(),
        "parts": dict(parts),
        "files": {path.name: digest(path) for path in _files(directory)},
        "note": dict(note),
    }
    text = json.dumps(manifest, indent=2)
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _fault(directory: Path, parts: Mapping[str, str]) -> str | None:
    """Why an entry cannot be used, or None."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            return f"its format is {manifest['format']}"
        if manifest["parts"] != dict(parts):
            return "it is of another machine"
        if set(manifest["files"]) != {path.name for path in _files(directory)}:
            return "its files are not those that were saved"
        for name, expected in manifest["files"].items():
            if digest(directory / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"
    return None


def _read(directory: Path) -> Entry:
    path = directory / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return Entry(
        directory=directory,
        parts=manifest["parts"],
        note=manifest["note"],
        size=sum(file.stat().st_blocks * 512 for file in directory.iterdir()),
        created=manifest["created"],
        used=path.stat().st_mtime,
    )
