"""The machines known on this host: a directory for each supervisor, a note for each remote one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kboot import service
from kboot.service import Kind, Service
from kboot.state import state_directory

#: The machine that is meant when none is named.
DEFAULT_NAME = "default"

KIND = Kind(name="machine", command="kboot")


def directory_of(name: str) -> Service:
    """The supervisor of the machine called `name`, whether there is one or not."""
    return service.find(KIND, name)


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
        {each.name for each in service.known(KIND)} | {each.name for each in all_locations()}
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
