"""The kernel engineer's loop, whole: up, push, restart, panic, console, down."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.kernel import read_kernel
from tests.soak_machines import (
    check_counts,
    dying_image,
    kill_a_push,
    large_image,
    read_while_it_boots,
)
from tests.terminals import on_terminal
from tests.users import User


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    someone = User(tmp_path_factory.mktemp("home"))
    yield someone
    someone.try_("down", "--all")


@pytest.fixture(scope="module")
def lab(user: User, quick_kernel: Path) -> Iterator[str]:
    """A machine for the module's tests."""
    user.type("up", "lab", "--kernel", str(quick_kernel))
    yield "lab"
    user.type("down", "lab")
    assert user.ask("list") == []
    assert list((user.home / "state" / "kboot" / "machines").iterdir()) == []


@pytest.fixture
def machine(user: User, lab: str) -> str:
    """That machine, up, with its first push and no other, whatever the test before has left."""
    user.type("pushes", "rollback", lab, "--to", "1")
    user.type("pushes", "gc", lab, "--keep", "0")
    # The exit status of one that has crashed is not 0.
    if json.loads(user.try_("status", lab, "--json").stdout)["state"] != "ready":
        user.type("restart", lab)
    return lab


def uname(user: User, machine: str) -> str:
    return user.type("exec", machine, "--", "uname", "-r").strip()


def test_a_file_goes_in_and_comes_out_as_it_was(user: User, machine: str) -> None:
    (user.home / "in").write_bytes(bytes(range(256)) * 40)
    user.type("put", machine, "in", "/root/there")
    user.type("get", machine, "/root/there", "out")
    assert (user.home / "out").read_bytes() == (user.home / "in").read_bytes()
    for words in (
        ("get", "/root/there", "nowhere/out"),
        ("get", "/root/nothing", "out"),
        ("put", "in", "/nowhere/there"),
    ):
        done = user.try_(words[0], machine, *words[1:])
        assert done.returncode in {1, 2}, done
        assert (done.stderr.count("\n"), "nowhere" in done.stderr or "nothing" in done.stderr) == (
            1,
            True,
        )


@pytest.fixture(scope="module")
def large(user: User) -> Path:
    return large_image(user)


def test_what_is_there_is_not_sent_again(
    user: User, machine: str, large: Path, other_kernel: Path
) -> None:
    assert user.ask("push", machine, str(large))["sent"] == large.stat().st_size
    assert "all of it was there already" in user.type("push", machine, str(large))
    image = read_kernel(other_kernel).image
    assert user.ask("push", machine, str(other_kernel))["sent"] == image.stat().st_size
    # Read, for it may be another one, and found to be the same.
    large.touch()
    assert user.ask("push", machine, str(large))["sent"] == 0


def test_what_no_push_needs_is_dropped(user: User, machine: str, large: Path) -> None:
    user.type("push", machine, str(large))
    number = max(push["number"] for push in user.ask("pushes", "list", machine))
    freed = user.ask("pushes", "gc", machine, "--keep", "9")
    assert freed == {"pushes": [], "files": 0, "bytes": 0}
    user.type("pushes", "rollback", machine, "--to", "1")
    freed = user.ask("pushes", "gc", machine, "--keep", "0")
    assert freed["bytes"] > 300_000_000
    (left,) = user.ask("pushes", "list", machine)
    assert (left["number"], left["current"]) == (1, True)
    gone = user.try_("pushes", "rollback", machine, "--to", str(number))
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert f"there is no push {number}" in gone.stderr
    # It is no memory of a file that is gone.
    assert user.ask("push", machine, str(large))["sent"] == large.stat().st_size


def test_pushes_that_are_killed_leave_a_machine_that_boots(
    user: User, machine: str, large: Path, quick_kernel: Path, other_kernel: Path
) -> None:
    for after_s in (0.1, 0.2, 0.3, 0.5):
        kill_a_push(user, machine, large, after_s)
    # One may have been done before it was killed: then it is the current one.
    user.type("pushes", "rollback", machine, "--to", "1")
    # As is one with modules: a file of the user's, and one of the kernel's by name.
    modules = read_kernel(quick_kernel).modules
    assert modules
    # Debian compresses them since 13.
    mine = next(modules.rglob("dummy.ko*"))
    user.type("push", machine, str(quick_kernel), str(mine), "--module", "nlmon")
    assert user.ask("restart", machine)["error"] is None
    loaded = user.type("exec", machine, "--", "cut -d' ' -f1 /proc/modules").split()
    assert {"dummy", "nlmon"} <= set(loaded)
    other = user.try_("push", machine, str(other_kernel))
    assert other.returncode == 2
    assert f"{mine.name}: a module for Linux" in other.stderr


