"""kboot.service: processes that stay, found by name, and that end with what they are found by."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kboot import rpc, service
from kboot.errors import ConfigError, InfraError
from tests.test_process import ended

KIND = service.Kind(name="thing", command="kboot thing")

MODULE = """
import os, sys
from kboot import rpc, service
from tests.test_service import KIND

def answer(request):
    if request.verb == "stop" and "stubborn" not in server.order:
        server.end()
    return os.getpid()

def run(given):
    global server
    server = given
    if "fault" in server.order:
        raise ValueError(server.order["fault"])
    with rpc.serving(server.service.path, answer):
        server.stopping.wait()

sys.exit(service.serve(KIND, sys.argv[1:], run))
"""


@pytest.fixture
def thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> service.Service:
    (tmp_path / "the_thing.py").write_text(MODULE)
    checkout = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{checkout}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return service.find(KIND, "one")


#: As a command does, which then ends.
LAUNCH = """
import json, sys
from kboot import rpc, service
from tests.test_service import KIND
try:
    service.launch(service.find(KIND, sys.argv[1]), "the_thing", json.loads(sys.argv[2]))
except Exception as error:
    sys.exit(json.dumps(rpc.describe(error)))
"""


def launch(thing: service.Service, **order: str) -> None:
    command = [sys.executable, "-c", LAUNCH, thing.name, json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise rpc.to_error(json.loads(done.stderr))


def test_it_is_found_by_its_name_until_it_is_stopped(thing: service.Service) -> None:
    launch(thing)
    assert [each.name for each in service.running(KIND)] == ["one"]
    with pytest.raises(ConfigError, match="there is a thing called one already"):
        launch(thing)
    pid = service.ask(thing, "who")
    assert service.stop(thing) == pid
    assert service.known(KIND) == []
    with pytest.raises(ConfigError, match="no thing called one; to start it: kboot thing up one"):
        service.ask(thing, "who")


def test_what_ended_it_at_its_start_is_told(thing: service.Service) -> None:
    with pytest.raises(InfraError, match="not this way"):
        launch(thing, fault="not this way")
    assert service.known(KIND) == []


def test_one_that_does_not_end_is_killed(
    thing: service.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_STOP_LIMIT_S", 0.1)
    launch(thing, stubborn="yes")
    assert ended(service.stop(thing))
    assert service.running(KIND) == []


def test_one_whose_directory_is_removed_ends_and_leaves_its_successor_alone(
    thing: service.Service,
) -> None:
    launch(thing)
    before = service.ask(thing, "who")
    shutil.rmtree(thing.path)
    launch(thing)
    assert ended(before)
    assert service.ask(thing, "who") != before
    assert ended(service.stop(thing))
