"""What is wrong with a boot, in words: who has to act, and the remedy where one is known.

Pure but for the last part, which asks a guest that is up: what was expected and seen goes in, an
error to raise comes out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kboot.boot_messages import IpxeBuild
from kboot.errors import (
    ConfigError,
    GuestError,
    GuestTimeout,
    InfraError,
    KbootError,
    NoReboot,
    ScriptEnded,
    WrongKernel,
)
from kboot.guest import Guest
from kboot.ipxe.errors import IpxeError, parse_error
from kboot.machine.phases import IN_IPXE, IN_SCRIPT, SCRIPT_BEACON, Expected, Phase

#: Consoles that are no lines: a virtual terminal, or none at all.
_IS_SCREEN = re.compile(r"tty\d*|null|")

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
    expected: Expected,
    phase: Phase,
    waited_s: float,
    *,
    last: Phase | None,
    again: bool,
    limit_s: float | None = None,
    ipxe_error: IpxeError | None = None,
    advice: str = "",
    asks: Sequence[str] = (),
) -> KbootError:
    """A boot has come no further than into `phase`; `again` if the machine should have rebooted.

    `last` is the last milestone that it reached. `limit_s` is the time for the whole boot, if that
    is what has run out. `ipxe_error` is the last one that iPXE has printed, and
    `advice` what is known to be wrong with the boot script; `asks` is where that waits for
    somebody, if it does so now, as far as can be told.
    """
    waited = f"{waited_s:.0f} s"
    limit = "" if limit_s is None else f"the boot reached its time limit (timeout {limit_s:g} s): "
    if phase is Phase.LINUX and expected.boot_disk:
        return GuestTimeout(
            f"{limit}no kernel printed anything on {expected.console} in {waited}: the boot loader "
            f"on the disk {expected.boot_disk} has started none, or one whose command line has no "
            f"console={expected.console}"
        )
    if phase is Phase.LINUX:
        return GuestTimeout(
            f"{limit}the kernel was started and printed nothing in {waited}; "
            f"{_console_advice(expected)}"
        )
    if again and phase in {Phase.SCHEDULED, Phase.FIRMWARE}:
        return NoReboot(f"{limit}the machine did not reboot in {waited}")
    after = f" after {last}" if last else ""
    if phase in {Phase.KERNEL, Phase.INITRD} and asks:
        return ScriptEnded(
            f"{limit}the boot script waits for somebody who chooses or types: nothing more{after} "
            f"for {waited}{''.join(f'; {each}' for each in asks)}{_last_error(ipxe_error)}",
            "waits",
        )
    # Until the kernel runs, nothing can be its fault.
    if phase in IN_IPXE:
        advice = _last_error(ipxe_error) + advice
    else:
        advice = _prompt_advice(expected) if phase is Phase.READY else ""
    text = f"{limit}{_LATE[phase]}: nothing more{after} for {waited}{advice}"
    if phase in {Phase.INIT, Phase.READY}:
        return GuestTimeout(text)
    return ScriptEnded(text, "hang") if phase in IN_SCRIPT else InfraError(text)


def unless_doubted(error: KbootError, doubt: str | None) -> KbootError:
    """`error`; or, if the guest would be at fault and may be another one, that this is unknown."""
    if doubt is None or not isinstance(error, GuestError):
        return error
    return InfraError(
        f"could not tell which kernel came up: {doubt} (a line that is no proof: it may have been "
        f"garbled); the guest could not be asked: {error}"
    )


def unless_slow(error: GuestTimeout, speed_fault: str | None) -> KbootError:
    """`error`; or, if its machine is too slow to blame the guest, that this is unknown."""
    # Its subclasses tell of a guest that did something, which took no time.
    if speed_fault is None or type(error) is not GuestTimeout:
        return error
    return InfraError(f"could not tell whether the guest hangs: {error}; {speed_fault}")


def disk_not_bootable(expected: Expected, last_words: str) -> GuestError:
    """The firmware, or the boot loader, gave up on the disk that the machine boots from."""
    return GuestError(
        f"the disk {expected.boot_disk} does not boot: {last_words}; it needs a boot loader for "
        "this firmware (--firmware bios|uefi) and a kernel"
    )


def contradiction(expected: Expected, *, fetched: Collection[str]) -> KbootError | None:
    """What the witnesses of a guest that is up do not agree on, or None.

    `fetched` are the paths that the machine has asked for.
    """
    if expected.boot_disk:
        return None
    for path in (SCRIPT_BEACON, expected.kernel_path, *expected.initrd_paths):
        if path not in fetched:
            return GuestError(
                "the guest is up, but this machine never fetched "
                f"{expected.name_of(path)} in this boot"
            )
    return None


def silent_kernel(expected: Expected) -> GuestError:
    """The guest is up, and none of its kernel's consoles is the line that is read."""
    return GuestError(
        "the guest is up, but its kernel printed nothing on the serial line; "
        + _console_advice(expected)
    )


def script_failed(expected: Expected, step: str, error: str) -> KbootError:
    """The boot script gave up in `step`, with iPXE's number for the `error`."""
    names = dict(enumerate(expected.initrd_paths.values()))
    what = step
    if match := re.fullmatch(r"initrd(\d+)", step):
        what = f"initrd {names.get(int(match[1]), step)}"
    known = parse_error(error)
    if step == "boot" or (known and known.is_not_executable):
        explained = known.describe("starting the kernel") if known else f"error {error}"
        return GuestError(f"iPXE loaded the kernel and could not start it: {explained}")
    explained = known.describe(f"fetching the {what}") if known else f"error {error}"
    return ScriptEnded(f"iPXE could not load the {what}: {explained}", "stopped")


