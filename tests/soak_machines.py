"""A persistent machine, for a long time: ``python -m tests.soak_machines KERNEL [ROUNDS]``.

Restarts in a loop whose counts are known, readers that come and go, and pushes that are killed.
Nothing may grow, be lost, or keep the machine from booting. Tests run the parts in short.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot.rootfs import overlay_initramfs, tiny_initramfs
from kboot.state import RUN_VARIABLE
from kboot.statistics import wilson
from kboot.supervisor.client import attach
from tests.users import User

# Of the guest's first programs: it panics with 51 of 256 nonces, one boot in five.
DIES_ONE_TIME_IN_FIVE = b"""#!/bin/sh
read -r line < /proc/cmdline
nonce=${line#*kboot.nonce=}
case $nonce in
[0-2]* | 3[0-2]*) echo c > /proc/sysrq-trigger ;;
esac
exec /usr/bin/busybox init
"""
_DYING = 51

#: A multiple of 4: the kernel looks for another archive there.
_LARGE = 300_000_000

#: What the first boots fill: caches, buffers.
_WARM_UP = 5
#: Per boot: its lines, its times and its fetches are kept in memory, up to a limit.
_KIB_PER_BOOT = 1024


def dies(nonce: str) -> bool:
    """Whether the kernel panics in a boot with this nonce."""
    return int(nonce[:2], 16) < _DYING


def dying_image(user: User) -> Path:
    """The tiny system, dying one time in five."""
    image = user.home / "dying.cpio"
    dying = overlay_initramfs({"/sbin/init": DIES_ONE_TIME_IN_FIVE})
    image.write_bytes(tiny_initramfs().read_bytes() + dying.read_bytes())
    return image


def large_image(user: User) -> Path:
    """A root file system of 300 MB that boots; the kernel passes over zeros at its end."""
    path = user.home / "large.cpio"
    path.write_bytes(tiny_initramfs().read_bytes())
    change(path)
    return path


def change(large: Path) -> None:
    """Make the large image another one, of the same size."""
    os.truncate(large, _LARGE)
    tail = overlay_initramfs({"/root/stamp": os.urandom(16)})
    with large.open("r+b") as file:
        file.seek(_LARGE)
        file.write(tail.read_bytes())
    tail.unlink()


def check_counts(report: dict[str, Any], boots: int) -> None:
    """What a loop has counted is what the nonces say has happened, under one title."""
    numbered = list(enumerate(report["boots"], 1))
    failed = [number for number, boot in numbered if boot["error"]]
    truth = [number for number, boot in numbered if dies(boot["nonce"])]
    summary = report["summary"]
    assert (len(numbered), summary["boots"]) == (boots, boots)
    assert failed == truth
    assert summary["failures"] == len(truth)
    assert (summary["low"], summary["high"]) == wilson(len(truth), boots)
    assert [each["boots"] for each in summary["clusters"]] == ([truth] if truth else [])
    assert all("sysrq" in each["failure"].lower() for each in summary["clusters"])


# ------------------------------------------------------------------------------------------ leaks


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a supervisor and its children hold."""

    descriptors: int
    threads: int
    processes: int
    files: int
    resident_kib: int


def held(user: User, machine: str) -> Held:
    """Look at a supervisor from outside."""
    # It may have crashed in its last boot, and the command says so by its exit code.
    status = json.loads(user.try_("status", machine, "--json").stdout)
    # A connection that has just been closed is a thread for a moment longer.
    time.sleep(1)
    processes = [status["pid"], *_descendants(status["pid"])]
    machine_directories = [
        Path(status["evidence"]),
        Path(user.environ["XDG_STATE_HOME"], "kboot", "machines", machine),
        *(_runs_of(processes)),
    ]
    files = [file for place in machine_directories for file in place.rglob("*") if file.is_file()]
    own = Path(f"/proc/{status['pid']}")
    lines = (own / "status").read_text(encoding="ascii").splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return Held(
        descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes),
        threads=len(list((own / "task").iterdir())),
        processes=len(processes),
        files=sum(not file.name.startswith("failed-") for file in files),
        resident_kib=resident,
    )


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text(encoding="ascii").split()):
            yield child
            yield from _descendants(child)


def _runs_of(processes: list[int]) -> set[Path]:
    """The run directories that children name."""
    found = set()
    for pid in processes[1:]:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        prefix = f"{RUN_VARIABLE}=".encode()
        found |= {Path(os.fsdecode(e[len(prefix) :])) for e in environ if e.startswith(prefix)}
    return found


def restart_many_times(user: User, machine: str, boots: int) -> dict[str, Any]:
    """A loop with failures that are known; nothing of the supervisor grows."""
    user.type("push", machine, str(dying_image(user)))
    user.try_("restart", machine, "--count", str(_WARM_UP), limit_s=3600)
    before = held(user, machine)
    user.try_("restart", machine, "--count", str(boots), "--json", "boots.json", limit_s=36000)
    after = held(user, machine)
    report: dict[str, Any] = user.report("boots.json")
    check_counts(report, boots)
    print(f"{boots} restarts: {before} -> {after}", flush=True)
    for name in ("descriptors", "threads", "processes", "files"):
        # A crash may leave the machine in the middle of its reboot, and a thread at work on it.
        assert getattr(after, name) <= getattr(before, name) + 2, f"{name}: {before} -> {after}"
    grown = after.resident_kib - before.resident_kib
    assert grown < _KIB_PER_BOOT * boots, f"{grown} KiB more memory"
    return report


