"""Persistent machines on a cluster: their names, supervisors, and boot servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kboot.backend import ExistingVirtualMachine, RecreatableServer
from kboot.cli import main
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.kubevirt import find_persistent, open_persistent, remove_persistent, take_over_persistent
from kboot.kubevirt.manifests import HEARTBEAT, HOLDER
from kboot.kubevirt.ownership import Holder
from kboot.machine_spec import MachineSpec
from kboot.supervisor import registry
from kboot.supervisor.locate import list_persistent
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.powered import eventually, read_until
from tests.kubevirt.talking import talking

ALICE = ClusterConfig(cluster_owner="alice")
SPEC = MachineSpec(name="lab", boot_file="http://none/boot.ipxe")


#: A process that notes what it is going to start, and starts it.
STARTING = """
from kboot.machine_spec import MachineSpec
from kboot.deadline import Deadline
from kboot.config import ClusterConfig
from kboot.kubevirt import open_persistent
spec = MachineSpec(name="lab", boot_file="http://none/boot.ipxe")
alice = ClusterConfig(cluster_owner="alice")
with open_persistent(alice, "lab") as backend, backend.serve(Deadline(20)):
    backend.keep("a note")
    print("kept", flush=True)
    with backend.power_on(spec, Deadline(20)) as machine:
        while machine.stream.recv(65536):
            pass
"""


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_stays(cluster: Cluster) -> Iterator[None]:
    yield
    for owner in cluster.objects("configmaps"):
        cluster.delete("configmaps", owner["metadata"]["name"])


def left(settings: ClusterConfig = ALICE, name: str = "lab") -> None:
    """A machine is started and left."""
    with (
        open_persistent(settings, name) as backend,
        backend.serve(Deadline(20)),
    ):
        backend.keep("a note")
        with backend.power_on(replace(SPEC, name=name), Deadline(20)) as machine:
            read_until(machine.stream, b"line 5\r\n")
            backend.leave()


def annotate(cluster: Cluster, **annotations: str) -> None:
    """Change what the object says that owns the machine's run."""
    names = {"heartbeat": HEARTBEAT, "holder": HOLDER}

    def change(owner: dict[str, Any]) -> None:
        owner["metadata"]["annotations"] |= {names[key]: v for key, v in annotations.items()}

    def change_all() -> None:
        for owner in cluster.store.find("configmaps"):
            if HEARTBEAT in owner["metadata"].get("annotations", {}):
                cluster.store.update("configmaps", owner, change)

    cluster.call(change_all)


def test_a_machine_that_is_left_is_met_again_with_what_it_said(cluster: Cluster) -> None:
    left()
    (found,) = find_persistent(ALICE)
    assert (found.name, found.owner, found.holder) == ("lab", "alice", "")
    assert found.condition == "Running"
    before = cluster.instance().vmi["metadata"]["uid"]
    with take_over_persistent(ALICE, "lab") as backend, backend.serve(Deadline(20)) as server:
        assert backend.note == "a note"
        server.check()
        with backend.power_on(SPEC, Deadline(20)) as machine:
            assert isinstance(machine, ExistingVirtualMachine)
            past = machine.past()
            assert b"from guest-console-log" in past
            said = past + read_until(machine.stream, b"\r\n")
            numbers = [int(number) for number in re.findall(rb"^line (\d+)\r", said, re.MULTILINE)]
            assert numbers == list(range(len(numbers)))
            assert cluster.instance().vmi["metadata"]["uid"] == before
    # It was not left once more.
    assert find_persistent(ALICE) == []
    assert cluster.objects("secrets") == cluster.objects("pods") == []


