"""Find persistent machines by name: with a supervisor here, or on a cluster without one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from kboot import service
from kboot.backend import PersistentMachine
from kboot.config import Config, load, working_directory
from kboot.errors import ConfigError, InfraError
from kboot.log import logger
from kboot.machine import can_persist, persistent_machines, remove_machine
from kboot.supervisor import registry
from kboot.supervisor.client import ask, launch
from kboot.supervisor.registry import directory_of


def ensure_supervisor(name: str, options: Mapping[str, object], *, by_force: bool = False) -> None:
    """Take over a persistent machine, unless it has a supervisor here.

    `options` are those of `kboot.config.load` that say where; else what is noted here of the
    machine, or the configuration, does. Where no machine is persistent, nothing is done.
    `ConfigError` if there is no such machine, or if it has another supervisor; `by_force`, that
    one is replaced.
    """
    if directory_of(name).is_alive:
        return
    where = _where(name, options)
    if where is None:
        return
    service.clear_dead(registry.KIND)
    launch(name, where.options, takes_over=True, by_force=by_force)
    try:
        # The first answer comes when the machine is found.
        ask(name, "status")
    except ConfigError:
        if not _is_there(where):
            registry.forget_location(name)
        raise


def require_new_name(name: str) -> None:
    """`ConfigError` if there is a persistent machine of this name already."""
    where = registry.location_of(name)
    if where is None or directory_of(name).is_alive:
        return
    try:
        there = _is_there(where)
    except InfraError as error:
        logger.debug("whether %s is there is not known: %s", name, error)
        there = True
    if there:
        raise ConfigError(
            f"there is a machine called {name} already, without a supervisor here: kboot status "
            f"{name}; kboot down {name}"
        )
    registry.forget_location(name)


def remove(name: str, options: Mapping[str, object]) -> str:
    """Switch a machine off, wherever it is; what is left of it, in words.

    `ConfigError` if there is no such machine, or if it has another supervisor.
    """
    where = _where(name, options)
    if directory_of(name).is_alive or where is None:
        kept = service.stop(directory_of(name))["evidence"]
        # It has done that itself, unless it was too slow and was killed.
        if noted := registry.location_of(name):
            _remove_there(noted)
        return f"its console and logs: {kept}"
    service.clear_dead(registry.KIND)
    if not _remove_there(where):
        raise ConfigError(f"there is no machine called {name}; see kboot list")
    return "it had no supervisor"


def list_persistent(options: Mapping[str, object]) -> Iterator[PersistentMachine]:
    """The persistent machines where `options` or the configuration say, or where noted ones are.

    `InfraError` if it cannot be known for the place that `options` or the configuration name;
    others are passed over.
    """
    asked = registry.Location(
        name="", options={key: str(value) for key, value in options.items() if value}
    )
    seen: set[str] = set()
    for where in (asked, *registry.all_locations()):
        config = _config_of(where)
        if not can_persist(config):
            continue
        try:
            machines = persistent_machines(config)
        except InfraError as error:
            if where is asked:
                raise
            logger.warning("persistent machines cannot be listed: %s", error)
            continue
        for machine in machines:
            if machine.identifier not in seen:
                seen.add(machine.identifier)
                yield machine


# ------------------------------------------------------------------------------------------ inside


def _where(name: str, options: Mapping[str, object]) -> registry.Location | None:
    """Where to look for a machine; None if that is only here."""
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if not given and (found := registry.location_of(name)):
        return found
    if not can_persist(load(given, os.environ, working_directory())):
        return None
    return registry.Location(name=name, options={key: str(value) for key, value in given.items()})


def _config_of(where: registry.Location) -> Config:
    return load(where.options, os.environ, working_directory())


def _is_there(where: registry.Location) -> bool:
    machines = persistent_machines(_config_of(where))
    return any(machine.ours and machine.name == where.name for machine in machines)


def _remove_there(where: registry.Location) -> bool:
    was_there = remove_machine(_config_of(where), where.name)
    registry.forget_location(where.name)
    return was_there
