"""The directory of a named machine: who holds its lock is its supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError, InfraError
from kboot.state import state_directory

#: The machine that is meant when none is named.
DEFAULT_NAME = "default"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the files of one named machine are; all below ``$XDG_STATE_HOME/kboot/machines``."""

    name: str
    directory: Path

    @property
    def order(self) -> Path:
        """What the supervisor was started with, as JSON."""
        return self.directory / "order.json"

    @property
    def log(self) -> Path:
        """What the supervisor has to say."""
        return self.directory / "supervisor.log"

    @property
    def failure(self) -> Path:
        """Why the supervisor ended, as JSON; not there as long as it is fine."""
        return self.directory / "failure.json"

    @property
    def is_alive(self) -> bool:
        """Whether a supervisor holds the machine."""
        try:
            lock = _try_lock(self.directory)
        except FileNotFoundError:
            return False
        if lock is None:
            return True
        os.close(lock)
        return False

    def read_failure(self) -> dict[str, Any] | None:
        """Why the supervisor ended, if it could tell."""
        try:
            failure: dict[str, Any] = json.loads(self.failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return failure


def place_of(name: str) -> Place:
    """The place of the machine called `name`, whether there is one or not."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a machine's name: at most 40 small letters, digits, and hyphens "
            "between them"
        )
    return Place(name=name, directory=_machines() / name)


def places() -> list[Place]:
    """All machines there are, those whose supervisor has died among them."""
    return [
        Place(name=directory.name, directory=directory)
        for directory in sorted(_machines().iterdir())
        if _NAME.fullmatch(directory.name)
    ]


def claim(place: Place) -> int:
    """Make the machine's directory, afresh, and lock it; the descriptor that holds the lock.

    What a dead supervisor has left is removed. `ConfigError` if a live one holds it.
    """
    with _all_locked():
        remove_if_dead(place)
        try:
            place.directory.mkdir(mode=0o700)
        except FileExistsError as error:
            raise ConfigError(
                f"there is a machine called {place.name} already: kboot status {place.name}; "
                f"kboot down {place.name}"
            ) from error
        except OSError as error:
            raise InfraError(f"cannot make {place.directory}: {error.strerror}") from error
        lock = _try_lock(place.directory)
    if lock is None:
        raise InfraError(f"{place.directory} was taken by another program as soon as it was made")
    return lock


def remove_if_dead(place: Place) -> bool:
    """Remove what a dead supervisor has left; whether there was something."""
    try:
        lock = _try_lock(place.directory)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    shutil.rmtree(place.directory, ignore_errors=True)
    os.close(lock)
    return True


def _machines() -> Path:
    directory = state_directory() / "machines"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


@contextlib.contextmanager
def _all_locked() -> Iterator[None]:
    """Nobody else makes or removes machines for the length of the ``with``."""
    descriptor = os.open(_machines(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(directory: Path) -> int | None:
    """The descriptor of the lock on `directory`; None if another holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
