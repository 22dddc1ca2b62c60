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

from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError
from kboot.guest.agent import AgentState, ShellAgent
from kboot.guest.guest import Guest
from kboot.guest.history import CommandHistory
from kboot.guest.login import agent_text

#: At least 32 bytes of standard input become 256 bits of the kernel's entropy (random(4)), and its
#: generator starts anew from them. The exit status is 0, the errno of the reseeding, or 1.
_LISTING = """
    48 83 ec 78           sub  rsp, 120             ; a struct rand_pool_info
    31 c0                 xor  eax, eax             ; read(0, rsp + 8, 64)
    31 ff                 xor  edi, edi
    48 8d 74 24 08        lea  rsi, [rsp + 8]
    6a 40                 push 64
    5a                    pop  rdx
    0f 05                 syscall
    83 f8 20              cmp  eax, 32
    7c 47                 jl   fail
    89 44 24 04           mov  [rsp + 4], eax       ; buf_size
    c7 04 24 00 01 00 00  mov  dword [rsp], 256     ; entropy_count
    48 8d 3d 3a 00 00 00  lea  rdi, [rip + path]    ; open(path, O_RDONLY)
    31 f6                 xor  esi, esi
    6a 02                 push 2
    58                    pop  rax
    0f 05                 syscall
    85 c0                 test eax, eax
    78 2a                 js   fail
    89 c3                 mov  ebx, eax
    89 df                 mov  edi, ebx             ; ioctl(fd, RNDADDENTROPY, rsp)
    be 03 52 08 40        mov  esi, 0x40085203
    48 89 e2              mov  rdx, rsp
    6a 10                 push 16
    58                    pop  rax
    0f 05                 syscall
    85 c0                 test eax, eax
    75 15                 jnz  fail
    89 df                 mov  edi, ebx             ; ioctl(fd, RNDRESEEDCRNG)
    be 07 52 00 00        mov  esi, 0x5207
    6a 10                 push 16
    58                    pop  rax
    0f 05                 syscall
    f7 d8                 neg  eax                  ; exit(errno)
    89 c7                 mov  edi, eax
    6a 3c                 exit: push 60
    58                    pop  rax
    0f 05                 syscall
    6a 01                 fail: push 1
    5f                    pop  rdi
    eb f6                 jmp  exit
"""
_PATH = b"/dev/urandom\0"

_ADDRESS = 0x400000
_HEADER_SIZE = 64
_SEGMENT_SIZE = 56
_X86_64 = 62


def reseed_program() -> bytes:
    """The program, a static ELF executable for x86_64 of 232 bytes."""
    columns = (line.strip().partition("  ")[0] for line in _LISTING.strip().splitlines())
    body = bytes.fromhex("".join(columns)) + _PATH
    before = _HEADER_SIZE + _SEGMENT_SIZE
    size = before + len(body)
    identification = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bits, little-endian, version 1
    header = identification + struct.pack(
        "<HHIQQQIHHHHHH",
        *(2, _X86_64, 1, _ADDRESS + before, _HEADER_SIZE, 0, 0),
        *(_HEADER_SIZE, _SEGMENT_SIZE, 1, 0, 0, 0),
    )
    readable_and_executable = 5
    segment = struct.pack(
        "<IIQQQQQQ", 1, readable_and_executable, 0, _ADDRESS, _ADDRESS, size, size, 0x1000
    )
    return header + segment + body


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
    guest.unrecorded().succeed(
        f"printf '{octal}' >{_PROGRAM} && chmod 700 {_PROGRAM}", deadline=deadline
    )
    wake(guest, deadline)
    return dataclasses.asdict(guest.runner.state)


def resume(
    console: Console,
    state: Mapping[str, Any],
    deadline: Deadline,
    *,
    history: CommandHistory | None = None,
) -> tuple[Guest, str]:
    """The guest that `prepare` was called for, on the console of a machine that goes on from there.

    And its boot_id. `GuestError` if it does not answer.
    """
    guest = Guest(ShellAgent.resumed(console, AgentState(**state)), history=history)
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
        return guest.unrecorded().succeed(command, deadline=deadline).strip()
    except CommandFailed as error:
        raise GuestError(f"the guest cannot set clock and random numbers: {error}") from error