def no_https(build: IpxeBuild | None) -> ConfigError | None:
    """The error for an iPXE that is to boot by HTTPS and says that it cannot, or None."""
    # One that says nothing of what it can is tried.
    if build is None or not build.features or "HTTPS" in build.features:
        return None
    return ConfigError(
        f"this build of iPXE has no HTTPS: iPXE {build.version}, Features: "
        f"{' '.join(build.features)}; give one that has it (ipxe = FILE), or leave tls off"
    )


def nothing_to_boot(
    last_words: str, ipxe_error: IpxeError | None = None, *, advice: str = ""
) -> InfraError:
    """The firmware gave up. `ipxe_error` is the last one that iPXE has printed.

    `advice` is what is known to be wrong with the boot script.
    """
    remedy = _last_error(ipxe_error) + advice
    if any(word in last_words for word in ("PXE-E", "NBP", ">>Start")):
        # EDK II's own PXE client: it takes a URL for the name of a file on a TFTP server.
        remedy = (
            "; this UEFI firmware boots from the network by itself instead of by iPXE, and by TFTP "
            "only: give the machine a disk with iPXE (--cluster-ipxe-disk), or boot with "
            "--firmware bios"
        )
    text = f"the firmware found nothing to boot: {last_words}{remedy}"
    return ScriptEnded(text, "firmware")


def _last_error(error: IpxeError | None) -> str:
    if error is None:
        return ""
    trust = (
        "; an iPXE trusts what it was built for (make TRUST=ca.pem, and tls_ca here), and one of "
        "2025 also what UEFI trusts, to which kboot adds the authority"
    )
    return f"; iPXE's last error: {error.describe()}{trust if error.is_untrusted else ''}"


def is_quiet(command_line: str) -> bool:
    """Whether a kernel with these parameters may print nothing of all that a boot shows."""
    return re.search(r"(?:^|\s)(?:quiet|loglevel=[0-5])(?=\s|$)", command_line) is not None


def _consoles(expected: Expected) -> list[str]:
    """The devices of its ``console=`` parameters, without their speed and so on."""
    words = expected.command_line.split()
    return [
        word.removeprefix("console=").partition(",")[0]
        for word in words
        if word.startswith("console=")
    ]


def _is_read(console: str, expected: Expected) -> bool:
    # ``console=uart8250,io,0x3f8`` becomes the ttyS that it is (earlycon.rst).
    return console in {expected.console, "uart", "uart8250", "pl011"}


def _console_advice(expected: Expected) -> str:
    consoles, read = _consoles(expected), expected.console
    if any(_is_read(console, expected) for console in consoles):
        return _early_advice(expected)
    if serial := [name for name in consoles if not _IS_SCREEN.fullmatch(name)]:
        return (
            f"its console is {' and '.join(serial)}, another line than {read}, the one that kboot "
            f"reads: say console={read}"
        )
    has = f"it has only console={' console='.join(consoles)}" if consoles else "it has none"
    return f"its command line has no console={read} ({has})"


def _early_advice(expected: Expected) -> str:
    early = [w for w in expected.command_line.split() if w.startswith(("earlyprintk", "earlycon"))]
    if not early:
        return (
            "it may have died before its console was up: "
            f"add {expected.early_console} to its command line to see"
        )
    return f"it died before it could print anything, or {early[0]} is not the line that kboot reads"


def _prompt_advice(expected: Expected) -> str:
    """Why the first program may be heard elsewhere: what the kernel prints goes to all consoles."""
    consoles = _consoles(expected)
    if not consoles or _is_read(consoles[-1], expected):
        return ""
    return (
        f"; /dev/console is {consoles[-1]}, the last console= of its command line: what init "
        f"prints there is not on {expected.console}, the line that kboot reads"
    )


# -------------------------------------------------------------- what a guest says of itself

#: A shell that is the first program has nothing mounted.
_ASK = (
    "[ -e /proc/cmdline ] || { mkdir -p /proc; mount -t proc proc /proc; }; "
    "cat /proc/sys/kernel/random/boot_id && uname -r && cat /proc/cmdline"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which kernel runs, and in which boot."""

    boot_id: str
    release: str
    command_line: str


def prove(guest: Guest, expected: Expected, *, known: Collection[str]) -> Identity:
    """What the guest says of itself; its boot_id is another one than those `known` of its boots.

    What boots from its disk may be any kernel. `InfraError` if it cannot tell; `WrongKernel` if it
    is not the kernel that was `expected`, or was not started by its script.
    """
    asked = guest.run(_ASK)
    answer = asked.stdout.splitlines()
    if asked.exit_status != 0 or len(answer) < 3:
        raise InfraError(
            "could not tell which kernel came up: the guest's /proc cannot be read: "
            + asked.stderr.strip()[-200:]
        )
    boot_id, running, command_line = answer[0], answer[1], answer[2]
    ours = not expected.boot_disk
    if ours and f"kboot.nonce={expected.nonce}" not in command_line.split():
        raise WrongKernel(
            f"the kernel was not started by this boot: /proc/cmdline is {command_line}"
        )
    if ours and running != expected.release:
        raise WrongKernel(f"uname -r says {running}, not {expected.release}")
    if boot_id in known:
        raise GuestError(f"the guest has not rebooted: its boot_id is still {boot_id}")
    return Identity(boot_id=boot_id, release=running, command_line=command_line)


def prints_on(guest: Guest, console: str) -> bool:
    """Whether the kernel's messages go to this line, by /proc/consoles; True if that is not known.

    What it prints may be nothing all the same, or have been garbled.
    """
    answer = guest.run("cat /proc/consoles")
    lines = answer.stdout.splitlines()
    return answer.exit_status != 0 or any(line.split()[:1] == [console] for line in lines)
