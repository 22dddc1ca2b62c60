"""Several kernels, or kinds of firmware, in one run: each test once for each combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kboot.errors import ConfigError
from kboot.plugin.options import MARKER, SESSION, option, read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A kernel and a firmware that tests run with."""

    #: As it stands in the tests' ids.
    name: str
    #: For `read_config`.
    settings: Mapping[str, object]
    #: For pytest's header.
    about: str


_FOUND = pytest.StashKey[tuple[Combination, ...]]()


def combinations(config: pytest.Config) -> tuple[Combination, ...]:
    """What the tests of this run run with, in the order in which it was given.

    Empty where there is no choice. `ConfigError` if a kernel is none, or if nothing is left.
    """
    if _FOUND not in config.stash:
        kernels, firmwares = _given(config, "kernel"), _given(config, "firmware")
        choice = len(kernels) > 1 or len(firmwares) > 1
        found = _combine(config, kernels, firmwares or ["auto"]) if choice and kernels else ()
        config.stash[_FOUND] = tuple(found)
    return config.stash[_FOUND]


def _given(config: pytest.Config, name: str) -> Sequence[str]:
    """The values of an option that may be repeated, each once."""
    return list(dict.fromkeys(option(config, name) or ()))


def _combine(
    config: pytest.Config, kernels: Sequence[str], firmwares: Sequence[str]
) -> list[Combination]:
    from kboot.machine import firmware_for, kernel_of  # noqa: PLC0415

    found: dict[tuple[str, str], Combination] = {}
    refused: list[ConfigError] = []
    names: dict[str, int] = {}
    for source in kernels:
        kernel = kernel_of(read_config(config, {"kernel": source}))
        name = kernel.release
        if name in names:
            # Another build of that release.
            name = f"{name}-{Path(source).name}"
        # And one whose file has the same name.
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}-{names[name]}"
        for wanted in firmwares:
            settings = {"kernel": source, "firmware": wanted}
            try:
                firmware = firmware_for(kernel, read_config(config, settings))
            except ConfigError as error:
                refused.append(error)
                continue
            found.setdefault(
                (source, firmware),
                Combination(
                    name=f"{name}-{firmware}" if len(firmwares) > 1 else name,
                    settings=settings,
                    about=f"{kernel}, {firmware}",
                ),
            )
    if not found:
        raise refused[0]
    return list(found.values())


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Have a test run once for each combination, if it has to do with machines."""
    found = combinations(metafunc.config)
    if not found or SESSION not in metafunc.fixturenames:
        return
    if _chooses_firmware(metafunc):
        # Its machine would be the same for all kinds of firmware of a kernel.
        found = tuple({each.settings["kernel"]: each for each in reversed(found)}.values())[::-1]
    metafunc.parametrize(
        SESSION, found, ids=[each.name for each in found], indirect=True, scope="session"
    )


def _chooses_firmware(metafunc: pytest.Metafunc) -> bool:
    return any("firmware" in marker.kwargs for marker in metafunc.definition.iter_markers(MARKER))
