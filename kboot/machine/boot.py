"""One boot of a machine, and how far it is, from two witnesses.

What the server was asked for, and what the guest printed. Pure: lines and fetches go in with their
times, milestones and faults come out.
"""

from __future__ import annotations

import re

from kboot import boot_messages
from kboot.backend import Fetch
from kboot.boot_messages import KernelMessage, Reading, read_word
from kboot.errors import InfraError, KbootError, WrongKernel
from kboot.ipxe.errors import IpxeError, error_in
from kboot.machine import faults
from kboot.machine.download_watch import DownloadWatch
from kboot.machine.phases import (
    ORDER,
    SCRIPT_BEACON,
    Expected,
    Milestone,
    Phase,
    Witness,
)
from kboot.machine.script_watch import ScriptWatch

#: What the boot script asks for when it gives up. A guest that is up may ask for anything.
_FAILED = re.compile(r"beacon/failed/(?P<step>\w+)/(?P<error>\w+)")


class Boot:
    """What one boot has reached. A machine that reboots gets a new one."""

    def __init__(self, expected: Expected, *, start: float, again: bool = False) -> None:
        """`again` is for a machine that runs: what it prints counts from its next reset on."""
        self.expected = expected
        self.start = start
        self.again = again
        #: Nothing of this boot was seen yet: the machine is still in its last one.
        self.waits_for_reset = again
        self._reset_delay_s = 0
        self.reached: dict[Phase, Milestone] = {}
        #: When each witness has seen a phase first.
        self.sightings: dict[tuple[Phase, Witness], float] = {}
        self._fetched: set[str] = set()
        #: A whole line has named this boot's nonce in the kernel's command line.
        self._nonce_seen = False
        self._banner_seen = False
        self._doubt: str | None = None
        #: The last one that iPXE has printed.
        self._ipxe_error: IpxeError | None = None
        self._rows = boot_messages.Rows()
        #: What was printed before the script, of a machine that boots by HTTPS.
        self._loader_lines: list[str] = []
        #: What a boot script of the user's does.
        self.script = ScriptWatch(expected)
        self._downloads = DownloadWatch(expected)

    # --------------------------------------------------------------------------- what comes in

    def reach(self, phase: Phase, time: float, witness: Witness) -> None:
        """A milestone is there; the first to see it counts.

        It is no earlier than the start: a reset may print before whoever asked for it knows that
        it was done, and the server's clock is another one.
        """
        time = max(time, self.start)
        self.sightings.setdefault((phase, witness), time)
        if phase not in self.reached:
            self.reached[phase] = Milestone(phase=phase, time=time, witness=witness)

    def see_line(self, line: str, time: float) -> None:
        """One whole line from the console. Raises what the line proves to be wrong."""
        if self.waits_for_reset:
            if (delay_s := boot_messages.reboot_delay_s(line)) is not None:
                self._reset_delay_s = delay_s
            if not self._begins_boot(line):
                return
            self.waits_for_reset = False
        if line.strip():
            self.reach(Phase.FIRMWARE, time, "console")
        if not {Phase.LINUX, Phase.INIT} & self.reached.keys():
            self._see_loader(line, time)
        if Phase.INIT not in self.reached:
            self._see_kernel(line, time)

    def see_prompt(self, time: float) -> None:
        """The login prompt, or a shell's, is there."""
        # Until a machine that runs has come to its next kernel, a prompt is one of its last boot.
        loaders = {Phase.SCRIPT, Phase.HANDOFF, Phase.LINUX}
        if self.expected.boot_disk:
            loaders.add(Phase.FIRMWARE)
        old = self.again and not loaders & self.reached.keys()
        if not self.waits_for_reset and not old:
            self.reach(Phase.READY, time, "console")

    def see_fetch(self, fetch: Fetch, time: float) -> None:
        """One request to the server, of any machine. Raises what it proves to be wrong."""
        wanted = self.expected
        if not wanted.concerns(fetch):
            return
        if Phase.LINUX not in self.reached:
            self.script.see_fetch(fetch, time)
        # A script of the user's may have something else to try, and so may a guest: cloud-init
        # looks for more than it needs.
        if fetch.status == 404 and not (self._handed_over or wanted.user_script):
            raise InfraError(f"the boot server has no {wanted.name_of(fetch.path)} (404)")
        if fetch.status != 200 or not fetch.complete:
            return
        if not self._downloads.is_expected(fetch):
            return
        self._fetched.add(fetch.path)
        if fetch.path == SCRIPT_BEACON:
            self.reach(Phase.SCRIPT, time, "server")
        elif fetch.path == wanted.kernel_path:
            self.reach(Phase.KERNEL, time, "server")
        elif fetch.path == "beacon/handoff":
            self.reach(Phase.HANDOFF, time, "server")
        elif Phase.LINUX not in self.reached and (failed := _FAILED.fullmatch(fetch.path)):
            raise faults.script_failed(wanted, failed["step"], failed["error"])
        if wanted.initrd_paths and self._fetched >= set(wanted.initrd_paths):
            self.reach(Phase.INITRD, time, "server")

    @property
    def _handed_over(self) -> bool:
        """Whether iPXE is done: the kernel runs, or is just being started."""
        return bool({Phase.HANDOFF, Phase.LINUX} & self.reached.keys())

    # ------------------------------------------------------------------------- what comes out

    def see_ipxe_prompt(self) -> None:
        """The last line on the console is iPXE's prompt: `InfraError` if its script is done for."""
        if self.expected.user_script and Phase.SCRIPT in self.reached and not self._handed_over:
            raise self.script.stopped_at_prompt(self._ipxe_error)

    def see_silence(
        self, unfinished: str, now: float, *, starved_s: float, silence_s: float | None
    ) -> None:
        """Nothing new was seen. `ScriptEnded` if that shows that iPXE hangs.

        `unfinished` is the last line on the console; `starved_s` for how long it could not go on in
        this phase; `silence_s` for how long it has received nothing, None if that is not known.
        """
        if not self.waits_for_reset:
            self._downloads.look(
                *(self.current, unfinished, now),
                idle_s=now - self.since,
                starved_s=starved_s,
                silence_s=silence_s,
            )

    @property
    def current(self) -> Phase:
        """The phase that the boot is in: the one after the last milestone it reached."""
        last = max((ORDER.index(phase) for phase in self.reached), default=-1)
        phases = self.expected.phases
        return next((phase for phase in phases if ORDER.index(phase) > last), phases[-1])

    @property
    def since(self) -> float:
        """When the current phase began, on the monotonic clock."""
        last = max((milestone.time for milestone in self.reached.values()), default=self.start)
        return max(last, self.script.active_s)

    @property
    def ready(self) -> bool:
        """Whether the login prompt was seen."""
        return Phase.READY in self.reached

    def overdue(self, now: float) -> bool:
        """Whether the current phase has used up its budget."""
        delay = self._reset_delay_s if self.waits_for_reset else 0
        limit = self.expected.budget_s(self.current) + delay
        return not self.ready and now - self.since > limit

    def durations_s(self) -> dict[str, float]:
        """Seconds from each milestone's forerunner to it, for those reached, in their order."""
        durations = {}
        before = self.start
        for phase in ORDER:
            if milestone := self.reached.get(phase):
                durations[phase.value] = round(max(0.0, milestone.time - before), 3)
                before = max(before, milestone.time)
        return durations

    def contradiction(self) -> KbootError | None:
        """Once it is ready: what the witnesses do not agree on, or None."""
        return faults.contradiction(self.expected, fetched=self._fetched)

    @property
    def doubt(self) -> str | None:
        """What the console said of another kernel without proof; None if it said nothing."""
        return None if self._nonce_seen else self._doubt

    def late(self, waited_s: float, *, limit_s: float | None = None) -> KbootError:
        """The error for a boot that came no further in its time.

        `limit_s` is the time for the whole boot, if that is what has run out.
        """
        error = faults.late(
            self.expected,
            self.current,
            waited_s,
            last=max(self.reached, key=ORDER.index, default=None),
            again=self.again,
            limit_s=limit_s,
            ipxe_error=self._ipxe_error,
            advice=self.script.advice(looping=True),
            asks=self.script.asks() if self._downloads.is_asking else (),
        )
        return faults.unless_doubted(error, self.doubt)

    # ------------------------------------------------------------------ what the lines tell

    def _begins_boot(self, line: str) -> bool:
        """Whether a machine that runs begins its next boot with this line."""
        nonce = boot_messages.script_nonce(line) or boot_messages.handoff_nonce(line)
        if nonce is not None:
            return read_word(nonce, self.expected.nonce) is not Reading.OTHER
        return boot_messages.begins_boot(line)

    def _see_loader(self, line: str, time: float) -> None:
        """A line of what runs before the kernel."""
        if self.expected.tls != "off" and Phase.SCRIPT not in self.reached:
            self._loader_lines.append(line)
        if self.expected.boot_disk:
            if last_words := boot_messages.disk_not_bootable(line):
                raise faults.disk_not_bootable(self.expected, last_words)
            return
        if boot_messages.has_lease(line):
            self.reach(Phase.DHCP, time, "console")
            if fault := faults.no_https(boot_messages.ipxe_build(self._loader_lines)):
                raise fault
        # Its number may have been wrapped in its midst.
        error = error_in(whole := self._rows.take(line) or "")
        self._ipxe_error = error or self._ipxe_error
        if boot_messages.script_nonce(line):
            # That the script was fetched is the server's to say.
            self.sightings.setdefault((Phase.SCRIPT, "console"), max(time, self.start))
        if Phase.HANDOFF not in self.reached:
            for nonce in (boot_messages.script_nonce(line), boot_messages.handoff_nonce(line)):
                self._require_nonce(nonce)
            self.script.see_line(line, time)
            if error:
                self.script.see_error(error, whole)
            if last_words := boot_messages.nothing_to_boot(line):
                raise faults.nothing_to_boot(
                    last_words, self._ipxe_error, advice=self.script.advice_at_end()
                )
        if boot_messages.handoff_nonce(line):
            self.reach(Phase.HANDOFF, time, "console")
        if stopped := boot_messages.stopped_script(line):
            raise faults.script_failed(self.expected, *stopped)

    def _see_kernel(self, line: str, time: float) -> None:
        """A line that may be the kernel's: no program has run yet, as far as is known."""
        own_loader = bool(self.expected.boot_disk) and Phase.FIRMWARE in self.reached
        handed_over = own_loader or Phase.HANDOFF in self.reached
        message = boot_messages.kernel_message(line)
        # Where the kernel prints no times, its banner stands behind what firmware left.
        if handed_over and (message or boot_messages.has_banner(line)):
            self.reach(Phase.LINUX, time, "console")
        if message and (release := boot_messages.whole_banner(message.text)):
            self.reach(Phase.LINUX, time, "console")
            self._see_release(release, message)
        text = message.text if message else line
        if Phase.LINUX in self.reached and (parameters := boot_messages.command_line(text)):
            self._see_command_line(parameters, message)
        if (handed_over or Phase.LINUX in self.reached) and boot_messages.starts_init(line):
            self.reach(Phase.INIT, time, "console")

    # ------------------------------------------------------------------------------ the proofs
    # A line that is not whole, or not surely the kernel's, proves nothing: `faults.prove` then
    # does, from inside the guest.

    def _require_nonce(self, nonce: str | None) -> None:
        if nonce and read_word(nonce, self.expected.nonce) is Reading.OTHER:
            raise InfraError(
                f"the machine ran a boot script of another boot ({nonce}, not "
                f"{self.expected.nonce})"
            )

    def _see_release(self, release: str, message: KernelMessage) -> None:
        """A banner, stamped and whole. The first one counts; a log may be printed again."""
        if self._nonce_seen or self._banner_seen or self.expected.boot_disk:
            return
        self._banner_seen = True
        if read_word(release, self.expected.release) is not Reading.OTHER:
            return
        self._other_kernel(
            f"Linux {release} came up; the kernel that was pushed is {self.expected.release}",
            proven=self._is_the_kernels(message),
        )

    def _see_command_line(self, parameters: str, message: KernelMessage | None) -> None:
        if self.expected.boot_disk:
            return
        nonce = boot_messages.nonce_in(parameters)
        if nonce == self.expected.nonce:
            self._nonce_seen = True
        if self._nonce_seen:
            return
        # A nonce that is as long as ours, with a space behind it, has lost nothing.
        whole = nonce is not None and len(nonce) == len(self.expected.nonce)
        self._other_kernel(
            "the kernel that came up was not started by this boot: "
            f"kboot.nonce={self.expected.nonce} is not in its command line: "
            f"{parameters.strip()[:200]}",
            proven=whole and message is not None and self._is_the_kernels(message),
        )

    def _is_the_kernels(self, message: KernelMessage) -> bool:
        """Whether only the kernel that has just been started can have printed this."""
        # A quiet kernel does not say when user space begins.
        return message.in_its_place and not faults.is_quiet(self.expected.command_line)

    def _other_kernel(self, what: str, *, proven: bool) -> None:
        if proven:
            raise WrongKernel(what)
        self._doubt = self._doubt or what
