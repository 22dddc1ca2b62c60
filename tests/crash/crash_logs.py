"""The golden logs, and the ways a console, a log system or a second CPU disguises them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kboot.crash import CrashReport, Event, Opened, Scanner

DATA = Path(__file__).parent.parent / "data" / "crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A log of the kernel's own words, and what its first report must be read as."""

    name: str
    lines: tuple[str, ...]
    kind: str
    title: str
    function: str | None
    #: The first line of the report, from 1.
    line: int


def load() -> Iterator[Golden]:
    expected = tomllib.loads((DATA / "golden.toml").read_text(encoding="utf-8"))
    for name, wanted in expected.items():
        text = (DATA / f"{name}.log").read_text(encoding="utf-8")
        yield Golden(
            name=name,
            lines=tuple(text.splitlines()),
            kind=wanted["kind"],
            title=wanted["title"],
            function=wanted.get("function"),
            line=wanted["line"],
        )


GOLDEN = tuple(load())


def scan(data: bytes, chunk_size: int | None = None) -> list[Event]:
    """All events of a log, fed at once or in pieces."""
    scanner = Scanner()
    step = chunk_size or max(1, len(data))
    events = [e for at in range(0, len(data), step) for e in scanner.feed(data[at : at + step])]
    return events + scanner.close()


def reports(data: bytes) -> list[CrashReport]:
    """The complete reports of a log."""
    return [event for event in scan(data) if isinstance(event, CrashReport)]


def openings(events: Sequence[Event]) -> list[Opened]:
    """The events that announce a report."""
    return [event for event in events if isinstance(event, Opened)]


def encode(lines: Sequence[str], end: bytes = b"\r\n") -> bytes:
    """The lines as the console sends them."""
    return b"".join(line.encode() + end for line in lines)


def _stamp(number: int) -> str:
    return f"[{5 + number // 50:5}.{number * 1717 % 1000000:06}]"


#: What stands before the kernel's words on line `number`, by where the log comes from.
PREFIXES: dict[str, Callable[[int], str]] = {
    "bare": lambda number: "",
    "time": lambda number: f"{_stamp(number)} ",
    "time and task": lambda number: f"{_stamp(number)}[  T417] ",
    "time and cpu": lambda number: f"{_stamp(number)}[    C1] ",
    "caller only": lambda number: "[  T417] ",
    "level and time": lambda number: f"<4>{_stamp(number)} ",
    "level": lambda number: "<1>",
    "RFC 3339 and time": lambda number: f"2024-03-05T06:07:08.123456Z {_stamp(number)} ",
    "RFC 3339": lambda number: "2024-03-05T06:07:08Z ",
    "syslog": lambda number: f"Mar  5 06:07:08 box-7 kernel: {_stamp(number)} ",
    "syslog without time": lambda number: "Mar  5 06:07:08 box-7 kernel: ",
    "journal": lambda number: "2024-03-05T06:07:08+0100 box kernel: ",
    "syslog in French": lambda number: f"févr. 5 06:07:08 box kernel: {_stamp(number)} ",
    "journal in Russian": lambda number: "июл 27 14:08:03 box kernel: ",
    "/dev/kmsg": lambda number: f"4,{number},{5140900 + number},-;",
    "seconds": lambda number: f"{34 + number // 9:05} ",
    "journal with time": lambda number: f"{_stamp(number)} box-7 kernel: ",
    "dmesg -H": lambda number: "[Nov 3 05:24] " if number == 2 else f"[  +0.{number:06}] ",
    "dmesg -d": lambda number: f"[{5 + number:5}.000001 <    0.000012>] ",
    "MediaTek": lambda number: f"{_stamp(number)} -(1)[412:tester]",
    "Android": lambda number: f"{_stamp(number)} c0   {number} ",
    "wall clock": lambda number: f"[06:07:08] {_stamp(number)} ",
    "wall clock alone": lambda number: "[06:07:08] ",
    "date": lambda number: f"[2024-03-05 06:07:08.123] {_stamp(number)} ",
    "name": lambda number: f"console| {_stamp(number)} ",
    "docker compose": lambda number: f"guest-1  | {_stamp(number)} ",
    "name alone": lambda number: "console| ",
    "loki": lambda number: f'2024-03-05T06:07:08Z {{app="vm"}} {_stamp(number)} ',
    "colour": lambda number: f"\x1b[32m{_stamp(number)}\x1b[0m \x1b[1m",
    "Amlogic": lambda number: f"[{5 + number:5}.{number:06}@2] ",
    "Motorola": lambda number: f"[{5 + number:5}.{number:06},2] ",
}


#: The same for log writers that nobody has heard of.
UNKNOWN: dict[str, Callable[[int], str]] = {
    "vendor": lambda number: f"{_stamp(number)} core {number % 4}: ",
    "log": lambda number: f"2024-03-05 06:07:{number % 60:02},123 - lab - INFO - ",
    "test log": lambda number: f"2024-03-05 06:07:{number % 60:02},123 - run - INFO - ",
    "seconds": lambda number: f"{number:8.2f} serial> ",
}


def disguise(golden: Golden, prefix: str) -> list[str]:
    """The log with a prefix on every line, after some lines of an innocent boot."""
    write = PREFIXES[prefix] if prefix in PREFIXES else UNKNOWN[prefix]
    calm = ["random: crng init done", "e1000e 0000:00:02.0 eth0: NIC Link is Up 1000 Mbps"]
    return [write(number) + line for number, line in enumerate([*calm, *golden.lines])]
