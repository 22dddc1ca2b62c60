"""``kboot fleet`` and ``kboot pool``, as somebody types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot import service
from kboot.cli.fleet import parse_roles
from kboot.deadline import Deadline
from kboot.errors import ConfigError
from kboot.fleet.service import KIND as FLEETS
from kboot.kernel import read_kernel
from kboot.pool.service import KIND as POOLS
from tests.test_workers import processes_in
from tests.users import User

pytestmark = pytest.mark.usefixtures("runs_apart")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    user = User(tmp_path)
    yield user
    for kind in (FLEETS, POOLS):
        for each in service.running(kind):
            service.stop(each)
    assert not processes_in(tmp_path)


def kill(each: service.Service) -> None:
    """As the host might: the process that holds its machines."""
    holders = [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if _names(entry, each) and int(entry.name) != os.getpid()
    ]
    assert len(holders) == 1
    os.kill(holders[0], signal.SIGKILL)


def _names(entry: Path, each: service.Service) -> bool:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(each.path).encode() in words


def left_of(runs: Path) -> list[Path]:
    return list((runs / "kboot").iterdir())


def test_a_fleet_that_stays(user: User, quick_kernel: Path, runs_apart: Path) -> None:
    options = (f"--kernel={quick_kernel}", "--accel=tcg")
    # No such machine was saved.
    unlike = ("--role=a=1", "--memory=399M", "--timeout=1s", "--firmware-start=real")
    hasty = user.try_("fleet", "up", "lab", *unlike, *options)
    assert hasty.returncode in {1, 3}
    assert re.search(r"a-1: .*; see /\S+", hasty.stderr), hasty.stderr
    up: list[dict[str, Any]] = json.loads(
        user.type("fleet", "up", "lab", "--role=a=1", "--role=b=1", *options, "--json")
    )
    assert [(each["name"], each["state"]) for each in up] == [("a-1", "up"), ("b-1", "up")]
    assert user.try_("fleet", "up", "lab", "--role=a=1", *options).returncode == 2
    assert user.type("fleet", "list") == "lab\n"
    reached = user.type(
        "fleet", "exec", "lab", "b", "--", "ping -c 1 -w 9 a-1 >/dev/null && hostname"
    )
    assert reached == "b-1  b-1\n"
    assert user.type("fleet", "cut", "lab", "b").startswith("cut: b-1; ")
    assert [each["state"] for each in user.ask("fleet", "status", "lab")] == ["up", "cut"]
    cut = user.try_("fleet", "exec", "lab", "a", "--", "ping -c 1 -w 1 b-1 >/dev/null")
    assert cut.returncode == 1
    assert cut.stdout == "a-1  [exit status 1]\n"
    assert user.type("fleet", "heal", "lab") == "healed: b-1\n"
    # A command is under way for longer than all that follows.
    with subprocess.Popen(
        user.command("fleet", "exec", "lab", "a", "--timeout=600", "--", "sleep 600"),
        cwd=user.home,
        env=user.environ,
    ) as load:
        assert user.type("fleet", "cut", "lab", "a").startswith("cut: a-1; ")
        assert user.type("fleet", "heal", "lab") == "healed: a-1\n"
        crash = "[ $(hostname) = b-1 ] && echo c >/proc/sysrq-trigger; printf '\\377'"
        said = user.try_("fleet", "exec", "lab", "b", "--", crash)
        assert (said.returncode, said.stdout) == (1, "")
        assert said.stderr.startswith("kboot: error: b-1: panic: sysrq")
        assert user.type("fleet", "restart", "lab", "b") == "restarted: b-1\n"
        assert user.type("fleet", "exec", "lab", "b", "--", "hostname") == "b-1  b-1\n"
        load.kill()
    kept = user.type("fleet", "down", "lab")
    assert kept.startswith("lab: stopped")
    assert list(Path(kept.rpartition(": ")[2].strip()).glob("*-a-1/serial.log"))
    assert left_of(runs_apart) == []
    assert user.try_("fleet", "status", "lab").returncode == 2


LEASES = """
import time
import pytest

pytestmark = pytest.mark.kboot_pool("ci", ttl="2m")

def test_runs_something(pool):
    with pool.acquire() as one, pool.acquire() as other:
        assert one.name != other.name
        assert one.succeed("hostname") == other.succeed("hostname")

