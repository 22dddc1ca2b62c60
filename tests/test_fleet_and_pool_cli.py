"""``kboot fleet``, as somebody types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot import service
from kboot.cli.fleet import parse_roles
from kboot.errors import ConfigError
from tests.test_workers import processes_in
from tests.users import User

pytestmark = pytest.mark.usefixtures("runs_apart")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    user = User(tmp_path)
    yield user
    for each in service.running("fleet"):
        service.stop(each)
    assert not processes_in(tmp_path)


def left_of(runs: Path) -> list[Path]:
    return list((runs / "kboot").iterdir())


def test_a_fleet_that_stays(user: User, debian_kernel: Path, runs_apart: Path) -> None:
    options = (f"--kernel={debian_kernel}", "--accel=tcg")
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
    kept = user.type("fleet", "down", "lab")
    assert kept.startswith("lab: stopped")
    assert list(Path(kept.rpartition(": ")[2].strip()).glob("*-a-1/serial.log"))
    assert left_of(runs_apart) == []
    assert user.try_("fleet", "status", "lab").returncode == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("fleet", "up", "lab", "--role=worker"), "write it as worker=5"),
        (("fleet", "up", "lab", "--role=w=1,colour=red"), "there is no setting colour"),
        (("fleet", "up", "Lab", "--role=w=1", "--kernel=KERNEL"), "cannot be a fleet's name"),
        (("fleet", "status", "lab"), "there is no fleet called lab"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: tuple[str, ...], complaint: str, capfd: pytest.CaptureFixture[str], debian_kernel: Path
) -> None:
    from kboot.cli import main

    arguments = [word.replace("KERNEL", str(debian_kernel)) for word in words]
    assert main(arguments) == 2
    assert complaint in capfd.readouterr().err


def test_roles_on_the_command_line_are_those_of_the_marker() -> None:
    assert parse_roles(("control=3", "worker=5,memory=1G,cpus=2")) == {
        "control": {"count": 3},
        "worker": {"count": 5, "memory": "1G", "cpus": "2"},
    }
    with pytest.raises(ConfigError, match="was given before"):
        parse_roles(("a=1", "a=2"))
