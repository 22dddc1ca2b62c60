"""Many commands in a real guest whose kernel floods the console: none may come back wrong.

``python -m tests.soak_console KERNEL [COMMANDS]`` prints a tally; tests run a short version.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.errors import GuestError
from kboot.guest import Guest, log_in
from kboot.kernel import read_kernel
from kboot.process import spawn
from kboot.rootfs import tiny_initramfs
from tests.serial_lines import SocketStream

#: Without it the kernel drops most of what a program writes to /dev/kmsg.
KMSG_UNLIMITED = "printk.devkmsg=on"

FLOOD = "while :; do echo flood > /dev/kmsg; done"

#: Words that a kernel could print, or that look like the frames on the wire.
_WORDS = [
    "flood",
    "Kernel panic - not syncing:",
    "~1:2:0:0:3:1,1;",
    "BUG:",
    "aGVsbG8=",
    "ü",
    "'",
    "\n",
]


@contextlib.contextmanager
def machine(
    kernel: Path, record: Path, *, command_line: str = "", cpus: int = 1
) -> Iterator[Console]:
    """The console of a tiny guest that starts to boot, without firmware."""
    host, vm = socket.socketpair()
    arguments = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg", "-m", "256", "-smp", str(cpus)),
        *("-chardev", f"socket,id=serial,fd={vm.fileno()}", "-serial", "chardev:serial"),
        *("-kernel", str(read_kernel(kernel).image), "-initrd", str(tiny_initramfs())),
        *("-append", f"console=ttyS0 panic=-1 {command_line}"),
    ]
    record.mkdir(parents=True, exist_ok=True)
    with spawn(arguments, log=record / "qemu.log", pass_fds=[vm.fileno()]) as qemu:
        vm.close()

        def check() -> None:
            assert qemu.exit_status() is None, qemu.last_words()

        with Console(SocketStream(host), record=record, scanner=Scanner(), check=check) as console:
            yield console


def one_command(rng: random.Random) -> tuple[str, bytes, bytes, int]:
    """A command, and the output, errors and exit status it must have."""
    text = " ".join(rng.choices(_WORDS, k=rng.randint(0, 6)))
    size = rng.choice([0, 0, 0, 10, 500, 3000])
    status = rng.choice([0, 0, 1, 3, 255])
    errors = rng.choice(["", "an error"])
    command = (
        f"printf %s {shlex.quote(text)}; head -c {size} /dev/zero; "
        f"printf %s {shlex.quote(errors)} >&2; exit {status}"
    )
    return command, text.encode() + bytes(size), errors.encode(), status


def soak(guest: Guest, commands: int, *, seed: int) -> Counter[str]:
    """Run random commands; count the ones that were exact, wrong, or refused with GuestError."""
    rng = random.Random(seed)
    tally: Counter[str] = Counter(exact=0, wrong=0, refused=0)
    for number in range(commands):
        command, stdout, stderr, status = one_command(rng)
        try:
            result = guest.run(command, timeout=60)
        except GuestError as error:
            tally["refused"] += 1
            print(f"{number}: {error}", flush=True)
            continue
        got = (result.stdout_bytes, result.stderr_bytes, result.exit_status)
        tally["exact" if got == (stdout, stderr, status) else "wrong"] += 1
    return tally


def main(kernel: Path, commands: int, command_line: str, cpus: int) -> None:
    with (
        tempfile.TemporaryDirectory() as record,
        machine(kernel, Path(record), command_line=command_line, cpus=cpus) as console,
    ):
        guest = log_in(console, "root", "kboot", Deadline(120))
        guest.spawn(FLOOD)
        start = time.monotonic()
        tally = soak(guest, commands, seed=int(start))
        seconds = time.monotonic() - start
        print(f"{dict(tally)}: {commands} commands in {seconds:.0f} s", end=", ")
        print(f"{console.mark() / 1e6:.0f} MB of console")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 10_000,
        sys.argv[3] if len(sys.argv) > 3 else KMSG_UNLIMITED,
        int(sys.argv[4]) if len(sys.argv) > 4 else 1,
    )