def test_breaks_it(pool):
    lease = pool.acquire()
    lease.run("(sleep 0.3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    time.sleep(5)
"""


def run_pytest(user: User, tests: Path) -> str:
    """What the tests of a user print, who has the pool of another process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)],
        cwd=user.home,
        env=user.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_a_pool_that_stays(user: User, quick_kernel: Path, runs_apart: Path) -> None:
    release = read_kernel(quick_kernel).release
    options = (f"--kernel={quick_kernel}", "--accel=tcg", "--replicas=2")
    up = json.loads(user.type("pool", "up", "ci", *options, "--json"))
    assert [each["state"] for each in up["machines"]] == ["ready", "ready"]
    words = [*user.command("pool", "exec"), "--", "uname", "-r"]
    assert user.type("pool", "acquire", "ci", "--", *words) == f"{release}\n"
    assert user.try_("pool", "acquire", "ci", "--", "sh", "-c", "exit 7").returncode == 7
    # A mistake takes no machine.
    known = user.ask("pool", "list", "ci")
    assert "nosuch not found" in user.try_("pool", "acquire", "ci", "--", "nosuch").stderr
    assert names_in(user.ask("pool", "list", "ci")) >= names_in(known)
    late = user.try_(
        *("pool", "acquire", "ci", "--ttl=1s", "--"),
        *(*user.command("pool", "exec"), "--", "printf '\\377' >&2; sleep 60"),
    )
    assert late.returncode == 2
    assert "this lease has ended" in late.stderr
    assert "the lease was over after 1 s" in late.stderr
    tests = user.home / "test_leases.py"
    tests.write_text(LEASES, encoding="utf-8")
    report = run_pytest(user, tests)
    assert re.search(r"1 failed, 1 passed", report), report
    assert re.search(r"GuestError: \S+ of the pool ci: .*sysrq.*; see /\S+", report), report
    # A holder that is killed gives back what it had.
    with subprocess.Popen(
        user.command("pool", "acquire", "ci", "--", "sleep", "100"),
        cwd=user.home,
        env=user.environ,
    ) as holder:
        eventually_leased(user, 1)
        holder.kill()
        eventually_leased(user, 0)
    useless = user.try_("pool", "up", "useless", *options, "--check=false")
    assert useless.returncode == 3
    assert re.search(r"'false' exited with 1; see /\S+\. The pool useless goes on", useless.stderr)
    user.type("pool", "down", "useless")
    # What is left of a pool that was killed, the next command removes.
    kill(service.find(POOLS, "ci"))
    for _ in Deadline(20).poll(0.1):
        if user.type("pool", "list") == "no pools\n" and not left_of(runs_apart):
            break
    assert left_of(runs_apart) == []
    assert user.try_("pool", "acquire", "ci", "--", "true").returncode == 2


def names_in(found: dict[str, Any]) -> set[str]:
    return {each["name"] for each in found["machines"]}


def eventually_leased(user: User, count: int) -> None:
    states: list[str] = []
    for _ in Deadline(30).poll(0.1):
        found = service.ask(service.find(POOLS, "ci"), "status")
        states = [each["state"] for each in found["machines"]]
        if states.count("leased") == count:
            return
    raise AssertionError(f"not {count} leased: {states}")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("fleet", "up", "lab", "--role=worker"), "write it as worker=5"),
        (("fleet", "up", "lab", "--role=w=1,colour=red"), "there is no setting colour"),
        (("fleet", "up", "lab", "--role=w=1,memroy=1G"), "memroy; did you mean memory?"),
        (
            ("fleet", "up", "lab", "--role=w=1,disk=a=blank,memory=1G,kept"),
            "the role w: --memory: '1G,kept' is not a size",
        ),
        (("fleet", "up", "Lab", "--role=w=1", "--kernel=KERNEL"), "cannot be a fleet's name"),
        (("fleet", "status", "lab"), "there is no fleet called lab"),
        (("pool", "list", "ci"), "there is no pool called ci"),
        (("pool", "exec", "--", "true"), "no machine was acquired"),
        (("pool", "up", "ci", "--replicas=2", "--max-age=old"), "'old' is not a time"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: tuple[str, ...], complaint: str, capfd: pytest.CaptureFixture[str], debian_kernel: Path
) -> None:
    from kboot.cli import main

    arguments = [word.replace("KERNEL", str(debian_kernel)) for word in words]
    assert main(arguments) == 2
    assert complaint in capfd.readouterr().err


def test_what_a_role_cannot_have_is_told_before_anything_is_started(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    debian_kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kboot.cli import main

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    role = "--role=w=1,disk=a=blank,size=8M,keep"
    assert main(["fleet", "up", "lab", role, f"--kernel={debian_kernel}"]) == 2
    assert "the role w: disk a: a machine of a test, a fleet" in capfd.readouterr().err
    assert list(tmp_path.rglob("*lab*")) == []


def test_roles_on_the_command_line_are_those_of_the_marker() -> None:
    assert parse_roles(("control=3", "worker=5,memory=1G,cpus=2")) == {
        "control": {"count": 3},
        "worker": {"count": 5, "memory": "1G", "cpus": "2"},
    }
    for twice in (("a=1", "a=2"), ("a=1,memory=1G,memory=2G",)):
        with pytest.raises(ConfigError, match="was given before"):
            parse_roles(twice)


def test_a_comma_ends_a_value_only_where_a_setting_follows() -> None:
    assert parse_roles(
        (
            "control=1,disk=data=blank,size=64M,disk=my image.raw,ro,cloud-init=control.yaml",
            "worker=2,rootfs=debian+jq,strace,cpus=sockets=2,cores=2,cmdline=console=ttyS0,115200",
        )
    ) == {
        "control": {
            "count": 1,
            "disk": ["data=blank,size=64M", "my image.raw,ro"],
            "cloud_init": "control.yaml",
        },
        "worker": {
            "count": 2,
            "rootfs": "debian+jq,strace",
            "cpus": "sockets=2,cores=2",
            "cmdline": "console=ttyS0,115200",
        },
    }
