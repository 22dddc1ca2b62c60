"""The consoles and files of a run for its report: each once, compressed together.

Lines that several consoles have, as those of machines that were restored from the same one, are
kept once.
"""

from __future__ import annotations

import base64
import gzip
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kboot.console import Line
from kboot.crash import CrashReport
from kboot.evidence import Evidence
from kboot.guest.frames import without_frames

#: Lines of each console, from its beginning, from its end, and around each crash: as many as fit.
_LIMITS = (
    (4000, 12000, 400),
    (1000, 4000, 200),
    (300, 1500, 100),
    (200, 600, 80),
    (100, 300, 60),
    (20, 100, 40),
)
_TAIL = 20
#: Tests of one machine.
_TESTS = 2000
#: Characters of one line.
_WIDTH = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Console:
    lines: tuple[Line, ...]
    crashes: tuple[CrashReport, ...]
    #: By the key of a test: from and to which byte.
    tests: Mapping[str, tuple[int, int]]


class Consoles:
    """The consoles of machines, by their keys, and the part of them that each test had.

    `texts` are other files of each machine, by name.
    """

    def __init__(
        self,
        machines: Mapping[str, Evidence],
        tests: Mapping[str, tuple[str, tuple[int, int] | None]],
        texts: Mapping[str, Mapping[str, str]],
    ) -> None:
        parts: dict[str, dict[str, tuple[int, int]]] = {key: {} for key in machines}
        for test, (machine, part) in tests.items():
            if part:
                parts[machine][test] = part
        self._texts = texts
        self._consoles = {
            key: _Console(
                lines=tuple(_shown(evidence)),
                crashes=evidence.crashes,
                # Nobody follows links of ten thousands of subtests one by one.
                tests=parts[key] if len(parts[key]) < _TESTS else {},
            )
            for key, evidence in machines.items()
        }

    def tail(self, key: str) -> str:
        """The last lines of a console."""
        lines = self._consoles[key].lines[-_TAIL:]
        return "\n".join(_readable(line.text)[:_WIDTH] for line in lines)

    def packed(self, limit: int) -> str:
        """All of it as JSON, compressed by gzip, in base64; at most `limit` characters if possible.

        Where it is more, lines are left out, far from crashes first.
        """
        longest = max((len(each.lines) for each in self._consoles.values()), default=0)
        # The last of those that leave nothing out comes first.
        whole = [limits for limits in _LIMITS if limits[0] + limits[1] >= longest]
        found = ""
        for limits in (*whole[-1:], *_LIMITS[len(whole) :]):
            found = _pack(self._document(*limits))
            if len(found) <= limit:
                break
        return found

    def _document(self, head: int, tail: int, around: int) -> dict[str, Any]:
        """``lines``: each text once. ``consoles``: the number of each line, -1 for some that are
        left out; milliseconds since the line before, or how many were left out; and places, from
        line to line: crashes ``c1``, ``c2``..., tests. ``files``: the same text is there once.
        """
        texts: dict[str, int] = {}
        files: dict[str, int] = {}
        consoles = {
            key: _packed_console(console, _kept(console, head, tail, around), texts)
            for key, console in self._consoles.items()
        }
        places = {
            key: {name: files.setdefault(text, len(files)) for name, text in named.items()}
            for key, named in self._texts.items()
        }
        return {
            "lines": list(texts),
            "consoles": consoles,
            "files": list(files),
            "machines": places,
        }


def _shown(evidence: Evidence) -> Iterator[Line]:
    """The lines that people read: what a command printed comes in frames, for programs."""
    for line in evidence.lines():
        if not line.text or _readable(line.text):
            yield line


def _readable(text: str) -> str:
    return without_frames(text) if "~" in text else text


def _pack(document: Mapping[str, Any]) -> str:
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    # No time in it: the same run makes the same page.
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _packed_console(
    console: _Console, shown: Sequence[int], texts: dict[str, int]
) -> dict[str, Any]:
    """See `Consoles`. New texts are added to `texts`."""
    numbers: list[int] = []
    times: list[int] = []
    kept: list[int] = []
    before_ms, last = 0, -1
    for index in shown:
        if index != last + 1:
            numbers.append(-1)
            times.append(index - last - 1)
            kept.append(index - 1)
        line = console.lines[index]
        numbers.append(texts.setdefault(_readable(line.text)[:_WIDTH], len(texts)))
        time_ms = round(line.time_s * 1000)
        times.append(time_ms - before_ms)
        kept.append(index)
        before_ms, last = time_ms, index
    return {"l": numbers, "t": times, "a": _places(console, kept)}


def _kept(console: _Console, head: int, tail: int, around: int) -> list[int]:
    """Which lines are shown: the first, the last, and those around crashes."""
    count = len(console.lines)
    if count <= head + tail:
        return list(range(count))
    wanted = {*range(head), *range(count - tail, count)}
    for crash in console.crashes[:50]:
        first, last = _range(console.lines, crash.start_offset, crash.end_offset)
        wanted.update(range(max(0, first - around), min(count, min(last, first + 500) + around)))
    return sorted(wanted)


def _range(lines: tuple[Line, ...], start: int, end: int) -> tuple[int, int]:
    """The first line that ends behind byte `start`, and the last that begins before byte `end`."""
    first = bisect_right(lines, start, key=lambda line: line.end)
    last = bisect_left(lines, end, key=lambda line: line.start) - 1
    return first, max(first, last)


def _places(console: _Console, kept: list[int]) -> dict[str, tuple[int, int]]:
    ranges = {
        f"c{number}": (crash.start_offset, crash.end_offset)
        for number, crash in enumerate(console.crashes, 1)
    }
    places = {}
    for name, (start, end) in (ranges | dict(console.tests)).items():
        first, last = _range(console.lines, start, end)
        begin = min(bisect_left(kept, first), max(0, len(kept) - 1))
        places[name] = (begin, max(begin, bisect_right(kept, last) - 1))
    return places
