"""Debian systems in a fleet: ``python -m tests.soak_fleet_systems KERNEL.deb``.

Each role has its own disks and user data. The machines boot, and are restored in another fleet:
each has its name and its own instance-id, and a disk that no other one has written to. Names are
looked up where systemd-resolved runs (``control``), and by glibc's own resolver (``worker``). User
data that fails is blamed on its machine.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import GuestError
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.session import Session, open_session

ROLES = read_roles({"control": 1, "worker": 2})
_SYSTEM = "debian:bookworm+cloud-init,libnss-resolve"

USER_DATA = """\
## template: jinja
#cloud-config
write_files:
  - path: /root/name
    content: "{{ ds.meta_data.local_hostname }}\\n"
runcmd:
  - "echo ROLE $(hostname) >/root/ran"
"""
#: Debian 12 without systemd-resolved.
WITHOUT_RESOLVED = """\
  - systemctl disable --now systemd-resolved
  - "rm /etc/resolv.conf; echo nameserver 10.0.2.3 >/etc/resolv.conf"
"""
FAILS = "#cloud-config\nruncmd:\n  - exit 7\n"

DISK = "/dev/disk/by-id/virtio-data"

#: What finds 10.98.0.3 in every guest, ...
FINDS = (
    "getent hosts worker-2",
    "getent ahosts worker-2",
    "getent ahosts worker-2.fleet.internal",
    # ... also where /etc/hosts is not read.
    "getent -s dns ahosts worker-2",
    "getent -s dns ahosts worker-2.fleet.internal",
)


def configs(folder: Path, package: str) -> dict[str, Config]:
    """Those of both roles."""
    image = folder / "image.raw"
    image.write_bytes(b"the image's own\n".ljust(1 << 20, b"\0"))
    common = Config(
        kernel=package,
        accel="tcg",
        rootfs=_SYSTEM,
        memory_mib=1024,
        timeout_s=900,
        isolation="test",
    )
    found = {}
    for role, disk, more in (
        ("control", f"data={image}", ""),
        ("worker", "data=blank,size=64M", WITHOUT_RESOLVED),
    ):
        user_data = folder / f"{role}.yaml"
        user_data.write_text(USER_DATA.replace("ROLE", role) + more)
        found[role] = replace(common, disk=(disk,), cloud_init=user_data)
    return found


def look(fleet: Fleet) -> None:
    """Each is who it is, and has a disk of its own."""
    assert fleet.all.succeed("cat /root/name; hostname; cat /etc/hostname") == {
        name: f"{name}\n" * 3 for name in fleet.names
    }
    ran = {name: f"{name.partition('-')[0]} {name}\n" for name in fleet.names}
    assert fleet.all.succeed("cat /root/ran") == ran
    instances = fleet.all.succeed("cat /var/lib/cloud/data/instance-id")
    print("  instances:", *(each.strip() for each in instances.values()), flush=True)
    assert len(set(instances.values())) == len(fleet)
    before = fleet.all.succeed(f"head -c 16 {DISK} | tr -d '\\0'")
    assert before == {name: "" if "worker" in name else "the image's own\n" for name in fleet.names}
    fleet.all.succeed(f"hostname >{DISK}; sync; echo 3 >/proc/sys/vm/drop_caches")
    written = fleet.all.succeed(f"head -n 1 {DISK}")
    assert written == {name: f"{name}\n" for name in fleet.names}


def names(fleet: Fleet) -> None:
    """Who finds whom, and what is no name."""
    for member in ("control-1", "worker-1"):
        guest = fleet[member].guest
        for command in FINDS:
            begin = time.monotonic()
            done = guest.run(command)
            print(
                f"  {member}: {command}: {done.stdout.partition(chr(10))[0]!r}, exit status "
                f"{done.exit_status}, {time.monotonic() - begin:.1f} s",
                flush=True,
            )
            assert done.stdout.startswith("10.98.0.3"), (member, command, done)
        assert guest.run("getent ahosts worker-9.fleet.internal").exit_status == 2
    states = fleet.all.run("systemctl is-active systemd-resolved")
    assert {name: each.stdout.strip() for name, each in states.items()} == {
        "control-1": "active",
        "worker-1": "inactive",
        "worker-2": "inactive",
    }


def one(session: Session, roles: dict[str, Config]) -> None:
    """Start the fleet, look at it, end it."""
    begin = time.monotonic()
    with open_fleet(session, ROLES, roles) as fleet:
        restored = sum(machine.restored_from is not None for machine in fleet)
        print(
            f"{len(fleet)} machines up after {time.monotonic() - begin:.1f} s, "
            f"{restored} of them restored",
            flush=True,
        )
        look(fleet)
        names(fleet)
        fleet.check_reports()


def blame(session: Session, config: Config, folder: Path) -> None:
    """User data that fails."""
    user_data = folder / "fails.yaml"
    user_data.write_text(FAILS)
    roles = read_roles({"broken": 1})
    broken = {"broken": replace(config, cloud_init=user_data)}
    with (
        pytest.raises(GuestError, match=r"^broken-1: cloud-init: error") as raised,
        open_fleet(session, roles, broken),
    ):
        sys.exit("user data that fails has not failed")
    print(raised.value, flush=True)


def main() -> None:
    """Run it."""
    package = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as name:
        folder = Path(name)
        roles = configs(folder, package)
        image = folder / "image.raw"
        before = hashlib.sha256(image.read_bytes()).hexdigest()
        with open_session(roles["worker"], evidence=folder / "evidence") as session:
            for _ in range(2):
                one(session, roles)
            blame(session, roles["control"], folder)
        assert hashlib.sha256(image.read_bytes()).hexdigest() == before, "the image was written to"


if __name__ == "__main__":
    main()
