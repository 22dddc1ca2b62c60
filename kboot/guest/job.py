"""One command that the agent runs: its end, its output, its death."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kboot.deadline import Deadline
from kboot.errors import GuestError
from kboot.guest.channel import Ended
from kboot.guest.frames import Frame, Tag
from kboot.guest.output import Extent, Output

if TYPE_CHECKING:
    from kboot.guest.agent import ShellAgent

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
