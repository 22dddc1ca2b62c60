"""From the bytes of a console line to the kernel's own words.

A line may carry, in this order: what a CI system, syslog or a terminal put in front, a printk
level ``<4>``, the kernel's time ``[   12.345678]`` and its caller ``[ T123]`` (task) or ``[ C0]``
(CPU, in an interrupt), as written by ``print_prefix()`` in kernel/printk/printk.c.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_MARK_SIZE = 4
# ECMA-48: CSI, then OSC and the other strings with their terminator (BEL is xterm's), then the
# short ones (``ESC c``, ``ESC ( B``). What is left of a cut one at the end of a line goes too.
_ESCAPE = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]"
    rb"|\][^\x07\x1b]*(?:\x07|\x1b\\|$)"
    rb"|[PX^_][^\x1b]*(?:\x1b\\|$)"
    rb"|[ -/]+[0-~]|[0-Z\\a-~]|\[[0-?]*[ -/]*$|[ -/]*$|)"
)

# Amlogic kernels put the CPU behind the time: "[  153.449188@2]"; Motorola's: "[  153.449188,2]".
# dmesg -H writes "[Nov23 05:24]" and then "[  +0.000012]"; -d appends "<    0.000012>".
_DELTA = r"(?: <[ \d.+]{1,16}>)?"
_TIME = (
    rf"\[(?: *\+?\d{{1,11}}\.(?:\d{{3,9}})?(?:[@,]\d+)?|[A-Z][a-z]{{2}} ?\d\d? \d\d:\d\d){_DELTA}\]"
)
_CALLER = r"(?: ?\[ *([TC]\d+)(?:/[TC]?\d+)?\])?"
# Vendors put CPU and task behind the time: MediaTek "(0)[123:name]", Huawei "[pid:1,cpu0,name]",
# Samsung "[0:  swapper/0:    1]", Android devices "c0   123 (name)".
_VENDOR = (
    r"(?:(?= {0,2}+[A-Z]?+[-(\[c])"  # Most lines go on with a word, and end here.
    r"(?: {0,2}-?\(\d+\)\[\d+:[^\]]{1,16}\]| ?\[pid:\d+,cpu\d+,[^\]]{0,16}\]"
    r"| {1,2}[A-Z]?\[\d: *[^\]:]{1,16}: *\d+\]| c\d{1,2} {1,6}\d+(?: \([^)]{1,16}\)|(?= ))))?"
)
# A log that was cut begins in the midst of a time.
_CUT_TIME = r"\d{1,11}\.\d{6}\]"
#: Nearly all lines have this one, which is found fastest when it is tried alone and first.
_PLAIN_TIME = r"\[ *\d{1,11}\.\d{6}\]"
_KERNEL_PREFIX = re.compile(
    rf"(?:{_PLAIN_TIME}|(?:<\d+>)?(?:{_TIME}|{_CUT_TIME})){_CALLER}{_VENDOR} ?"
)
#: Between time and words where journalctl -o short-monotonic printed them.
_HOST = re.compile(r"(?:[\w.-]+ )?kernel: ")
#: In the midst of a line only a time as the kernel itself writes it counts.
_FULL_TIME = r"\[ *\d{1,11}\.\d{6}(?:[@,]\d+)?\]"
_TIME_AND_CALLER = re.compile(rf"{_FULL_TIME}{_CALLER}{_VENDOR} ?")
_CALLER_ONLY = re.compile(r"(?:<\d+>)?\[ *([TC]\d+)(?:/[TC]?\d+)?\] ")

_DATE = (
    r"\d{4}[-/]\d\d[-/]\d\d(?:T|,?\ )\d\d:\d\d:\d\d(?:[.,]\d+)?"
    r"(?:[ ]?Z|[ ]?[+-]\d\d:?\d\d(?:[ ]UTC)?)?"
)
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LOG_PREFIX = re.compile(
    rf"""
    (?: \[{_DATE}\] | {_DATE}                                       # 2024-01-02T03:04:05Z
      | \[?\d\d:\d\d:\d\d(?:[.,]\d+)?\]?                            # [00:01:02]
      | \[?{_DAY}\ [A-Z][a-z]{{2}}\ [\ \d]\d\ [\d:]{{8}}\ \d{{4}}{_DELTA}\]?
      | [^\W\d_]{{2,5}}\.?\ [\ \d]?\d\ \d\d:\d\d:\d\d                 # Jan  2 03:04:05, also févr.
      | (?:[\w.-]+\ )?kernel(?:\[\d+\])?:                           # host kernel:
      | <\d{{1,3}}>                                                 # printk or syslog level
      | \d+,\d+,\d+,[-c+][^;\s]{{0,99}};                            # /dev/kmsg: 4,339,5140900,-;
      | \d{{5}}(?=\s)                                                # ktest: seconds
      | \{{[^{{}}"]*"[^{{}}]*\}}                                    # Loki labels
      | (?:DEBUG|INFO|NOTICE|WARN|ERR|ERROR|CRIT|EMERG)(?=\s+\[)    # a level before more prefix
      | [\w./@:-]+\s{{0,9}}\|                                        # console|, docker compose
      | \[(?:console|serial|kernel|guest|vm|qemu|tty\w*)[^\]]*\]:?
      | kern\s?[.:]\s?(?:emerg|alert|crit|err|warn|notice|info|debug)\s*:?   # dmesg -x, syslog
    )[ \t]*
    """,
    re.VERBOSE,
)


class Encoding:
    """Makes UTF-8 of a log in UTF-16, as Windows' tools write it; leaves every other log alone.

    Told by the byte order mark with a character of one byte behind it: noise on a line is not like
    that.
    """

    def __init__(self) -> None:
        self._head = b""
        self._is_known = False
        #: It is known to be none in UTF-16.
        self.is_plain = False
        self._decoder: codecs.IncrementalDecoder | None = None

    def to_utf8(self, data: bytes) -> bytes:
        """The next bytes of the log; nothing until there are enough to tell."""
        if not self._is_known:
            data = self._head + data
            if len(data) < _MARK_SIZE and any(
                mark.startswith(data[:2]) for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            ):
                self._head = data
                return b""
            self._is_known, self._head = True, b""
            data = self._begin(data)
            self.is_plain = self._decoder is None
        return data if self._decoder is None else self._decoder.decode(data).encode()

    def rest(self) -> bytes:
        """What is left at the end of the log."""
        head, self._head = self._head, b""
        return head

    def _begin(self, data: bytes) -> bytes:
        if data[:2] == codecs.BOM_UTF16_LE and 0 < data[2] < 0x80 and not data[3]:
            self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")
        elif data[:2] == codecs.BOM_UTF16_BE and 0 < data[3] < 0x80 and not data[2]:
            self._decoder = codecs.getincrementaldecoder("utf-16-be")("replace")
        return data if self._decoder is None else data[2:]


# One is made of every line: a frozen one, or a named tuple, takes longer to make and to read.
@dataclass(slots=True, eq=False)
class KernelLine:
    """A console line taken apart. Nobody changes it."""

    #: The words, with leading spaces, without prefixes and escape sequences.
    text: str
    #: ``T123`` or ``C0`` where the kernel tells its caller, else "".
    caller: str
    #: Whether the line carries a kernel time or caller: the kernel wrote it.
    stamped: bool
    #: Its number in the log, from 1.
    number: int
    #: Bytes of the log before it, and up to its end.
    start: int
    end: int
    #: What stands before its last stamp: another message, whose end was lost.
    glued: str = ""


def without_escapes(line: bytes) -> bytes:
    """A console line, without its end, without the escape sequences of terminals."""
    return _ESCAPE.sub(b"", line) if b"\x1b" in line else line


def parse(raw: bytes, number: int, start: int, end: int) -> KernelLine:
    """Take one console line (with or without its line end) apart."""
    line = raw.decode("utf-8", "replace").rstrip("\r\n\0 ")
    if "\x1b" in line:
        raw = without_escapes(raw.rstrip(b"\r\n\0 "))
        line = raw.decode("utf-8", "replace").rstrip("\r\n\0 ")
    stamp = _KERNEL_PREFIX.match(line)
    if stamp is None:
        text, caller, stamped, glued = _foreign(line)
        return KernelLine(text, caller, stamped, number, start, end, glued)
    text = line[stamp.end() :]
    # Two CPUs, or a program without a final newline: the last stamp begins the last message.
    if "[" in text and "." in text and (stamps := _stamps(text)):
        last = stamps[-1]
        glued = line[: stamp.end() + last.start()]
        return KernelLine(text[last.end() :], last[1] or "", True, number, start, end, glued)
    if "kernel: " in text and (host := _HOST.match(text)) is not None:
        text = text[host.end() :]
    return KernelLine(text, stamp[1] or "", True, number, start, end)


def is_behind_words(raw: bytes) -> bool:
    """Whether a line's first stamp stands behind a prompt, or a program's unfinished line.

    The lines after it need not have the marks that it has.
    """
    line = without_escapes(raw).decode("utf-8", "replace")
    if _KERNEL_PREFIX.match(line):
        return False
    position = 0
    while match := _LOG_PREFIX.match(line, position):
        position = match.end()
    return _TIME_AND_CALLER.search(line, position + 1) is not None and not (
        _TIME_AND_CALLER.match(line, position) or _CALLER_ONLY.match(line, position)
    )


def _stamps(text: str) -> list[re.Match[str]]:
    return list(_TIME_AND_CALLER.finditer(text))


def _foreign(line: str) -> tuple[str, str, bool, str]:
    """Text, caller, whether stamped, and `glued`, of a line that does not begin with a stamp."""
    stamps = _stamps(line) if "[" in line else []
    if stamps:
        last = stamps[-1]
        glued = line[: last.start()] if len(stamps) > 1 else ""
        return line[last.end() :], last[1] or "", True, glued
    if "\r" in line:
        line = line.rpartition("\r")[2]
    position = 0
    while match := _LOG_PREFIX.match(line, position):
        position = match.end()
    caller = _CALLER_ONLY.match(line, position)
    if caller is not None:
        return line[caller.end() :], caller[1], True, ""
    # A log prefix ends with one space; more of them are the kernel's indentation.
    prefix = line[:position]
    indent = max(0, len(prefix) - len(prefix.rstrip(" ")) - 1)
    # rsyslog writes the line feed within a record as "#012".
    return line[position - indent :].removeprefix("#012"), "", "kernel:" in prefix, ""
