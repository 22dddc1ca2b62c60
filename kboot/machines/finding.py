"""Machines by their names, wherever they are: with a supervisor here, or staying without one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from kboot.backend import StayingMachine
from kboot.boot import can_stay, remove_machine, staying_machines
from kboot.config import Config, load, working_directory
from kboot.errors import ConfigError, InfraError
from kboot.log import logger
from kboot.machines import whereabouts
from kboot.machines.client import ask, clear_dead, switch_off
from kboot.machines.launch import launch
from kboot.machines.places import place_of


def summon(name: str, options: Mapping[str, object], *, by_force: bool = False) -> None:
    """See to it that a machine has a supervisor here, if it stays somewhere without one.

    `options` are those of `kboot.config.load` that say where; else what is noted here of the
    machine, or the configuration, does. Where no machine can stay, nothing is done. `ConfigError`
    if there is no such machine, or if somebody else looks after it; `by_force`, it is taken from
    there.
    """
    if place_of(name).is_alive:
        return
    where = _where(name, options)
    if where is None:
        return
    clear_dead()
    launch(name, where.options, meets=True, by_force=by_force, environ=where.environ)
    try:
        # The first answer comes when the machine is found.
        ask(name, "status")
    except ConfigError:
        if not _is_there(where):
            whereabouts.forget(name)
        raise


def require_unused(name: str) -> None:
    """`ConfigError` if a machine of this name is known to stay somewhere already."""
    where = whereabouts.noted(name)
    if where is None or place_of(name).is_alive:
        return
    try:
        there = _is_there(where)
    except InfraError as error:
        logger.debug("whether %s is there is not known: %s", name, error)
        there = True
    if there:
        raise ConfigError(
            f"there is a machine called {name} already, which stays without us: kboot status "
            f"{name}; kboot down {name}"
        )
    whereabouts.forget(name)


def remove(name: str, options: Mapping[str, object]) -> str:
    """Switch a machine off, wherever it is; what is left of it, in words.

    `ConfigError` if there is no such machine, or if somebody else looks after it.
    """
    where = _where(name, options)
    if place_of(name).is_alive or where is None:
        kept = switch_off(name)
        # It has done that itself, unless it was too slow and was killed.
        if noted := whereabouts.noted(name):
            _remove_there(noted)
        return f"its console and logs: {kept}"
    clear_dead()
    if not _remove_there(where):
        raise ConfigError(f"there is no machine called {name}; see kboot list")
    return "nobody looked after it"


def elsewhere(options: Mapping[str, object]) -> Iterator[StayingMachine]:
    """The machines that stay where `options` or the configuration say, or where noted ones are.

    `InfraError` if it cannot be known for the place that `options` name; others are passed over.
    """
    given = {key: str(value) for key, value in options.items() if value}
    seen: set[str] = set()
    asked = whereabouts.here("", given)
    for where in (asked, *whereabouts.all_noted()):
        with where.variables():
            config = _config_of(where)
            if not can_stay(config):
                continue
            try:
                for machine in staying_machines(config):
                    if machine.identifier not in seen:
                        seen.add(machine.identifier)
                        yield machine
            except InfraError as error:
                if given and where is asked:
                    raise
                logger.warning("machines that stay are not known: %s", error)


# ------------------------------------------------------------------------------------------ inside


def _where(name: str, options: Mapping[str, object]) -> whereabouts.Whereabouts | None:
    """Where to look for a machine; None if that is only here."""
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if not given and (found := whereabouts.noted(name)):
        return found
    if not can_stay(load(given, os.environ, working_directory())):
        return None
    return whereabouts.here(name, {key: str(value) for key, value in given.items()})


def _config_of(where: whereabouts.Whereabouts) -> Config:
    return load(where.options, os.environ, working_directory())


def _is_there(where: whereabouts.Whereabouts) -> bool:
    with where.variables():
        machines = staying_machines(_config_of(where))
    return any(machine.ours and machine.name == where.name for machine in machines)


def _remove_there(where: whereabouts.Whereabouts) -> bool:
    with where.variables():
        was_there = remove_machine(_config_of(where), where.name)
    whereabouts.forget(where.name)
    return was_there
