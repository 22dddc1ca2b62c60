"""Notice that the machine began anew without anyone having asked for it.

A triple fault, a watchdog, or a hypervisor's reset leaves no word on the console. What is left to
see is a firmware's or a kernel's first line, while the kernel before it neither said goodbye nor
crashed.

A program can print such a line as well, and the kernel prints its log once more on a console that
comes up late (``earlyprintk=...,keep``). So a first line is a suspicion, until what follows it
proves it right or wrong: a firmware is followed by what it loads, and a second boot has times of
its own.
"""

from __future__ import annotations

from enum import Enum, auto

from kboot import boot_messages
from kboot.crash.lines import KernelLine

#: Every line that matters here contains one of these.
LITERALS = boot_messages.RESET_LITERALS
_WORDS = tuple(literal.decode() for literal in LITERALS)

#: How long after somebody asked for the kernel's log its lines may be repetitions.
_REPLAY_LINES = 3000
#: Lines of a kernel, after its clock has begun to run, that a repetition is known by; and lines in
#: which they have to come: the kernel prints a hundred and more before.
_MOST_COMPARED = 40
_MOST_READ = 1000
#: So many of the lines after a second banner are repetitions, or new: then it is clear.
_ENOUGH = 3
#: Of so many lines before a second banner, one is enough to know that its log has come to its end.
_LAST_LINES = 3
#: Seconds on the clock of a kernel that surely runs.
_UP_S = 1


class Step(Enum):
    """What a line tells about a reset."""

    NOTHING = auto()
    #: The machine begins anew, and that was to be expected.
    BEGINS = auto()
    #: It may begin anew by itself.
    SUSPECTED = auto()
    #: It has, with the line that was suspected.
    PROVEN = auto()


