"""The kernel engineer's loop, whole: up, push, restart, panic, console, down."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.deadline import Deadline
from kboot.rootfs import overlay_initramfs, tiny_initramfs
from tests.test_machines import User

# Of the guest's first programs: the kernel that has drawn one of these boot_ids dies at once.
DIES_EVERY_OTHER_TIME = b"""#!/bin/sh
read -r id < /proc/sys/kernel/random/boot_id
case $id in
[0-7]*) echo c > /proc/sysrq-trigger ;;
esac
exec /usr/bin/busybox init
"""


@pytest.fixture(scope="session")
def second_kernel() -> Path:
    """Another real kernel; ``make test`` fetches it."""
    path = Path(__file__).parent.parent / "build" / "kernel" / "cloud.deb"
    if not path.is_file():
        pytest.fail(f"no kernel at {path}: run make {path}")
    return path


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    someone = User(tmp_path_factory.mktemp("home"))
    yield someone
    someone.try_("down", "--all")


@pytest.fixture(scope="module")
def machine(user: User, debian_kernel: Path) -> Iterator[str]:
    user.type("up", "lab", "--kernel", str(debian_kernel))
    yield "lab"
    user.type("down", "lab")
    assert user.ask("list") == []
    assert list((user.home / "state" / "kboot" / "machines").iterdir()) == []


def uname(user: User, machine: str) -> str:
    return user.type("run", "-n", machine, "--", "uname", "-r").strip()


def test_the_whole_loop_with_two_kernels(user: User, machine: str, second_kernel: Path) -> None:
    first = uname(user, machine)
    pushed = user.ask("push", "-n", machine, str(second_kernel))
    assert pushed["release"] != first
    # What runs is as it was, until it restarts.
    assert uname(user, machine) == first
    outcome = user.ask("restart", machine)
    assert outcome["release"] == pushed["release"] == uname(user, machine)
    assert f"Linux version {pushed['release']}" in user.type("logs", machine, "--since", "boot")
    crashed = user.ask("panic", machine)
    assert "sysrq" in crashed["crash"].lower()
    assert uname(user, machine) == pushed["release"]
    user.type("push", "-n", machine, "--rollback")
    user.type("reset", machine)
    assert uname(user, machine) == first


def test_a_file_goes_in_and_comes_out_as_it_was(user: User, machine: str) -> None:
    (user.home / "in").write_bytes(bytes(range(256)) * 40)
    user.type("put", "-n", machine, "in", "/root/there")
    user.type("get", "-n", machine, "/root/there", "out")
    assert (user.home / "out").read_bytes() == (user.home / "in").read_bytes()


def test_a_large_image_that_is_there_is_not_sent_again(user: User, machine: str) -> None:
    large = user.home / "large.cpio"
    extra = overlay_initramfs({"/root/large": os.urandom(48 << 20)})
    large.write_bytes(tiny_initramfs().read_bytes() + extra.read_bytes())
    extra.unlink()
    user.type("push", "-n", machine, str(large))
    start = time.monotonic()
    user.type("push", "-n", machine, str(large))
    # The command's own start is most of it, and this host may be busy.
    assert time.monotonic() - start < 2.0


def test_pushes_that_are_killed_leave_a_machine_that_boots(user: User, machine: str) -> None:
    large = user.home / "large.cpio"
    for step in range(20):
        large.touch()
        child = subprocess.Popen(
            user.command("push", "-n", machine, str(large)),
            env=user.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.1 + 0.02 * step)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert user.ask("restart", machine)["error"] is None
    user.type("push", "-n", machine, "--rollback", "--to", "1")


def test_every_reader_has_every_byte_from_where_it_asked(user: User, machine: str) -> None:
    readers = []
    for turn in range(20):
        with (user.home / f"reader-{turn}").open("wb") as output:
            reader = subprocess.Popen(
                user.command("logs", "-f", "--since", str(turn * 500), machine),
                env=user.environ,
                stdout=output,
                stderr=subprocess.DEVNULL,
            )
        if turn % 4 == 0:
            readers.append((turn, reader))
            continue
        time.sleep(0.1)
        reader.kill()
        reader.wait()
    assert user.ask("restart", machine)["error"] is None
    time.sleep(1)
    for _, reader in readers:
        reader.kill()
        reader.wait()
    record = Path(user.ask("status", machine)["evidence"], "serial.log").read_bytes()
    for turn, _ in readers:
        seen = (user.home / f"reader-{turn}").read_bytes()
        assert len(seen) > 20_000
        assert seen == record[turn * 500 :][: len(seen)]
    for turn in range(20):
        seen = (user.home / f"reader-{turn}").read_bytes()
        assert record[turn * 500 :].startswith(seen)


def read_until(terminal: int, text: bytes, limit_s: float = 20.0) -> bytes:
    seen = b""
    for left_s in Deadline(limit_s).poll(0):
        if select.select([terminal], [], [], left_s)[0]:
            seen += os.read(terminal, 65536)
        if text in seen:
            return seen
    pytest.fail(f"no {text!r} in {seen!r}")


def test_one_types_and_detaches_with_a_key(user: User, machine: str) -> None:
    terminal, theirs = pty.openpty()
    child = subprocess.Popen(
        user.command("console", machine, "--since", "now"),
        env=user.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(terminal, b"ctrl-]")
        os.write(terminal, b"\r")
        read_until(terminal, b"# ")
        os.write(terminal, b"echo $((6 * 7))is\r")
        read_until(terminal, b"42is")
        second = user.try_("run", "-n", machine, "true")
        assert second.returncode == 2
        assert "the console is in use" in second.stderr
        os.write(terminal, b"\x1d")
        read_until(terminal, b"detached")
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait()
        os.close(terminal)
    assert user.type("run", "-n", machine, "echo back") == "back\n"


def test_the_loop_counts_what_happened(user: User, machine: str) -> None:
    dying = overlay_initramfs({"/sbin/init": DIES_EVERY_OTHER_TIME})
    image = user.home / "dying.cpio"
    image.write_bytes(tiny_initramfs().read_bytes() + dying.read_bytes())
    user.type("push", "-n", machine, str(image))
    status = user.ask("status", machine)
    done = user.try_("restart", machine, "--count", "5", "--report", "boots.json")
    report = user.report("boots.json")
    failed = [boot for boot in report["boots"] if boot["error"]]
    assert len(report["boots"]) == 5
    assert report["summary"]["failures"] == len(failed)
    assert done.returncode == (1 if failed else 0)
    evidence = Path(status["evidence"])
    record = (evidence / "serial.log").read_bytes()[status["console_bytes"] :]
    # One more may have come when the machine had rebooted by itself, before its next restart.
    assert record.count(b"Kernel panic - not syncing") >= len(failed)
    assert len(list(evidence.glob("failed-*.log"))) == len(failed)
    for cluster in report["summary"]["clusters"]:
        assert "sysrq" in cluster["failure"].lower()