def test_two_users_may_use_one_name_and_one_may_use_it_once(cluster: Cluster) -> None:
    left()
    left(ClusterConfig(cluster_owner="Bob B."))
    with pytest.raises(ConfigError, match="a machine called lab of alice on the cluster already"):
        left()
    assert len(find_persistent(ALICE)) == 2
    assert remove_persistent(ALICE, "lab")
    assert not remove_persistent(ALICE, "lab")
    (other,) = find_persistent(ALICE)
    assert other.owner.startswith("bob-b-")
    assert len(cluster.objects("virtualmachines")) == 1


def test_a_machine_that_has_a_supervisor_is_left_to_it(cluster: Cluster) -> None:
    words = r"supervised by .*@.*, process \d+, heard of \d+ s ago"
    with open_persistent(ALICE, "lab") as backend:
        with pytest.raises(ConfigError, match=words), take_over_persistent(ALICE, "lab"):
            pass
        with pytest.raises(ConfigError, match=words):
            remove_persistent(ALICE, "lab")
        assert "process" in find_persistent(ALICE)[0].holder
        assert len(cluster.objects("configmaps")) == 1
        backend.check_holder()
    left()
    far = replace(Holder.this_process(), user="eve@far", host="another", pid=1)
    annotate(cluster, holder=far.to_text())
    with pytest.raises(ConfigError, match="supervised by eve@far, process 1"):
        remove_persistent(ALICE, "lab")
    # Nothing was heard of him for longer than he would be silent.
    annotate(cluster, heartbeat="2026-01-01T00:00:00Z")
    with take_over_persistent(ALICE, "lab") as backend:
        assert backend.note == "a note"


def test_a_process_that_was_killed_here_is_known_to_be_dead() -> None:
    me = Holder.this_process()
    assert me.lives(silent_s=1e6, limit_s=1)
    assert not replace(me, began="1").lives(silent_s=0, limit_s=1)
    assert not replace(me, pid=2**22 + 1).lives(silent_s=0, limit_s=1)
    assert Holder.parse(me.to_text()) == me
    assert Holder.parse("") is Holder.parse(json.dumps({**asdict(me), "new": 1})) is None


def test_who_has_lost_his_machine_finds_out_and_leaves_the_console_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kboot.kubevirt.persistent.HEARTBEAT_S", 0.05)
    far = replace(Holder.this_process(), user="eve@far", host="another", pid=1)
    with (
        open_persistent(ALICE, "lab") as backend,
        backend.serve(Deadline(20)),
        backend.power_on(SPEC, Deadline(20)) as machine,
    ):
        read_until(machine.stream, b"line 1\r\n")
        backend.keep("a note")
        backend.leave()
        annotate(cluster, holder=far.to_text())
        cluster.call(cluster.api.calls.clear)
        cluster.drop_consoles()
        while machine.stream.recv(65536):
            pass
        assert cluster.calls("/console") == []
        eventually(InfraError, "taken over by eve@far", backend.check_holder)
    # His name stays where it was.
    (owner,) = [o for o in cluster.objects("configmaps") if "data" not in o]
    assert owner["metadata"]["annotations"][HOLDER] == far.to_text()


def test_a_machine_is_taken_from_who_has_it_by_force_only(cluster: Cluster) -> None:
    left()
    far = replace(Holder.this_process(), user="eve@far", host="another", pid=1)
    annotate(cluster, holder=far.to_text())
    with (
        pytest.raises(ConfigError, match=r"eve@far, process 1, .*: kboot take lab"),
        take_over_persistent(ALICE, "lab"),
    ):
        pass
    with take_over_persistent(ALICE, "lab", by_force=True) as backend:
        assert backend.is_ours()
        backend.leave()
    assert find_persistent(ALICE)[0].holder == ""


