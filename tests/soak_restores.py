"""Restores in a row, for a long time: ``python -m tests.soak_restores KERNEL.deb [COUNT]``.

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


def one(place: Place, name: str, boot_id: str, seen: set[str]) -> float:
    """Restore a machine and hold it to who it is; the seconds until it answered."""
    begin = time.monotonic()
    with place.restored(networked(place.kernel), name) as machine:
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
    package = Path(sys.argv[1])
    count = int(sys.argv[2]) if sys.argv[2:] else 500
    with (
        tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder,
        open_place(package, Path(folder)) as place,
    ):
        settings = networked(place.kernel)
        with place.machine(settings) as machine:
            place.snapshots.save(machine, settings)
            boot_id = machine.boot_id
        seen: set[str] = set()
        seconds = [one(place, f"warm{number}", boot_id, seen) for number in range(10)]
        before = Held.now(place)
        for number in range(count):
            seconds.append(one(place, f"soak{number}", boot_id, seen))
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
