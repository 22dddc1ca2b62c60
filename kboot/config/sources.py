"""The fields of `Config` as settings: their names in every source, and reading these sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kboot.config import parse
from kboot.config.cluster import ClusterConfig
from kboot.config.values import Config
from kboot.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its names in every source, and what it takes."""

    #: Its key in a file.
    name: str
    #: The field of `Config` that holds it: the name, with the unit if there is one.
    field: str
    default: object
    #: One line, without a full stop.
    help: str
    metavar: str
    #: All that it may be; empty if there is no list.
    choices: tuple[str, ...]
    #: Whether its option may be given more than once.
    repeated: bool
    parse: parse.Parse

    @property
    def option(self) -> str:
        """Its option on kboot's own command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def pytest_option(self) -> str:
        """Its option on pytest's command line."""
        return "--kernel" if self.name == "kernel" else "--kboot-" + self.option[2:]

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "KBOOT_" + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as a user would write it; empty if there is none."""
        if self.default is None or self.default == ():
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


_OF_CLUSTERS = {each.name for each in fields(ClusterConfig)}

#: Every setting: those for all backends first, those about a cluster last.
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(
        field=each.name,
        default=each.default,
        **{**each.metadata, "name": each.metadata["name"] or each.name},
    )
    for each in sorted(fields(Config), key=lambda each: each.name in _OF_CLUSTERS)
)


def markdown_table() -> str:
    """The settings as a Markdown table, for the documentation."""
    lines = ["| key | option | pytest option | variable | default | meaning |", "|" + "---|" * 6]
    for setting in SETTINGS:
        names = (setting.name, setting.option, setting.pytest_option, setting.variable)
        cells = " | ".join(f"`{cell}`" if cell else "" for cell in (*names, setting.default_text))
        choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
        lines.append(f"| {cells} | {setting.help}{choices} |")
    return "\n".join(lines)


#: Variables of kboot's own that are not settings.
RESERVED_VARIABLES = (
    *("KBOOT_RUN", "KBOOT_DEBUG", "KBOOT_TEST_KERNEL"),
    # What a command finds that has a machine of a pool.
    *("KBOOT_POOL", "KBOOT_LEASE"),
)


def load(
    options: Mapping[str, object],
    environ: Mapping[str, str],
    directory: Path,
    *,
    spell: Callable[[Setting], str] = lambda setting: setting.option,
) -> Config:
    """The configuration for a run in `directory`.

    `options` maps settings' names to what was given on the command line; None and empty lists mean
    "not given", and so do empty variables. `spell` says how an option is written, for errors.
    `ConfigError` names the key, the value, where it was written, and the remedy.
    """
    here = directory.absolute()
    values = _from_file(here) | _from_environment(environ, here)
    for setting in SETTINGS:
        given = options.get(setting.name)
        if given is not None and given not in ((), []):
            values[setting.field] = _value(setting, given, spell(setting), here)
    return Config(**values)


def _from_environment(environ: Mapping[str, str], directory: Path) -> dict[str, Any]:
    known = {setting.variable: setting for setting in SETTINGS}
    values = {}
    for variable, value in environ.items():
        if not variable.startswith("KBOOT_") or variable in RESERVED_VARIABLES:
            continue
        if variable not in known:
            remedy = parse.near(variable, known, prefix="KBOOT_") or "; unset it"
            raise ConfigError(f"no setting is called {variable} (environment variable){remedy}")
        if value:
            setting = known[variable]
            values[setting.field] = _value(setting, value, variable, directory)
    return values


def _from_file(directory: Path) -> dict[str, Any]:
    path, entries = _find_file(directory)
    known = {setting.name: setting for setting in SETTINGS}
    values = {}
    for key, value in entries.items():
        if key not in known:
            remedy = parse.near(key, known) or f"; there are {', '.join(known)}"
            if isinstance(value, dict):
                remedy = "; settings stand in no table here"
            raise ConfigError(f"{path}: no setting is called {key!r}{remedy}")
        setting = known[key]
        values[setting.field] = _value(setting, value, f"{path}: {key}", path.parent)
    return values


def _find_file(directory: Path) -> tuple[Path, Mapping[str, object]]:
    """The nearest configuration file, upwards from `directory`, and what it says."""
    for place in (directory, *directory.parents):
        path = place / "kboot.toml"
        if os.path.lexists(path):
            if not path.is_file():
                raise ConfigError(f"{path}: is no file; settings are read from it: rename it")
            return path, _read_toml(path)
        path = place / "pyproject.toml"
        if path.is_file():
            tool = _read_toml(path, only_with=b"kboot").get("tool")
            if isinstance(tool, dict) and "kboot" in tool:
                if not isinstance(tool["kboot"], dict):
                    raise ConfigError(f"{path}: tool.kboot is no table; write [tool.kboot]")
                return path, tool["kboot"]
    return directory, {}


def _read_toml(path: Path, *, only_with: bytes = b"") -> dict[str, Any]:
    # Parsing takes time that every pytest run would pay, most of them for another's file.
    import tomllib  # noqa: PLC0415

    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode()) if only_with in content else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _value(setting: Setting, given: object, origin: str, directory: Path) -> object:
    try:
        return setting.parse(given, directory)
    except ValueError as error:
        raise ConfigError(f"{origin}: {_shown(setting, given)} is not {error}") from None


def _shown(setting: Setting, given: object) -> str:
    """What was given, as its user would know it: an option that may be repeated, one by one."""
    listed = given if setting.repeated and isinstance(given, list | tuple) else ()
    if listed and all(isinstance(one, str) for one in listed):
        return ", ".join(map(repr, listed))
    return repr(given)
