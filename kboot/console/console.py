"""The serial console: one thread that always reads, and waits that always race."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from kboot.backend import Stream
from kboot.boot_messages import ends_with_prompt
from kboot.console.crashes import CrashScanner, ExpectedCrash
from kboot.console.expect import (
    LAST_WORDS_S,
    LineSource,
    Match,
    Pattern,
    PromptSource,
    Wait,
    describe,
    search,
)
from kboot.console.record import ConsoleLog
from kboot.console.text import Line
from kboot.crash import CrashReport
from kboot.deadline import Deadline, time_limit
from kboot.errors import ConsoleClosed, InfraError
from kboot.log import logger

if TYPE_CHECKING:
    from kboot.console.spawn import ConsoleSpawn

#: How long a wait may take for which no other limit was given.
TIMEOUT_S = 60.0

#: How long a stream that was closed may take to say so.
_CLOSE_S = 5.0


class Reader:
    """Reads one stream after another into a log."""

    def __init__(self, log: ConsoleLog) -> None:
        self._log = log
        self._subscribers: list[Callable[[Line], None]] = []
        self._thread: threading.Thread | None = None

    def start(self, stream: Stream) -> None:
        """Read `stream` until it ends."""
        self._thread = threading.Thread(
            target=self._drain, args=(stream,), name="kboot-console", daemon=True
        )
        self._thread.start()

    def stop(self, stream: Stream) -> None:
        """Give `stream` up and wait for the thread."""
        with contextlib.suppress(OSError):
            stream.close()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_S)
            if self._thread.is_alive():
                logger.warning("the console's stream did not end when it was closed")
            self._thread = None

    def subscribe(self, callback: Callable[[Line], None]) -> Callable[[], None]:
        """As `Console.subscribe`."""
        self._subscribers.append(callback)
        return lambda: self._unsubscribe(callback)

    def _drain(self, stream: Stream) -> None:
        reason = "end of stream"
        try:
            while data := stream.recv(65536):
                self._publish(self._take(data))
        except OSError as error:
            reason = str(error)
        except Exception as error:  # nobody else sees what ends this thread
            logger.exception("the console's reader failed")
            reason = f"its reader failed: {error!r}"
            self._log.fail(error)
        self._publish(self._log.end(reason))

    def _take(self, data: bytes) -> list[Line]:
        try:
            return self._log.take(data)
        except Exception as error:  # whatever it is, the waits must hear of it, and we go on
            logger.exception("the console cannot be recorded")
            self._log.fail(error)
            return []

    def _publish(self, lines: list[Line]) -> None:
        for line in lines:
            for callback in tuple(self._subscribers):
                try:
                    callback(line)
                except Exception:
                    logger.exception("a console subscriber failed; it gets no more lines")
                    self._unsubscribe(callback)

    def _unsubscribe(self, callback: Callable[[Line], None]) -> None:
        with contextlib.suppress(ValueError):
            self._subscribers.remove(callback)


#: Lines shown by `Match.before`.
_BEFORE_LINES = 1000
#: Between two questions why the line has ended.
_REASON_POLL_S = 0.05


class Console:
    """A serial line. Use it as a context manager; it reads from the ``with`` on.

    One thread reads all the time, whether anybody waits or not. Positions are bytes of the record;
    `mark` returns the present one. Every wait raises, as soon as it is known: `KernelCrash` for a
    fatal crash that no `expecting` scope wanted; the `InfraError` that `check` raises;
    `ConsoleClosed` at the end of the stream; `GuestTimeout` at the deadline.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        record: Path | None,
        scanner: CrashScanner,
        check: Callable[[], None] | None = None,
        past: bytes = b"",
        forgiven: int = 0,
    ) -> None:
        """`past` is what was printed before, on other streams, or before we came.

        What its first `forgiven` bytes tell of is over: what crashed there has come back.
        """
        self._stream = stream
        self._log = ConsoleLog(record, scanner)
        if past:
            self._log.take(past[:forgiven])
            if forgiven:
                self._log.forgive()
            self._log.take(past[forgiven:])
        self._check = check
        self._cursor = len(past)
        self._sending = threading.Lock()
        self._reader = Reader(self._log)

    def __enter__(self) -> Self:
        self._reader.start(self._stream)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the stream up and complete the record."""
        self._reader.stop(self._stream)
        with self._log.changed:
            self._log.crashes.close(time.monotonic())
            self._log.record.close()

    def attach(self, stream: Stream) -> None:
        """Go on with the same record on a new stream, after the machine was switched off and on."""
        self._reader.stop(self._stream)
        self.expect_reset()
        self._log.begin_stream()
        self._stream = stream
        self._reader.start(stream)

    def resume(self) -> None:
        """Go on reading the same stream, which had ended and can be read again."""
        self._log.begin_stream()
        self._reader.start(self._stream)

    # What it said ---------------------------------------------------------------------------

    def mark(self) -> int:
        """The present position: bytes recorded so far."""
        with self._log.changed:
            return self._log.record.size

    def line_start(self) -> int:
        """The position at which the line that has not ended yet begins."""
        with self._log.changed:
            return self._log.unfinished.start

    def raw(self, start: int, end: int | None = None) -> bytes:
        """The recorded bytes from position `start` to `end`, as far as memory reaches back."""
        with self._log.changed:
            return self._log.record.read(start, end)

    def lines(self, since: int = 0) -> list[Line]:
        """The whole lines that ended after position `since`, as far as memory reaches back."""
        with self._log.changed:
            return self._log.lines_after(since, 2 * ConsoleLog.MEMORY_LINES)

    @property
    def memory_start(self) -> int:
        """The position of the oldest byte that `raw` can still give."""
        with self._log.changed:
            return self._log.record.start

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """The ranges of positions (from, to) that a full disk kept out of ``serial.log`` so far."""
        with self._log.changed:
            return self._log.record.missing

    @property
    def started_s(self) -> float:
        """The monotonic time at which the record began."""
        return self._log.started

    @property
    def silent_s(self) -> float:
        """Seconds since the last byte."""
        return self._log.silent_s

    @property
    def last_line(self) -> str:
        """The last line with anything on it, finished or not."""
        with self._log.changed:
            return self._log.last_line

    @property
    def unfinished(self) -> str:
        """The text of the line that has not ended yet."""
        with self._log.changed:
            return self._log.unfinished_after(0)

    @property
    def reports(self) -> tuple[CrashReport, ...]:
        """Every crash report so far, expected or not, fatal or not.

        Of those with the same title that are not fatal, the first 20 have their whole text and
        frames, the others their first line. Of more than 10,000, repeated ones are only counted.
        """
        with self._log.changed:
            self._log.settle()
            return tuple(self._log.crashes.reports)

    @property
    def report_counts(self) -> Mapping[str, int]:
        """How many reports there were of each title."""
        with self._log.changed:
            self._log.settle()
            return dict(self._log.crashes.counts)

    @property
    def fatal(self) -> CrashReport | None:
        """The crash that killed the kernel and that nobody expected, if there was one."""
        with self._log.changed:
            self._log.settle()
            return self._log.crashes.fatal

    def subscribe(self, callback: Callable[[Line], None]) -> Callable[[], None]:
        """Call `callback` with every whole line from now on, on the reader's thread.

        Returns a function that ends it. An exception in `callback` is logged and ends it too.
        """
        return self._reader.subscribe(callback)

    # Waiting --------------------------------------------------------------------------------

    def expect(
        self,
        pattern: Pattern | Sequence[Pattern],
        *,
        timeout: float | None = None,
        since: int | None = None,
        deadline: Deadline | None = None,
    ) -> Match:
        """Wait for a whole line in which a pattern is found, for `timeout` seconds (60).

        It looks at the lines from position `since` on, or else at those after the last match. Our
        own typing, echoed, is left out. Of several patterns in one line, the leftmost match wins.
        """
        patterns = [pattern] if isinstance(pattern, str | re.Pattern) else list(pattern)
        start = self._cursor if since is None else since
        limit = time_limit(timeout, deadline, TIMEOUT_S)
        source = LineSource(self._log, self._wait(limit, describe(patterns)), start)
        index, match = search(patterns, source.next_line)
        return self._found(source.line, index, match, start)

    def expect_prompt(
        self,
        literals: str | Sequence[str],
        *,
        timeout: float | None = None,
        since: int | None = None,
        deadline: Deadline | None = None,
    ) -> Match:
        """Wait for a line that ends, for now or because a kernel message follows, with a literal.

        A line that has not ended counts when nothing was added to it for a moment. White space at
        the end of the literals and of the line is ignored.
        """
        texts = [literals] if isinstance(literals, str) else list(literals)
        tails = [ends_with_prompt(text) for text in texts]
        start = self._cursor if since is None else since
        limit = time_limit(timeout, deadline, TIMEOUT_S)
        source = PromptSource(self._log, self._wait(limit, describe(texts)), start)
        index, match = search(tails, source.next_text)
        return self._found(source.line, index, match, start)

    def read(
        self,
        position: int,
        *,
        timeout: float | None = None,
        what: str = "output",
        deadline: Deadline | None = None,
    ) -> bytes:
        """Wait for bytes after `position` and return all there are, as they came.

        The error says that no `what` came.
        """
        wait = self._wait(time_limit(timeout, deadline, TIMEOUT_S), what)
        with self._log.changed:
            while self._log.record.size <= position:
                wait.pause()
            wait.raise_crash()
            return self._log.record.read(position)

    def expecting(
        self, wanted: Callable[[CrashReport], bool], *, ends_waits: bool = False
    ) -> AbstractContextManager[ExpectedCrash]:
        """Within this ``with``, crashes that `wanted` accepts go into the box and end no wait.

        With `ends_waits`, a fatal one does end them, in this ``with`` but not after it.
        """
        return self._log.crashes.expecting(wanted, ends_waits=ends_waits)

    def wait_for_more(self, position: int, at_most_s: float) -> bool:
        """Whether there are bytes after `position`, now or in so many seconds. Never raises."""
        with self._log.changed:
            return self._log.changed.wait_for(lambda: self._log.record.size > position, at_most_s)

    def watch(self, what: str) -> Callable[[float], None]:
        """For a wait of one's own for `what`: a function that lets time pass.

        It returns after so many seconds, or earlier if something came, and raises as every wait
        does; it has no deadline of its own.
        """
        wait = self._wait(Deadline(float("inf")), what)

        def pause(at_most_s: float) -> None:
            with self._log.changed:
                wait.pause(at_most_s)

        return pause

    def check(self) -> None:
        """Raise what is known to be wrong now; wait for the end of a crash report that is open."""
        wait = self._wait(Deadline(float("inf")), "end of the crash report")
        with self._log.changed:
            self._log.raise_failure()
            while self._log.crashes.open:
                wait.pause()
            wait.raise_crash()
        if self._check is not None:
            self._check()

    def wait_for_crash(
        self,
        box: ExpectedCrash,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
    ) -> CrashReport:
        """Wait until `box` has a report."""
        wait = self._wait(
            time_limit(timeout, deadline, TIMEOUT_S), "crash report that was expected"
        )
        with self._log.changed:
            while (report := box.report) is None:
                wait.pause()
            return report

    def expect_reset(self) -> None:
        """The machine is going to be reset on purpose: that is no crash, and old ones are past."""
        with self._log.changed:
            self._log.crashes.expect_reset()

    # Typing ---------------------------------------------------------------------------------

    def send(self, data: str | bytes, *, echoed: bool = True) -> None:
        """Type `data` as it is. With `echoed`, its echo will be known and not be matched."""
        raw = data.encode() if isinstance(data, str) else data
        if echoed:
            with self._log.changed:
                self._log.echo.sent(raw)
        self._log.raise_failure()
        try:
            with self._sending:
                self._stream.sendall(raw)
        except OSError as error:
            raise ConsoleClosed(self._why_closed(error)) from error

    def _why_closed(self, error: OSError) -> str:
        """Why it takes no input: what the host knows of it, if it does so in a moment."""
        if self._check is not None:
            for _ in Deadline(LAST_WORDS_S).poll(_REASON_POLL_S):
                try:
                    self._check()
                except InfraError as reason:
                    return str(reason)
        return f"the serial console takes no input: {error}"

    def sendline(self, line: str | bytes = "", *, echoed: bool = True) -> None:
        """Type a line and press return."""
        raw = line.encode() if isinstance(line, str) else line
        self.send(raw + b"\r", echoed=echoed)

    def spawn(
        self,
        *,
        timeout: float | None = 30,
        encoding: str | None = "utf-8",
        codec_errors: str = "replace",
        searchwindowsize: int | None = None,
        logfile: IO[Any] | None = None,
    ) -> ConsoleSpawn:
        """pexpect on this line, from the present position on; the arguments are pexpect's.

        ``expect`` takes what pexpect takes, and reads raw text: half lines, escape sequences, our
        own typing. `pexpect.EOF` when the machine is gone; a crash raises `KernelCrash`.
        """
        from kboot.console.spawn import ConsoleSpawn  # noqa: PLC0415  pexpect, where it is used

        return ConsoleSpawn(
            self._log,
            self.send,
            self._wait,
            timeout=timeout,
            encoding=encoding,
            codec_errors=codec_errors,
            searchwindowsize=searchwindowsize,
            logfile=logfile,
        )

    # Inside ---------------------------------------------------------------------------------

    def _wait(self, deadline: Deadline, what: str) -> Wait:
        return Wait(self._log, self._check, deadline, what)

    def _found(self, line: Line | None, index: int, match: re.Match[str], start: int) -> Match:
        with self._log.changed:
            end = self._log.record.size if line is None else line.end
            time_s = self._log.last_byte if line is None else line.time_s
            begin = end if line is None else line.start
            earlier = self._log.lines_before(begin, _BEFORE_LINES)
        self._cursor = end
        lines = [old.text for old in earlier if old.end > start and not old.echo]
        return Match(
            index=index,
            match=match,
            text=match.string.rstrip("\n"),
            time_s=time_s,
            end=end,
            before="\n".join([*lines, match.string[: match.start()]]),
        )
