"""Commands by ssh, in a real guest with a real ssh server."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError, GuestTimeout
from kboot.guest import Guest
from kboot.guest.ssh import SshRunner, authorized_key, connect
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, open_backend, power_on, settings_for
from kboot.rootfs import module_initramfs, overlay_initramfs

DROPBEAR = Path("/usr/sbin/dropbear")


def server_overlay(place: Path) -> Path:
    """Debian's dropbear with all it needs, started when the guest has an address."""
    key = place / "hostkey"
    subprocess.run(["dropbearkey", "-t", "ecdsa", "-f", key], check=True, capture_output=True)
    listing = subprocess.run(["ldd", DROPBEAR], check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", listing)
    files: dict[str, bytes | Path] = {library: Path(library) for library in libraries}
    # The tiny system has no dynamic programs, and so no place for their loader.
    script = b"""#!/bin/sh
. /usr/libexec/kboot/dhcp-of-kboot "$@"
[ "$1" = bound ] && ln -s usr/lib64 /lib64 && dropbear -r /etc/hostkey
"""
    dhcp = Path("kboot/rootfs/tiny_files/usr/libexec/kboot/dhcp")
    return overlay_initramfs(
        {
            **files,
            "/usr/sbin/dropbear": DROPBEAR,
            "/etc/hostkey": key,
            "/etc/kboot/network": b"",
            "/usr/libexec/kboot/dhcp-of-kboot": Path(__file__).parent.parent / dhcp,
            "/usr/libexec/kboot/dhcp": script,
        }
    )


@pytest.fixture(scope="module")
def ssh_kernel(debian_kernel: Path) -> Kernel:
    return read_kernel(debian_kernel)


@pytest.fixture(scope="module")
def machine(ssh_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    place = tmp_path_factory.mktemp("ssh")
    initrds = (module_initramfs(ssh_kernel, ["e1000e"]), server_overlay(place))
    config = Config(accel="tcg", firmware_start="saved", channel="ssh", initrd=initrds)
    with (
        open_backend(config) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend,
            server,
            ssh_kernel,
            settings_for(ssh_kernel, config),
            evidence_directory=place / "evidence",
        ) as vm,
    ):
        vm.wait_until_ready()
        yield vm


@pytest.fixture
def guest(machine: Machine) -> Guest:
    assert isinstance(machine.guest.runner, SshRunner)
    return machine.guest


def test_output_and_exit_status_are_exact(guest: Guest) -> None:
    result = guest.run(r"printf 'out\000\377'; printf err >&2; exit 3")
    assert (result.stdout_bytes, result.stderr_bytes) == (b"out\0\xff", b"err")
    assert result.exit_status == 3
    assert guest.run("kill -9 $$").exit_status == 137
    assert guest.run("kill -TERM $$").exit_status == 143
    assert guest.run("cat; pwd").stdout == "/root\n"


def test_a_lot_of_output_and_a_long_command_arrive_whole(guest: Guest) -> None:
    text = "x" * 300_000
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert guest.succeed(f"printf %s {text} | sha256sum").split()[0] == digest
    data = guest.run("seq 200000; seq 100000 >&2")
    assert data.stdout == "".join(f"{number}\n" for number in range(1, 200_001))
    assert len(data.stderr_bytes) == 588_895


def test_a_command_with_no_end_is_killed_with_all_it_started(guest: Guest) -> None:
    with pytest.raises(GuestTimeout, match="'begun\\\\n'"):
        guest.run("echo begun; sleep 1234 & sleep 1234", timeout=1)
    assert "1234" not in guest.succeed("ps -o args | grep '^sleep' || true")


def test_what_a_command_leaves_in_the_background_does_not_hold_it_up(guest: Guest) -> None:
    assert guest.run("sleep 4321 & echo done", timeout=10).stdout == "done\n"
    guest.run("killall sleep")


def test_commands_run_in_the_background(guest: Guest) -> None:
    job = guest.spawn("sleep 1; echo late; exit 7")
    assert guest.succeed("echo meanwhile") == "meanwhile\n"
    result = job.wait(timeout=20)
    assert (result.stdout, result.exit_status) == ("late\n", 7)


def test_files_go_both_ways(guest: Guest, tmp_path: Path) -> None:
    sent = tmp_path / "sent file"
    sent.write_bytes(random.Random(1).randbytes(2_000_000))
    sent.chmod(0o750)
    guest.put(sent, "/tmp/its name", timeout=60)
    assert guest.succeed("stat -c %a '/tmp/its name'") == "750\n"
    guest.get("/tmp/its name", tmp_path / "back", timeout=60)
    assert (tmp_path / "back").read_bytes() == sent.read_bytes()
    with pytest.raises(GuestError, match=r"cannot write /nowhere/file: .*nonexistent directory"):
        guest.put(sent, "/nowhere/file", timeout=10)
    with pytest.raises(CommandFailed):
        guest.get("/nowhere/file", tmp_path / "back", timeout=10)


def test_the_serial_line_is_left_to_the_kernel(machine: Machine) -> None:
    start = machine.console.mark()
    machine.guest.succeed("echo by ssh; echo by printk >/dev/kmsg")
    machine.console.expect("by printk", timeout=10, since=start)
    assert b"by ssh" not in machine.console.raw(start)


def test_a_user_without_our_key_is_refused(machine: Machine) -> None:
    host, port = machine.vm.ssh_address()  # type: ignore[attr-defined]
    with pytest.raises(GuestError, match="refuses our key for 'nobody'"):
        connect(host, port, "nobody", Deadline(20))


def test_where_nobody_listens_is_told_in_time() -> None:
    with pytest.raises(GuestTimeout, match=r"no server in the guest in 1 s: .*refused"):
        connect("127.0.0.1", 1, "root", Deadline(1))


def test_our_key_stays_the_same() -> None:
    assert authorized_key() == authorized_key()
    assert authorized_key().startswith("ecdsa-sha2-nistp256 ")


def test_a_panic_ends_a_command_and_ssh_is_back_after_the_reboot(machine: Machine) -> None:
    with machine.expect_crash("panic", match="sysrq triggered"):
        machine.guest.run("sleep 1; echo c >/proc/sysrq-trigger; sleep 100", timeout=90)
    machine.wait_for_reboot()
    assert isinstance(machine.guest.runner, SshRunner)
    assert machine.guest.succeed("echo back") == "back\n"