# ---------------------------------------------------------------------------------------- readers


class _Reader(threading.Thread):
    """Reads from one position on, until the machine is told to be done."""

    def __init__(self, machine: str, since: int) -> None:
        super().__init__(daemon=True)
        self._machine = machine
        self.since = since
        self.seen = bytearray()

    def run(self) -> None:
        with attach(self._machine, since=self.since) as line:
            for data in line.pieces():
                self.seen += data


def read_while_it_boots(
    user: User, machine: str, *, cycles: int, boots: int, seed: int = 5
) -> None:
    """Readers attach, read a little or nothing, and drop, while the machine boots in a loop.

    Each must have got every byte from where it asked; those that stayed have all of them.
    """
    rng = random.Random(seed)
    begin = user.ask("status", machine)["console_bytes"]
    staying = [_Reader(machine, since) for since in (0, begin // 2, begin)]
    for reader in staying:
        reader.start()
    loop = subprocess.Popen(
        user.command("restart", machine, "--count", str(boots)),
        env=user.environ,
        stdout=subprocess.DEVNULL,
    )
    pieces: list[tuple[int, bytes]] = []
    try:
        while len(pieces) < cycles or loop.poll() is None:
            pieces.append(_read_once(machine, rng))
            # Spread over the boots, as far as they can be foreseen.
            time.sleep(rng.uniform(0, 0.1) if len(pieces) < cycles else 0.5)
    finally:
        loop.wait()
    status = user.ask("status", machine)
    record = Path(status["evidence"], "serial.log").read_bytes()
    for offset, seen in pieces:
        assert record[offset:].startswith(seen), f"another text from byte {offset} on"
    assert sum(len(seen) for _, seen in pieces) > 0
    _wait_for(staying, status["console_bytes"])
    record = Path(status["evidence"], "serial.log").read_bytes()
    for reader in staying:
        assert record[reader.since :].startswith(bytes(reader.seen))
    print(f"{len(pieces)} readers came and went in {boots} boots", flush=True)


def _read_once(machine: str, rng: random.Random) -> tuple[int, bytes]:
    """Attach somewhere, read some pieces, none, or all there is, and drop the line."""
    position = rng.choice(["start", "boot", "now", rng.randrange(100_000)])
    seen = b""
    with attach(machine, since=position) as line:
        line.wire.socket.settimeout(2)
        wanted = rng.choice([0, 1, 5000, line.size - line.offset])
        while len(seen) < min(wanted, line.size - line.offset):
            seen += line.wire.take_rest() or line.wire.socket.recv(rng.choice([100, 65536]))
        return line.offset, seen


def _wait_for(readers: list[_Reader], end: int) -> None:
    limit = time.monotonic() + 20
    while any(reader.since + len(reader.seen) < end for reader in readers):
        assert time.monotonic() < limit, "a reader that stayed has not got all"
        time.sleep(0.05)


# ----------------------------------------------------------------------------------------- pushes


def kill_a_push(user: User, machine: str, file: Path, after_s: float) -> None:
    """Push a file that has to be sent, and kill who asked for it."""
    change(file)
    child = subprocess.Popen(
        user.command("push", machine, str(file)),
        env=user.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    child.wait()


def kill_a_supervisor_that_reads(user: User, machine: str, file: Path, after_s: float) -> str:
    """Kill the supervisor in the middle of a push; what the command says then."""
    pid = user.ask("status", machine)["pid"]
    change(file)
    with subprocess.Popen(
        user.command("push", machine, str(file)),
        env=user.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        said = child.communicate(timeout=60)[0]
    return said.strip().rpartition("\n")[2]


def kill_pushes(user: User, kernel: Path, machine: str, rounds: int) -> None:
    """Kill either side of a push at random points; the machine boots each time."""
    rng = random.Random(20)
    large = large_image(user)
    for number in range(rounds):
        kill_a_push(user, machine, large, rng.uniform(0.1, 1))
        assert user.ask("restart", machine)["error"] is None
        user.type("pushes", "gc", machine, "--keep", "0")
        said = kill_a_supervisor_that_reads(user, machine, large, rng.uniform(0.1, 1))
        assert "push" in said or f"machine {machine} has ended" in said, said
        user.type("up", machine, "--kernel", str(kernel))
        print(f"killed {number + 1}: {said}", flush=True)


def main() -> None:
    """Run it."""
    kernel = Path(sys.argv[1]).absolute()
    rounds = int(sys.argv[2]) if sys.argv[2:] else 20
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as home:
        user = User(Path(home))
        os.environ["XDG_STATE_HOME"] = user.environ["XDG_STATE_HOME"]
        user.type("up", "soak", "--kernel", str(kernel))
        try:
            read_while_it_boots(user, "soak", cycles=5 * rounds, boots=max(1, rounds // 5))
            kill_pushes(user, kernel, "soak", rounds)
            boots = 5 * rounds // 2
            summary = restart_many_times(user, "soak", boots)["summary"]
        finally:
            user.try_("down", "--all")
        assert json.loads(user.type("list", "--json")) == []
    # 95 % would be wrong in one soak of twenty.
    error = 4 * (0.2 * 0.8 / boots) ** 0.5
    assert summary["low"] - error < _DYING / 256 < summary["high"] + error
    print(f"{summary['failures']} of {boots} boots failed, one in five was to be expected")


if __name__ == "__main__":
    main()
