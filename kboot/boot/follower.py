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
from kboot.boot.judge import Judge
from kboot.boot.milestones import Milestones
from kboot.boot.phases import Expected, Milestone, Phase
from kboot.boot_messages import Reading, read_word
from kboot.console import Console, Line
from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout, InfraError, KbootError, RebootLoop
from kboot.log import logger

#: How often the two witnesses are asked while a boot is under way.
_POLL_S = 0.05

#: For how long the server's log may be behind the console.
_LOG_LAG_S = 10.0
_LOG_PAUSE_S = 0.5

#: Lines kept for a boot that nobody follows at the moment: more than a reset prints.
_KEPT_LINES = 50_000

OnPhase = Callable[[Milestone, float], None]


class GivenUp(InfraError):
    """A boot was not followed to its end, because something else was asked for."""


class Follower:
    """Takes lines and fetches to the milestones of the boot under way, and counts the boots.

    What is printed while nobody waits is kept, and looked at by who waits next.
    """

    def __init__(
        self,
        expected: Expected,
        *,
        start: float,
        server: BootServer,
        console: Console,
        judge: Judge,
        on_phase: OnPhase,
    ) -> None:
        #: The milestones of each boot of the machine; the last one may be under way.
        self.history = [Milestones(expected, start=start)]
        self._server = server
        self._console = console
        self._judge = judge
        self._on_phase = on_phase
        self._announced = 0
        self._lines: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._fetch_count = 0
        self._scripts_seen = 0
        #: Of the boot scripts that the machine may run.
        self._nonces = [expected.nonce]
        self._expecting = 0
        self._given_up = threading.Event()
        self.milestones.reach(Phase.SCHEDULED, time.monotonic(), "backend")
        console.subscribe(self._see_line)

    @property
    def milestones(self) -> Milestones:
        """Of the boot under way, or of the last one."""
        return self.history[-1]

    # ----------------------------------------------------------------------------- one boot

    def follow(self, deadline: Deadline, done: Callable[[], bool]) -> None:
        """Watch both witnesses until `done`, or until the deadline; raise what goes wrong."""
        pause = self._console.watch("next milestone of the boot")
        self._given_up.clear()
        while not deadline.expired:
            if self._given_up.is_set():
                raise GivenUp(f"the boot was left in its phase {self.milestones.current}")
            self._observe()
            if done():
                return
            now = time.monotonic()
            if self.milestones.overdue(now):
                raise self.milestones.late(now - self.milestones.since)
            pause(_POLL_S)

    def contradiction(self, deadline: Deadline) -> KbootError | None:
        """Once it is ready: what the witnesses do not agree on, or None.

        They were not heard at the same time: on a cluster, the server's log is behind the console.
        """
        fault = self.milestones.contradiction()
        for _ in deadline.within(_LOG_LAG_S).poll(_LOG_PAUSE_S):
            if fault is None:
                break
            with contextlib.suppress(InfraError):
                self._server.catch_up(deadline)
            self._observe()
            fault = self.milestones.contradiction()
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

    def give_up(self) -> None:
        """From another thread: who is in `follow` gets `GivenUp`."""
        self._given_up.set()

    def _see_line(self, line: Line) -> None:
        """Take a whole line, on the console's reader thread."""
        self._lines.append(line)
        nonce = boot_messages.script_nonce(line.text)
        if nonce and any(read_word(nonce, ours) is not Reading.OTHER for ours in self._nonces):
            self._scripts_seen += 1

    def _observe(self) -> None:
        """Look at both witnesses now; raise what they prove to be wrong."""
        offset = time.time() - time.monotonic()
        for fetch in self._new_fetches():
            self.milestones.see_fetch(fetch, fetch.time - offset)
            self._announce()
        while self._lines:
            line = self._lines.popleft()
            old_life = self.milestones.waits_for_reset
            self.milestones.see_line(line.text, line.time_s)
            if old_life and not self.milestones.waits_for_reset:
                self._judge.new_life(line.start)
            if boot_messages.is_prompt_and_message(line.text):
                self.milestones.see_prompt(line.time_s)
            self._announce()
        if boot_messages.is_prompt(self._console.unfinished):
            self.milestones.see_prompt(time.monotonic())
        self._announce()

    def _new_fetches(self) -> Sequence[Fetch]:
        fetches = self._server.fetches()
        new = fetches[self._fetch_count :]
        self._fetch_count = len(fetches)
        return new

    def _announce(self) -> None:
        reached = list(self.milestones.reached.values())
        for milestone in reached[self._announced :]:
            logger.debug("%s (%s)", milestone.phase, milestone.witness)
            self._on_phase(milestone, milestone.time - self.milestones.start)
        self._announced = len(reached)

    # --------------------------------------------------------------------- one after another

    def begin_life(self, expected: Expected, *, offset: int = 0) -> None:
        """The machine is going through a reset, or has been: its next boot is another one.

        What was printed before the byte `offset` is of the old life.
        """
        while self._lines and self._lines[0].start < offset:
            self._lines.popleft()
        self._announced = 0
        now = time.monotonic()
        self.history.append(Milestones(expected, start=now, again=True))
        self.milestones.reach(Phase.SCHEDULED, now, "backend")

    def knows(self, nonce: str) -> None:
        """The machine may run this boot script the next time."""
        self._nonces.append(nonce)

    def go_on_from(self, milestones: Milestones) -> None:
        """The machine was restored: this is how it had come up, and what was printed is known."""
        self.history = [milestones]
        self._fetch_count = len(self._server.fetches())
        self._scripts_seen = 1

    def see_past(self, lines: Iterable[Line]) -> None:
        """What was printed in the boot under way before we came."""
        for line in lines:
            self._see_line(line)
        self._observe()

    def forgive_resets(self) -> None:
        """It may have gone through more boots than were waited for."""
        self._scripts_seen = len(self.history)

    @property
    def has_reset(self) -> bool:
        """Whether the machine began another boot that nobody has asked for."""
        return self._scripts_seen > len(self.history)

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
        if self._scripts_seen > len(self.history) + self._expecting:
            if self.milestones.ready:
                raise GuestError("the guest rebooted by itself")
            raise RebootLoop("reboot loop: the machine rebooted before it was ready")
