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
    """The files of one named machine, below ``$XDG_STATE_HOME/kboot/machines``."""

    name: str
    path: Path

    @property
    def order(self) -> Path:
        """What the supervisor was started with, as JSON."""
        return self.path / "order.json"

    @property
    def log(self) -> Path:
        """The supervisor's log."""
        return self.path / "supervisor.log"

    @property
    def failure(self) -> Path:
        """Why the supervisor ended, as JSON; not there as long as it is fine."""
        return self.path / "failure.json"

    @property
    def is_alive(self) -> bool:
        """Whether the machine has a live supervisor."""
        # Looking takes the lock for a moment, which who claims the machine must not see.
        with contextlib.suppress(FileNotFoundError), lock_directory(self.path.parent, shared=True):
            return is_locked(self.path)
        return False

    def read_failure(self) -> dict[str, Any] | None:
        """Why the supervisor ended, if it could tell."""
        try:
            failure: dict[str, Any] = json.loads(self.failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return failure


def directory_of(name: str) -> MachineDirectory:
    """The directory of the machine called `name`, whether there is one or not."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a machine's name: at most 40 small letters, digits, and hyphens "
            "between them"
        )
    return MachineDirectory(name=name, path=_machines() / name)


def machine_directories() -> list[MachineDirectory]:
    """All machines there are, those whose supervisor has died among them."""
    return [
        MachineDirectory(name=directory.name, path=directory)
        for directory in sorted(_machines().iterdir())
        if _NAME.fullmatch(directory.name)
    ]


def claim(machine_dir: MachineDirectory) -> int:
    """Make the machine's directory, afresh, and lock it; the descriptor that holds the lock.

    What a dead supervisor has left is removed. `ConfigError` if a live one holds it.
    """
    with lock_directory(machine_dir.path.parent):
        _remove_if_dead(machine_dir.path)
        try:
            machine_dir.path.mkdir(mode=0o700)
        except FileExistsError as error:
            raise ConfigError(
                f"there is a machine called {machine_dir.name} already: "
                f"kboot status {machine_dir.name}; kboot down {machine_dir.name}"
            ) from error
        except OSError as error:
            raise InfraError(f"cannot make {machine_dir.path}: {error.strerror}") from error
        lock = try_lock(machine_dir.path)
    if lock is None:
        raise InfraError(f"{machine_dir.path} was taken by another program as soon as it was made")
    return lock


def remove_if_dead(machine_dir: MachineDirectory) -> bool:
    """Remove what a dead supervisor has left; whether there was something."""
    with lock_directory(machine_dir.path.parent):
        return _remove_if_dead(machine_dir.path)


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


def location_of(name: str) -> Location | None:
    """Where the machine of this name was seen last; None if that is not known."""
    try:
        content = json.loads(_path(name).read_text(encoding="utf-8"))
        return Location(name=name, options=content["options"])
    except (OSError, ValueError, KeyError):
        return None


def all_locations() -> Iterator[Location]:
    """All machines that were seen from this host."""
    for path in sorted(_directory().glob("*.json")):
        if found := location_of(path.stem):
            yield found


def known_names() -> list[str]:
    """The machines that this host knows of: those with a supervisor here, and those noted."""
    return sorted(
        {machine_dir.name for machine_dir in machine_directories()}
        | {each.name for each in all_locations()}
    )


def forget_location(name: str) -> None:
    """Forget where the machine is: it is gone."""
    _path(name).unlink(missing_ok=True)


def _path(name: str) -> Path:
    return _directory() / f"{name}.json"


def _directory() -> Path:
    directory = state_directory() / "elsewhere"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
