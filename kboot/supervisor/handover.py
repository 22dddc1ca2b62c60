"""What the next supervisor of a persistent machine has to know: a note kept beside the machine."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kboot.backend import Backend, PersistentBackend
from kboot.config import Config
from kboot.errors import InfraError
from kboot.log import logger
from kboot.machine import Load
from kboot.supervisor.pushes import Push, Pushes

_Value = TypeVar("_Value")


def to_plain(value: Any) -> Any:
    """A value of dataclasses, tuples, paths and what JSON has, as JSON."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            # How to get at something is no part of what something is.
            if field.compare
        }
    if isinstance(value, tuple):
        return [to_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[_Value], plain: Any) -> _Value:
    """The dataclass of this kind that `to_plain` was given.

    What another version of kboot has written may have more or less: what is not known is left out,
    and what is missing has its default. ValueError, TypeError or KeyError if it cannot be.
    """
    if not isinstance(plain, dict):
        raise TypeError(f"{plain!r} is no {kind.__name__}")
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: _value(hints[key], each) for key, each in plain.items() if key in known})


def _value(hint: Any, plain: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        if plain is None and NoneType in arguments:
            return None
        if type(plain) in arguments:
            return plain
        # What is one of some words is a text.
        others = [a for a in arguments if a is not NoneType and get_origin(a) is not Literal]
        return _value(others[0], plain) if others else plain
    if origin is tuple:
        return tuple(_value(arguments[0], each) for each in plain)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, plain)
    convert: Callable[[Any], Any] = Path if hint is Path else _same
    return convert(plain)


def _same(plain: Any) -> Any:
    return plain


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
class Handover:
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


def read_note(text: str) -> Handover:
    """What a `HandoverWriter` has written. `InfraError` if it cannot be understood."""
    try:
        note = from_plain(Handover, json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise InfraError(
            f"the note beside the machine is not one of this version of kboot: {error}; "
            "kboot down, kboot up"
        ) from error
    if not note.loads:
        raise InfraError("the note beside the machine names no boot; kboot down, kboot up")
    return note


class HandoverWriter:
    """Keeps a persistent machine's note up to date; for other machines, it keeps nothing."""

    def __init__(self, backend: Backend, pushes: Pushes, note: Handover) -> None:
        self._backend = backend if isinstance(backend, PersistentBackend) else None
        self._pushes = pushes
        # Where a file of this host is to go, is nothing that another one should do.
        self.note = replace(
            note, config=replace(note.config, evidence=None), started=note.started or time.time()
        )

    def begin_boot(self, nonce: str, push: Push) -> None:
        """The machine is about to be given the script of this boot. `InfraError` if not noted."""
        script = Script(nonce=nonce, push=push.number)
        self._write(replace(self.note, scripts=(*self.note.scripts, script)[-_KEPT_SCRIPTS:]))

    def end_boot(self, nonce: str, boots: int) -> None:
        """The machine was proved to be in this boot."""
        try:
            self._write(replace(self.note, proved=nonce, boots=boots))
        except InfraError as error:
            # The next one will find that out for himself.
            logger.warning("not noted beside the machine: %s", error)

    def write_pushes(self) -> None:
        """Pushes were forgotten."""
        self._write(self.note)

    def _write(self, note: Handover) -> None:
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
