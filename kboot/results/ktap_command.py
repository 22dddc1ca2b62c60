"""A command in a guest that prints KTAP: how it is run, and its cases with the kernel's messages.

Its lines go two ways. Its standard output is exact, and there once it has ended. Each line is also
written to /dev/kmsg as it comes: so it stands on the console among the kernel's messages, in their
order, and is there even if the kernel dies right after it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kboot import boot_messages
from kboot.crash import COMPLAINTS, CrashReport
from kboot.results.cases import Case, Status
from kboot.results.ktap import Parser

#: A line of the kernel's log takes 1024 bytes, with all that stands before it.
_LINE_BYTES = 800

# Numbers in front of the words are what <N> is in the kernel's log: its level. 1 is shown by
# consoles that are told to be quiet, too. The kernel lets programs write ten lines in five seconds
# unless printk_devkmsg is on.
_SCRIPT = """\
exec 3>&1
{{ echo on >/proc/sys/kernel/printk_devkmsg; }} 2>/dev/null
if [ -w /dev/kmsg ]; then exec 9>/dev/kmsg; else exec 9>/dev/null; fi
n=0
status=$( {{
  {{ sh -c {command} 2>&1 3>&- 4>&- 9>&-; echo $? >&4; }} |
  while IFS= read -r l || [ -n "$l" ]; do
    n=$((n + 1))
    printf '<1>{mark} %d: %.{size}s\\n' $n "$l" >&9
    printf '%s\\n' "$l" >&3
  done
}} 4>&1 )
echo '<1>{mark} end' >&9
exit $status
"""


def mark(nonce: str) -> str:
    """What its lines on the console begin with, behind the kernel's time."""
    return f"kboot ktap {nonce}"


def script(command: str, nonce: str) -> str:
    """A shell script that runs `command` so; it has its exit status and prints what it prints."""
    return _SCRIPT.format(command=shlex.quote(command), mark=mark(nonce), size=_LINE_BYTES)


def has_ended(text: str, nonce: str) -> bool:
    """Whether the script's last line is in this text of the console."""
    return f"{mark(nonce)} end" in text


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleLine:
    """A line of the console, without its end."""

    #: Bytes of the console's record before it.
    start: int
    data: bytes


def read_command(
    console: Iterable[ConsoleLine],
    nonce: str,
    *,
    stdout: str | None,
    reports: Sequence[CrashReport] = (),
    end: str = "",
    timed_out: bool = False,
) -> list[Case]:
    """The cases of a command that was run by `script`.

    `console` is what was printed meanwhile, and `reports` what the kernel reported then. `stdout`
    is what the command has printed; None if it never ended, and then `end` says why. `timed_out`:
    the case that ran is one that took too long.
    """
    reading = _Reading(nonce, None if stdout is None else stdout.splitlines())
    pending = [each for each in reports if each.kind not in COMPLAINTS]
    for line in console:
        while pending and pending[0].start_offset <= line.start:
            reading.crash(pending.pop(0))
        reading.take(line)
    for report in pending:
        reading.crash(report)
    status = Status.TIMEOUT if timed_out else None
    return reading.close(end or "the command ended before it", status)


class _Reading:
    def __init__(self, nonce: str, stdout: list[str] | None) -> None:
        self._mark = re.compile(rf"{re.escape(mark(nonce))} (\d+): ?(.*)$")
        self._stdout = stdout
        self._number = 0
        self._parser = Parser()
        self._cases: list[Case] = []

    def take(self, line: ConsoleLine) -> None:
        """A line of the console: the command's, or a message of the kernel's."""
        text = line.data.decode(errors="replace").rstrip("\r\n")
        match = self._mark.search(text)
        if match is not None:
            self._command_printed(int(match[1]), match[2], boot_messages.last_time_s(text))
        elif text:
            self._cases += self._parser.take_message(line.data)

    def _command_printed(self, number: int, text: str, time_s: float | None) -> None:
        """Its line of this number, and those before it that did not come to the console."""
        if self._stdout is None:
            self._cases += self._parser.take_output(text, time_s)
            return
        for each in self._stdout[self._number : number]:
            self._cases += self._parser.take_output(each, time_s)
        self._number = max(self._number, number)

    def crash(self, report: CrashReport) -> None:
        """The kernel reported this."""
        self._cases += self._parser.crash(report)

    def close(self, reason: str, status: Status | None) -> list[Case]:
        """Nothing more comes from the console."""
        for text in (self._stdout or [])[self._number :]:
            self._cases += self._parser.take_output(text, None)
        return self._cases + self._parser.close(reason, status=status)
