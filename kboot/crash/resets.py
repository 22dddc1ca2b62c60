"""Notice that the machine began anew without anyone having asked for it.

A triple fault, a watchdog, or a hypervisor's reset leaves no word on the console. What is left to
see is a firmware's or a kernel's first line, while the kernel before it neither said goodbye nor
crashed.
"""

from __future__ import annotations

import re

from kboot.crash.lines import KernelLine

FIRMWARE = (
    b"SeaBIOS (version",
    b"UEFI firmware (version",
    b"U-Boot ",
    b"coreboot-",
)
KERNEL = (b"Linux version ",)
GOODBYE = (
    b"estarting system",
    b"reboot: ",
    b"Rebooting in ",
    b"Starting new kernel",
    b"crashdump kernel",
    b"ysrq: Resetting",
)
REPLAY = (b"dmesg", b"journalctl")
#: Every line that matters here contains one of these.
LITERALS = FIRMWARE + KERNEL + GOODBYE + REPLAY
_WORDS = tuple(literal.decode() for literal in LITERALS)

_FIRMWARE = re.compile(
    r"SeaBIOS \(version|UEFI firmware \(version|U-Boot (?:SPL )?20\d\d\."
    r"|coreboot-\S+ .*(?:starting|bootblock)"
)
_KERNEL = re.compile(r"Linux version \d+\.\d+.*\(.*#\d")
_GOODBYE = re.compile(
    r"reboot: |Restarting system|Rebooting in |(?:kexec_core: )?Starting new kernel"
    r"|[Ss]ysrq: Resetting|Starting crashdump kernel|systemd-shutdown.*(?:Rebooting|Powering off)"
)
_REPLAY = re.compile(r"\b(?:dmesg|journalctl)\b")
#: How long after somebody asked for the kernel's log its lines may be repetitions.
_REPLAY_LINES = 3000


class ResetWatch:
    """Follows banners and goodbyes; `seen` tells whether a line is an unexpected first line."""

    def __init__(self) -> None:
        self._kernel_runs = False
        self._may_restart = False
        self._replay_until = 0

    def expect(self) -> None:
        """The next banner is no surprise."""
        self._may_restart = True

    def seen(self, line: KernelLine, *, stamped_log: bool) -> tuple[bool, bool]:
        """Take a line: (it begins a new boot, and nobody asked for that)."""
        words = line.text.lstrip()
        # A plain search per word is faster than one pattern, and than any() with a generator.
        if not [word for word in _WORDS if word in words]:
            return False, False
        if _REPLAY.search(words) and not line.stamped:
            self._replay_until = line.number + _REPLAY_LINES
        elif _GOODBYE.match(words):
            self._may_restart = True
        elif _FIRMWARE.search(words) and not line.stamped:
            return self._new_boot(kernel=False)
        elif _KERNEL.match(words) and (line.stamped or not stamped_log):
            return self._kernel_banner(line)
        return False, False

    def _kernel_banner(self, line: KernelLine) -> tuple[bool, bool]:
        if line.number <= self._replay_until:
            return False, False
        begins, surprise = self._new_boot(kernel=True)
        # Without a time it may just as well be a program that prints /proc/version.
        return begins and line.stamped, surprise and line.stamped

    def _new_boot(self, *, kernel: bool) -> tuple[bool, bool]:
        surprise = self._kernel_runs and not self._may_restart
        begins = self._kernel_runs
        self._kernel_runs = kernel
        # The kernel's banner belongs to the boot that its firmware began.
        self._may_restart = False
        return begins, surprise
