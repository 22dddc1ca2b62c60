"""``kboot crash``: find kernel crashes in a console log."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from kboot import process
from kboot.cli.options import complete_name_or_file, find_machine
from kboot.cli.output import print_table
from kboot.crash import COMPLAINTS, CrashKind, CrashReport, Event, Frame, Scanner
from kboot.crash.boots import BootFinder
from kboot.errors import ConfigError
from kboot.kernel.elf import Symbol, Vmlinux

#: A kernel that dies writes its report in one go; this much silence means it is done.
_QUIET_S = 2.0
_PIECE = 1 << 16
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\x7fELF": "an ELF file",
}
_HUMAN_FRAMES = 24
_RELEASE = re.compile(r"(?:Not tainted|Tainted: [A-Z ]+?) +(\d\S+) #\d+(?: .*?([0-9a-f]{40})\b)?")


class _Boot(click.ParamType[int]):
    """A boot's number in a log, from 1, or ``last``, which is -1."""

    name = "N|last"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if value == "last":
            return -1
        if str(value).isdecimal() and int(str(value)) > 0:
            return int(str(value))
        words = f"{value!r} is neither a boot's number, from 1, nor 'last'"
        raise click.BadParameter(words, ctx=ctx, param=param)


class _Reader:
    """Scans a log, and notes where its boots begin."""

    def __init__(self) -> None:
        self.boots = BootFinder()
        self.scanner = Scanner()
        self.quiet = self.scanner.quiet
        self.close = self.scanner.close

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes; return what they completed."""
        self.boots.feed(data)
        return self.scanner.feed(data)


@click.command(
    epilog="Exit codes: 0 no crash (but maybe complaints), 1 a crash was found, 2 bad input."
)
@click.argument(
    "logs",
    type=click.Path(path_type=Path, allow_dash=True),
    nargs=-1,
    metavar="[NAME|LOG|DIRECTORY]...",
    shell_complete=complete_name_or_file,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per report and line.")
@click.option("--boot", type=_Boot(), help="Only the crashes of this boot in the log.")
@click.option(
    "--since-boot", type=_Boot(), help="Only the crashes of this boot and those behind it."
)
@click.option(
    "--vmlinux",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The kernel image with debug information: adds file and line to every frame.",
)
@click.pass_context
def crash(
    context: click.Context,
    /,
    *,
    logs: tuple[Path, ...],
    as_json: bool,
    boot: int | None,
    since_boot: int | None,
    vmlinux: Path | None,
) -> None:
    """Find kernel crashes on the console of the machine NAME, or in the console log LOG.

    With - as LOG, standard input is followed live. Of several logs, or of all files in a
    DIRECTORY, comes a table with one row per title, or with --json one line per report.
    """
    if boot is not None and since_boot is not None:
        raise ConfigError("--boot and --since-boot exclude each other; give one of them")
    found = False
    with ExitStack() as stack:
        image = stack.enter_context(_vmlinux(vmlinux)) if vmlinux is not None else None
        many = len(logs) > 1 or any(log.is_dir() for log in logs)
        clusters: dict[str, list[tuple[Path, CrashReport]]] = {}
        for log in _files(logs):
            for report in _reports(log, boot, since_boot):
                found |= report.fatal or report.kind not in COMPLAINTS
                if many and not as_json:
                    clusters.setdefault(report.title, []).append((log or Path(), report))
                    continue
                places = _places(report, image, vmlinux) if image and vmlinux else {}
                name = str(log) if many else None
                click.echo(_json(report, places, name) if as_json else _human(report, places))
        if clusters:
            print_table(_table(clusters))
    if found:
        context.exit(1)


def _files(logs: tuple[Path, ...]) -> Iterator[Path | None]:
    """Each log, and of each directory all files; None for the one machine there is."""
    if not logs:
        yield None
    for log in logs:
        if not log.is_dir():
            yield log
            continue
        for path in sorted(path for path in log.rglob("*") if path.is_file()):
            try:
                with path.open("rb") as file:
                    refuse_packed(path, file.peek(8))
            except (ConfigError, OSError) as error:
                click.echo(f"skipped: {error}", err=True)
            else:
                yield path


def _table(clusters: dict[str, list[tuple[Path, CrashReport]]]) -> list[list[str]]:
    """A row per title, the most frequent first."""
    rows = [["REPORTS", "LOGS", "TITLE", "FIRST"]]
    for title, found in sorted(clusters.items(), key=lambda item: (-len(item[1]), item[0])):
        log, report = found[0]
        logs = len({log for log, _ in found})
        rows.append([str(len(found)), str(logs), title, f"{log}:{report.start_line}"])
    return rows


def _reports(log: Path | None, boot: int | None, since_boot: int | None) -> Iterator[CrashReport]:
    """The reports of a log, or of some of its boots."""
    reader = _Reader()
    reports = (event for event in _events(log, reader) if isinstance(event, CrashReport))
    number = boot if boot is not None else since_boot
    if number is None:
        yield from reports
        return
    # Which boot is the last one shows at the end.
    known = list(reports)
    start = reader.boots.start_of(number)
    if start is None:
        raise ConfigError(f"{log}: there is no boot {number}, but {len(reader.boots.starts)}")
    behind = [each for each in reader.boots.starts if each > max(start, *reader.boots.starts[:1])]
    end = behind[0] if behind and boot is not None else None
    for report in known:
        if report.start_offset >= start and (end is None or report.start_offset < end):
            yield report


def _events(log: Path | None, reader: _Reader) -> Iterator[Event]:
    if log is None or _is_machine(log):
        yield from _of_machine(None if log is None else str(log), reader)
        return
    if str(log) == "-":
        yield from _follow(reader)
    else:
        try:
            with log.open("rb") as file:
                refuse_packed(log, file.peek(8))
                while data := file.read(_PIECE):
                    yield from reader.feed(data)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{log}: there is no such file, and no machine of that name; see kboot list"
            ) from error
        except OSError as error:
            raise ConfigError(f"{log} cannot be read: {error.strerror}") from error
    yield from reader.close()


def _is_machine(log: Path) -> bool:
    """Whether there is no such file, but a machine of that name."""
    from kboot.supervisor.registry import known_names  # noqa: PLC0415  --help does not need it

    if "/" in str(log) or str(log) == "-" or os.path.lexists(log):
        return False
    return str(log) in known_names()


def _of_machine(name: str | None, reader: _Reader) -> Iterator[Event]:
    """The events on a machine's console, less the resets that somebody has asked for."""
    from kboot.supervisor.client import ask, console_of  # noqa: PLC0415  files do without

    name = find_machine(name, {})
    told = set(ask(name, "status")["reports"])

    def counts(event: Event) -> bool:
        if not isinstance(event, CrashReport) or event.kind != CrashKind.UNEXPECTED_RESET:
            return True
        return event.title in told

    for data in console_of(name, "start"):
        yield from filter(counts, reader.feed(data))
    yield from filter(counts, reader.close())


