"""The host's end of the agent: requests that are repeated until answered, and running commands."""

from __future__ import annotations

import base64
import gzip
import posixpath
import shlex
import string
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout
from kboot.guest.blocks import Sending
from kboot.guest.frames import Checksum, Extent, Frame, FrameReader, Output, Tag
from kboot.guest.guest import Channel, Ended, OnProgress, ignore_progress

#: How often the end of a command is asked for, should its message have been lost.
_POLL_LOUD_S = 1.0
_POLL_QUIET_S = 0.25

#: Bytes asked for at once.
_FETCH_BYTES = 1 << 18

#: Rounds in base64, and then in the slower code that kernel messages cannot be confused with.
_BASE64_ROUNDS = 2
_HEX_ROUNDS = 12

#: Gaps asked for one by one in a round; more of them are joined.
_RANGES = 12


class ShellJob:
    """A command started by `ShellAgent.start`."""

    def __init__(self, agent: ShellAgent, number: int, *, loud: bool) -> None:
        self._agent = agent
        self.number = number
        self._poll_s = _POLL_LOUD_S if loud else _POLL_QUIET_S
        self._values: list[int] | None = None
        self._outputs = {"o": Output(), "e": Output()}

    def wait(self, deadline: Deadline) -> bool:
        """Wait for its end; False when it still runs at the deadline."""
        while self._values is None and not deadline.expired:
            poll = deadline.within(self._poll_s)
            while self._values is None and not poll.expired:
                self._agent.pump(poll)
            if self._values is None and not deadline.expired:
                self.ended(self._agent.ask(f"s {self.number}", deadline))
        return self._values is not None

    def fetch(self, deadline: Deadline) -> Ended:
        """The outcome, once it has ended."""
        status, stdout, stderr = self._outcome()
        return Ended(
            exit_status=status,
            stdout=self._fetch("o", stdout, deadline),
            stderr=self._fetch("e", stderr, deadline),
        )

    def kill(self, signal: str, deadline: Deadline) -> None:
        """Send a signal to its process group."""
        self._agent.ask(f"k {self.number} {signal}", deadline)

    def forget(self) -> None:
        """Let the guest drop its files."""
        self._agent.forget(self)

    def ended(self, values: list[int] | None) -> None:
        """Take the agent's message about its end: 2, status, then checksum and size of each."""
        if values is not None and len(values) == 6:
            self._values = values

    def take(self, frame: Frame, base: int) -> None:
        """Take a piece of its output, of a transfer that began at byte `base`."""
        stream = "o" if frame.tag in {Tag.STDOUT, Tag.STDOUT_HEX} else "e"
        self._outputs[stream].take(frame, base)

    def _outcome(self) -> tuple[int, Extent, Extent]:
        if self._values is None:
            raise GuestError("the command has not ended")
        _, status, *sums = self._values
        return status, Extent(*sums[:2]), Extent(*sums[2:])

    def _fetch(self, stream: str, extent: Extent, deadline: Deadline) -> bytes:
        output = self._outputs[stream]
        for round_number in range(_BASE64_ROUNDS + _HEX_ROUNDS):
            data = output.complete(extent, self._agent.checksum)
            if data is not None:
                return data
            coded = self._agent.has_base64 and round_number < _BASE64_ROUNDS
            tag = {"o": 1, "e": 2}[stream] + (0 if coded else 2)
            for offset, length in _join(output.missing(extent.size)):
                request = f"g {self.number} {tag} {stream} {offset} {length}"
                self._agent.transfer(self, offset, request, deadline)
        raise GuestError(
            f"the output of the command ({extent.size} bytes) cannot be had exactly: "
            "the console is too noisy, or something still writes to it"
        )


