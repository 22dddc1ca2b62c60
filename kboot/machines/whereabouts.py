"""Where machines are that stay without us: a note on this host, so that their names are enough."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kboot.machines.places import places
from kboot.state import state_directory

#: The variable that leads to a cluster, beside the settings.
_KUBECONFIG = "KUBECONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """How a machine is found again."""

    name: str
    #: Settings, as options of `kboot.config.load`.
    options: Mapping[str, str]
    #: Variables that those depend on.
    environ: Mapping[str, str]

    @contextlib.contextmanager
    def variables(self) -> Iterator[None]:
        """Have the variables in our own environment, for the length of the ``with``."""
        before = {key: os.environ.get(key) for key in self.environ}
        os.environ.update(self.environ)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value

    def write(self) -> None:
        """Note it; one of the same name is forgotten."""
        text = json.dumps({"options": dict(self.options), "environ": dict(self.environ)})
        path = _path(self.name)
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def noted(name: str) -> Whereabouts | None:
    """Where the machine of this name was seen last; None if that is not known."""
    try:
        content = json.loads(_path(name).read_text(encoding="utf-8"))
        return Whereabouts(name=name, options=content["options"], environ=content["environ"])
    except (OSError, ValueError, KeyError):
        return None


def all_noted() -> Iterator[Whereabouts]:
    """All machines that were seen from this host."""
    for path in sorted(_directory().glob("*.json")):
        if found := noted(path.stem):
            yield found


def known_names() -> list[str]:
    """The machines that this host knows of: looked after from here, or noted."""
    return sorted({place.name for place in places()} | {each.name for each in all_noted()})


def forget(name: str) -> None:
    """The machine is not there any more."""
    _path(name).unlink(missing_ok=True)


def here(name: str, options: Mapping[str, str]) -> Whereabouts:
    """For a machine that `options` lead to in our own environment."""
    environ = {key: os.environ[key] for key in (_KUBECONFIG,) if key in os.environ}
    return Whereabouts(name=name, options=options, environ=environ)


def _path(name: str) -> Path:
    return _directory() / f"{name}.json"


def _directory() -> Path:
    directory = state_directory() / "elsewhere"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
