"""A guest in a machine that was saved, and runs again from there: later, and more than once."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import secrets
import struct
import time
from collections.abc import Mapping
from typing import Any

from kboot import arch
from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError, InfraError
from kboot.guest.agent import AgentState, ShellAgent
from kboot.guest.guest import Guest
from kboot.guest.history import CommandHistory
from kboot.guest.login import agent_text

_PATH = b"/dev/urandom\0"

_ADDRESS = 0x400000
_HEADER_SIZE = 64
_SEGMENT_SIZE = 56


def reseed_program(architecture: str) -> bytes:
    """The program that `arch.Architecture.reseed_code` is, a static ELF executable."""
    row = arch.of(architecture)
    body = row.reseed_code + _PATH
    before = _HEADER_SIZE + _SEGMENT_SIZE
    size = before + len(body)
    identification = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bits, little-endian, version 1
    header = identification + struct.pack(
        "<HHIQQQIHHHHHH",
        *(2, row.elf_machine, 1, _ADDRESS + before, _HEADER_SIZE, 0, 0),
        *(_HEADER_SIZE, _SEGMENT_SIZE, 1, 0, 0, 0),
    )
    readable_and_executable = 5
    segment = struct.pack(
        "<IIQQQQQQ", 1, readable_and_executable, 0, _ADDRESS, _ADDRESS, size, size, 0x1000
    )
    return header + segment + body


_PROGRAM = '"$KBOOT_DIR/reseed"'
#: Exit status where the guest is of another boot than it should be.
_ANOTHER_BOOT = 98
#: What is run when the guest goes on: s is a seed, n the time, i the boot's id, or empty. Each
#: program that runs in a machine that was just restored is translated anew, and what it prints
#: takes two more of them: so there are few, the seed goes through no pipe, and nothing is printed.
_WAKE = f"""\
{_PROGRAM} <<E && date -u -s @$n >/dev/null
$s
E
r=$?
read -r j </proc/sys/kernel/random/boot_id
[ "${{i:-$j}}" = "$j" ] || exit {_ANOTHER_BOOT}
exit $r
"""
#: Where nothing may be run, as in a /run of initramfs-tools', the program is elsewhere.
_INSTALL = f"""\
for d in "$KBOOT_DIR" /tmp /dev/shm /var/tmp /; do
  p="${{d%/}}/${{KBOOT_DIR##*/}}.reseed"
  printf 'CONTENT' >"$p" && chmod 700 "$p" && {{ "$p" </dev/null; [ $? != 126 ]; }} && break
  rm -f "$p"
done 2>/dev/null
ln -sf "$p" {_PROGRAM}
"""
#: Of which 32 are enough; base64 makes them a word for any shell.
_SEED_BYTES = 32


def guest_digest(architecture: str) -> str:
    """A digest of all that runs in the guest for us: another one after every change to it."""
    ours = agent_text("0").encode() + reseed_program(architecture) + _WAKE.encode()
    return hashlib.sha256(ours).hexdigest()[:16]


def prepare(guest: Guest, deadline: Deadline, *, architecture: str) -> Mapping[str, Any]:
    """Make the guest ready to be saved; what `resume` has to know, as JSON.

    `GuestError` if it cannot be woken up properly: it is not root's, or has no shell of ours.
    """
    if not isinstance(guest.runner, ShellAgent):
        raise GuestError("the guest is not reached by its serial line")
    octal = "".join(f"\\{byte:03o}" for byte in reseed_program(architecture))
    wake_script = f"cat >\"$KBOOT_DIR/wake\" <<'END'\n{_WAKE}END\n"
    guest.unrecorded().succeed(_INSTALL.replace("CONTENT", octal) + wake_script, deadline=deadline)
    wake(guest, deadline)
    return dataclasses.asdict(guest.runner.state)


def resume(
    console: Console,
    state: Mapping[str, Any],
    deadline: Deadline,
    *,
    boot_id: str = "",
    history: CommandHistory | None = None,
) -> Guest:
    """The guest that `prepare` was called for, on the console of a machine that goes on from there.

    `GuestError` if it does not answer, `InfraError` if it is not of the boot with this id,
    where one is given.
    """
    guest = Guest(ShellAgent.resumed(console, AgentState(**state)), history=history)
    wake(guest, deadline, boot_id=boot_id)
    return guest


def wake(guest: Guest, deadline: Deadline, *, boot_id: str = "") -> None:
    """Set the guest's clock to our time of day, and give its kernel new random numbers.

    The clock is right to about a second. `GuestError` if one of them cannot be done, `InfraError`
    if the guest is not of the boot with this id.
    """
    seed = base64.b64encode(secrets.token_bytes(_SEED_BYTES)).decode()
    now = round(time.time())
    # Short enough to go along with the request to run it.
    command = f's={seed} n={now} i={boot_id};. "$KBOOT_DIR/wake"'
    try:
        guest.unrecorded().succeed(command, deadline=deadline)
    except CommandFailed as error:
        if error.result.exit_status == _ANOTHER_BOOT:
            raise InfraError(
                f"another machine was restored: its boot_id is not {boot_id}"
            ) from None
        raise GuestError(f"the guest cannot set clock and random numbers: {error}") from error