def _join(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Few ranges that cover all of `ranges`, none longer than what is fetched at once."""
    gap = 64
    while len(ranges) > _RANGES:
        joined = [ranges[0]]
        for offset, length in ranges[1:]:
            start, covered = joined[-1]
            if offset - (start + covered) <= gap:
                joined[-1] = (start, offset + length - start)
            else:
                joined.append((offset, length))
        ranges, gap = joined, gap * 4
    return [
        (start, min(_FETCH_BYTES, offset + length - start))
        for offset, length in ranges
        for start in range(offset, offset + length, _FETCH_BYTES)
    ]


_PLAIN = frozenset((string.ascii_letters + string.digits + "_./:=,+@%-").encode())

#: Escaped characters of a command that are sent along with the request to run it.
_INLINE = 200

#: A file that takes longer than to ask whether there is a place for it, and gzip; in bytes.
_WORTH_ASKING = 16 << 10

#: Characters of longer texts per line, in order of despair. A line is sent twice in itself, and a
#: terminal takes 4095 bytes.
_TEXT_SIZES = (800, 200, 40)

#: The nonce that every agent listens to, whatever its own: for who does not know that.
NOBODY = "0"

#: After so long without one, no more complaints come about lines that are no requests.
_QUIET_S = 0.5

#: How long an answer may take before the request is repeated; a loaded TCG guest takes its time.
_PATIENCE_S = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0)

#: How often a request may arrive corrupted.
_CORRUPTIONS = 40


def escape(data: bytes) -> str:
    """`data` as one word for the shell's ``printf %b``."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in data)


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut escaped text into pieces of at most `size` characters, never inside an escape."""
    position = 0
    while position < len(text):
        end = min(position + size, len(text))
        escape_at = text.rfind("\\", end - 4, end)
        if position < escape_at and end < len(text):
            end = escape_at
        yield text[position:end]
        position = end


def twice(text: str) -> bytes:
    """A line of input from which losses show: the length of `text`, and `text` two times."""
    return f"{len(text)}|{text}|{text}\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """What the host must know to go on with an agent that it meets again, in a restored machine."""

    nonce: str
    sequence: int
    checksum: int
    has_base64: bool


class NoAnswer(GuestError):
    """Nobody in the guest answers requests."""


class ShellAgent:
    """Talks to `agent.sh` on a channel; a `Runner`. Not for two threads at a time."""

    def __init__(self, channel: Channel, nonce: str) -> None:
        self._channel = channel
        self._nonce = nonce
        self._reader = FrameReader(nonce)
        self._position = channel.mark()
        self._sequence = 100
        self._awaited = 0
        self._answer: list[int] | None = None
        self._corrupted = False
        #: Frames received; for telling slow from dead.
        self._heard = 0
        self._transfers: dict[int, tuple[ShellJob, int]] = {}
        self._forgotten: list[int] = []
        self.checksum = Checksum.CKSUM
        self.has_base64 = True

    def hello(self, deadline: Deadline) -> None:
        """Learn what the guest can do. `GuestError` if it lacks a program that is needed."""
        checksum, encoder = self.ask("h", deadline)
        if not checksum or not encoder:
            self.close()
            lacking = "base64 nor od" if checksum else "cksum nor md5sum"
            raise GuestError(f"the guest has neither {lacking}: no command can be run exactly")
        self.checksum = Checksum(checksum)
        self.has_base64 = encoder == 1

    @property
    def state(self) -> AgentState:
        """To go on from with `resumed`, on another channel to the same agent."""
        return AgentState(
            nonce=self._nonce,
            sequence=self._sequence,
            checksum=int(self.checksum),
            has_base64=self.has_base64,
        )

    @classmethod
    def resumed(cls, channel: Channel, state: AgentState) -> ShellAgent:
        """The host's end of an agent that runs already and stands where `state` says."""
        agent = cls(channel, state.nonce)
        agent._sequence = state.sequence
        agent.checksum = Checksum(state.checksum)
        agent.has_base64 = state.has_base64
        return agent

    # Runner ---------------------------------------------------------------------------------

    def start(self, command: bytes, deadline: Deadline, *, loud: bool) -> ShellJob:
        """Start a command."""
        if b"\0" in command:
            raise ValueError("a command cannot contain a NUL byte")
        job = ShellJob(self, self._next(), loud=loud)
        self._transfers[job.number] = (job, 0)
        text = escape(command) or escape(b"\n")
        if len(text) > _INLINE:
            self._write(job.number, text, deadline)
            text = "-"
        freed = self._forgotten.pop() if self._forgotten else 0
        self.ask(f"r {job.number} {int(loud)} {freed} {text}", deadline)
        return job

    def put(
        self,
        data: bytes,
        remote: str,
        mode: int,
        deadline: Deadline,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Write a file."""
        packed = data
        if len(data) > _WORTH_ASKING:
            place = shlex.quote(posixpath.dirname(remote) or ".")
            ask = f"test -d {place} && {{ command -v gzip || true; }}"
            if self._run(ask, remote, deadline) and self.has_base64:
                packed = min(data, gzip.compress(data, mtime=0), key=len)
        number = self._next()
        if self.has_base64:
            sending = Sending(base64.b64encode(packed), len(data), remote, on_progress)
            if not self._send_blocks(number, sending, deadline):
                self._write(number, sending.text.decode(), deadline)
        else:
            self._write(number, escape(data), deadline)
        file = f'"$KBOOT_DIR"/{number}.c'
        decode = f"base64 -d <{file}" if self.has_base64 else f"cat <{file}"
        if packed is not data:
            decode += " | gzip -d"
        target = shlex.quote(remote)
        # Written anew and read back: what counts is what the file holds.
        sum_up = "cksum" if self.checksum is Checksum.CKSUM else "md5sum"
        script = (
            f"{decode} >{target} && chmod {mode:o} {target} && {sum_up} <{target}; "
            f"status=$?; rm -f {file}; exit $status"
        )
        if not self.checksum.printed_for(data, self._run(script, remote, deadline)):
            raise GuestError(f"{remote} arrived with a wrong checksum in the guest")

    def _run(self, script: str, remote: str, deadline: Deadline) -> bytes:
        """Do a part of writing a file; its output."""
        job = self.start(script.encode(), deadline, loud=True)
        if not job.wait(deadline):
            raise GuestTimeout(f"{remote} was not written in {deadline.seconds:g} s")
        ended = job.fetch(deadline)
        job.forget()
        if ended.exit_status != 0:
            words = ended.stderr.decode(errors="replace").strip() or "there is no such directory"
            raise GuestError(f"the guest cannot write {remote}: {words}")
        return ended.stdout

    def close(self) -> None:
        """End the agent: the shell below it is as it was."""
        self.ask("q", Deadline(5))

    # For jobs and the login -----------------------------------------------------------------

    def ask(self, request: str, deadline: Deadline, *, sequence: int | None = None) -> list[int]:
        """Send a request until it is answered; the numbers of the answer.

        The agent does nothing twice: it knows a repeated request by its sequence number.
        """
        number = self._next() if sequence is None else sequence
        answer = self.exchange(f"@{self._nonce} {number} {request}", number, deadline)
        if answer == [9]:
            raise GuestError("the guest cannot write temporary files: disk full or read-only?")
        return answer

    def exchange(
        self, text: str, sequence: int, deadline: Deadline, *, tries: int = len(_PATIENCE_S)
    ) -> list[int]:
        """Send a line until a frame answers it."""
        corruptions = 0
        patience = iter(_PATIENCE_S[:tries])
        patience_s = next(patience)
        while True:
            self._channel.send(twice(text), echoed=False)
            if (answer := self._await(sequence, deadline, patience_s)) is not None:
                return answer
            if self._corrupted and corruptions < _CORRUPTIONS:
                corruptions += 1
                continue
            patience_s = next(patience, 0)
            if not patience_s:
                raise NoAnswer(
                    f"the guest's shell does not answer (asked {tries + corruptions} times): "
                    "the command's result is unknown"
                )

    def pump(self, deadline: Deadline) -> None:
        """Take in what the guest sends, until `deadline` at most."""
        try:
            data = self._channel.read(
                self._position, what="answer from the shell", deadline=deadline
            )
        except GuestTimeout:
            return
        self._position += len(data)
        for frame in self._reader.feed(data):
            self._dispatch(frame)

    def transfer(self, job: ShellJob, offset: int, request: str, deadline: Deadline) -> None:
        """Have a part of `job`'s output sent, from byte `offset` on."""
        sequence = self._next()
        self._transfers[sequence] = (job, offset)
        self.ask(request, deadline, sequence=sequence)
        del self._transfers[sequence]

    def forget(self, job: ShellJob) -> None:
        """Let the guest drop its files at the next occasion."""
        self._transfers.pop(job.number, None)
        self._forgotten.append(job.number)

    # Inside ---------------------------------------------------------------------------------

    def _write(self, number: int, text: str, deadline: Deadline) -> None:
        """Write escaped text to the command file of job `number`."""
        for size in _TEXT_SIZES:
            try:
                for index, piece in enumerate(pieces(text, size)):
                    self.ask(f"c {number} {index} {piece}", deadline)
            except NoAnswer:
                if size == _TEXT_SIZES[-1]:
                    raise
            else:
                return

    def _send_blocks(self, number: int, sending: Sending, deadline: Deadline) -> bool:
        """Write a text to the command file of job `number`; False if the line loses too much."""
        while (block := sending.next_block()) is not None:
            start = time.monotonic()
            answer = self._send_block(number, sending.index, block, sending.patience_s, deadline)
            if answer == [9]:
                raise GuestError("the guest cannot write temporary files: disk full or read-only?")
            if answer == [1]:
                sending.arrived(time.monotonic() - start)
                continue
            self._settle(block.count(b"\n"), deadline)
            if not sending.shrink():
                return False
        return True

    def _send_block(
        self, number: int, index: int, block: bytes, patience_s: float, deadline: Deadline
    ) -> list[int] | None:
        """Send a block right behind its request, in one round trip; the answer, None without."""
        sequence, lines = self._next(), block.count(b"\n")
        total = f"{self.checksum.of(block)}.{len(block)}"
        request = f"@{self._nonce} {sequence} w {number} {index} {lines} {total}"
        self._channel.send(twice(request) + block, echoed=False)
        return self._await(sequence, deadline, patience_s)

    def _settle(self, lines: int, deadline: Deadline) -> None:
        """Have the agent read requests again, whatever has become of a block of so many lines."""
        # What still reads lines gets them; to the agent, empty ones are nothing.
        self._channel.send(b"\n" * (lines + 1), echoed=False)
        heard = -1
        while heard != self._heard and not deadline.expired:
            heard = self._heard
            self.pump(deadline.within(_QUIET_S))
        self.ask("h", deadline)

    def _await(self, sequence: int, deadline: Deadline, patience_s: float) -> list[int] | None:
        """The answer to a request; None when it is time to repeat it."""
        self._awaited, self._answer, self._corrupted = sequence, None, False
        heard = self._heard
        quiet = deadline.within(patience_s)
        while self._answer is None and not self._corrupted:
            if deadline.expired:
                self._channel.read(self._position, what="answer from the shell", deadline=deadline)
                raise GuestTimeout(f"no answer from the shell in {deadline.seconds:g} s")
            if quiet.expired:
                return None
            self.pump(quiet)
            if heard != self._heard:
                heard, quiet = self._heard, deadline.within(patience_s)
        return self._answer

    def _dispatch(self, frame: Frame) -> None:
        self._heard += 1
        if frame.tag == Tag.CORRUPT:
            self._corrupted = True
        elif frame.tag == Tag.ANSWER:
            if frame.sequence == self._awaited:
                self._answer = _numbers(frame)
        elif frame.sequence in self._transfers:
            job, base = self._transfers[frame.sequence]
            if frame.tag == Tag.DONE:
                job.ended(_numbers(frame))
            else:
                job.take(frame, base)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


def _numbers(frame: Frame) -> list[int] | None:
    try:
        return [int(field) for field in frame.payload.split(b".")]
    except ValueError:
        return None
