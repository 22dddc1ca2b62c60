"""Locks between processes: flock(2), on a directory or on a lock file.

The kernel lifts a lock when its holder dies, however that is. A lock counts only while its path
still leads to what was locked: who has waited for something that was removed meanwhile tries again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_directory(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock on a directory for the length of the ``with``; waits for it.

    `shared` locks go together. OSError if there is no such directory (any more).
    """
    with _locked(directory, os.O_RDONLY | os.O_DIRECTORY, shared=shared):
        yield


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock on a file, made if it is not there; waits for it. Its holder may remove it.

    OSError if it cannot be made.
    """
    with _locked(path, os.O_RDWR | os.O_CREAT, shared=False):
        yield


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """The descriptor that holds the lock on a file or directory; None if it cannot be had now.

    It is lifted when the descriptor and those that programs have inherited are closed. OSError if
    `path` does not exist.
    """
    # Python's descriptors are not inherited by programs, so no child keeps the lock alive.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, _operation(shared=shared) | fcntl.LOCK_NB)
        if _leads_to(path, descriptor):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on `path` for themselves. OSError if it does not exist.

    Those who look do not disturb each other. Who uses `try_lock` meanwhile would be told that it
    is taken: where that may be, all hold another lock around it, shared in order to look.
    """
    lock = try_lock(path, shared=True)
    if lock is not None:
        os.close(lock)
    return lock is None


@contextlib.contextmanager
def _locked(path: Path, flags: int, *, shared: bool) -> Iterator[None]:
    descriptor = -1
    while descriptor < 0:
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, _operation(shared=shared))
            is_there = _leads_to(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if not is_there:
            os.close(descriptor)
            descriptor = -1
    try:
        yield
    finally:
        os.close(descriptor)


def _operation(*, shared: bool) -> int:
    return fcntl.LOCK_SH if shared else fcntl.LOCK_EX


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether `path` is what the descriptor has open, and not removed or replaced."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
