"""Follows the two witnesses of a machine, through all its boots, for as long as somebody waits."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from kboot import boot_messages
from kboot.backend import BootServer, Fetch
from kboot.boot_messages import Reading, read_word
from kboot.console import Console, Line
from kboot.crash import CrashKind
from kboot.deadline import Deadline
from kboot.errors import (
    GuestError,
    GuestTimeout,
    InfraError,
    KbootError,
    KernelCrash,
    RebootLoop,
)
from kboot.log import logger
from kboot.machine.boot import Boot
from kboot.machine.expectations import ReportFilter
from kboot.machine.phases import IN_SCRIPT, Expected, Milestone, Phase

#: How often the two witnesses are asked while a boot is under way.
_POLL_S = 0.05
#: How long what was printed waits to be looked at: a guest prints a few bytes at a time.
_GATHER_S = 0.01
_SILENCE_PAUSE_S = 1.0

#: For how long the server's log may be behind the console.
_LOG_LAG_S = 10.0
_LOG_PAUSE_S = 0.5

#: Lines kept for a boot that nobody follows at the moment: more than a reset prints.
_KEPT_LINES = 50_000

#: How a kernel dies that has no first program any more.
_FOR_WANT_OF_INIT = {CrashKind.INIT_KILLED, CrashKind.NO_INIT, CrashKind.NO_ROOT}

OnPhase = Callable[[Milestone, float], None]


class BootCancelled(InfraError):
    """A boot was not followed to its end, because something else was asked for."""


class Follower:
    """Feeds lines and fetches to the boot under way, and counts the boots.

    What is printed while nobody waits is kept for the next one who does.
    """

    def __init__(
        self,
        expected: Expected,
        *,
        start: float,
        server: BootServer,
        console: Console,
        report_filter: ReportFilter,
        on_phase: OnPhase,
        starved_s: Callable[[], float] = lambda: 0.0,
        silence_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`starved_s` says for how long the machine had no processor of its host's in its life.

        `silence_s` says for how long it has received nothing, or None.
        """
        #: Each boot of the machine; the last one may be under way.
        self.boots = [Boot(expected, start=start)]
        self._server = server
        self._console = console
        self._report_filter = report_filter
        self._on_phase = on_phase
        self._announced = 0
        self._starved_s = starved_s
        self._silence_s = silence_s
        #: When that was asked last.
        self._silence_asked = 0.0
        #: What that was when the current phase began.
        self._starved_before_s = 0.0
        #: How many of its chained scripts were told.
        self._chained = 0
        self._lines: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._fetch_position = 0
        self._scripts_seen = 0
        #: Firmware has printed something since a boot script was seen last, or from a disk, a
        #: kernel.
        self._restarted = True
        #: Of the boot scripts that the machine may run.
        self._nonces = [expected.nonce]
        #: Why the initramfs could not be gone on with.
        self._given_up = ""
        self._expecting = 0
        self._cancelled = threading.Event()
        self.boot.reach(Phase.SCHEDULED, time.monotonic(), "backend")
        console.subscribe(self._see_line)

    @property
    def boot(self) -> Boot:
        """The boot under way, or the last one."""
        return self.boots[-1]

    # ----------------------------------------------------------------------------- one boot

    def follow(self, deadline: Deadline, done: Callable[[], bool]) -> None:
        """Watch both witnesses until `done`, or until the deadline; raise what goes wrong."""
        try:
            self._follow(deadline, done)
        except KernelCrash as crash:
            if self._given_up and crash.report.kind in _FOR_WANT_OF_INIT:
                raise KernelCrash(f"{self._given_up}; {crash}", crash.report) from crash
            raise

    def _follow(self, deadline: Deadline, done: Callable[[], bool]) -> None:
        pause = self._console.watch("next milestone of the boot")
        self._cancelled.clear()
        while not deadline.expired:
            if self._cancelled.is_set():
                raise BootCancelled(f"the boot was left in its phase {self.boot.current}")
            self._look()
            if done():
                return
            now = time.monotonic()
            self._look_for_silence(now)
            if self.boot.overdue(now) and self.boot.overdue(now - self._starved_in_phase_s()):
                raise self.boot.late(now - self.boot.since)
            pause(_POLL_S)
            self._cancelled.wait(_GATHER_S)

    def _look_for_silence(self, now: float) -> None:
        """Raise `ScriptEnded` if iPXE hangs. Once a second: it asks the host."""
        if now - self._silence_asked < _SILENCE_PAUSE_S:
            return
        self._silence_asked = now
        in_script = self.boot.current in IN_SCRIPT
        self.boot.see_silence(
            self._console.unfinished,
            now,
            starved_s=self._starved_in_phase_s(),
            silence_s=self._silence_s() if in_script else None,
        )

    def _starved_in_phase_s(self) -> float:
        """For how long, in this phase, the machine could not have gone on."""
        # It begins at zero where the machine was started anew.
        return max(0.0, self._starved_s() - self._starved_before_s)

    def contradiction(self, deadline: Deadline) -> KbootError | None:
        """Once it is ready: what the witnesses do not agree on, or None.

        They were not heard at the same time: on a cluster, the server's log is behind the console.
        """
        fault = self.boot.contradiction()
        complete = False
        for _ in deadline.within(_LOG_LAG_S).poll(_LOG_PAUSE_S):
            if fault is None or complete:
                break
            with contextlib.suppress(InfraError):
                complete = self._server.catch_up(deadline)
            self._look()
            fault = self.boot.contradiction()
        return fault

    def wait_for_line(self, pattern: str, deadline: Deadline) -> str:
        """Follow until a line on the console, since power-on, has `pattern` in it; the line.

        `GuestTimeout` if none came. The last line counts as it stands: a prompt never ends.
        """
        regex = re.compile(pattern)
        found: list[str] = []

        def look() -> bool:
            texts = [line.text for line in self._console.lines()]
            found.extend(filter(regex.search, [*texts, self._console.unfinished]))
            return bool(found)

        self.follow(deadline, look)
        if not found:
            raise GuestTimeout(
                f"no line with {pattern!r} in {deadline.seconds:g} s; "
                f"last console line: {self._console.last_line!r}"
            )
        return found[0]

    def cancel(self) -> None:
        """From another thread: have `follow` raise `BootCancelled`."""
        self._cancelled.set()

    def _see_line(self, line: Line) -> None:
        """Take a whole line, on the console's reader thread."""
        self._lines.append(line)
        self._given_up = boot_messages.given_up(line.text) or self._given_up
        counts_firmware = self.boot.expected.user_script or self.boot.expected.boot_disk
        if counts_firmware and boot_messages.begins_boot(line.text):
            self._restarted = True
        if self.boot.expected.boot_disk and self._restarted and _is_banner(line.text):
            self._restarted = False
            self._scripts_seen += 1
        nonce = boot_messages.script_nonce(line.text)
        if nonce and self.boot.expected.user_script:
            # Chaining back to itself is no reset.
            nonce, self._restarted = nonce if self._restarted else None, False
        if nonce and any(read_word(nonce, ours) is not Reading.OTHER for ours in self._nonces):
            self._scripts_seen += 1

    def _look(self) -> None:
        """Look at both witnesses now; raise what they prove to be wrong."""
        offset = time.time() - time.monotonic()
        # Before the lines: those above the prompt are there then, and are looked at first.
        unfinished = self._console.unfinished
        prompt = boot_messages.is_prompt(unfinished)
        in_ipxe = boot_messages.is_ipxe_prompt(unfinished)
        for fetch in self._new_fetches():
            self.boot.see_fetch(fetch, fetch.time - offset)
            self._announce()
        while self._lines:
            line = self._lines.popleft()
            was_waiting = self.boot.waits_for_reset
            self.boot.see_line(line.text, line.time_s)
            if was_waiting and not self.boot.waits_for_reset:
                self._report_filter.begin_boot(line.start)
            if boot_messages.is_prompt_and_message(line.text):
                self.boot.see_prompt(line.time_s)
            self._announce()
        if prompt:
            self.boot.see_prompt(time.monotonic())
        if in_ipxe:
            self.boot.see_ipxe_prompt()
        self._announce()

    def _new_fetches(self) -> Sequence[Fetch]:
        new, self._fetch_position = self._server.fetches_since(self._fetch_position)
        return new

    def _announce(self) -> None:
        reached = list(self.boot.reached.values())
        for milestone in reached[self._announced :]:
            logger.debug("%s (%s)", milestone.phase, milestone.witness)
            self._on_phase(milestone, milestone.time - self.boot.start)
        if self._announced != len(reached):
            self._starved_before_s = self._starved_s()
        self._announced = len(reached)
        for chained in self.boot.script.chained[self._chained :]:
            self._on_phase(chained, chained.time - self.boot.start)
        self._chained = len(self.boot.script.chained)

    # --------------------------------------------------------------------- one after another

    def begin_boot(self, expected: Expected, *, offset: int = 0) -> None:
        """The machine is going through a reset, or has been: its next boot is another one.

        What was printed before the byte `offset` is of the last boot.
        """
        while self._lines and self._lines[0].start < offset:
            self._lines.popleft()
        self._announced = self._chained = 0
        self._given_up = ""
        now = time.monotonic()
        self.boots.append(Boot(expected, start=now, again=True))
        self.boot.reach(Phase.SCHEDULED, now, "backend")

    def accept_nonce(self, nonce: str) -> None:
        """The machine may run this boot script the next time."""
        self._nonces.append(nonce)

    def resume(self, boot: Boot) -> None:
        """The machine was restored: this is how it had come up, and what was printed is known."""
        self.boots = [boot]
        _, self._fetch_position = self._server.fetches_since(self._fetch_position)
        self._scripts_seen = 1

    def replay(self, lines: Iterable[Line]) -> None:
        """Look at what was printed in the boot under way before the console was attached."""
        for line in lines:
            self._see_line(line)
        self._look()

    def accept_resets(self) -> None:
        """It may have gone through more boots than were waited for: that is no fault."""
        self._scripts_seen = len(self.boots)

    @property
    def has_reset(self) -> bool:
        """Whether the machine began another boot that nobody has asked for."""
        return self._scripts_seen > len(self.boots)

    @contextlib.contextmanager
    def expecting_reset(self) -> Iterator[None]:
        """For the length of the ``with``, one more reset is no surprise."""
        self._expecting += 1
        try:
            yield
        finally:
            self._expecting -= 1

    def check(self) -> None:
        """Raise `GuestError` for a reset that nobody expects."""
        if self._scripts_seen > len(self.boots) + self._expecting:
            if self.boot.ready:
                raise GuestError("the guest rebooted by itself")
            raise RebootLoop("reboot loop: the machine rebooted before it was ready")


def _is_banner(line: str) -> bool:
    """Whether this is a kernel's first line."""
    message = boot_messages.kernel_message(line)
    return message is not None and boot_messages.whole_banner(message.text) is not None
