"""The guest of a replayed boot: a shell that speaks the agent's protocol and follows a script."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from kboot.guest.frames import BASE64_BYTES, Checksum, Tag


class GuestAction(Enum):
    """What a command does instead of printing something."""

    #: The kernel dies, as in the recording.
    PANIC = "panic"
    #: The machine reboots.
    REBOOT = "reboot"
    #: The command does not end before it is killed.
    HANG = "hang"


#: What a command prints, with the exit status 0; or its exit status and what it prints, which goes
#: to the standard error of a command that fails; or what it does. None: it is not known.
Answer = str | tuple[int, str] | GuestAction | None

#: What the guest answers to a command: by its text, or by a function of it.
Script = Mapping[str, Answer] | Callable[[str], Answer]

PROMPT = b"/ # "

#: The shell that reads the agent, see `kboot.guest.login`.
_LOADER = b"while IFS="
_LOADER_NONCE = re.compile(r"~%s:%s:0:0:3:1,1;\\n' (\d+)")
_LOADER_STEP = re.compile(r"(?:;|&&)r (\d+)$")

#: How the agent writes a file, see `ShellAgent.put`.
_PUT = re.compile(
    r'base64 -d <"\$KBOOT_DIR"/(?P<number>\d+)\.c >(?P<target>.+?) && chmod [0-7]+ .* && cksum '
)
_GET = re.compile(r"cat <(?P<target>\S.*)")
_ESCAPE = re.compile(rb"\\0([0-7]{3})")


@dataclass(slots=True)
class _Job:
    """A command that was started."""

    status: int
    stdout: bytes
    stderr: bytes
    ended: bool = True

    @property
    def numbers(self) -> str:
        """As the agent tells of its end, or that it runs."""
        if not self.ended:
            return "0"
        sums = (
            f"{Checksum.CKSUM.of(data)}.{len(data)}" if data else "0.0"
            for data in (self.stdout, self.stderr)
        )
        return ".".join(["2", str(self.status), *sums])


@dataclass(slots=True)
class _Block:
    """Lines of a text that follow a request."""

    sequence: int
    number: int
    index: int
    #: In lines.
    size: int
    lines: list[bytes] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class FakeGuest:
    """A guest that is up: bytes that are typed go in, bytes that it prints come out."""

    script: Script
    #: What it is asked to prove, see `kboot.machine.identity`.
    boot_id: str
    release: str
    command_line: str
    #: What a command did that ends this boot, until somebody looks.
    action: GuestAction | None = None
    #: By their paths.
    files: dict[str, bytes] = field(default_factory=dict)
    _input: bytes = b""
    _mode: str = "shell"
    _nonce: str = ""
    _jobs: dict[int, _Job] = field(default_factory=dict)
    _texts: dict[int, bytes] = field(default_factory=dict)
    #: One that is under way.
    _block: _Block | None = None

    def type(self, data: bytes) -> bytes:
        """Take what is typed; what is printed then."""
        self._input += data.replace(b"\r", b"\n")
        *lines, self._input = self._input.split(b"\n")
        return b"".join(map(self._take_line, lines))

    def _take_line(self, line: bytes) -> bytes:
        if self._block:
            return self._take_block_line(self._block, line)
        match self._mode:
            case "shell":
                return self._typed(line.decode(errors="replace"))
            case "loader":
                return self._load(_once(line))
            case _:
                return self._request(_once(line))

    def _typed(self, command: str) -> bytes:
        """A line at the shell's prompt, as a person types it."""
        if _LOADER.decode() in command:
            self._mode = "loader"
            return b""
        job = self._run(command.strip()) if command.strip() else _Job(0, b"", b"")
        printed = (job.stdout + job.stderr).replace(b"\n", b"\r\n")
        return command.encode() + b"\r\n" + printed + PROMPT

    def _load(self, text: str) -> bytes:
        """A line of the agent, on its way into the shell."""
        if text == 'eval "$Z"':
            self._mode = "agent"
            return b""
        if nonce := _LOADER_NONCE.search(text):
            self._nonce = nonce[1]
        step = _LOADER_STEP.search(text)
        return self._frame(int(step[1]), Tag.ANSWER, b"1,1") if step else b""

    def _request(self, text: str) -> bytes:
        """A request to the agent, see ``agent.sh``."""
        to, _, rest = text.partition(" ")
        if to not in {f"@{self._nonce}", "@0"}:
            return b""
        sequence_text, verb, *arguments = rest.split(" ")
        sequence = int(sequence_text)
        match verb:
            case "h":
                return self._say(sequence, f"{int(Checksum.CKSUM)}.1")
            case "c":
                number, index = map(int, arguments[:2])
                before = self._texts.get(number, b"") if index else b""
                self._texts[number] = before + _unescaped(arguments[2])
            case "k":
                self._jobs[int(arguments[0])] = _Job(143, b"", b"")
            case "w":
                number, index, missing = map(int, arguments[:3])
                self._block = _Block(sequence, number, index, missing)
                return b""
            case "q":
                self._mode = "shell"
                return self._say(sequence, "1") + PROMPT
            case "r" | "s" | "g":
                return self._with_job(sequence, verb, arguments)
        return self._say(sequence, "1")

    def _with_job(self, sequence: int, verb: str, arguments: list[str]) -> bytes:
        """A request about one command: to run it, or to tell about it."""
        if verb == "r":
            return self._start(sequence, arguments)
        if verb == "s":
            return self._say(sequence, self._jobs[int(arguments[0])].numbers)
        return self._send(sequence, arguments)

    def _take_block_line(self, block: _Block, line: bytes) -> bytes:
        """A line of a block; an answer to the last one."""
        block.lines.append(line + b"\n")
        if len(block.lines) < block.size:
            return b""
        before = self._texts.get(block.number, b"") if block.index else b""
        self._texts[block.number] = before + b"".join(block.lines)
        self._block = None
        return self._say(block.sequence, "1")

    def _start(self, sequence: int, arguments: list[str]) -> bytes:
        """Run a command to its end; if somebody waits for it, say at once how it ended."""
        number, loud, _freed, text = arguments
        job_number = int(number)
        command = self._texts.pop(job_number, b"") if text == "-" else _unescaped(text)
        job = self._jobs[job_number] = self._run(command.decode(errors="replace"))
        answer = self._say(sequence, "1")
        if loud != "1" or not job.ended:
            return answer
        streams = ((Tag.STDOUT, job.stdout), (Tag.STDERR, job.stderr))
        pieces = b"".join(self._pieces(job_number, tag, data) for tag, data in streams)
        return answer + pieces + self._say(job_number, job.numbers, Tag.DONE)

    def _send(self, sequence: int, arguments: list[str]) -> bytes:
        """A part of a command's output."""
        number, tag, stream, offset, length = arguments
        job = self._jobs[int(number)]
        data = (job.stdout if stream == "o" else job.stderr)[int(offset) :][: int(length)]
        return self._pieces(sequence, Tag(int(tag)), data) + self._say(sequence, "1")

    def _pieces(self, sequence: int, tag: Tag, data: bytes) -> bytes:
        return b"".join(
            self._frame(sequence, tag, base64.b64encode(data[at : at + BASE64_BYTES]), index)
            for index, at in enumerate(range(0, len(data), BASE64_BYTES), start=1)
        )

    def _say(self, sequence: int, numbers: str, tag: Tag = Tag.ANSWER) -> bytes:
        return self._frame(sequence, tag, f"{numbers},{numbers}".encode())

    def _frame(self, sequence: int, tag: Tag, payload: bytes, index: int = 0) -> bytes:
        head = f"~{self._nonce}:{sequence}:{int(tag)}:{index}:{len(payload)}:"
        return head.encode() + payload + b";\r\n"

    # ------------------------------------------------------------------------------- commands

    def _run(self, command: str) -> _Job:
        """What a command does: what the script says, or else what every guest can do."""
        answer = self.script(command) if callable(self.script) else self.script.get(command)
        if answer is None:
            answer = self._fact(command) or _ending(command)
        if answer is None:
            return self._copy_file(command)
        if answer is GuestAction.HANG:
            return _Job(0, b"", b"", ended=False)
        if isinstance(answer, GuestAction):
            self.action = answer
            return _Job(0, b"", b"")
        status, text = (0, answer) if isinstance(answer, str) else answer
        out, err = ("", text) if status else (text, "")
        return _Job(status, out.encode(), err.encode())

    def _fact(self, command: str) -> str | None:
        """What kboot itself asks of every guest."""
        facts = {
            "uname -r": f"{self.release}\n",
            "cat /proc/cmdline": f"{self.command_line}\n",
            "cat /proc/sys/kernel/random/boot_id": f"{self.boot_id}\n",
            "cat /proc/sys/kernel/tainted": "0\n",
            "cat /proc/consoles": "ttyS0                -W- (EC   a)    4:64\n",
        }
        last = [part.strip() for part in command.rpartition(";")[2].split("&&")]
        answers = [facts.get(part) for part in last]
        return None if None in answers else "".join(filter(None, answers))

    def _copy_file(self, command: str) -> _Job:
        """A file that is put or fetched; whatever else it is, is no command here."""
        if put := _PUT.match(command):
            printed = self._write_file(int(put["number"]), put["target"])
            return _Job(0, printed.encode(), b"")
        get = _GET.fullmatch(command)
        path = shlex.split(get["target"])[0] if get else ""
        if path in self.files:
            return _Job(0, self.files[path], b"")
        if command == "true" or command.startswith("test -d "):
            return _Job(0, b"", b"")
        return _Job(127, b"", f"sh: not in the script of this guest: {command}\n".encode())

    def _write_file(self, number: int, target: str) -> str:
        """Keep a file; what ``cksum`` prints for it."""
        data = base64.b64decode(self._texts.pop(number))
        self.files[shlex.split(target)[0]] = data
        return f"{Checksum.CKSUM.of(data)} {len(data)}\n"


def _ending(command: str) -> GuestAction | None:
    """What a command does that ends a boot."""
    if "/proc/sysrq-trigger" in command:
        return GuestAction.PANIC if "echo c" in command else GuestAction.REBOOT
    return GuestAction.REBOOT if re.search(r"\breboot\b", command) else None


def _once(line: bytes) -> str:
    """A request, which is sent as ``LENGTH|TEXT|TEXT``; what is no such line is empty."""
    length, _, rest = line.decode(errors="replace").partition("|")
    return rest[: int(length)] if length.isdecimal() else ""


def _unescaped(text: str) -> bytes:
    """What the shell's ``printf %b`` makes of it."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text.encode())
