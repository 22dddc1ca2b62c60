"""Restores in a row, for a long time: ``python -m tests.soak_restores KERNEL.deb [COUNT]``.

Every one must be the machine that was booted, untouched, with random numbers of its own, and
nothing may grow: neither descriptors, nor memory, nor threads, nor processes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.saved_machines import Place, networked, open_place


def held() -> tuple[int, int, int]:
    """Descriptors, threads and resident KiB of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return descriptors, threading.active_count(), int(resident.split()[1])


def one(place: Place, name: str, boot_id: str, seen: set[str]) -> float:
    """Restore a machine and hold it to who it is; the seconds until it answered."""
    begin = time.monotonic()
    with place.restored(networked(place.kernel), name) as boot:
        answer = boot.guest.succeed(
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
        assert not boot.console.reports
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
        with place.booted(settings) as boot:
            place.snapshots.save(boot, settings)
            boot_id = boot.boot_id
        seen: set[str] = set()
        seconds = [one(place, f"warm{number}", boot_id, seen) for number in range(10)]
        before = held()
        for number in range(count):
            seconds.append(one(place, f"soak{number}", boot_id, seen))
            if number % 50 == 49:
                print(
                    f"{number + 1}: {statistics.median(seconds):.3f} s, held {held()}", flush=True
                )
        after = held()
    assert after[:2] == before[:2], f"descriptors or threads grew: {before} -> {after}"
    # The access log and its fetches are kept; 20 KiB for each machine is more than that.
    assert after[2] - before[2] < 20 * count + 8192, f"memory grew: {before} -> {after} KiB"
    print(f"{count} restores, median {statistics.median(seconds):.3f} s, {before} -> {after}")


if __name__ == "__main__":
    main()