def test_a_terminal_sees_a_bar_and_a_file_sees_lines(user: User, machine: str, large: Path) -> None:
    command = user.command("push", machine, str(large))
    with on_terminal(command, user.environ) as terminal:
        shown = terminal.read_all()
    assert re.search(rb"send large.cpio.*(?:MB/s|\?)", shown)
    assert b"300.0 MB sent" in shown
    user.type("pushes", "rollback", machine, "--to", "1")
    user.type("pushes", "gc", machine, "--keep", "0")
    done = user.try_("push", machine, str(large))
    assert "\x1b" not in done.stdout + done.stderr
    assert "  send large.cpio: 300.0 MB in " in done.stderr


def test_every_reader_has_every_byte_from_where_it_asked(
    user: User, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", user.environ["XDG_STATE_HOME"])
    with (user.home / "followed").open("wb") as output:
        follower = subprocess.Popen(
            user.command("logs", machine, "-f", "--raw", "--since", "500"),
            env=user.environ,
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
    try:
        read_while_it_boots(user, machine, cycles=100, boots=1)
    finally:
        follower.kill()
        follower.wait()
    record = Path(user.ask("status", machine)["evidence"], "serial.log").read_bytes()
    followed = (user.home / "followed").read_bytes()
    assert len(followed) > 20_000
    assert record[500:].startswith(followed)


def test_one_types_and_detaches_with_a_key(user: User, machine: str) -> None:
    command = user.command("console", machine, "--since", "now")
    with on_terminal(command, user.environ, rows=33, columns=111) as terminal:
        terminal.read_until(b"ctrl-]")
        terminal.type(b"\r")
        terminal.read_until(b"# ")
        terminal.type(b"echo $((6 * 7))is\r")
        terminal.read_until(b"42is")
        terminal.type(b"stty size\r")
        terminal.read_until(b"33 111")
        terminal.read_until(b"# ")
        terminal.resize(44, 99)
        terminal.read_until(b"stty rows 44 cols 99")
        terminal.type(b"stty size\r")
        terminal.read_until(b"44 99\r\n")
        second = user.try_("exec", machine, "--", "true")
        assert second.returncode == 2
        assert "the console is in use" in second.stderr
        terminal.type(b"\x1d")
        terminal.read_until(b"detached")
        assert terminal.child.wait(10) == 0
    assert user.type("exec", machine, "--", "echo back") == "back\n"


def test_the_loop_counts_what_happened(user: User, machine: str) -> None:
    user.type("push", machine, str(dying_image(user)))
    status = user.ask("status", machine)
    done = user.try_("restart", machine, "--count", "4", "--json", "boots.json")
    report = user.report("boots.json")
    check_counts(report, 4)
    failures = report["summary"]["failures"]
    assert done.returncode == (1 if failures else 0)
    assert "\x1b" not in done.stdout
    evidence = Path(status["evidence"])
    record = (evidence / "serial.log").read_bytes()[status["console_bytes"] :]
    # One more may have come when the machine had rebooted by itself, before its next restart.
    assert record.count(b"Kernel panic - not syncing") >= failures
    kept = list(evidence.glob("failed-*.log"))
    assert len(kept) == failures
    assert all(b"Kernel panic - not syncing" in log.read_bytes() for log in kept)


def test_a_loop_that_is_interrupted_ends_with_its_summary(user: User, machine: str) -> None:
    command = user.command("restart", machine, "--until-fail")
    with on_terminal(command, user.environ) as terminal:
        seen = terminal.read_until(b"boot 2: ", limit_s=150)
        assert b"boot 1: kernel after " in seen
        assert b"\x1b[32mready" in seen or b"\x1b[1;32mready" in seen
        terminal.type(b"\x03")
        rest = terminal.read_all()
        assert terminal.child.wait(10) == 130
    assert b"1 boot, 0 failed: 0.0 %" in rest
    assert b"PHASE" in rest
    # Its supervisor follows the boot that nobody waits for any more.
    assert user.ask("status", machine)["boots"] > 1
