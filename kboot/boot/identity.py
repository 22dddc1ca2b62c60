"""The proof from inside a guest that it is the kernel that was pushed, in a boot of its own."""

from __future__ import annotations

from collections.abc import Collection

from kboot.boot.phases import Expected
from kboot.errors import GuestError, WrongKernel
from kboot.guest import Guest


def prove(guest: Guest, expected: Expected, *, known: Collection[str]) -> str:
    """The guest's boot_id: another one than those `known` of its boots before.

    `WrongKernel` if it is not the kernel that was `expected`, or was not started by its script.
    """
    answer = guest.succeed(
        "cat /proc/sys/kernel/random/boot_id && uname -r && cat /proc/cmdline"
    ).splitlines()
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
