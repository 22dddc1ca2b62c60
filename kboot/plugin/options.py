"""What a test run, and a test by its markers, has chosen: options and markers as values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from kboot.config import SETTINGS, Config, Setting, load
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.machine import Wanted

MARKER = "kboot"
ALLOW_MARKER = "kboot_allow_warning"

#: The settings of one machine, which a test may choose; all others are those of the run.
OF_MACHINES = frozenset(
    {
        *(
            "channel",
            "cloud_init",
            "cmdline",
            "cpus",
            "firmware",
            "firmware_start",
            "initrd",
            "isolation",
        ),
        *("hugepages", "ipxe_script", "numa", "serve"),
        "disk",
        *(
            "memory",
            "module",
            "password",
            "qemu_arguments",
            "rootfs",
            "share",
            "timeout",
            "user",
            "warnings",
        ),
    }
)


def dest(setting: Setting) -> str:
    """The name under which pytest keeps an option."""
    return f"kboot_{setting.name}"


def option(config: pytest.Config, name: str) -> Any:
    """What was given on pytest's command line for the setting `name`; None if nothing was."""
    return config.getoption(f"kboot_{name}", default=None)


def read_config(config: pytest.Config, extra: Mapping[str, object] | None = None) -> Config:
    """The configuration of the run, or with `extra` that of a test. `ConfigError` for mistakes."""
    options = {setting.name: option(config, setting.name) for setting in SETTINGS}
    return load(
        options | dict(extra or {}),
        os.environ,
        config.invocation_params.dir,
        spell=lambda setting: setting.pytest_option,
    )


def config_for(item: pytest.Item) -> tuple[Config, bool]:
    """The configuration of a test's machine, and whether it must be a fresh one."""
    chosen: dict[str, object] = {}
    for marker in item.iter_markers(MARKER):
        if marker.args:
            raise ConfigError(f"the marker {MARKER} takes settings by name, not {marker.args!r}")
        chosen = dict(marker.kwargs) | chosen
    fresh = bool(chosen.pop("fresh", False))
    if unknown := chosen.keys() - OF_MACHINES:
        for setting in SETTINGS:
            if setting.name in unknown:
                raise ConfigError(
                    f"{setting.name} is a setting of the whole run, and not of one test: "
                    f"{setting.pytest_option}"
                )
        raise ConfigError(
            f"the marker {MARKER} has no setting {', '.join(sorted(unknown))}; "
            f"it has fresh, {', '.join(sorted(OF_MACHINES))}"
        )
    return read_config(item.config, chosen), fresh


def allowances(item: pytest.Item) -> list[Wanted]:
    """What a test's markers allow the kernel to report."""
    from kboot.machine import wanted  # noqa: PLC0415

    found = []
    for marker in item.iter_markers(ALLOW_MARKER):
        chosen = dict(zip(("kind", "match"), marker.args, strict=False)) | dict(marker.kwargs)
        if len(marker.args) > 2 or not chosen or chosen.keys() - {"kind", "match"}:
            raise ConfigError(f"the marker {ALLOW_MARKER} takes kind, match, or both")
        found.append(wanted(**chosen))
    return found
