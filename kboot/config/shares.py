"""What a user says of shared directories: ``DIR[:TAG][:ro]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kboot.config import parse
from kboot.machine_spec import Share

#: virtio-9p has room for 31 characters.
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,31}")


def shares(value: object, directory: Path) -> tuple[str, ...]:
    """Shares as they are declared, each with an absolute path; all are checked."""
    listed = parse.words(value, directory)
    found = tuple(_with_absolute_path(text, directory) for text in listed)
    read_shares(found)
    return found


def read_shares(declared: Sequence[str]) -> tuple[Share, ...]:
    """What `shares` has returned, as values; without a tag, ``share0``, ``share1``, ... by place.

    ValueError if two have the same tag.
    """
    found = tuple(_read(text, f"share{number}") for number, text in enumerate(declared))
    tags = [share.tag for share in found]
    if twice := next((tag for tag in tags if tags.count(tag) > 1), None):
        raise ValueError(f"a list of directories with a tag each: {twice} is there twice")
    return found


def _with_absolute_path(text: str, directory: Path) -> str:
    path, colon, rest = text.partition(":")
    if not path:
        raise ValueError(f"a directory to share: {text!r} names none; write DIR[:TAG][:ro]")
    return f"{parse.path(path, directory)}{colon}{rest}"


def _read(text: str, default_tag: str) -> Share:
    path, *options = text.split(":")
    access = options.pop() if options and options[-1] in {"ro", "rw"} else "rw"
    tags = options
    if len(tags) > 1 or not all(map(_TAG.fullmatch, tags)):
        raise ValueError(
            f"a directory to share: {text!r} has more than :TAG (at most 31 letters, digits, and "
            "any of _.-) and :ro or :rw behind it"
        )
    return Share(tag=tags[0] if tags else default_tag, path=path, read_only=access == "ro")
