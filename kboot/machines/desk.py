"""One machine, and what can be asked of it. One thread works at the desk, see `supervisor`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kboot import wire
from kboot.backend import OnProgress, Progress, ReattachableMachine
from kboot.boot import Boot, Met, Milestone
from kboot.boot_messages import shell_waits
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError, KbootError, KernelCrash
from kboot.guest import Guest
from kboot.log import logger
from kboot.machines.journal import Journal, State, state_after
from kboot.machines.keeping import Keeper
from kboot.machines.keyboard import Keyboard, set_size
from kboot.machines.pushes import Push, Pushes
from kboot.machines.supply import Supply

#: For a guest that is up already.
_LOGIN_LIMIT_S = 30

#: Between two attempts to have a console again that another session takes: each disturbs that.
_FIRST_ATTACH_PAUSE_S = 2.0
_LONGEST_ATTACH_PAUSE_S = 30.0

_RESTARTS = ("hard", "reset", "soft")
#: For setting the size of the guest's terminal.
_SIZE_LIMIT_S = 10.0


class Desk:
    """Does one thing after another with a machine; every method is for the desk's thread only."""

    def __init__(
        self, boot: Boot, pushes: Pushes, journal: Journal, keyboard: Keyboard, keeper: Keeper
    ) -> None:
        self.boot = boot
        self.pushes = pushes
        self.journal = journal
        self._keyboard = keyboard
        self._keeper = keeper
        self.boots = keeper.note.boots
        #: What had to be mended, for people.
        self.notices: list[str] = []
        self.supply = Supply(boot, pushes, keeper, self._notice)
        self._began = 0
        #: When a console that others have taken is tried next, and how long after that.
        self._next_attach, self._attach_pause_s = 0.0, _FIRST_ATTACH_PAUSE_S
        #: The end of the record when the machine was last looked after.
        self._seen = 0

    @property
    def boot_offset(self) -> int:
        """Where in the console's record the present boot begins."""
        return max(self._began, self.boot.judge.last_life)

    # ---------------------------------------------------------------------------------- booting

    def first_boot(self) -> None:
        """Follow the boot that began with power-on."""
        self._follow(self.boot.wait_until_ready, begin=0)

    def meet(self, met: Met) -> None:
        """Take up a machine that was there before us: find out how it is."""
        try:
            self.boot.check()
        except GuestError as error:
            if not isinstance(error, KernelCrash):
                self.journal.enter(State(name="off", what=str(error), exit_code=error.exit_code))
                return
        except InfraError as error:
            self.journal.enter(state_after(error))
            return
        proved = self._keeper.note.proved
        self._follow(met.wait_until_ready, begin=met.begin)
        if self._keeper.note.proved == proved:
            # The boot that it was in when it was left.
            self.boots -= 1
        try:
            self.supply.check()
        except KbootError as error:
            self._notice(str(error))

    def restart(self, how: str) -> dict[str, Any]:
        """Restart the machine and tell how its boot went; see `_follow`."""
        if how not in _RESTARTS:
            raise ConfigError(f"no way to restart is called {how!r}; there are {_RESTARTS}")
        if how == "soft" and self.journal.state.name != "ready":
            raise GuestError(
                f"the guest cannot restart itself: it is {self.journal.state.name}; "
                "kboot restart without --soft cuts its power"
            )
        self.supply.renew()
        if how == "soft":
            self._need_console()
            return self._follow(self.boot.reboot)
        return self._follow(self.boot.restart if how == "hard" else self.boot.reset)

    def panic(self) -> dict[str, Any]:
        """Have the kernel panic, wait until it is back, and tell both."""
        self._need_console()
        self.supply.check()
        begin = self.boot.console.mark()
        with (
            self._keyboard.taken_away("the kernel is made to panic"),
            self.boot.expect_crash("panic") as crash,
        ):
            self.boot.panic()
        outcome = self._follow(self.boot.wait_for_reboot, begin=begin)
        return {**outcome, "crash": crash.report.title}

    def attend(self) -> None:
        """Look whether anything has happened to the machine by itself."""
        if isinstance(self.boot.machine, ReattachableMachine) and self.boot.machine.console_fault:
            self._attach_again(self.boot.machine)
            return
        if self.boot.follower.has_reset:
            logger.info("the machine has reset by itself")
            self._follow(self.boot.follow_reset, begin=self._seen)
            return
        self._seen = self.boot.console.mark()
        self._look_after()

    def _look_after(self) -> None:
        """Take notice if a machine that was ready is so no more."""
        if self.journal.state.name != "ready":
            return
        try:
            self.boot.check()
        except KernelCrash as error:
            self.journal.enter(state_after(error))
        except GuestError as error:
            if not self.boot.follower.has_reset:
                self.journal.enter(State(name="off", what=str(error), exit_code=error.exit_code))
        except InfraError as error:
            self._bear(error)

    def _attach_again(self, machine: ReattachableMachine) -> None:
        """Others have the console: say so, and have it again as soon as they leave it."""
        self._look_after()
        if time.monotonic() < self._next_attach:
            return
        if not machine.reattach():
            self._attach_pause_s = min(2 * self._attach_pause_s, _LONGEST_ATTACH_PAUSE_S)
            self._next_attach = time.monotonic() + self._attach_pause_s
            return
        self._attach_pause_s = _FIRST_ATTACH_PAUSE_S
        self.boot.console.resume()
        self._notice("another session had taken the console; it is attached again")
        self._find_state()

    def _find_state(self) -> None:
        """The machine ran on while nobody listened: find out how it is."""
        if self.journal.state.exit_code != InfraError.exit_code:
            return
        try:
            # Whoever had the console may have typed there.
            self.boot.channels.lend_console()
        except KbootError as error:
            logger.debug("the shell was not left in order: %s", error)
            self.boot.channels.forget()
        if self._keeper.note.proved == self.boot.milestones.expected.nonce:
            self.journal.enter(State(name="ready"))
            self._look_after()
            return
        self.boots -= 1
        self._follow(self.boot.wait_until_ready, begin=self._began)

    def _bear(self, error: InfraError) -> None:
        """The host is at fault: mend what can be mended."""
        try:
            if self.supply.mend():
                return
        except InfraError as worse:
            error = worse
        self.journal.enter(state_after(error))

    def _follow(self, act: Callable[[], None], *, begin: int | None = None) -> dict[str, Any]:
        """Do what makes the machine boot, follow it, and tell how it went.

        `begin` is where the console's record begins to tell of it, if that is not now.

        The answer has ``error`` (see `wire.describe`) unless the machine is ready, and then the
        ``title`` of its crash if it had one, and the ``phase`` it was in.
        """
        self.boots += 1
        self._began = self.boot.console.mark() if begin is None else begin
        self.journal.enter(State(name="booting"))
        start = time.monotonic()
        error: KbootError | None = None
        with self._keyboard.taken_away("the machine boots"):
            try:
                act()
            except KbootError as caught:
                error = caught
        outcome = self._outcome(error, self._began, time.monotonic() - start)
        if error is None:
            self._keeper.has_booted(outcome["nonce"], self.boots)
        self.journal.enter(state_after(error))
        if self._keyboard.holder:
            self.lend_console()
        return outcome

    def _outcome(self, error: KbootError | None, begin: int, duration_s: float) -> dict[str, Any]:
        milestones = self.boot.milestones
        return {
            "error": None if error is None else wire.describe(error),
            "title": error.report.title if isinstance(error, KernelCrash) else None,
            "phase": str(milestones.current),
            "phases_s": milestones.durations_s(),
            "duration_s": round(duration_s, 3),
            "release": self.boot.kernel.release,
            "nonce": milestones.expected.nonce,
            "boot_id": self.boot.boot_ids[-1] if error is None else None,
            "console": [begin, self.boot.console.mark()],
        }

    def see_milestone(self, milestone: Milestone, seconds: float) -> None:
        """A boot has come further."""
        self.journal.add(
            {
                "event": "phase",
                "phase": str(milestone.phase),
                "seconds": round(seconds, 3),
                "witness": milestone.witness,
            }
        )

    # ---------------------------------------------------------------------------------- pushing

    def switch(self, push: Push) -> dict[str, Any]:
        """Make a push what the machine loads from its next reset on."""
        return self.supply.switch(push)

    def _notice(self, text: str) -> None:
        logger.warning("%s", text)
        self.notices.append(text)
        self.journal.add({"event": "notice", "text": text})

    def collect(self, keep: int) -> dict[str, Any]:
        """Drop all but the last `keep` pushes; what runs, or comes next, stays."""
        runs, url = self.boot.milestones.expected, self.boot.server.url
        running = [url(path) for path in (runs.kernel_path, *runs.initrd_paths)]
        forgotten, freed = self.pushes.collect(keep, running)
        self._keeper.has_collected()
        return {
            "pushes": [push.number for push in forgotten],
            "files": freed.files,
            "bytes": freed.size,
        }

    # -------------------------------------------------------------------------------- the guest

    def run(self, command: str, timeout_s: float) -> dict[str, Any]:
        """Run a command in the guest."""
        with self._guest("a command runs") as guest:
            result = guest.run(command, timeout_s=timeout_s)
        return {
            "exit_status": result.exit_status,
            "stdout": result.stdout_bytes.decode("latin-1"),
            "stderr": result.stderr_bytes.decode("latin-1"),
            "duration_s": round(result.duration_s, 3),
        }

    def put(self, local: str, remote: str, timeout_s: float, on_progress: OnProgress) -> None:
        """Copy a file of this host into the guest."""
        file = Path(local)

        def report(done: int, size: int) -> None:
            on_progress(Progress(file=file, step="copy", done=done, size=size))

        with self._guest("a file is copied") as guest, _local_named(local):
            guest.put(file, remote, Deadline(timeout_s), on_progress=report)

    def get(self, remote: str, local: str, timeout_s: float) -> None:
        """Copy a file of the guest to this host."""
        with self._guest("a file is copied") as guest, _local_named(local):
            guest.get(remote, Path(local), Deadline(timeout_s))

    def lend_console(self) -> None:
        """Somebody is going to type: the guest's shell is theirs."""
        if self.journal.state.name != "ready" or not self.boot.channels.has_console:
            return
        with self._keyboard.taken_away("its terminal is handed over"):
            if size := self._keyboard.size:
                # Without stty, or without the right to, they do it themselves.
                with contextlib.suppress(GuestError, InfraError):
                    self.boot.console_guest.run(set_size(size), timeout_s=_SIZE_LIMIT_S)
            self.boot.channels.lend_console()

    def resize(self) -> None:
        """The terminal of who types has another size: the guest's shell is told, if it waits."""
        size = self._keyboard.size
        theirs = self.journal.state.name == "ready" and not self.boot.channels.has_console
        if size and theirs and shell_waits(self.boot.console.unfinished):
            rows, columns = size
            # The space keeps it out of a history.
            with self._keyboard.free():
                self.boot.console.sendline(f" stty rows {rows} cols {columns}")

    @contextlib.contextmanager
    def _guest(self, why: str) -> Iterator[Guest]:
        """The guest, to do something in it. Over the console, nobody else types meanwhile.

        Raises as `_need_console`.
        """
        if self.boot.channels.has_ssh:
            self._need_ready()
            yield self.boot.guest
            return
        self._need_console()
        with self._keyboard.taken_away(why):
            yield self.boot.guest

    def _need_ready(self) -> None:
        """`GuestError` if the guest is not up, `InfraError` if that is the host's fault."""
        self._look_after()
        name, state = self.boot.settings.machine_name, self.journal.state
        if state.name == "ready":
            # What runs in the guest is not waited for while the host is at fault.
            self.supply.mend()
            return
        how = f"has {state.name}" if state.name in {"crashed", "failed"} else f"is {state.name}"
        why = f" ({state.what})" if state.what else ""
        fault = InfraError if state.exit_code == InfraError.exit_code else GuestError
        raise fault(f"{name} {how}{why}; kboot restart {name} boots it again")

    def _need_console(self) -> None:
        """The terminal is needed for a command; `GuestError`, `ConfigError` if it cannot be had."""
        self._need_ready()
        if not self.boot.channels.has_console:
            if self._keyboard.holder:
                raise ConfigError(
                    f"the console is in use by process {self._keyboard.holder}; detach it (ctrl-])"
                )
            with self._keyboard.taken_away("the guest is logged in to"):
                self.boot.channels.log_in(self.boot.settings, Deadline(_LOGIN_LIMIT_S))


@contextlib.contextmanager
def _local_named(path: str) -> Iterator[None]:
    """What is wrong with a file on this host is its owner's to mend."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; look at its path and permissions") from error
