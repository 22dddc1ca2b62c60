"""What a user says of a machine's disks: ``[NAME=]SOURCE[,size=SIZE][,ro][,keep][,bus=BUS]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from kboot.config import parse
from kboot.machine_spec import Disk, DiskBus, DiskKind

#: Virtio and NVMe have 20 characters for a serial number; KubeVirt wants a DNS label.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?")
#: A path with an equals sign in it has a slash before that, or is written with one: ``./a=b``.
_NAMED = re.compile(r"([^=/,]*)=(.*)", re.DOTALL)
_KIND = re.compile(r"(container|pvc|clone|source):(.*)", re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,9})\s*(?:([MGT])(?:i?B)?)?", re.IGNORECASE)
_UNITS_MIB = {"": 1, "M": 1, "G": 1024, "T": 1024 * 1024}
_LARGEST_MIB = 64 << 20
#: Of a blank disk that is given no size. It takes no room on the host until it is written to.
_BLANK_MIB = 1024


def disks(value: object, directory: Path) -> tuple[str, ...]:
    """Disks as they are declared, each with an absolute path; all are checked."""
    listed = parse.words(value, directory)
    texts = tuple(_with_absolute_path(text, directory) for text in listed)
    read_disks(texts)
    return texts


def read_disks(declared: Sequence[str]) -> tuple[Disk, ...]:
    """What `disks` has returned, as values. A disk without a name is called ``disk0`` by its place.

    ValueError if one cannot be understood, or if two have the same name.
    """
    found = tuple(_read(text, f"disk{number}") for number, text in enumerate(declared))
    names = [disk.name for disk in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"a list of disks with a name each: {twice} is there twice")
    return found


def _with_absolute_path(text: str, directory: Path) -> str:
    name, source, options = _split(text)
    if _kind_of(source) == "image":
        source = parse.source(source, directory)
    return f"{name}={source}{options}" if name else f"{source}{options}"


def _split(text: str) -> tuple[str, str, str]:
    """Its name, or an empty text; its source; and all from the comma on."""
    named = _NAMED.fullmatch(text)
    name, rest = (named[1], named[2]) if named else ("", text)
    if named and not _NAME.fullmatch(name):
        raise ValueError(
            f"a disk: {name!r} in {text!r} is no name; write 1 to 20 of a-z, 0-9 and -, or for a "
            f"file with = in its name, ./{text}"
        )
    source, comma, options = rest.partition(",")
    if not source:
        raise ValueError(f"a disk: {text!r} has no source; write blank, a file, or a URL")
    return name, source, comma + options


def _kind_of(source: str) -> DiskKind:
    if source == "blank":
        return "blank"
    found = _KIND.fullmatch(source)
    return cast("DiskKind", found[1]) if found else "image"


def _read(text: str, default_name: str) -> Disk:
    name, source, options = _split(text)
    kind = _kind_of(source)
    found: dict[str, str] = {}
    for option in filter(None, map(str.strip, options.split(","))):
        key, equals, value = option.partition("=")
        if key not in {"size", "ro", "keep", "bus"} or bool(equals) != (key in {"size", "bus"}):
            raise ValueError(
                f"a disk: {option!r} in {text!r} is not one of size=SIZE, ro, keep, "
                f"bus={'|'.join(get_args(DiskBus))}; a file's name has no comma here"
            )
        if key in found:
            raise ValueError(f"a disk: {text!r} has {key} twice; leave one")
        found[key] = value
    bus = found.get("bus", "virtio")
    if bus not in get_args(DiskBus):
        raise ValueError(f"a disk: the bus of {text!r} is one of {', '.join(get_args(DiskBus))}")
    size_mib = _size_mib(found["size"]) if "size" in found else None
    read_only, keep = "ro" in found, "keep" in found
    if keep and read_only:
        raise ValueError(f"a disk: {text!r} is read-only, so there is nothing to keep; leave one")
    if kind == "blank":
        source, size_mib = "", size_mib or _BLANK_MIB
        if read_only:
            raise ValueError(f"a disk: {text!r} is blank and read-only; leave out ro")
    elif kind != "image":
        source = source.partition(":")[2]
        if not source:
            raise ValueError(f"a disk: {text!r} names nothing; write {kind}:NAME")
    return Disk(
        name=name or default_name,
        kind=kind,
        source=source,
        size_mib=size_mib,
        read_only=read_only,
        keep=keep,
        bus=cast("DiskBus", bus),
    )


def _size_mib(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    mib = int(match[1]) * _UNITS_MIB[(match[2] or "").upper()] if match else 0
    if not 1 <= mib <= _LARGEST_MIB:
        raise ValueError(
            f"a disk: {text!r} is no size; write 512 (MiB), 512M, 2G or 1T, from 1M to 64T"
        )
    return mib
