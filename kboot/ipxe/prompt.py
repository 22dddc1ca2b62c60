"""Commands at iPXE's prompt, on the serial line: their output and status, exactly.

What is typed is echoed by iPXE's line editor, and what it prints is wrapped by the firmware, which
owns the line. So a command is typed, its echo compared, and only then entered; its output stands
between two markers that iPXE puts together from a setting, so that no echo resembles them; and the
line ends that a BIOS adds are taken out again: one after each row of 80 columns, and no other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from kboot.boot_messages import is_ipxe_prompt
from kboot.console import Console
from kboot.console.text import normalise
from kboot.deadline import Deadline, time_limit
from kboot.errors import GuestTimeout, InfraError, IpxeCommandFailed
from kboot.ipxe.errors import IpxeError, parse_error

_PROMPT = "iPXE> "
#: Where a BIOS wraps what it prints (SeaBIOS's sercon); UEFI (OVMF) leaves that to the terminal.
BIOS_COLUMNS = 80
#: What the firmware surely takes at once: a BIOS keeps 15 keys (SeaBIOS 1.16).
_CHUNK = 14
#: What iPXE's line editor takes.
_LINE_LIMIT = 255
#: For an echo, on a busy host; and how often a line is typed.
_ECHO_LIMIT_S = 10.0
_ATTEMPTS = 3
#: To the line's begin, and all behind it away.
_CLEAR_LINE = b"\x01\x0b"
#: Ends a command that waits: for a server, a key, a choice.
_INTERRUPT = b"\x03"
_INTERRUPT_LIMIT_S = 10.0
#: For a command for which no other limit was given.
TIMEOUT_S = 60.0

#: What leaves the prompt, so that no status of it is ever seen.
_LEAVES = frozenset({"exit", "reboot", "poweroff", "autoboot", "boot", "chain", "imgexec", "shell"})
#: What joins commands in a line.
_JOINTS = frozenset({"||", "&&", ";"})


@dataclass(frozen=True, slots=True, kw_only=True)
class IpxeResult:
    """What a command at iPXE's prompt printed, and how it ended."""

    command: str
    text: str
    #: None for success.
    errno: IpxeError | None

    @property
    def ok(self) -> bool:
        """Whether it has succeeded."""
        return self.errno is None


def screen_text(raw: bytes, *, columns: int | None) -> str:
    """What a terminal shows for these bytes, without the firmware's wrapping at so many columns."""
    text = ""
    for row in map(normalise, raw.split(b"\n")):
        text += row if len(row) == columns else f"{row.rstrip()}\n"
    return text.removesuffix("\n")


