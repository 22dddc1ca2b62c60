"""The proof from inside a guest that it is the kernel that was pushed, in a boot of its own."""

from __future__ import annotations

from collections.abc import Collection

from kboot.errors import GuestError, InfraError, WrongKernel
from kboot.guest import Guest
from kboot.machine.phases import Expected

#: A shell that is the first program has nothing mounted.
_ASK = (
    "[ -e /proc/cmdline ] || { mkdir -p /proc; mount -t proc proc /proc; }; "
    "cat /proc/sys/kernel/random/boot_id && uname -r && cat /proc/cmdline"
)


def prove(guest: Guest, expected: Expected, *, known: Collection[str]) -> str:
    """The guest's boot_id: another one than those `known` of its boots before.

    `InfraError` if it cannot tell; `WrongKernel` if it is not the kernel that was `expected`, or
    was not started by its script.
    """
    asked = guest.run(_ASK)
    answer = asked.stdout.splitlines()
    if asked.exit_status != 0 or len(answer) < 3:
        raise InfraError(
            "could not tell which kernel came up: the guest's /proc cannot be read: "
            + asked.stderr.strip()[-200:]
        )
    boot_id, running, command_line = answer[0], answer[1], answer[2]
    if f"kboot.nonce={expected.nonce}" not in command_line.split():
        raise WrongKernel(
            f"the kernel was not started by this boot: /proc/cmdline is {command_line}"
        )
    if running != expected.release:
        raise WrongKernel(f"uname -r says {running}, not {expected.release}")
    if boot_id in known:
        raise GuestError(f"the guest has not rebooted: its boot_id is still {boot_id}")
    return boot_id


def prints_on(guest: Guest, console: str) -> bool:
    """Whether the kernel's messages go to this line, by /proc/consoles; True if that is not known.

    What it prints may be nothing all the same, or have been garbled.
    """
    answer = guest.run("cat /proc/consoles")
    lines = answer.stdout.splitlines()
    return answer.exit_status != 0 or any(line.split()[:1] == [console] for line in lines)
