"""What the next supervisor of a machine has to know: kept beside it, where the machine stays."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

from kboot.backend import Backend, StayingBackend
from kboot.boot import Load
from kboot.config import Config
from kboot.errors import InfraError
from kboot.log import logger
from kboot.machines.plain import from_plain, to_plain
from kboot.machines.pushes import Push, Pushes

#: A machine may be in any of the boots that these scripts were written for; surely in a late one.
_KEPT_SCRIPTS = 20
#: The notes of a thousand pushes would be too long for a Secret.
_KEPT_PUSHES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A boot script that the machine was given."""

    nonce: str
    #: The number of the push that it loads.
    push: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is kept beside a machine."""

    config: Config
    pushes: tuple[Push, ...] = ()
    #: The number of the push that is loaded next.
    current: int = 0
    #: The newest last.
    scripts: tuple[Script, ...] = ()
    #: The nonce of the last boot that was proved to be the right one.
    proved: str = ""
    boots: int = 0
    #: Seconds since the epoch.
    started: float = 0.0

    @property
    def loads(self) -> dict[str, Load]:
        """What the machine may have booted, by the boots' nonces, the likeliest last."""
        by_number = {push.number: push.load for push in self.pushes}
        known = [script for script in self.scripts if script.push in by_number]
        ordered = sorted(known, key=lambda script: script.nonce == self.proved)
        return {script.nonce: by_number[script.push] for script in ordered}


def read_note(text: str) -> Note:
    """What a `Keeper` has written. `InfraError` if it cannot be understood."""
    try:
        note = from_plain(Note, json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise InfraError(
            f"the note beside the machine is not one of this version of kboot: {error}; "
            "kboot down, kboot up"
        ) from error
    if not note.loads:
        raise InfraError("the note beside the machine names no boot; kboot down, kboot up")
    return note


class Keeper:
    """Keeps the note of a machine up to date; where machines do not stay, it keeps nothing."""

    def __init__(self, backend: Backend, pushes: Pushes, note: Note) -> None:
        self._backend = backend if isinstance(backend, StayingBackend) else None
        self._pushes = pushes
        # Where a file of this host is to go, is nothing that another one should do.
        self.note = replace(
            note, config=replace(note.config, evidence=None), started=note.started or time.time()
        )

    def will_boot(self, nonce: str, push: Push) -> None:
        """The machine is about to be given the script of this boot. `InfraError` if not noted."""
        script = Script(nonce=nonce, push=push.number)
        self._write(replace(self.note, scripts=(*self.note.scripts, script)[-_KEPT_SCRIPTS:]))

    def has_booted(self, nonce: str, boots: int) -> None:
        """The machine was proved to be in this boot."""
        try:
            self._write(replace(self.note, proved=nonce, boots=boots))
        except InfraError as error:
            # The next one will find that out for himself.
            logger.warning("not noted beside the machine: %s", error)

    def has_collected(self) -> None:
        """Pushes were forgotten."""
        self._write(self.note)

    def _write(self, note: Note) -> None:
        if self._backend is None:
            return
        current = self._pushes.current
        note = replace(
            note,
            pushes=tuple(self._pushes.all)[-_KEPT_PUSHES:],
            current=current.number if current else 0,
        )
        self._backend.keep(json.dumps(to_plain(note)))
        self.note = note
