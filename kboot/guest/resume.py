"""A guest in a machine that was saved, and runs again from there: later, and more than once.

Its memory is as it was, the agent in its shell too. Two things must not be as they were: the time
of day, and the kernel's random numbers.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
import time
from collections.abc import Mapping
from typing import Any

from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError
from kboot.guest.agent import AgentState, ShellAgent
from kboot.guest.guest import Guest
from kboot.guest.reseed import reseed_program

_PROGRAM = '"$KBOOT_DIR/reseed"'
#: Of which 32 are enough; base64 makes them a word for any shell.
_SEED_BYTES = 32


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


def resume(console: Console, state: Mapping[str, Any], deadline: Deadline) -> Guest:
    """The guest that `prepare` was called for, on the console of a machine that goes on from there.

    `GuestError` if it does not answer.
    """
    guest = Guest(ShellAgent.resumed(console, AgentState(**state)))
    wake(guest, deadline)
    return guest


def wake(guest: Guest, deadline: Deadline) -> None:
    """Set the guest's clock to our time of day, and give its kernel new random numbers.

    The clock is right to about a second. `GuestError` if one of them cannot be done.
    """
    seed = base64.b64encode(secrets.token_bytes(_SEED_BYTES)).decode()
    now = round(time.time())
    try:
        guest.succeed(
            f"echo {seed} | {_PROGRAM} && date -u -s @{now} >/dev/null", deadline=deadline
        )
    except CommandFailed as error:
        raise GuestError(
            f"the guest cannot set its clock and its random numbers: {error}"
        ) from error
