"""Debian from its own disk: ``python -m tests.soak_boot_disk DISK.qcow2 KERNEL.deb``.

The disk is what `tests.debian_disk` makes. It boots by a BIOS and by UEFI with cloud-init's data on
a NoCloud disk, is saved, restored, made to panic; then the pushed kernel boots with its root there.
The disk is never written to. Figures are printed.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kboot.config import Config
from kboot.machine import Machine
from kboot.session import Session, open_session

USER_DATA = """\
#cloud-config
write_files:
  - path: /root/made
    content: "by cloud-init\\n"
runcmd:
  - [sh, -c, "echo ran >/root/ran"]
"""
LOOK = (
    "cat /root/made /root/ran; cat /proc/1/comm; hostname; findmnt -n -o FSTYPE /;"
    "ls /root/mark 2>/dev/null; echo >/root/mark; sync"
)


def look(machine: Machine) -> None:
    """Hold the guest to what is on the disk, and to what cloud-init was asked for."""
    answer = machine.guest.succeed(LOOK).split("\n")
    assert answer == ["by cloud-init", "ran", "systemd", "kboot", "ext4", ""], answer


def own(session: Session) -> None:
    """Boot what is on the disk, save and restore it, and have it panic."""
    settings = session.settings(session.config)
    begin = time.monotonic()
    machine = session.machine(settings, name="boot")
    booted_s = time.monotonic() - begin
    phases = ", ".join(f"{name} {took:.1f}" for name, took in machine.boot.durations_s().items())
    print(f"{settings.spec.firmware}: Linux {machine.kernel.release}: {phases}", flush=True)
    look(machine)
    seconds = []
    for number in range(5):
        session.power_off()
        begin = time.monotonic()
        machine = session.machine(settings, name=f"restored{number}")
        seconds.append(time.monotonic() - begin)
        assert machine.restored_from
        look(machine)
    assert machine.channels.has_ssh
    restored_s = statistics.median(seconds)
    print(f"  booted in {booted_s:.1f} s, restored in {restored_s:.2f} s", flush=True)
    with machine.expect_crash("panic") as crash:
        machine.guest.succeed("sysctl -q kernel.panic=1")
        machine.panic()
    begin = time.monotonic()
    machine.wait_for_reboot(timeout=600)
    print(f"  {crash.report.title}; back after {time.monotonic() - begin:.1f} s", flush=True)


def mixed(session: Session) -> None:
    """A pushed kernel, with its root on the disk."""
    machine = session.machine(session.settings(session.config), name="mixed")
    answer = machine.guest.succeed("uname -r; findmnt -n -o FSTYPE /; modprobe loop; lsmod")
    release, fs, *modules = answer.splitlines()
    assert (release, fs) == (machine.kernel.release, "ext4")
    assert any(line.startswith("loop ") for line in modules)
    print(f"pushed {release}, root on the disk: up in {machine.boot.durations_s()}", flush=True)


def main() -> None:
    """Run it."""
    disk, kernel = (Path(each).resolve() for each in sys.argv[1:3])
    before = hashlib.sha256(disk.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder:
        user_data = Path(folder, "user-data")
        user_data.write_text(USER_DATA)
        for firmware in ("bios", "uefi"):
            config = Config(
                boot="disk",
                rootfs=str(disk),
                firmware=firmware,
                cloud_init=user_data,
                memory_mib=1024,
                timeout_s=900,
                accel="tcg",
            )
            with open_session(config, evidence=Path(folder, firmware)) as session:
                own(session)
        config = Config(
            kernel=str(kernel),
            rootfs=str(disk),
            modules="loop",
            memory_mib=1024,
            timeout_s=900,
            accel="tcg",
            channel="console",
        )
        with open_session(config, evidence=Path(folder, "mixed")) as session:
            mixed(session)
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == before, "the disk was written to"


if __name__ == "__main__":
    main()
