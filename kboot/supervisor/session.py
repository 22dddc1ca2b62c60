"""One persistent machine, and what can be done with it, one thing after another."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kboot import rpc
from kboot.backend import OnProgress, Progress, ReattachableMachine, RecreatableServer
from kboot.boot_messages import shell_waits
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError, KbootError, KernelCrash
from kboot.guest import Guest
from kboot.log import logger
from kboot.machine import Machine, Milestone, TakenOver
from kboot.supervisor.events import BootProgress, Events, State, state_after
from kboot.supervisor.handover import HandoverWriter
from kboot.supervisor.pushes import Push, Pushes
from kboot.supervisor.shared_console import Keyboard, set_size

#: For creating the boot server again.
_RECREATE_LIMIT_S = 120.0


class NextBoot:
    """What the machine loads at its next reset, and the boot server that it loads it from.

    `notice` is told, in words for people, when the boot server was created again.
    """

    def __init__(
        self,
        machine: Machine,
        pushes: Pushes,
        handover: HandoverWriter,
        notice: Callable[[str], None],
    ) -> None:
        self._machine = machine
        self._pushes = pushes
        self._handover = handover
        self._notice = notice

    def switch(self, push: Push) -> dict[str, Any]:
        """Make a push what the machine loads from its next reset on."""
        self.restock(push)
        before = self._pushes.current
        accepted = self._pushes.accept(push)
        try:
            nonce = self._load(accepted)
        except KbootError:
            self._pushes.current = before
            raise
        return {**accepted.as_json(), "nonce": nonce}

    def renew(self) -> None:
        """Have the machine load the same again, with a new nonce."""
        if current := self._pushes.current:
            self.restock(current)
            self._load(current)

    def check(self) -> None:
        """`restock` with what the machine loads next."""
        if current := self._pushes.current:
            self.restock(current)

    def restock(self, push: Push) -> None:
        """See to it that the boot server is there, and has what a push is made of."""
        self.recreate_server()
        if isinstance(self._machine.server, RecreatableServer):
            self._pushes.restock(push, self._machine.server)

    def recreate_server(self) -> bool:
        """Create the boot server again if it is gone; whether that was so.

        `InfraError` if it is gone for good.
        """
        server = self._machine.server
        try:
            server.check()
        except InfraError as error:
            if not isinstance(server, RecreatableServer):
                raise
            server.recreate(Deadline(_RECREATE_LIMIT_S))
            self._notice(f"{error}; it was created again")
            return True
        return False

    def _load(self, push: Push) -> str:
        """Have the script load a push; its new nonce is noted before any machine can see it."""
        nonce = secrets.token_hex(8)
        self._handover.begin_boot(nonce, push)
        return self._machine.load_next(push.load, nonce)


#: For a guest that is up already.
_LOGIN_LIMIT_S = 30

#: Between two attempts to have a console again that another session takes: each disturbs that.
_FIRST_ATTACH_PAUSE_S = 2.0
_LONGEST_ATTACH_PAUSE_S = 30.0

_RESTARTS = ("hard", "reset", "soft")
#: For setting the size of the guest's terminal.
_SIZE_LIMIT_S = 10.0


class MachineSession:
    """What can be done with a machine, one thing at a time. For the machine's thread only."""

    def __init__(
        self,
        machine: Machine,
        pushes: Pushes,
        events: Events,
        keyboard: Keyboard,
        handover: HandoverWriter,
    ) -> None:
        self.machine = machine
        self.pushes = pushes
        self.events = events
        self._keyboard = keyboard
        self._handover = handover
        self._boots = handover.note.boots
        #: For other threads: a boot under way is this thread's alone.
        self.progress = self._current_progress()
        #: What was repaired, for people.
        self.notices: list[str] = []
        self.next_boot = NextBoot(machine, pushes, handover, self._notice)
        self._began = 0
        #: When a console that others have taken is tried next, and how long after that.
        self._next_attach, self._attach_pause_s = 0.0, _FIRST_ATTACH_PAUSE_S
        #: The end of the record when the machine was last checked.
        self._seen = 0

    @property
    def boot_offset(self) -> int:
        """Where in the console's record the present boot begins."""
        return max(self._began, self.machine.report_filter.boot_start)

    # ---------------------------------------------------------------------------------- booting

    def first_boot(self) -> None:
        """Follow the boot that began with power-on."""
        self._follow(self.machine.wait_until_ready, begin=0)

    def take_over(self, found: TakenOver) -> None:
        """Go on with a machine that another supervisor has left: find out its state."""
        try:
            self.machine.check()
        except GuestError as error:
            if not isinstance(error, KernelCrash):
                self.events.enter(State(name="off", what=str(error), exit_code=error.exit_code))
                return
        except InfraError as error:
            self.events.enter(state_after(error))
            return
        proved = self._handover.note.proved
        self._follow(found.wait_until_ready, begin=found.begin)
        if self._handover.note.proved == proved:
            # The boot that it was in when it was left.
            self._boots -= 1
            self.progress = self._current_progress()
        try:
            self.next_boot.check()
        except KbootError as error:
            self._notice(str(error))

    def restart(self, how: str) -> dict[str, Any]:
        """Restart the machine and tell how its boot went; see `_follow`."""
        if how not in _RESTARTS:
            raise ConfigError(f"no way to restart is called {how!r}; there are {_RESTARTS}")
        if how == "soft" and self.events.state.name != "ready":
            raise GuestError(
                f"the guest cannot restart itself: it is {self.events.state.name}; "
                "kboot restart without --soft cuts its power"
            )
        self.next_boot.renew()
        if how == "soft":
            self._require_console()
            return self._follow(self.machine.reboot)
        return self._follow(self.machine.restart if how == "hard" else self.machine.reset)

    def panic(self) -> dict[str, Any]:
        """Have the kernel panic, wait until it is back, and tell both."""
        self._require_console()
        self.next_boot.check()
        begin = self.machine.console.mark()
        with (
            self._keyboard.taken_away("the kernel is made to panic"),
            self.machine.expect_crash("panic") as crash,
        ):
            self.machine.panic()
        outcome = self._follow(self.machine.wait_for_reboot, begin=begin)
        return {**outcome, "crash": crash.report.title}

    def check_machine(self) -> None:
        """Look whether anything has happened to the machine by itself."""
        if isinstance(self.machine.vm, ReattachableMachine) and self.machine.vm.console_fault:
            self._reattach_console(self.machine.vm)
            return
        if self.machine.follower.has_reset:
            logger.info("the machine has reset by itself")
            self._follow(self.machine.follow_reset, begin=self._seen)
            return
        self._seen = self.machine.console.mark()
        self._check_ready_machine()

    def _check_ready_machine(self) -> None:
        """Take notice if a machine that was ready is so no more."""
        if self.events.state.name != "ready":
            return
        try:
            self.machine.check()
        except KernelCrash as error:
            self.events.enter(state_after(error))
        except GuestError as error:
            if not self.machine.follower.has_reset:
                self.events.enter(State(name="off", what=str(error), exit_code=error.exit_code))
        except InfraError as error:
            self._recreate_or_fail(error)

    def _reattach_console(self, vm: ReattachableMachine) -> None:
        """Others have the console: say so, and have it again as soon as they leave it."""
        self._check_ready_machine()
        if time.monotonic() < self._next_attach:
            return
        if not vm.reattach():
            self._attach_pause_s = min(2 * self._attach_pause_s, _LONGEST_ATTACH_PAUSE_S)
            self._next_attach = time.monotonic() + self._attach_pause_s
            return
        self._attach_pause_s = _FIRST_ATTACH_PAUSE_S
        self.machine.console.resume()
        self._notice("another session had taken the console; it is attached again")
        self._determine_state()

    def _determine_state(self) -> None:
        """The machine ran on while nobody listened: find out how it is."""
        if self.events.state.exit_code != InfraError.exit_code:
            return
        try:
            # A user who was attached may have typed there.
            self.machine.channels.release_console()
        except KbootError as error:
            logger.debug("the shell was not left in order: %s", error)
            self.machine.channels.close()
        if self._handover.note.proved == self.machine.boot.expected.nonce:
            self.events.enter(State(name="ready"))
            self._check_ready_machine()
            return
        self._boots -= 1
        self._follow(self.machine.wait_until_ready, begin=self._began)

    def _recreate_or_fail(self, error: InfraError) -> None:
        """The host is at fault: mend what can be mended."""
        try:
            if self.next_boot.recreate_server():
                return
        except InfraError as worse:
            error = worse
        self.events.enter(state_after(error))

    def _follow(self, act: Callable[[], None], *, begin: int | None = None) -> dict[str, Any]:
        """Do what makes the machine boot, follow it, and tell how it went.

        `begin` is where the console's record begins to tell of it, if that is not now.

        The answer has ``error`` (see `wire.describe`) unless the machine is ready, and then the
        ``title`` of its crash if it had one, and the ``phase`` it was in.
        """
        self._boots += 1
        self._began = self.machine.console.mark() if begin is None else begin
        self.progress = self._current_progress()
        self.events.enter(State(name="booting"))
        start = time.monotonic()
        error: KbootError | None = None
        with self._keyboard.taken_away("the machine boots"):
            try:
                act()
            except KbootError as caught:
                error = caught
        self.progress = self._current_progress()
        outcome = self._outcome(error, self._began, time.monotonic() - start)
        if error is None:
            self._handover.end_boot(outcome["nonce"], self._boots)
        self.events.enter(state_after(error))
        if self._keyboard.holder:
            self.lend_console()
        return outcome

    def _current_progress(self) -> BootProgress:
        machine = self.machine
        return BootProgress.of(
            machine.boot,
            boots=self._boots,
            release=machine.kernel.release,
            boot_ids=machine.boot_ids,
        )

    def _outcome(self, error: KbootError | None, begin: int, duration_s: float) -> dict[str, Any]:
        boot = self.machine.boot
        return {
            "error": None if error is None else rpc.describe(error),
            "title": error.report.title if isinstance(error, KernelCrash) else None,
            "phase": str(boot.current),
            "phases_s": boot.durations_s(),
            "duration_s": round(duration_s, 3),
            "release": self.machine.kernel.release,
            "nonce": boot.expected.nonce,
            "boot_id": self.machine.boot_ids[-1] if error is None else None,
            "console": [begin, self.machine.console.mark()],
        }

    def see_milestone(self, milestone: Milestone, seconds: float) -> None:
        """A boot has come further."""
        self.progress = self._current_progress()
        self.events.add(
            {
                "event": "phase",
                "phase": str(milestone.phase),
                "script": milestone.detail,
                "seconds": round(seconds, 3),
                "witness": milestone.witness,
            }
        )

    # ---------------------------------------------------------------------------------- pushing

    def switch(self, push: Push) -> dict[str, Any]:
        """Make a push what the machine loads from its next reset on."""
        return self.next_boot.switch(push)

    def _notice(self, text: str) -> None:
        logger.warning("%s", text)
        self.notices.append(text)
        self.events.add({"event": "notice", "text": text})

    def gc_pushes(self, keep: int) -> dict[str, Any]:
        """Drop all but the last `keep` pushes; what runs, or comes next, stays."""
        runs, url = self.machine.boot.expected, self.machine.server.url
        running = [url(path) for path in (runs.kernel_path, *runs.initrd_paths)]
        forgotten, freed = self.pushes.gc(keep, running)
        self._handover.write_pushes()
        return {
            "pushes": [push.number for push in forgotten],
            "files": freed.files,
            "bytes": freed.size,
        }

    # -------------------------------------------------------------------------------- the guest

    def exec(self, command: str, timeout_s: float) -> dict[str, Any]:
        """Run a command in the guest."""
        with self._guest_for("a command runs") as guest:
            result = guest.run(command, timeout=timeout_s)
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

        with self._guest_for("a file is copied") as guest, _local_named(local):
            guest.put(file, remote, timeout=timeout_s, on_progress=report)

    def get(self, remote: str, local: str, timeout_s: float) -> None:
        """Copy a file of the guest to this host."""
        with self._guest_for("a file is copied") as guest, _local_named(local):
            guest.get(remote, Path(local), timeout=timeout_s)

    def lend_console(self) -> None:
        """Somebody is going to type: the guest's shell is theirs."""
        if self.events.state.name != "ready" or not self.machine.channels.has_console:
            return
        with self._keyboard.taken_away("its terminal is handed over"):
            if size := self._keyboard.size:
                # Without stty, or without the right to, they do it themselves.
                with contextlib.suppress(GuestError, InfraError):
                    self.machine.console_guest.unrecorded().run(
                        set_size(size), timeout=_SIZE_LIMIT_S
                    )
            self.machine.channels.release_console()

    def resize(self) -> None:
        """The terminal of who types has another size: the guest's shell is told, if it waits."""
        size = self._keyboard.size
        theirs = self.events.state.name == "ready" and not self.machine.channels.has_console
        if size and theirs and shell_waits(self.machine.console.unfinished):
            rows, columns = size
            # The space keeps it out of a history.
            with self._keyboard.free():
                self.machine.console.sendline(f" stty rows {rows} cols {columns}")

    @contextlib.contextmanager
    def _guest_for(self, why: str) -> Iterator[Guest]:
        """The guest, to do something in it. Over the console, nobody else types meanwhile.

        Raises as `_require_console`.
        """
        if self.machine.channels.has_ssh:
            self._require_ready()
            yield self.machine.guest
            return
        self._require_console()
        with self._keyboard.taken_away(why):
            yield self.machine.guest

    def _require_ready(self) -> None:
        """`GuestError` if the guest is not up, `InfraError` if that is the host's fault."""
        self._check_ready_machine()
        name, state = self.machine.name, self.events.state
        if state.name == "ready":
            # What runs in the guest is not waited for while the host is at fault.
            self.next_boot.recreate_server()
            return
        how = f"has {state.name}" if state.name in {"crashed", "failed"} else f"is {state.name}"
        why = f" ({state.what})" if state.what else ""
        fault = InfraError if state.exit_code == InfraError.exit_code else GuestError
        raise fault(f"{name} {how}{why}; kboot restart {name} boots it again")

    def _require_console(self) -> None:
        """The terminal is needed for a command; `GuestError`, `ConfigError` if it cannot be had."""
        self._require_ready()
        if not self.machine.channels.has_console:
            if self._keyboard.holder:
                raise ConfigError(
                    f"the console is in use by process {self._keyboard.holder}; detach it (ctrl-])"
                )
            with self._keyboard.taken_away("the guest is logged in to"):
                self.machine.channels.log_in(self.machine.settings, Deadline(_LOGIN_LIMIT_S))


@contextlib.contextmanager
def _local_named(path: str) -> Iterator[None]:
    """What is wrong with a file on this host is its owner's to mend."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; look at its path and permissions") from error
