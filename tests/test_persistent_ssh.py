"""A machine whose guest has an ssh server, and the system's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.kernel import read_kernel
from kboot.rootfs import module_initramfs
from tests.terminals import on_terminal
from tests.test_ssh import server_overlay
from tests.users import User


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    someone = User(tmp_path_factory.mktemp("home"))
    yield someone
    someone.try_("down", "--all")


@pytest.fixture(scope="module")
def machine(user: User, debian_kernel: Path) -> Iterator[str]:
    modules = module_initramfs(read_kernel(debian_kernel), ["e1000e"])
    images = ("--initrd", str(modules), "--initrd", str(server_overlay(user.home)))
    user.type("up", "far", "--kernel", str(debian_kernel), "--channel", "ssh", *images)
    yield "far"
    user.type("down", "far")


def test_ssh_runs_a_command_and_ends_as_it_did(user: User, machine: str) -> None:
    done = user.try_("ssh", machine, "--", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_options_of_ssh_are_passed_on(user: User, machine: str) -> None:
    done = user.try_("ssh", machine, "--", "-G")
    assert "user root\n" in done.stdout
    assert "identitiesonly yes\n" in done.stdout


def test_the_console_may_be_in_use_where_commands_go_by_ssh(user: User, machine: str) -> None:
    command = user.command("console", machine, "--since", "now")
    with on_terminal(command, user.environ) as terminal:
        terminal.read_until(b"ctrl-]")
        assert user.type("exec", machine, "--", "id", "-un") == "root\n"
        terminal.type(b"\x1d")
        terminal.read_until(b"detached")


def test_what_killed_the_kernel_is_read_from_the_machines_own_log(user: User, machine: str) -> None:
    quiet = user.try_("crash", machine)
    assert (quiet.stdout, quiet.returncode) == ("", 0)
    user.type("panic", machine)
    found = user.try_("crash", machine)
    assert found.returncode == 1
    assert "sysrq" in found.stdout.lower()
    # A file of that name is what is meant, if there is one.
    (user.home / machine).write_text("no crash in here\n")
    assert user.try_("crash", machine).returncode == 0
    nobody = user.try_("crash", "nobody")
    assert (nobody.returncode, nobody.stderr.count("\n")) == (2, 1)
