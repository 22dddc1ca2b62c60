"""What a boot dies of before it is up, in words: who has to act, and the remedy where one is known.

Pure: what was expected and seen goes in, an error to raise comes out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from kboot.boot.phases import Expected, Phase
from kboot.errors import GuestError, GuestTimeout, InfraError, KbootError, NoReboot

#: A loading that iPXE cannot make anything of: "Exec format error", in BIOS and UEFI builds.
_NOT_EXECUTABLE = re.compile(r"0x2e[0-9a-f]{6}")

_LATE: Mapping[Phase, str] = {
    Phase.SCHEDULED: "the machine did not start",
    Phase.FIRMWARE: "the firmware printed nothing",
    Phase.DHCP: "iPXE got no DHCP lease",
    Phase.SCRIPT: "the guest never asked for its boot script",
    Phase.KERNEL: "iPXE did not finish loading the kernel",
    Phase.INITRD: "iPXE did not finish loading the initrd",
    Phase.HANDOFF: "iPXE did not start the kernel",
    Phase.INIT: "the kernel hung before it ran init",
    Phase.READY: "no login prompt",
}


def late(
    expected: Expected, phase: Phase, waited_s: float, *, last: Phase | None, again: bool
) -> KbootError:
    """A boot has come no further than into `phase`; `again` if the machine should have rebooted.

    `last` is the last milestone that it reached.
    """
    waited = f"{waited_s:.0f} s"
    if phase is Phase.LINUX:
        advice = _console_advice(expected.command_line)
        return GuestTimeout(f"the kernel was started and printed nothing in {waited}; {advice}")
    if again and phase in {Phase.SCHEDULED, Phase.FIRMWARE}:
        return NoReboot(f"the machine did not reboot in {waited}")
    after = f" after {last}" if last else ""
    # Until the kernel runs, nothing can be its fault.
    error = GuestTimeout if phase in {Phase.INIT, Phase.READY} else InfraError
    return error(f"{_LATE[phase]}: nothing more{after} for {waited}")


def contradiction(
    expected: Expected, *, fetched: Collection[str], printed: bool
) -> KbootError | None:
    """What the witnesses of a guest that is up do not agree on, or None.

    `fetched` are the paths that the machine has asked for, `printed` whether its kernel was heard.
    """
    for path in (expected.script_path, expected.kernel_path, *expected.initrd_paths):
        if path not in fetched:
            return GuestError(
                "the guest is up, but this machine never fetched "
                f"{expected.name_of(path)} in this boot"
            )
    if not printed and not _is_quiet(expected.command_line):
        return GuestError(
            "the guest is up, but its kernel printed nothing on the serial line; "
            + _console_advice(expected.command_line)
        )
    return None


def script_failed(expected: Expected, step: str, error: str) -> KbootError:
    """The boot script gave up in `step`, with iPXE's number for the `error`."""
    names = dict(enumerate(expected.initrd_paths.values()))
    what = step
    if match := re.fullmatch(r"initrd(\d+)", step):
        what = f"initrd {names.get(int(match[1]), step)}"
    explained = f"error {error}, explained at https://ipxe.org/{error.removeprefix('0x')}"
    if step == "boot" or _NOT_EXECUTABLE.fullmatch(error):
        return GuestError(f"iPXE loaded the kernel and could not start it: {explained}")
    return InfraError(f"iPXE could not load the {what}: {explained}")


def nothing_to_boot(last_words: str) -> InfraError:
    """The firmware gave up."""
    remedy = ""
    if any(word in last_words for word in ("PXE-E", "NBP", ">>Start")):
        # EDK II's own PXE client: it takes a URL for the name of a file on a TFTP server.
        remedy = (
            "; this UEFI firmware boots from the network by itself instead of by iPXE, and by TFTP "
            "only: give the machine a disk with iPXE (--ipxe-disk), or boot with --firmware bios"
        )
    return InfraError(f"the firmware found nothing to boot: {last_words}{remedy}")


def _is_quiet(command_line: str) -> bool:
    return any(word == "quiet" or word.startswith("loglevel=") for word in command_line.split())


def _console_advice(command_line: str) -> str:
    consoles = [word for word in command_line.split() if word.startswith("console=")]
    serial = [word for word in consoles if word.startswith(("console=ttyS", "console=ttyAMA"))]
    if not serial:
        has = f"it has only {' '.join(consoles)}" if consoles else "it has none"
        return f"its command line has no console=ttyS0 ({has})"
    return (
        "it may have died before its console was up: "
        "add earlyprintk=ttyS0,115200 to its command line to see"
    )
