"""A guest in a machine that was saved, and runs again from there: later, and more than once.

Its memory is as it was, the agent in its shell too. Two things must not be as they were: the time
of day, and the kernel's random numbers.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError
from kboot.guest.agent import AgentState, ShellAgent
from kboot.guest.bootstrap import agent_text
from kboot.guest.guest import Guest
from kboot.guest.reseed import reseed_program

_PROGRAM = '"$KBOOT_DIR/reseed"'
#: Of which 32 are enough; base64 makes them a word for any shell.
_SEED_BYTES = 32


def guest_digest() -> str:
    """A digest of all that runs in the guest for us: another one after every change to it."""
    return hashlib.sha256(agent_text("0").encode() + reseed_program()).hexdigest()[:16]


def prepare(guest: Guest, deadline: Deadline) -> Mapping[str, Any]:
    """Make the guest ready to be saved; what `resume` has to know, as JSON.

    `GuestError` if it cannot be woken up properly: it is not root's, or has no shell of ours.
    """
    if not isinstance(guest.runner, ShellAgent):
        raise GuestError("the guest is not reached by its serial line")
    octal = "".join(f"\\{byte:03o}" for byte in reseed_program())
    guest.succeed(f"printf '{octal}' >{_PROGRAM} && chmod 700 {_PROGRAM}", deadline=deadline)
    wake(guest, deadline)
    return dataclasses.asdict(guest.runner.state)


def resume(console: Console, state: Mapping[str, Any], deadline: Deadline) -> tuple[Guest, str]:
    """The guest that `prepare` was called for, on the console of a machine that goes on from there.

    And its boot_id. `GuestError` if it does not answer.
    """
    guest = Guest(ShellAgent.resumed(console, AgentState(**state)))
    return guest, wake(guest, deadline)


def wake(guest: Guest, deadline: Deadline) -> str:
    """Set the guest's clock to our time of day, give its kernel new random numbers; its boot_id.

    The clock is right to about a second. `GuestError` if one of them cannot be done.
    """
    seed = base64.b64encode(secrets.token_bytes(_SEED_BYTES)).decode()
    now = round(time.time())
    command = (
        f"echo {seed} | {_PROGRAM} && date -u -s @{now} >/dev/null && "
        "read id </proc/sys/kernel/random/boot_id && echo $id"
    )
    try:
        return guest.succeed(command, deadline=deadline).strip()
    except CommandFailed as error:
        raise GuestError(f"the guest cannot set clock and random numbers: {error}") from error
