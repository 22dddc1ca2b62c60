"""Start the supervisor of a new machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kboot import process, wire
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.machines.client import clear_dead
from kboot.machines.places import Place, claim, place_of
from kboot.state import RUN_VARIABLE

_START_LIMIT_S = 30.0


def launch(
    name: str,
    options: Mapping[str, object],
    *,
    meets: bool = False,
    by_force: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Place:
    """Start a supervisor for a machine called `name`; it then boots, see the verb ``wait``.

    `options` are those of `kboot.config.load`, which the supervisor reads again, here and in this
    environment, with `environ` on top of it. `ConfigError` if there is such a machine here. With
    `meets`, it takes up a machine that stays without us, and boots none; `by_force`, also one that
    another supervisor looks after.
    """
    place = place_of(name)
    clear_dead()
    lock = claim(place)
    try:
        order = {
            "name": name,
            "options": dict(options),
            "directory": str(Path.cwd()),
            "meets": meets,
            "by_force": by_force,
        }
        place.order.write_text(json.dumps(order), encoding="utf-8")
        supervisor = process.start_detached(
            [sys.executable, "-m", "kboot.machines.supervisor", str(place.directory), str(lock)],
            log=place.log,
            env={
                key: value
                for key, value in {**os.environ, **(environ or {})}.items()
                if key != RUN_VARIABLE
            },
            pass_fds=(lock,),
        )
    finally:
        # Its supervisor holds the lock now; if there is none, the place is nobody's.
        os.close(lock)
    _wait_until_it_listens(place, supervisor)
    return place


def _wait_until_it_listens(place: Place, supervisor: process.Process) -> None:
    for _ in Deadline(_START_LIMIT_S).poll(0.02):
        try:
            wire.connect(place.directory).socket.close()
        except OSError:
            if supervisor.exit_status() is not None:
                failure = place.read_failure()
                words = supervisor.last_words()
                clear_dead()
                raise wire.to_error(failure) if failure else InfraError(words) from None
        else:
            return
    supervisor.kill()
    raise InfraError(f"the supervisor of {place.name} does not start; see {place.log}")
