"""``kboot crash``: find kernel crashes in a console log."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from kboot.cli.crash_symbols import CrashSymbols, names_of_push, open_symbols
from kboot.cli.options import complete_name_or_file, find_machine
from kboot.cli.output import print_table
from kboot.crash import COMPLAINTS, AddressNames, CrashKind, CrashReport, Event, Frame, Scanner
from kboot.crash.boots import BootFinder
from kboot.errors import ConfigError
from kboot.kernel.compression import compression_of
from kboot.kernel.elf import MAGIC
from kboot.kernel.image import HEAD_SIZE, is_image, looks_like

#: A kernel that dies writes its report in one go; this much silence means it is done.
_QUIET_S = 2.0
_PIECE = 1 << 16
LOG_HEAD_SIZE = 8192
_MAY_BE_LOGS = frozenset({"text", "a script", "nothing but zeros", "unknown binary data"})
#: A line of a log, among whatever noise a serial line has.
_TEXT_LINE = re.compile(rb"(?:^|\n)[\t\x1b -~]{10,}\r?\n")
_CONTROL = re.compile(rb"[\x01-\x06\x0e-\x1a\x1c-\x1f]")
_HUMAN_FRAMES = 24


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

    def __init__(self, symbols: CrashSymbols | None, names: AddressNames | None) -> None:
        self.boots = BootFinder()
        self.scanner = Scanner(names)
        self.symbols = symbols
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
    "--symbols",
    "--vmlinux",
    "symbols_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="System.map, a copy of /proc/kallsyms, or vmlinux: names for bare addresses, and from a "
    "vmlinux file and line of every frame.",
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
    symbols_file: Path | None,
) -> None:
    """Find kernel crashes on the console of the machine NAME, or in the console log LOG.

    With - as LOG, standard input is followed live. Of several logs, or of all files in a
    DIRECTORY, comes a table with one row per title, or with --json one line per report.
    """
    if boot is not None and since_boot is not None:
        raise ConfigError("--boot and --since-boot exclude each other; give one of them")
    found = False
    with ExitStack() as stack:
        symbols = stack.enter_context(open_symbols(symbols_file)) if symbols_file else None
        many = len(logs) > 1 or any(log.is_dir() for log in logs)
        clusters: dict[str, list[tuple[Path, CrashReport]]] = {}
        for log in _files(logs):
            for report in _reports(log, symbols, boot, since_boot, many=many):
                found |= report.fatal or report.kind not in COMPLAINTS
                if symbols:
                    symbols.require_same_kernel(report, str(log) if many else "the log")
                if many and not as_json:
                    clusters.setdefault(report.title, []).append((log or Path(), report))
                    continue
                places = symbols.places(report) if symbols else {}
                name = str(log) if many else None
                click.echo(_json(report, places, name) if as_json else _human(report, places))
        if clusters:
            print_table(_table(clusters))
        if symbols is not None and (remark := symbols.remark()):
            click.echo(remark, err=True)
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
                    refuse_other(path, file.peek(LOG_HEAD_SIZE))
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


def _reports(
    log: Path | None,
    symbols: CrashSymbols | None,
    boot: int | None,
    since_boot: int | None,
    *,
    many: bool,
) -> Iterator[CrashReport]:
    """The reports of a log, or of some of its boots."""
    reader = _Reader(symbols, symbols.names if symbols else _names_of_machine(log))
    reports = (event for event in _events(log, reader) if isinstance(event, CrashReport))
    number = boot if boot is not None else since_boot
    if number is None:
        yield from reports
        return
    # Which boot is the last one shows at the end.
    known = list(reports)
    start = reader.boots.start_of(number)
    if start is None:
        fault = f"{log}: there is no boot {number}, but {len(reader.boots.starts)}"
        if not many:
            raise ConfigError(fault)
        click.echo(f"skipped: {fault}", err=True)
        return
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
                refuse_other(log, file.peek(LOG_HEAD_SIZE))
                if reader.symbols is not None:
                    reader.symbols.note_moves(log)
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


def _names_of_machine(log: Path | None) -> AddressNames | None:
    """Names by the symbols that came with a machine's kernel."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  files do without

    if log is not None and not _is_machine(log):
        return None
    name = find_machine(None if log is None else str(log), {})
    return names_of_push(ask(name, "status")["next"])


def refuse_other(log: Path, head: bytes) -> None:
    """`ConfigError` if a file with these first bytes is something else than a log."""
    form = "zip" if head.startswith(b"PK\3\4") else compression_of(head)
    if form is not None:
        raise ConfigError(f"{log} is not a console log but {form}; unpack it first")
    if head.startswith(MAGIC):
        what = "an ELF file"
    else:
        what = "a Linux kernel image" if is_image(head) else looks_like(head[:HEAD_SIZE])
    if what in _MAY_BE_LOGS:
        is_binary = len(_CONTROL.findall(head)) * 20 > len(head) and not _TEXT_LINE.search(head)
        what = "unknown binary data" if is_binary else ""
    if what:
        raise ConfigError(
            f"{log} is not a console log but {what}; give what the kernel has printed"
        )
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