class IpxePrompt:
    """iPXE at its prompt. `wake` comes first."""

    def __init__(self, console: Console, *, columns: int | None) -> None:
        """`columns` is where the firmware wraps what is printed; None if it does not."""
        self._console = console
        self._columns = columns
        self._name = ""
        self._count = 0
        #: Something was entered that may not have come back to the prompt.
        self._left = False

    def wait(self, *, timeout: float | None = None, deadline: Deadline | None = None) -> None:
        """Wait for the prompt, for `timeout` seconds (60), and make it known to us."""
        limit = time_limit(timeout, deadline, TIMEOUT_S)
        pause = self._console.watch("iPXE's prompt")
        for _ in limit.poll(0):
            if is_ipxe_prompt(self._console.unfinished):
                self._begin()
                return
            pause(min(0.05, limit.remaining))
        raise GuestTimeout(
            f"iPXE's prompt did not come in {limit.seconds:g} s; last console line: "
            f"{self._console.last_line!r}"
        )

    def wake(self) -> None:
        """As `wait`, where the prompt was printed before the console was attached."""
        self._enter_and_return()
        self._begin()

    def run(
        self, command: str, *, timeout: float | None = None, deadline: Deadline | None = None
    ) -> IpxeResult:
        """Run a command, for `timeout` seconds (60); its output, and its error if it failed.

        After `leave`, it waits for the prompt first. `GuestTimeout` if it does not end, which
        Ctrl-C does then; ValueError for one that leaves
        the prompt: see `leave`.
        """
        _check(command)
        for name in _names(command):
            if name in _LEAVES:
                raise ValueError(f"{name} leaves iPXE's prompt: use boot or leave")
        limit = time_limit(timeout, deadline, TIMEOUT_S)
        if self._left:
            self.wait(deadline=limit)
        self._count += 1
        mark = f"${{{_SETTING}}}{self._count}"
        position = self.type(
            f"echo {mark}: && {command} && echo {mark};0 || echo {mark};${{errno}}"
        )
        self._console.send(b"\r", echoed=False)
        begin, end = f"{self._name}{self._count}:\n", f"{self._name}{self._count};"
        while True:
            text = self._shown(position)
            _, found, output = text.partition(begin)
            output, ended, status = output.partition(end)
            if found and ended and "\n" in status:
                return _result(command, output, status.partition("\n")[0])
            try:
                self._console.read(
                    self._console.mark(), deadline=limit, what=f"end of iPXE's command {command!r}"
                )
            except GuestTimeout as error:
                raise GuestTimeout(f"{error}; {self._interrupt()}") from error

    def succeed(
        self, command: str, *, timeout: float | None = None, deadline: Deadline | None = None
    ) -> str:
        """As `run`; its output. `IpxeCommandFailed` if it fails."""
        result = self.run(command, timeout=timeout, deadline=deadline)
        if result.errno is not None:
            raise _failed(result)
        return result.text

    def get(self, setting: str) -> str | None:
        """The value of a setting, such as ``net0/ip``; None if it has none.

        `IpxeCommandFailed` for what is no name of a setting.
        """
        result = self.run(f"show {setting}")
        if result.errno is not None:
            if result.errno.posix == "ENOENT":
                return None
            raise _failed(result)
        _, separator, value = result.text.rstrip("\n").partition(" = ")
        if not separator:
            raise InfraError(f"iPXE's show {setting} said {result.text!r}")
        return value

    def set(self, setting: str, value: str) -> None:
        """Give a setting a value, or '' for none. `IpxeCommandFailed` if it cannot have it.

        A ``${...}`` in it is the value of another one. ValueError for what iPXE would take for
        something else: spaces but for one between words, and words that join commands.
        """
        words = value.split()
        if value != " ".join(words) or not _JOINTS.isdisjoint(words):
            raise ValueError(f"iPXE's prompt has no way to give {setting} the value {value!r}")
        self.succeed(f"set {setting} {value}".rstrip())

    def leave(self, command: str) -> None:
        """Enter a command that may not come back to the prompt; `wait` if it does."""
        _check(command)
        if self._left:
            self.wait()
        self.type(command)
        self._left = True
        self._console.send(b"\r", echoed=False)

    def _interrupt(self) -> str:
        """End a command by Ctrl-C; what has come of it, in words."""
        self._console.send(_INTERRUPT, echoed=False)
        deadline = Deadline(_INTERRUPT_LIMIT_S)
        while True:
            mark = self._console.mark()
            if is_ipxe_prompt(self._console.unfinished):
                return "it was ended by Ctrl-C"
            if deadline.expired or not self._console.wait_for_more(mark, deadline.remaining):
                return "Ctrl-C does not end it"

    def type(self, text: str) -> int:
        """Type a line without entering it; the position in the record at which its line begins.

        `InfraError` if what is echoed is something else again and again; ValueError for a line that
        is too long for iPXE.
        """
        if len(text) > _LINE_LIMIT:
            raise ValueError(
                f"iPXE takes lines of {_LINE_LIMIT} characters; with what kboot adds, this one has "
                f"{len(text)}: {text!r}"
            )
        start = self._console.line_start()
        for _ in range(_ATTEMPTS):
            for begin in range(0, len(text), _CHUNK):
                self._console.send(text[begin : begin + _CHUNK].encode(), echoed=False)
                if not self._echoed(start, text[: begin + _CHUNK]):
                    break
            else:
                return start
            self._console.send(_CLEAR_LINE, echoed=False)
            self._echoed(start, "")
        seen = self._shown(start)
        raise InfraError(
            f"iPXE's prompt does not take what is typed: {text!r} came out as {seen!r}"
        )

    def _shown(self, start: int) -> str:
        return screen_text(self._console.raw(start), columns=self._columns)

    def _echoed(self, start: int, text: str) -> bool:
        """Whether the line that begins at `start` comes to be the prompt with this behind it."""
        wanted = (_PROMPT + text).rstrip()
        deadline = Deadline(_ECHO_LIMIT_S)
        while True:
            mark = self._console.mark()
            shown = self._shown(start).rstrip()
            if shown == wanted:
                return True
            if deadline.expired or not self._console.wait_for_more(mark, deadline.remaining):
                return False

    def _begin(self) -> None:
        """Give iPXE what the markers begin with: a setting, which a reset takes away."""
        self._left = False
        self._name = f"k{secrets.token_hex(4)}-"
        self._count = 0
        self.type(f"set {_SETTING} {self._name}")
        self._enter_and_return()

    def _enter_and_return(self) -> None:
        """Press return, where that leads to another prompt."""
        mark = self._console.mark()
        self._console.send(b"\r", echoed=False)
        deadline = Deadline(_ECHO_LIMIT_S)
        while self._console.line_start() <= mark or not is_ipxe_prompt(self._console.unfinished):
            self._console.read(self._console.mark(), deadline=deadline, what="iPXE's prompt")


#: The setting with which markers begin.
_SETTING = "kb"


def _names(command: str) -> list[str]:
    """The commands in a line, without their arguments."""
    words = command.split()
    return [
        word
        for before, word in zip(["||", *words], words, strict=False)
        if before in _JOINTS and word not in _JOINTS
    ]


def _failed(result: IpxeResult) -> IpxeCommandFailed:
    said = result.text.strip()
    why = result.errno.describe() if result.errno else ""
    return IpxeCommandFailed(
        f"iPXE's command {result.command!r} failed: {why}"
        + (f"; it said: {said[-300:]}" if said else ""),
        result,
    )


def _check(command: str) -> None:
    if not command.strip() or not command.isprintable() or not command.isascii():
        raise ValueError(f"a command for iPXE is one line of ASCII text, not {command!r}")
    if any(word.startswith("#") for word in command.split()):
        raise ValueError(f"iPXE takes the rest of the line for a comment: {command!r}")


def _result(command: str, output: str, status: str) -> IpxeResult:
    if status.strip() == "0":
        return IpxeResult(command=command, text=output, errno=None)
    error = parse_error(status.strip())
    if error is None:
        raise InfraError(f"iPXE's status of {command!r} is not one: {status!r}")
    return IpxeResult(command=command, text=output, errno=error)
