"""A directory that the boot server publishes beside a machine's boot script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kboot.cache import FileStamp, sha256_of
from kboot.errors import ConfigError
from kboot.ipxe.user_script import MARK_WORDS, begins_with_mark, is_script
from kboot.log import logger

#: More than that is somebody's home directory.
_LIMIT_FILES = 10_000
_HEAD_BYTES = 64
_SCRIPT_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTree:
    """The files of a directory as they are now, by their names in URLs."""

    files: Mapping[str, Path]
    #: The texts of the iPXE scripts among them, and of those that a byte order mark makes none.
    scripts: Mapping[str, str]

    def listing(self) -> list[dict[str, Any]]:
        """Each file with its size and checksum, for people."""
        return [
            {"name": name, "size": path.stat().st_size, "sha256": _digest(FileStamp.of(path))}
            for name, path in self.files.items()
        ]


NOTHING = ServedTree(files={}, scripts={})


def read_tree(directory: Path, *, script: Path | None, script_name: str) -> ServedTree:
    """What is to be published of a directory; hidden files and directories are left out.

    Links are followed: what they lead to is published in their place.

    The boot script has the place `script_name`; the file `script` may lie there too. `ConfigError`
    if another one does, or if the directory cannot be read.
    """
    if not directory.is_dir():
        raise ConfigError(f"serve: {directory} is not a directory")
    files: dict[str, Path] = {}
    try:
        for path in _walk(directory, above=()):
            files[path.relative_to(directory).as_posix()] = path
            if len(files) > _LIMIT_FILES:
                raise ConfigError(f"serve: {directory} has more than {_LIMIT_FILES} files")
        own = files.pop(script_name, None)
        if own and (script is None or not own.samefile(script)):
            raise ConfigError(
                f"serve: {own} has the name of the boot script: say --ipxe-script {own}, or give "
                "it another name"
            )
        return ServedTree(files=files, scripts=dict(_scripts(files)))
    except OSError as error:
        raise ConfigError(f"serve: cannot read {error.filename}: {error.strerror}") from error


def _scripts(files: Mapping[str, Path]) -> list[tuple[str, str]]:
    found = []
    for name, path in files.items():
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if begins_with_mark(head):
                _warn_once(path, MARK_WORDS)
            if is_script(head) or begins_with_mark(head):
                text = head + file.read(_SCRIPT_LIMIT_BYTES)
                found.append((name, text.decode(errors="replace")))
    return found


def _walk(directory: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files below a directory; a link to one of those `above` would have no end."""
    real = directory.resolve()
    if real in above:
        return
    folders = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            folders.append(path)
        elif path.is_file():
            yield path
        elif path.is_symlink():
            _warn_once(path, f"is not served: it is a link to {path.readlink()}, which is no file")
    for folder in folders:
        yield from _walk(folder, (*above, real))


@lru_cache(maxsize=100)
def _warn_once(path: Path, words: str) -> None:
    logger.warning("serve: %s %s", path, words)


@lru_cache(maxsize=1000)
def _digest(stamp: FileStamp) -> str:
    return sha256_of(stamp.path)
