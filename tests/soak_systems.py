"""Real Debian systems, from packages to ready: ``python -m tests.soak_systems KERNEL.deb...``.

The systems of Debian 12 and 13 are made (or taken from the cache). Each boots with each of these
kernels, its own and foreign ones, with cloud-init, is saved, and restored; figures are printed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kboot.config import Config
from kboot.machine import Machine, settings_for
from kboot.rootfs import debian_initramfs, read_debian
from tests.saved_machines import Place, open_place

USER_DATA = """\
#cloud-config
write_files:
  - path: /root/made
    content: "by cloud-init\\n"
runcmd:
  - [sh, -c, "echo ran >/root/ran"]
"""


def look(machine: Machine, suite: str) -> None:
    """Hold the guest to what was asked for."""
    answer = machine.guest.succeed(
        ". /etc/os-release; echo $VERSION_CODENAME; cat /root/made /root/ran; uname -r;"
        "cat /proc/1/comm; ls /root/mark 2>/dev/null; echo >/root/mark"
    )
    expected = [suite, "by cloud-init", "ran", machine.kernel.release, "systemd"]
    assert answer.splitlines() == expected, answer


def make(suite: str) -> None:
    """Make one system, if it is not there; what it takes, others at work or not."""
    begin, before = time.monotonic(), os.times()
    image = debian_initramfs(read_debian(f"debian:{suite}+cloud-init"), print)
    after = os.times()
    cpu_s = sum(after[:4]) - sum(before[:4])
    print(
        f"{suite}: {image.stat().st_size >> 20} MiB, {time.monotonic() - begin:.1f} s to make it, "
        f"{cpu_s:.1f} s of CPU",
        flush=True,
    )


def one(place: Place, suite: str, user_data: Path) -> None:
    """Boot, save and restore one system."""
    config = Config(
        rootfs=f"debian:{suite}+cloud-init",
        memory_mib=1536,
        timeout_s=900,
        cloud_init=user_data,
        disk=("data=blank,size=2G",),
        channel="console",
    )
    settings = settings_for(place.kernel, config).named(suite)
    begin = time.monotonic()
    with place.machine(settings) as machine:
        booted_s = time.monotonic() - begin
        place.snapshots.save(machine, settings)
        look(machine, suite)
    seconds = []
    for number in range(10):
        begin = time.monotonic()
        with place.restored(settings, f"{suite}{number}") as machine:
            seconds.append(time.monotonic() - begin)
            look(machine, suite)
    restored_s = statistics.median(seconds)
    print(
        f"{suite} with Linux {place.kernel.release}: booted in {booted_s:.1f} s, restored in "
        f"{restored_s:.2f} s (median of 10), 1/{booted_s / restored_s:.0f}",
        flush=True,
    )


def main() -> None:
    """Run it."""
    suites = ("bookworm", "trixie")
    for suite in suites:
        make(suite)
    for package in sys.argv[1:]:
        with (
            tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder,
            open_place(Path(package), Path(folder)) as place,
        ):
            user_data = Path(folder, "user-data")
            user_data.write_text(USER_DATA)
            for suite in suites:
                one(place, suite, user_data)


if __name__ == "__main__":
    main()