def test_a_machine_that_stays_has_a_longer_life_than_a_run(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    left(replace(ALICE, cluster_keep_s=4 * 365 * 86400))
    left(replace(ALICE, cluster_owner="bob"))
    annotate(cluster, heartbeat="2026-01-01T00:00:00Z")
    assert main(["runs", "--backend", "kubevirt"]) == 0
    shown = capsys.readouterr().out
    assert "machine lab of alice, no supervisor" in shown
    assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
    assert "machine lab of bob" in capsys.readouterr().out
    assert [each.owner for each in find_persistent(ALICE)] == ["alice"]


@pytest.mark.parametrize("seconds", [0.15, 0.4])
def test_one_that_was_about_to_start_is_met(cluster: Cluster, seconds: float) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE) as starting:
        assert starting.stdout
        assert starting.stdout.readline() == b"kept\n"
        time.sleep(seconds)
        starting.kill()
    assert len(cluster.objects("virtualmachines")) == 1
    with (
        take_over_persistent(ALICE, "lab") as backend,
        backend.serve(Deadline(20)),
        backend.power_on(SPEC, Deadline(20)) as machine,
    ):
        machine.check()
        read_until(machine.stream, b"\r\n")
    assert find_persistent(ALICE) == []


def test_a_list_of_a_cluster_that_does_not_answer_is_no_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = {
        "current-context": "gone",
        "clusters": [{"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "gone", "user": {}}],
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "gone"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert main(["list", "--backend", "kubevirt"]) == 3
    shown = capsys.readouterr()
    assert "cannot be reached" in shown.err
    assert shown.out == ""


def test_machines_on_another_cluster_are_listed_and_our_environment_stays(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    options = {
        "backend": "kubevirt",
        "kubeconfig": str(cluster.write_kubeconfig(tmp_path / "other")),
        "cluster_owner": "alice",
    }
    registry.Location(name="lab", options=options).write()
    # Ours leads nowhere, and it does so for as long as others use what was found.
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    before = dict(os.environ)
    names = []
    for machine in list_persistent({}):
        names.append(machine.name)
        assert dict(os.environ) == before
    assert names == ["lab"]
    assert registry.location_of("lab") == registry.Location(name="lab", options=options)


def test_looking_for_one_that_is_not_there_leaves_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def kboot(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kboot", *words, "--backend", "kubevirt"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = kboot("status", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no machine called nope" in done.stderr
    # The next command clears away what an ended supervisor has left.
    assert kboot("list").returncode == 0
    assert [path for path in tmp_path.rglob("*") if "nope" in path.name] == []
    assert cluster.objects("configmaps") == []


def test_one_that_cannot_be_started_leaves_nothing(cluster: Cluster) -> None:
    cluster.virt.refusal = 'pods "{pod}" is forbidden: exceeded quota: q, used: pods=1'
    try:
        with pytest.raises(InfraError, match="a quota of namespace team"):
            left()
    finally:
        cluster.virt.refusal = ""
    for plural in ("configmaps", "secrets", "pods", "virtualmachines"):
        assert cluster.objects(plural) == []


def test_one_that_was_never_finished_is_told_and_removed(cluster: Cluster) -> None:
    with open_persistent(ALICE, "lab") as backend:
        backend.leave()
    with pytest.raises(InfraError, match="never finished"), take_over_persistent(ALICE, "lab"):
        pass
    assert remove_persistent(ALICE, "lab")
    assert cluster.objects("configmaps") == []


def test_a_boot_server_that_was_evicted_is_made_once_more(cluster: Cluster, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel")
    with open_persistent(ALICE, "lab") as backend, backend.serve(Deadline(20)) as server:
        assert isinstance(server, RecreatableServer)
        url = server.put(artifact)
        assert server.has(url)
        cluster.delete("pods", backend.run.name)
        eventually(InfraError, "is gone", server.check)
        server.recreate(Deadline(20))
        server.check()
        assert not server.has(url)
        assert server.put(artifact) == url
        backend.keep("a note")
        backend.leave()
        cluster.delete("pods", backend.run.name)
    with take_over_persistent(ALICE, "lab") as backend, backend.serve(Deadline(20)) as server:
        assert isinstance(server, RecreatableServer)
        assert not server.has(url)
