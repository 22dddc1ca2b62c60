"""What a test run, and a test by its markers, has chosen: options and markers as values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kboot.config import SETTINGS, Config, Setting, load
from kboot.config.parse import seconds
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.fleet import Role
    from kboot.machine import Wanted

MARKER = "kboot"
ALLOW_MARKER = "kboot_allow_warning"
FLEET_MARKER = "kboot_fleet"
POOL_MARKER = "kboot_pool"

#: The settings of one machine, which a test may choose; all others are those of the run.
OF_MACHINES = frozenset(
    {
        "channel",
        "cloud_init",
        "cmdline",
        "cpus",
        "dhcp",
        "disk",
        "firmware",
        "firmware_start",
        "hugepages",
        "impairment",
        "initrd",
        "ipxe",
        "ipxe_script",
        "isolation",
        "memory",
        "module",
        "modules",
        "nic",
        "nic_model",
        "numa",
        "password",
        "qemu_arguments",
        "rootfs",
        "serve",
        "share",
        "timeout",
        "tls",
        "user",
        "warnings",
    }
)


def dest(setting: Setting) -> str:
    """The name under which pytest keeps an option."""
    return f"kboot_{setting.name}"


#: Options that may be repeated for a run with each of the values, see `kboot.plugin.matrix`.
CHOICES = frozenset({"kernel", "firmware"})


def option(config: pytest.Config, name: str) -> Any:
    """What was given on pytest's command line for the setting `name`; None if nothing was."""
    return config.getoption(f"kboot_{name}", default=None)


def tests_kernel(config: pytest.Config) -> bool:
    """Whether pytest's command line says what is to be booted."""
    return option(config, "kernel") is not None or option(config, "boot") == "disk"


def any_option(config: pytest.Config) -> bool:
    """Whether pytest's command line has any option of ours."""
    return any(option(config, setting.name) is not None for setting in SETTINGS)


def read_config(config: pytest.Config, extra: Mapping[str, object] | None = None) -> Config:
    """The configuration of the run, or with `extra` that of a test. `ConfigError` for mistakes.

    Of the options that may be repeated for a choice, it has the first one.
    """
    options = {setting.name: option(config, setting.name) for setting in SETTINGS}
    options |= {name: options[name][0] for name in CHOICES if options[name]}
    return load(
        options | dict(extra or {}),
        os.environ,
        config.invocation_params.dir,
        spell=lambda setting: setting.pytest_option,
    )


#: The fixture that there is one of for each combination; all that has to do with machines uses it.
SESSION = "kboot_session"


def instance_settings(item: pytest.Item) -> Mapping[str, object]:
    """What this instance of a test is run with; empty where there is no choice."""
    callspec = getattr(item, "callspec", None)
    found: Mapping[str, object] = (
        getattr(callspec.params.get(SESSION), "settings", {}) if callspec else {}
    )
    return found


def config_for(item: pytest.Item) -> tuple[Config, bool]:
    """The configuration of a test's machine, and whether it must be a fresh one.

    Its markers choose before what this instance of it is run with, see `kboot.plugin.matrix`.
    """
    chosen: dict[str, object] = {}
    for marker in item.iter_markers(MARKER):
        if marker.args:
            raise ConfigError(f"the marker {MARKER} takes settings by name, not {marker.args!r}")
        chosen = dict(marker.kwargs) | chosen
    fresh = bool(chosen.pop("fresh", False))
    _check_settings(chosen, f"the marker {MARKER}", also="fresh, ")
    return read_config(item.config, {**instance_settings(item), **chosen}), fresh


def fleet_for(item: pytest.Item) -> tuple[tuple[Role, ...], dict[str, Config]]:
    """The roles of a test's fleet, and the configuration of each one's machines.

    A role's own settings come before those of the marker ``kboot``.
    """
    from kboot.fleet.layout import read_roles  # noqa: PLC0415

    marker = item.get_closest_marker(FLEET_MARKER)
    if marker is None:
        raise ConfigError(
            f"a test with the fixture fleet says which: @pytest.mark.{FLEET_MARKER}(worker=3)"
        )
    if marker.args:
        raise ConfigError(f"the marker {FLEET_MARKER} takes roles by name, not {marker.args!r}")
    roles = read_roles(marker.kwargs)
    common: dict[str, object] = {}
    for each in item.iter_markers(MARKER):
        common = dict(each.kwargs) | common
    common.pop("fresh", None)
    configs = {}
    for role in roles:
        chosen = common | dict(role.settings)
        _check_settings(chosen, f"the role {role.name} of {FLEET_MARKER}", also="count, ")
        configs[role.name] = read_config(item.config, {**instance_settings(item), **chosen})
    return roles, configs


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPool:
    """The pool that a test has machines of."""

    #: Of a persistent pool (``kboot pool up NAME``); empty for the run's own one, ...
    name: str = ""
    #: ... of which this is the size, so many seconds a machine may wait in it, and this has to
    #: succeed in its guest.
    replicas: int = 2
    max_age_s: float | None = None
    check: str = "true"
    #: Seconds of a lease, and to wait for one.
    ttl_s: float = 3600.0
    wait_s: float = 300.0


def pool_for(item: pytest.Item) -> WantedPool:
    """What the marker ``kboot_pool`` says. `ConfigError` for mistakes."""
    from kboot import service  # noqa: PLC0415
    from kboot.pool.service import KIND  # noqa: PLC0415

    marker = item.get_closest_marker(POOL_MARKER)
    if marker is None:
        return WantedPool()
    if len(marker.args) > 1 or not all(isinstance(each, str) for each in marker.args):
        raise ConfigError(
            f"the marker {POOL_MARKER} takes the name of a pool that stays, and settings by name"
        )
    chosen = dict(marker.kwargs)
    name = marker.args[0] if marker.args else ""
    if name:
        service.find(KIND, name)
    if unknown := chosen.keys() - {"replicas", "max_age", "check", "ttl", "wait"}:
        raise ConfigError(
            f"the marker {POOL_MARKER} has no setting {', '.join(sorted(unknown))}; "
            "it has replicas, max_age, check, ttl, wait"
        )
    if name and (own := chosen.keys() & {"replicas", "max_age", "check"}):
        raise ConfigError(
            f"{', '.join(sorted(own))}: the pool {name} was started with its own; leave it out"
        )
    replicas = chosen.pop("replicas", WantedPool().replicas)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1:
        raise ConfigError(f"replicas={replicas!r}: a number of machines, 1 or more")
    check = chosen.pop("check", WantedPool().check)
    if not isinstance(check, str):
        raise ConfigError(f"check={check!r}: a command for the guest")
    return WantedPool(
        name=name,
        replicas=replicas,
        check=check,
        **{f"{key}_s": _seconds(key, value) for key, value in chosen.items()},
    )


def _seconds(name: str, value: object) -> float:
    try:
        return seconds(value, Path())
    except ValueError as error:
        raise ConfigError(f"{name}={value!r}: not {error}") from error


def _check_settings(chosen: Mapping[str, object], whose: str, *, also: str) -> None:
    """`ConfigError` for what is no setting of one machine."""
    unknown = chosen.keys() - OF_MACHINES
    for setting in SETTINGS:
        if setting.name in unknown:
            raise ConfigError(
                f"{setting.name} is a setting of the whole run, and not of one test: "
                f"{setting.pytest_option}"
            )
    if unknown:
        raise ConfigError(
            f"{whose} has no setting {', '.join(sorted(unknown))}; "
            f"it has {also}{', '.join(sorted(OF_MACHINES))}"
        )


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
