"""Frozen dataclasses as JSON, and back: what one supervisor writes down for the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

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
        (hint,) = (each for each in arguments if each is not NoneType)
        return _value(hint, plain)
    if origin is tuple:
        return tuple(_value(arguments[0], each) for each in plain)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, plain)
    convert: Callable[[Any], Any] = Path if hint is Path else _same
    return convert(plain)


def _same(plain: Any) -> Any:
    return plain
