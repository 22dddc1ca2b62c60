"""The phases of a boot, what each may take, and what is known of a boot before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from kboot import arch
from kboot.backend import Fetch
from kboot.server_tls import Tls


class Phase(StrEnum):
    """The milestones of a boot, in their order. A phase ends when its milestone is reached."""

    SCHEDULED = "scheduled"
    FIRMWARE = "firmware"
    DHCP = "dhcp"
    SCRIPT = "script"
    KERNEL = "kernel"
    INITRD = "initrd"
    HANDOFF = "handoff"
    LINUX = "linux"
    INIT = "init"
    READY = "ready"


ORDER = tuple(Phase)

#: Seconds that each phase may take, on a slow and busy host under emulation.
BUDGETS_S: Mapping[Phase, float] = {
    Phase.SCHEDULED: 30,
    Phase.FIRMWARE: 30,
    Phase.DHCP: 45,
    Phase.SCRIPT: 30,
    Phase.KERNEL: 60,
    Phase.INITRD: 120,
    Phase.HANDOFF: 20,
    Phase.LINUX: 30,
    Phase.INIT: 90,
    Phase.READY: 90,
}

#: A kernel that traces its functions from the start takes so many times as long (6.1 to 7.2, TCG).
_TRACED = 3
#: Unpacking it, and systemd, under emulation on a busy host, against busybox.
_WHOLE_SYSTEM = 4
_TRACERS = ("ftrace=function", "ftrace=function_graph")


def budget_s(phase: Phase, command_line: str) -> float:
    """Seconds that a phase may take with these parameters of the kernel."""
    traced = phase in {Phase.LINUX, Phase.INIT, Phase.READY} and any(
        word in _TRACERS for word in command_line.split()
    )
    return BUDGETS_S[phase] * (_TRACED if traced else 1)


#: For the boot loader on a disk: its menu, and reading kernel and initramfs through firmware.
_BOOT_LOADER_S = 120

#: The phases that iPXE has to end. A machine that boots from its disk has none of them.
IN_IPXE = frozenset({Phase.DHCP, Phase.SCRIPT, Phase.KERNEL, Phase.INITRD, Phase.HANDOFF})

#: The phases that the boot script has to end.
IN_SCRIPT = frozenset({Phase.KERNEL, Phase.INITRD, Phase.HANDOFF})

Witness = Literal["backend", "server", "console"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """A phase that was completed: when, and who saw it."""

    phase: Phase
    #: On the monotonic clock.
    time: float
    witness: Witness
    #: Of a script that another one has chained to: its name.
    detail: str = ""


#: What a boot script asks for first. Its own path is the same for each boot of a machine, as DHCP
#: names it; this one comes with the query of its boot, so that an old script is no proof for it.
SCRIPT_BEACON = "beacon/script"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What this boot of this machine will ask for and print, if it is the right one."""

    #: Printed by the boot script, and first in the kernel's command line.
    nonce: str
    #: The query of every request of this boot.
    query: str
    #: Paths below the server's token, as in `Fetch.path`.
    script_path: str
    kernel_path: str
    #: With the names of the files that are behind them, for messages.
    initrd_paths: Mapping[str, str]
    release: str
    command_line: str
    #: The guest's name for the serial line that is read.
    console: str = arch.DEFAULT.console
    #: What makes its kernel talk there early.
    early_console: str = arch.DEFAULT.early_console
    #: The user's own boot script, by its path; empty for kboot's.
    user_script: str = ""
    #: The paths of the scripts that are served beside it.
    served_scripts: Sequence[str] = ()
    #: How long the script may wait for a server, for somebody, or for nothing; and while it loads
    #: nothing.
    script_waits_s: float = 0.0
    script_pauses_s: float = 0.0
    #: Where it waits for somebody, for ever as far as is known: ``file:line: words``, and the name
    #: of the served script, empty for its own.
    script_asks: Sequence[tuple[str, str]] = ()
    #: What its text, and those of the served scripts, show to be wrong: kind, ``file:line: words``,
    #: the line itself, and the name of the served script, empty for its own.
    findings: Sequence[Sequence[str]] = ()
    #: Whether its init starts a whole system's services.
    whole_system: bool = False
    #: What it boots by: HTTP, or HTTPS with which certificate.
    tls: Tls = "off"
    #: The size of the kernel's file; 0 if it is not known.
    kernel_bytes: int = 0
    #: The name of the disk that it boots from, by a boot loader and with a kernel of its own; then
    #: `release` and `command_line` are known once it runs. Empty for the network.
    boot_disk: str = ""

    @property
    def phases(self) -> Sequence[Phase]:
        """The phases that this boot goes through."""
        skipped = IN_IPXE if self.boot_disk else frozenset[Phase]()
        if not self.initrd_paths:
            skipped |= {Phase.INITRD}
        return [phase for phase in ORDER if phase not in skipped]

    @property
    def folder(self) -> str:
        """The machine's own part of the server, where its script is."""
        return self.script_path.rpartition("/")[0] + "/"

    def concerns(self, fetch: Fetch) -> bool:
        """Whether a request to the server was of this boot of this machine."""
        # A script of the user's may add a query of its own.
        return self.query in fetch.query or fetch.path.startswith(self.folder)

    def budget_s(self, phase: Phase) -> float:
        """Seconds that a phase of this boot may take."""
        limit_s = budget_s(phase, self.command_line)
        if self.boot_disk and phase is Phase.LINUX:
            limit_s += _BOOT_LOADER_S
        if self.whole_system and phase in {Phase.INIT, Phase.READY}:
            limit_s *= _WHOLE_SYSTEM
        if self.user_script and phase in IN_SCRIPT:
            limit_s += self.script_waits_s
            if phase is Phase.HANDOFF:
                # It does not say when it starts the kernel.
                limit_s += budget_s(Phase.LINUX, self.command_line)
        return limit_s

    def name_of(self, path: str) -> str:
        """What a path is the place of, for messages."""
        if path in {self.script_path, SCRIPT_BEACON}:
            return "boot script"
        if path == self.kernel_path:
            return "kernel"
        name = self.initrd_paths.get(path)
        return f"initrd {name}" if name else path
