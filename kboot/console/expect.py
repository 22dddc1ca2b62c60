"""Waits on the console: each races the crash detector, the host's health, the end, the deadline."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kboot.console.record import ConsoleLog
from kboot.console.text import Line
from kboot.deadline import Deadline
from kboot.errors import ConsoleClosed, GuestTimeout, InfraError, KernelCrash

Pattern = str | re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What `Console.expect` found. pexpect's ``before``, ``after`` and ``match`` are all here."""

    #: Which of the patterns it was, from 0.
    index: int
    match: re.Match[str]
    #: The text of the line it was found in.
    text: str
    #: Seconds on the monotonic clock when that line ended (for a prompt: when it was seen).
    time_s: float
    #: The position behind the line, for ``since=``.
    end: int
    #: What came between the start of the wait and the match: its last 1000 lines.
    before: str

    @property
    def after(self) -> str:
        """The text that matched."""
        return self.match.group()


def describe(patterns: Sequence[Pattern]) -> str:
    """The patterns in an error message."""
    texts = [pattern if isinstance(pattern, str) else pattern.pattern for pattern in patterns]
    return " or ".join(repr(text) for text in texts)


#: An unfinished line is taken for a prompt when nothing has been added to it for so long:
#: ``Last login: Mon`` may well be cut after its colon.
PROMPT_SETTLE_S = 0.05

CHECK_INTERVAL_S = 0.5

#: How long after the end of the line the host gets to say what happened (QEMU is still dying).
LAST_WORDS_S = 1.0

_BATCH_LINES = 2000


class Wait:
    """One wait for something `what`, told in the error when it does not come."""

    def __init__(
        self, log: ConsoleLog, check: Callable[[], None] | None, deadline: Deadline, what: str
    ) -> None:
        self._log = log
        self._check = check
        self._deadline = deadline
        self._what = what
        self._next_check = time.monotonic() + CHECK_INTERVAL_S
        self._infra: InfraError | None = None
        self._give_up_at: float | None = None

    def pause(self, at_most_s: float = CHECK_INTERVAL_S) -> None:
        """Wait for a change, with `ConsoleLog.changed` held. Raises what ends the wait.

        Call it when all that came was looked at and was not it.
        """
        log = self._log
        log.settle()
        self.raise_crash()
        log.raise_failure()
        self._raise_end()
        if self._deadline.expired:
            # There is no time for last words any more.
            raise self._infra or GuestTimeout(self._timeout_message())
        if time.monotonic() >= self._next_check:
            self._ask_host()
            return
        log.changed.wait(min(at_most_s, CHECK_INTERVAL_S, self._deadline.remaining))

    def raise_crash(self) -> None:
        """Raise `KernelCrash` if the kernel is known to be dead."""
        crash = self._log.crashes.fatal
        if crash is not None:
            raise KernelCrash(f"{crash.title} (while waiting for {self._what})", crash)

    def _ask_host(self) -> None:
        """Call `check` without the lock. Its error waits until what the guest said last is read."""
        self._next_check = time.monotonic() + CHECK_INTERVAL_S
        if self._check is None or self._infra is not None:
            return
        self._log.changed.release()
        try:
            self._check()
        except InfraError as error:
            self._infra = error
            self._give_up_at = time.monotonic() + LAST_WORDS_S
        finally:
            self._log.changed.acquire()

    def _raise_end(self) -> None:
        """Raise the reason why nothing will come any more, if so, the best reason there is."""
        ended = self._log.ended
        now = time.monotonic()
        if self._infra is not None and (ended or now >= (self._give_up_at or now)):
            raise self._infra
        if ended is None:
            return
        if self._check is None:
            raise ConsoleClosed(self._closed(ended))
        if self._give_up_at is None:
            self._give_up_at = now + LAST_WORDS_S
        if now >= self._give_up_at:
            raise ConsoleClosed(self._closed(ended))
        self._next_check = min(self._next_check, now + 0.05)

    def _closed(self, reason: str) -> str:
        return (
            f"the serial console closed ({reason}) while waiting for {self._what}; "
            f"last line: {self._log.last_line!r}"
        )

    def _timeout_message(self) -> str:
        return (
            f"no {self._what} in {self._deadline.seconds:.3g} s; last console line: "
            f"{self._log.last_line!r}, silent for {self._log.silent_s:.1f} s"
        )


def search(patterns: Sequence[Pattern], next_text: Callable[[], str]) -> tuple[int, re.Match[str]]:
    """The index of the pattern that is found in one of the texts that come, and its match.

    The leftmost match in a text wins, of several there the first pattern. Strings are regular
    expressions in which ``.`` matches anything (``re.DOTALL``), as pexpect compiles them.
    """
    compiled = [re.compile(each, re.DOTALL) if isinstance(each, str) else each for each in patterns]
    while True:
        text = next_text()
        found = [
            (index, match) for index, each in enumerate(compiled) if (match := each.search(text))
        ]
        if found:
            return min(found, key=lambda each: each[1].start())


class LineSource:
    """Hands out the lines after a position, one at a time, as they come."""

    def __init__(self, log: ConsoleLog, wait: Wait, position: int) -> None:
        self._log = log
        self._wait = wait
        self._start = position
        self._position = position
        self._batch: deque[Line] = deque()
        #: The line handed out last; None for an unfinished one.
        self.line: Line | None = None

    def next_line(self) -> str:
        """Wait for the next whole line; its text."""
        while not self._batch:
            with self._log.changed:
                self._fetch()
                if not self._batch:
                    self._wait.pause()
        self.line = self._batch.popleft()
        if self.line.start < self._start:
            with self._log.changed:
                return self._log.text_after(self.line, self._start)
        return self.line.text

    def _fetch(self) -> None:
        lines = self._log.lines_after(self._position, _BATCH_LINES)
        if not lines:
            return
        crash = self._log.crashes.fatal
        if crash is not None:
            # What a dead machine prints next, its second boot for one, is no answer.
            lines = [line for line in lines if line.start < crash.start_offset]
            if not lines:
                self._wait.raise_crash()
        self._position = lines[-1].end
        self._batch.extend(line for line in lines if not line.echo)


class PromptSource(LineSource):
    """Hands out whole lines, ended by a newline, and unfinished ones, when they have settled."""

    def __init__(self, log: ConsoleLog, wait: Wait, position: int) -> None:
        super().__init__(log, wait, position)
        self._shown = ""

    def next_text(self) -> str:
        """Wait for the next whole or unfinished line; its text."""
        while True:
            with self._log.changed:
                self._fetch()
                if self._batch:
                    self._shown = ""
                    break
                text = self._log.unfinished_after(self._start)
                if text != self._shown and self._log.silent_s >= PROMPT_SETTLE_S:
                    self._shown = text
                    self.line = None
                    return text
                self._wait.pause(PROMPT_SETTLE_S if text != self._shown else CHECK_INTERVAL_S)
        return self.next_line() + "\n"
