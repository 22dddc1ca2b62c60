"""Restores in a row, for long: ``python -m tests.soak_restores KERNEL.deb [COUNT] [disks]``.

Every one must be the machine that was booted, untouched, with random numbers of its own, and
nothing may grow: neither descriptors, nor memory, nor threads, nor processes, nor files.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path

from kboot import state
from kboot.config import Config
from kboot.kernel import Kernel
from kboot.machine import MachineSettings, settings_for
from kboot.rootfs import overlay_initramfs
from tests.saved_machines import Place, networked, open_place


@dataclass(frozen=True, slots=True)
class Held:
    """What must not become more with every machine."""

    descriptors: int
    threads: int
    #: Children of this process.
    processes: int
    #: In the run directories and in the store; not the evidence, which is to stay.
    files: int
    resident_kib: int

    @classmethod
    def now(cls, place: Place) -> Held:
        """By this process at the moment, while no machine is on."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        places = (state.runs_directory(), place.directory / "store")
        return cls(
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            threads=threading.active_count(),
            processes=len(children.split()),
            files=sum(1 for each in places for path in each.rglob("*") if path.is_file()),
            resident_kib=int(resident.split()[1]),
        )

    def growth_since(self, before: Held, machines: int) -> list[str]:
        """What has grown; in words, and nothing for what may."""
        # The access log and its fetches are kept; 20 KiB for each machine is more than that. And
        # each has a boot script on the server.
        allowed = {"resident_kib": 20 * machines + 8192, "files": machines}
        return [
            f"{field.name}: {was} -> {now}"
            for field in fields(self)
            if (now := getattr(self, field.name))
            > (was := getattr(before, field.name)) + allowed.get(field.name, 0)
        ]


DISK = "/dev/disk/by-id/virtio-data"
#: What is on the disk when the machine is saved, and a check of all of it.
FILL = f"dd if=/dev/urandom of={DISK} bs=1M count=8 2>/dev/null; sync"
CHECK = f"dd if={DISK} bs=1M count=8 2>/dev/null | sha256sum"
#: What a machine leaves that no other one may see.
SPOIL = f"dd if=/dev/urandom of={DISK} bs=1M count=2 seek=3 2>/dev/null; sync"


def with_disk(kernel: Kernel) -> MachineSettings:
    """As `networked`, with a disk of 2 GiB."""
    network = overlay_initramfs({"/etc/kboot/network": b""})
    config = Config(disk=("data=blank,size=2G",), module=("e1000e",), initrd=(network,))
    return settings_for(kernel, config)


def check_disk(place: Place, settings: MachineSettings, name: str, expected: str) -> None:
    """Restore a machine once more: each byte of its disk is as it was; it then spoils some."""
    with place.restored(settings, name) as machine:
        assert machine.guest.succeed(CHECK) == expected, "the disk was touched"
        machine.guest.succeed(SPOIL)


def one(place: Place, settings: MachineSettings, name: str, boot_id: str, seen: set[str]) -> float:
    """Restore a machine and hold it to who it is; the seconds until it answered."""
    begin = time.monotonic()
    with place.restored(settings, name) as machine:
        answer = machine.guest.succeed(
            "cat /proc/sys/kernel/random/boot_id; ls /root; date +%s; "
            "head -c 16 /dev/urandom | md5sum; echo mine >/root/mark"
        ).split()
        seconds = time.monotonic() - begin
        found, now, drawn = answer[0], int(answer[1]), answer[2]
        assert len(answer) == 4, f"the machine was touched: {answer}"
        assert found == boot_id, f"another machine: {found}"
        assert abs(now - time.time()) < 3, f"its clock is wrong by {now - time.time():.0f} s"
        assert drawn not in seen, "random numbers for the second time"
        seen.add(drawn)
        assert not machine.console.reports
    return seconds


def main() -> None:
    """Run it."""
    arguments = [word for word in sys.argv[1:] if word != "disks"]
    package, disks = Path(arguments[0]), "disks" in sys.argv
    count = int(arguments[1]) if arguments[1:] else 500
    with (
        tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder,
        open_place(package, Path(folder)) as place,
    ):
        settings = with_disk(place.kernel) if disks else networked(place.kernel)
        content = ""
        with place.machine(settings) as machine:
            if disks:
                content = machine.guest.succeed(f"{FILL}; {CHECK}")
            place.snapshots.save(machine, settings)
            boot_id = machine.boot_id
        seen: set[str] = set()
        seconds = [one(place, settings, f"warm{number}", boot_id, seen) for number in range(10)]
        before = Held.now(place)
        for number in range(count):
            if disks:
                check_disk(place, settings, f"soak{number}", content)
            else:
                seconds.append(one(place, settings, f"soak{number}", boot_id, seen))
            if number % 50 == 49:
                median = statistics.median(seconds)
                print(f"{number + 1}: {median:.3f} s, {Held.now(place)}", flush=True)
        after = Held.now(place)
    print(f"{count} restores, median {statistics.median(seconds):.3f} s, none wrong")
    print(f"before: {before}\nafter:  {after}")
    if growth := after.growth_since(before, count):
        sys.exit(f"grown: {', '.join(growth)}")


if __name__ == "__main__":
    main()
