"""The machines known on this host: a directory for each supervisor, a note for each remote one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError, InfraError
from kboot.locks import is_locked, lock_directory, try_lock
from kboot.state import state_directory

#: The machine that is meant when none is named.
DEFAULT_NAME = "default"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineDirectory:
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
        with _all_locked(shared=True), contextlib.suppress(FileNotFoundError):
            return is_locked(self.directory)
        return False

    def read_failure(self) -> dict[str, Any] | None:
        """Why the supervisor ended, if it could tell."""
        try:
            failure: dict[str, Any] = json.loads(self.failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return failure


def directory_of(name: str) -> MachineDirectory:
    """The place of the machine called `name`, whether there is one or not."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a machine's name: at most 40 small letters, digits, and hyphens "
            "between them"
        )
    return MachineDirectory(name=name, directory=_machines() / name)


def machine_directories() -> list[MachineDirectory]:
    """All machines there are, those whose supervisor has died among them."""
    return [
        MachineDirectory(name=directory.name, directory=directory)
        for directory in sorted(_machines().iterdir())
        if _NAME.fullmatch(directory.name)
    ]


def claim(place: MachineDirectory) -> int:
    """Make the machine's directory, afresh, and lock it; the descriptor that holds the lock.

    What a dead supervisor has left is removed. `ConfigError` if a live one holds it.
    """
    with _all_locked():
        _remove_if_dead(place.directory)
        try:
            place.directory.mkdir(mode=0o700)
        except FileExistsError as error:
            raise ConfigError(
                f"there is a machine called {place.name} already: kboot status {place.name}; "
                f"kboot down {place.name}"
            ) from error
        except OSError as error:
            raise InfraError(f"cannot make {place.directory}: {error.strerror}") from error
        lock = try_lock(place.directory)
    if lock is None:
        raise InfraError(f"{place.directory} was taken by another program as soon as it was made")
    return lock


def remove_if_dead(place: MachineDirectory) -> bool:
    """Remove what a dead supervisor has left; whether there was something."""
    with _all_locked():
        return _remove_if_dead(place.directory)


def _remove_if_dead(directory: Path) -> bool:
    try:
        lock = try_lock(directory)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)
    return True


def _machines() -> Path:
    directory = state_directory() / "machines"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _all_locked(*, shared: bool = False) -> contextlib.AbstractContextManager[None]:
    """Nobody else makes or removes machines for the length of the ``with``.

    A `shared` lock is enough to look whether one is alive: looking takes its lock for a moment.
    """
    return lock_directory(_machines(), shared=shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """How a machine is found again."""

    name: str
    #: Settings, as options of `kboot.config.load`.
    options: Mapping[str, str]

    def write(self) -> None:
        """Note it; one of the same name is forgotten."""
        text = json.dumps({"options": dict(self.options)})
        path = _path(self.name)
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def noted(name: str) -> Location | None:
    """Where the machine of this name was seen last; None if that is not known."""
    try:
        content = json.loads(_path(name).read_text(encoding="utf-8"))
        return Location(name=name, options=content["options"])
    except (OSError, ValueError, KeyError):
        return None


def all_noted() -> Iterator[Location]:
    """All machines that were seen from this host."""
    for path in sorted(_directory().glob("*.json")):
        if found := noted(path.stem):
            yield found


def known_names() -> list[str]:
    """The machines that this host knows of: looked after from here, or noted."""
    return sorted(
        {place.name for place in machine_directories()} | {each.name for each in all_noted()}
    )


def forget(name: str) -> None:
    """The machine is not there any more."""
    _path(name).unlink(missing_ok=True)


def _path(name: str) -> Path:
    return _directory() / f"{name}.json"


def _directory() -> Path:
    directory = state_directory() / "elsewhere"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