class ResetWatch:
    """Follows first lines and goodbyes; `seen` tells what a line means for a reset."""

    def __init__(self) -> None:
        self._kernel_runs = False
        #: A kernel was started that has not said anything yet.
        self._handed_over = False
        self._may_restart = False
        self._replay_until = 0
        #: Another machine runs within this one, and prints its own boot, up to this line.
        self._nested_until = 0
        self._began = 0
        self._with_level = False
        #: Of the kernel that runs: what it has printed first, with the times.
        self._lines: set[str] = set()
        self._read = 0
        self._collecting = False
        #: The line that may be the first one after a reset, and what has come since.
        self.suspect: KernelLine | None = None
        self._suspects_kernel = False
        self._time_before_s: float | None = None
        self._repeated = self._fresh = 0
        self._last_before: frozenset[str] = frozenset()
        self._caught_up = False
        self._banner_since: KernelLine | None = None
        #: The first line after the last reset that nobody asked for.
        self.proven: KernelLine | None = None

    @property
    def wants_all(self) -> bool:
        """Whether `seen` has to be told of every line, and not only of those with `LITERALS`."""
        return self._collecting or self.suspect is not None

    def expect(self) -> None:
        """The next banner is no surprise."""
        self._may_restart = True
        self.suspect = None

    def seen(self, line: KernelLine, raw: bytes, *, stamped_log: bool, before: bytes) -> Step:
        """Take a line, parsed and as it came. `before` is some of the log that came before it."""
        if self.wants_all:
            step = self._follow(line, _text(raw))
            if step is not Step.NOTHING:
                return step
        # A plain search per word is faster than one pattern, and than any() with a generator.
        if not [word for word in _WORDS if word in line.text]:
            return Step.NOTHING
        return self._first_line(line, _text(raw), stamped_log=stamped_log, before=before)

    def _follow(self, line: KernelLine, raw: str) -> Step:
        """What a line tells of which every one matters."""
        time_s = boot_messages.last_time_s(raw) if line.stamped else None
        if self.suspect is not None:
            return self._judge(line, time_s, raw)
        self._collect(raw, time_s)
        return Step.NOTHING

    def accept(self) -> None:
        """What was suspected is no surprise: the kernel before it had crashed."""
        if self.suspect is not None:
            self._begin(self.suspect, kernel=self._suspects_kernel)

    def end(self) -> bool:
        """The log has ended: whether the suspected line was a reset, as far as can be known."""
        repeats = self._caught_up or self._repeated > self._fresh
        return self.suspect is not None and not repeats

    # ------------------------------------------------------------------------------ first lines

    def _first_line(self, line: KernelLine, raw: str, *, stamped_log: bool, before: bytes) -> Step:
        words = line.text.lstrip()
        if boot_messages.asks_for_log(words) and not line.stamped:
            self._replay_until = line.number + _REPLAY_LINES
        elif boot_messages.starts_machine_within(words) and self._kernel_runs and not line.stamped:
            self._nested_until = self._replay_until = line.number + _REPLAY_LINES
        elif boot_messages.is_goodbye(words):
            self._may_restart = True
        elif boot_messages.is_handoff(words) and not self._kernel_runs:
            self._handed_over = True
        elif boot_messages.is_firmware(words) and not line.stamped:
            if line.number <= self._nested_until:
                return Step.NOTHING
            return self._firmware(line, before)
        elif boot_messages.is_unpacking(words) and not line.stamped:
            if line.number > self._nested_until and (self._kernel_runs or not self._began):
                return self._new_boot(line, before, kernel=False)
        elif boot_messages.begins_with_banner(words) and (line.stamped or not stamped_log):
            return self._banner(line, raw, before)
        return Step.NOTHING

    def _firmware(self, line: KernelLine, before: bytes) -> Step:
        if self._handed_over and not self._may_restart:
            # Nothing runs that could print this, but the firmware.
            self._begin(line, kernel=False)
            self.proven = line
            return Step.PROVEN
        return self._new_boot(line, before, kernel=False)

    def _banner(self, line: KernelLine, raw: str, before: bytes) -> Step:
        if line.number <= self._replay_until:
            return Step.NOTHING
        with_level = boot_messages.has_level(raw)
        if self._kernel_runs and line.number <= self._began + 1:
            # Two consoles on one line: every line comes twice.
            return Step.NOTHING
        if self._kernel_runs and with_level and not self._with_level:
            # The kernel's consoles show no levels; /proc/kmsg does.
            return Step.NOTHING
        if self._kernel_runs and not line.stamped:
            # It may just as well be a program that prints /proc/version.
            self._may_restart = False
            return Step.NOTHING
        self._with_level = with_level
        return self._new_boot(line, before, kernel=True)

    def _new_boot(self, line: KernelLine, before: bytes, *, kernel: bool) -> Step:
        if self.suspect is not None:
            return Step.NOTHING
        if not (kernel or self._began or self._kernel_runs):
            # The log begins while a kernel runs, whose first line it does not have.
            text = before.decode(errors="replace")
            self._kernel_runs = (boot_messages.last_time_s(text) or 0) >= _UP_S
        if self._kernel_runs and not self._may_restart:
            self.suspect, self._suspects_kernel = line, kernel
            self._time_before_s = boot_messages.last_time_s(before.decode(errors="replace"))
            self._last_before = _last_lines(before)
            self._repeated = self._fresh = 0
            self._caught_up = False
            self._banner_since = None
            return Step.SUSPECTED
        begins = self._kernel_runs
        self._begin(line, kernel=kernel)
        return Step.BEGINS if begins else Step.NOTHING

    def _begin(self, line: KernelLine, *, kernel: bool) -> None:
        self.suspect = None
        self._kernel_runs = kernel
        self._began = line.number
        self._handed_over = False
        # The kernel's banner belongs to the boot that its firmware began.
        self._may_restart = False
        self._collecting = kernel and line.stamped
        if kernel:
            self._lines = set()
            self._read = 0

    # ---------------------------------------------------------------------------- the suspicion

    def _collect(self, raw: str, time_s: float | None) -> None:
        """Remember what the kernel printed at its start."""
        if time_s:
            self._lines.add(boot_messages.from_last_stamp(raw))
        self._read += 1
        if len(self._lines) >= _MOST_COMPARED or self._read >= _MOST_READ:
            self._collecting = False

    def _judge(self, line: KernelLine, time_s: float | None, raw: str) -> Step:
        """Look at a line behind the suspected one."""
        if self._suspects_kernel:
            verdict = self._proof_of_kernel(line, time_s, raw)
        else:
            verdict = self._proof_of_loader(line, time_s)
        if verdict is None and not line.stamped and boot_messages.begins_with_prompt(line.text):
            verdict = False
        if verdict is None or self.suspect is None:
            return Step.NOTHING
        if not verdict:
            self.suspect = None
            return Step.NOTHING
        self.proven = self.suspect
        self._begin(self.suspect, kernel=self._suspects_kernel)
        if self._banner_since is not None:
            self._begin(self._banner_since, kernel=True)
        return Step.PROVEN

    def _proof_of_kernel(self, line: KernelLine, time_s: float | None, raw: str) -> bool | None:
        """A second boot has times of its own; a log that is printed again has not.

        Where the clock does not run yet, the kernel goes on once the log has been printed.
        """
        if time_s is None:
            return None
        message = boot_messages.from_last_stamp(raw)
        if message in self._last_before:
            self._caught_up = True
            return None
        if self._caught_up:
            return boot_messages.begins_with_banner(line.text.lstrip())
        if time_s > 0 and message in self._lines:
            self._repeated += 1
        elif time_s > 0:
            self._fresh += 1
        if max(self._repeated, self._fresh) < _ENOUGH:
            return None
        return self._fresh > self._repeated

    def _proof_of_loader(self, line: KernelLine, time_s: float | None) -> bool | None:
        """A firmware loads something; a kernel that was not reset prints on."""
        if not line.stamped:
            return True if boot_messages.is_loader(line.text) else None
        if time_s is None:
            return None
        before = self._time_before_s
        if boot_messages.begins_with_banner(line.text.lstrip()):
            self._banner_since = line
        elif not self._fresh if before is None else time_s >= before:
            return False
        # One line may be a quotation.
        self._fresh += 1
        return True if self._fresh >= _ENOUGH else None


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace").rstrip("\r\n")


def _last_lines(before: bytes) -> frozenset[str]:
    """The kernel's last lines in this piece of a log; the first may be cut."""
    lines = before.decode(errors="replace").splitlines()[1:]
    stamped = filter(None, map(boot_messages.from_last_stamp, lines))
    return frozenset(list(stamped)[-_LAST_LINES:])
