"""An installed kselftest tree: what is in it, and how it gets into a guest.

``make -C tools/testing/selftests install INSTALL_PATH=DIRECTORY`` makes one. Its runner,
``run_kselftest.sh``, is what runs the programs: it knows their settings and arguments.
"""

from __future__ import annotations

import fnmatch
import lzma
import shlex
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kboot.errors import ConfigError
from kboot.rootfs import overlay_initramfs

#: Where it lies in the guest.
_PLACE = "/opt/kselftest"
_LIST = "kselftest-list.txt"
_RUNNER = "run_kselftest.sh"
#: As kselftest/runner.sh has it.
_DEFAULT_TIMEOUT_S = 45.0
#: For a program whose settings say that it may take any time.
_LONGEST_S = 3600.0
#: The runner ends a program that is late itself, if it can.
_GRACE_S = 30.0

#: Beside the runner: gives it what it takes for granted and a system of busybox alone does not
#: have, which is /dev/stdout, and a timeout that knows --foreground, and 0.
_START = "kboot-run"
START_SCRIPT = rb"""#!/bin/sh
[ -e /dev/stdout ] || ln -s /proc/self/fd/1 /dev/stdout
if [ -x /usr/bin/timeout ] && ! /usr/bin/timeout --foreground 9 true 2>/dev/null; then
  rm -f /usr/bin/timeout
  printf '%s\n' '#!/bin/sh' '[ "$1" != --foreground ] || shift' \
    '[ "$1" != 0 ] || { shift; exec "$@"; }' 'exec busybox timeout "$@"' >/usr/bin/timeout
  chmod 755 /usr/bin/timeout
fi
cd "${0%/*}" && exec ./run_kselftest.sh -t "$1"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program of a collection."""

    collection: str
    name: str
    #: How long it may run, by its collection's settings; 0 is for ever.
    timeout_s: float = _DEFAULT_TIMEOUT_S
    #: Patterns of cases' full names, and why they fail.
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    #: Why it is not to be run; empty if it is.
    skip_reason: str = ""

    @property
    def id(self) -> str:
        """As the runner calls it: ``timers:posix_timers``."""
        return f"{self.collection}:{self.name}"

    @property
    def command(self) -> str:
        """What runs it in the guest."""
        return f"{_PLACE}/{_START} {shlex.quote(self.id)}"

    @property
    def limit_s(self) -> float:
        """How long to wait for it."""
        return (self.timeout_s or _LONGEST_S) + _GRACE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class KselftestTree:
    """What was read of a tree."""

    programs: tuple[Program, ...]
    #: Has the tree's files for the guest.
    initramfs: Path


def read_tree(
    source: Path, *, skip: Path | None = None, expected_failures: Path | None = None
) -> KselftestTree:
    """Read a directory or a tar archive, packed or not, and the lists of what to skip and expect.

    `ConfigError` if it is none, or a list has a mistake.
    """
    files = dict(_directory(source) if source.is_dir() else _archive(source))
    listing = files.get(_LIST)
    if listing is None or _RUNNER not in files:
        raise ConfigError(
            f"{source}: no installed kselftest: it has no {_RUNNER} with a {_LIST}; make one by "
            "make -C tools/testing/selftests install INSTALL_PATH=DIRECTORY"
        )
    skipped = read_patterns(skip) if skip else {}
    expected = read_patterns(expected_failures) if expected_failures else {}
    programs = [
        _program(line.strip(), files, skipped, expected)
        for line in _text(listing).splitlines()
        if ":" in line
    ]
    files[_START] = START_SCRIPT
    initramfs = overlay_initramfs(
        {f"{_PLACE}/{path}": files[path] for path in sorted(files)},
    )
    return KselftestTree(programs=tuple(programs), initramfs=initramfs)


def _program(
    identity: str,
    files: Mapping[str, bytes | Path],
    skipped: Mapping[str, str],
    expected: Mapping[str, str],
) -> Program:
    collection, _, name = identity.partition(":")
    title = f"selftests: {collection}: {name.rpartition('/')[2]}"
    return Program(
        collection=collection,
        name=name,
        timeout_s=_timeout_s(files.get(f"{collection}/settings")),
        skip_reason=next(
            (why for pattern, why in skipped.items() if _matches(identity, pattern)), ""
        ),
        expected_failures={
            f"{title}{case}": why
            for pattern, why in expected.items()
            if _matches(identity, pattern.partition("/")[0])
            for case in _cases(pattern)
        },
    )


def _cases(pattern: str) -> Sequence[str]:
    """What stands behind the program in the full names of cases; both forms for all of them."""
    _, slash, case = pattern.partition("/")
    return [f"/{case}"] if slash else ["", "/*"]


def _matches(identity: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(identity, pattern)


def _timeout_s(settings: bytes | Path | None) -> float:
    if settings is None:
        return _DEFAULT_TIMEOUT_S
    for line in _text(settings).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "timeout" and value.strip().isdecimal():
            return float(value)
    return _DEFAULT_TIMEOUT_S


def _text(content: bytes | Path) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return data.decode(errors="replace")


def read_patterns(path: Path) -> Mapping[str, str]:
    """A list of ``PATTERN # REASON`` lines: what a pattern stands for, and why it is listed.

    `ConfigError` names a line without a reason.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: it is no text file") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if pattern and not reason:
            raise ConfigError(f"{path}:{number}: {pattern!r} has no reason; add one behind a #")
        if pattern:
            found[pattern] = reason
    return found


def _directory(source: Path) -> Iterator[tuple[str, bytes | Path]]:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            yield path.relative_to(source).as_posix(), path


def _archive(source: Path) -> Iterator[tuple[str, bytes | Path]]:
    """The files of an archive, without the directories that stand before all of them."""
    try:
        with tarfile.open(source) as archive:
            found = {
                PurePosixPath(member.name).as_posix(): file.read()
                for member in archive
                if not member.isdir() and (file := archive.extractfile(member)) is not None
            }
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}") from error
    except (tarfile.TarError, KeyError, EOFError, zlib.error, lzma.LZMAError) as error:
        # That of a file which is no archive has a line for each kind of compression.
        why = "".join(str(error).splitlines()[:1]).removesuffix(":")
        raise ConfigError(
            f"{source}: neither a directory nor a tar archive with a kselftest tree: {why}"
        ) from error
    top = next((path.removesuffix(_LIST) for path in found if path.endswith(_LIST)), "")
    for path, data in found.items():
        if path.startswith(top):
            yield path.removeprefix(top), data