def refuse_packed(log: Path, head: bytes) -> None:
    """`ConfigError` if a file that begins so is no log."""
    for magic, what in _PACKED.items():
        if head.startswith(magic):
            raise ConfigError(f"{log} is not a console log but {what}; unpack it first")
    even, odd = head[0:8:2], head[1:8:2]
    for name, letters, zeros in (("LE", even, odd), ("BE", odd, even)):
        if len(head) >= len(even) * 2 > 0 and all(letters) and not any(zeros):
            raise ConfigError(
                f"{log} is in UTF-16 without a byte order mark; convert it first: "
                f"iconv -f UTF-16{name} -t UTF-8"
            )


def _follow(reader: _Reader) -> Iterator[Event]:
    """The events of standard input, as they happen."""
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give a file, or pipe a log into kboot crash -")
    while True:
        ready, _, _ = select.select([0], [], [], _QUIET_S)
        if not ready:
            yield from reader.quiet()
            continue
        data = os.read(0, _PIECE)
        if not data:
            return
        yield from reader.feed(data)


@contextmanager
def _vmlinux(path: Path) -> Iterator[Vmlinux]:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image,
        ):
            yield Vmlinux(image, str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is empty") from error


def _places(report: CrashReport, image: Vmlinux, path: Path) -> dict[Frame, str]:
    """``file:line`` of every frame of the kernel proper, by function and offset."""
    _same_kernel(report, image, path)
    mine = [f for f in report.frames if f.module is None and f.offset is not None]
    functions = image.functions(frozenset(frame.symbol for frame in mine))
    addresses = {frame: _address(frame, functions.get(frame.symbol, [])) for frame in mine}
    known = {frame: address for frame, address in addresses.items() if address is not None}
    if not known:
        return {}
    argv = ["addr2line", "-e", str(path), *(f"{address:#x}" for address in known.values())]
    lines = process.run(argv, timeout_s=600).stdout.decode(errors="replace").splitlines()
    places = zip(known, (line.partition(" (")[0] for line in lines), strict=False)
    return {frame: place for frame, place in places if not place.startswith("?")}


def _address(frame: Frame, symbols: list[Symbol]) -> int | None:
    """Where the frame is in the image, if that is certain. KASLR does not matter to it."""
    if len(symbols) > 1:
        symbols = [symbol for symbol in symbols if symbol.size == frame.size]
    if len(symbols) != 1 or frame.offset is None:
        return None
    # A return address is behind its call, maybe on the next line of the source.
    return symbols[0].address + max(0, frame.offset - 1)


def _same_kernel(report: CrashReport, image: Vmlinux, path: Path) -> None:
    """`ConfigError` if the log tells that another kernel wrote it."""
    told = _RELEASE.search(report.text)
    if told is None:
        return
    release, build_id = image.release(), image.build_id()
    if told[2] and build_id and told[2] != build_id:
        raise ConfigError(f"{path} has build id {build_id}, but the log is of {told[2]}")
    if release is not None and told[1] != release:
        raise ConfigError(f"{path} is Linux {release}, but the log is of Linux {told[1]}")


def _json(report: CrashReport, places: dict[Frame, str], log: str | None) -> str:
    fields = dataclasses.asdict(report)
    if log is not None:
        fields = {"log": log, **fields}
    for frame, value in zip(report.frames, fields["frames"], strict=True):
        value["location"] = places.get(frame, frame.location)
    cause = report.caused_by
    fields["caused_by"] = cause and {
        "kind": cause.kind,
        "title": cause.title,
        "start_line": cause.start_line,
    }
    return json.dumps(fields)


def _human(report: CrashReport, places: dict[Frame, str]) -> str:
    facts = [f"lines {report.start_line}-{report.end_line}"]
    if report.task is not None:
        facts.append(f"task {report.task}" + (f" ({report.pid})" if report.pid is not None else ""))
    if report.cpu is not None:
        facts.append(f"CPU {report.cpu}")
    if report.taint:
        facts.append(f"tainted {report.taint}")
    facts += ["fatal"] * report.fatal + ["cut short"] * report.truncated
    lines = [click.style(report.title, bold=True), f"  {', '.join(facts)}"]
    if report.caused_by is not None:
        cause = report.caused_by
        lines.append(f"  caused by: {cause.title} (line {cause.start_line})")
    shown = report.frames[:_HUMAN_FRAMES]
    lines += [_frame_line(frame, places, guilty=report.function) for frame in shown]
    if len(report.frames) > len(shown):
        lines.append(f"     ... {len(report.frames) - len(shown)} more")
    return "\n".join([*lines, ""])


def _frame_line(frame: Frame, places: dict[Frame, str], *, guilty: str | None) -> str:
    mark = "->" if frame.function == guilty else "? " if not frame.reliable else "  "
    where = f"+{frame.offset:#x}/{frame.size or 0:#x}" if frame.offset is not None else ""
    module = f" [{frame.module}]" if frame.module else ""
    place = places.get(frame, frame.location)
    return f"  {mark} {frame.symbol}{where}{module}" + (f"  {place}" if place else "")
