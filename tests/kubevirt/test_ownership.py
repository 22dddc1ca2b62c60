"""What kboot leaves on a cluster, who sees it, and who removes it; and what doctor says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kboot.cli import main
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.kubevirt import open_kubevirt, ownership
from kboot.kubevirt.api import connect, errors
from kboot.kubevirt.checks import allows_restricted, lacking_rights
from kboot.kubevirt.manifests import HEARTBEAT, PROCESS
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.cluster.store import now
from tests.kubevirt.talking import talking

#: A run with a boot server and a machine, that says when it is up and then goes on for ever.
RUN = """
import time
from kboot.machine_spec import MachineSpec
from kboot.deadline import Deadline
from kboot.config import ClusterConfig
from kboot.kubevirt import open_kubevirt
with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(20)) as server:
    spec = MachineSpec(name="m", boot_file=server.write("m/boot.ipxe", "#!ipxe"))
    with backend.power_on(spec, Deadline(20)) as machine:
        while machine.stream.recv(65536):
            print("up", flush=True)
"""

ROUNDS = int(os.environ.get("KBOOT_SOAK_ROUNDS") or 4)


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def everything(cluster: Cluster) -> set[tuple[str, str]]:
    return cluster.call(
        lambda: {
            (plural, name)
            for (plural, _, name), thing in cluster.store.objects.items()
            if plural != "events" and "deletionTimestamp" not in thing["metadata"]
        }
    )


def make_old(cluster: Cluster) -> None:
    """Let the heartbeats of all runs be long ago."""
    _set_heartbeats(cluster, "2026-01-01T00:00:00Z")


def beat_all(cluster: Cluster) -> None:
    _set_heartbeats(cluster, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _set_heartbeats(cluster: Cluster, when: str) -> None:
    def change(owner: dict[str, Any]) -> None:
        owner["metadata"]["annotations"][HEARTBEAT] = when

    change_runs(cluster, change)


def change_runs(cluster: Cluster, change: Callable[[dict[str, Any]], None]) -> None:
    def change_all() -> None:
        for owner in cluster.store.find("configmaps"):
            if HEARTBEAT in owner["metadata"].get("annotations", {}):
                cluster.store.update("configmaps", owner, change)

    cluster.call(change_all)


def foreign(cluster: Cluster) -> set[tuple[str, str]]:
    """Objects of others, some of which look a little like ours."""
    labels = {"app.kubernetes.io/managed-by": "kboot", "app.kubernetes.io/component": "run"}
    for name, own in (("theirs", {}), ("alike", labels)):
        thing = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "team", "labels": own},
        }
        cluster.call(lambda thing=thing: cluster.store.create("configmaps", thing))  # type: ignore[misc]
    return {("configmaps", "theirs"), ("configmaps", "alike")}


def test_runs_that_were_killed_are_removed_and_nothing_else_is_touched(cluster: Cluster) -> None:
    before = everything(cluster) | foreign(cluster)
    for _ in range(ROUNDS):
        run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE)
        time.sleep(random.uniform(0.6, 3.0))
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
    with open_kubevirt(ClusterConfig()) as living:
        make_old(cluster)
        owner = cluster.call(lambda: cluster.store.get("configmaps", "team", living.run.name))
        assert owner is not None

        def beat(owner: dict[str, Any]) -> None:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            owner["metadata"]["annotations"][HEARTBEAT] = now

        cluster.call(lambda: cluster.store.update("configmaps", owner, beat))
        assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
        assert everything(cluster) == before | {("configmaps", living.run.name)}
    assert everything(cluster) == before
    for _, name in before:
        cluster.delete("configmaps", name)


def test_runs_and_gc_show_what_is_there_before_anything_goes(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE) as run:
        assert run.stdout
        assert run.stdout.readline() == b"up\n"
        assert main(["runs", "--backend", "kubevirt"]) == 0
        shown = capsys.readouterr().out
        assert " old, live\n  kboot-r" in shown
        assert shown.rstrip().endswith("-m  Running")
        assert main(["runs", "--backend", "kubevirt", "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert (told["dead"], told["machines"]) == (False, [[f"{told['name']}-m", "Running"]])
        run.kill()
    make_old(cluster)
    before = everything(cluster)
    assert main(["gc", "--backend", "kubevirt"]) == 0
    shown = capsys.readouterr().out
    assert "would remove run kboot-r" in shown
    assert ", machine kboot-r" in shown
    assert "nothing was removed; --yes removes it" in shown
    assert everything(cluster) == before
    assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
    assert everything(cluster) == set()
    assert main(["runs", "--backend", "kubevirt"]) == 0
    assert capsys.readouterr().out.endswith("no runs\n")


def test_a_run_that_has_come_back_since_it_was_found_dead_stays(cluster: Cluster) -> None:
    client = connect()
    with open_kubevirt(ClusterConfig()):
        (found,) = ownership.find_runs(client)
        beat_all(cluster)
        assert not ownership.remove(client, found)
        (again,) = ownership.find_runs(client)
        assert again.name == found.name
        assert ownership.remove(client, again)
        assert not ownership.remove(client, again)


def test_a_run_that_was_killed_on_this_host_is_known_to_be_dead_at_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(cluster)
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE) as run:
        assert run.stdout
        assert run.stdout.readline() == b"up\n"
        # However long nothing was heard of it: its host may have been asleep.
        make_old(cluster)
        assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
        assert capsys.readouterr().out == "nothing to remove\n"
        beat_all(cluster)
        run.kill()
    assert main(["runs", "--backend", "kubevirt"]) == 0
    assert " old, dead, its process has ended\n" in capsys.readouterr().out
    assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
    assert " old, its process has ended, machine kboot-r" in capsys.readouterr().out
    assert everything(cluster) == before


def move_elsewhere(cluster: Cluster) -> None:
    """Let the processes of all runs be on another host."""

    def move(owner: dict[str, Any]) -> None:
        note = json.loads(owner["metadata"]["annotations"][PROCESS])
        elsewhere = json.dumps(note | {"host": "elsewhere", "pid": 1})
        owner["metadata"]["annotations"][PROCESS] = elsewhere

    change_runs(cluster, move)


def test_of_a_run_on_another_host_only_the_heartbeat_tells(cluster: Cluster) -> None:
    with open_kubevirt(ClusterConfig()):
        move_elsewhere(cluster)
        (run,) = ownership.find_runs(connect())
        assert (run.running, run.dead) == (None, False)
        make_old(cluster)
        (run,) = ownership.find_runs(connect())
        assert run.dead


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_a_run_of_a_host_with_another_clock_is_not_taken_for_dead(
    cluster: Cluster, ahead_s: float
) -> None:
    cluster.store.ahead_s = ahead_s
    try:
        with open_kubevirt(ClusterConfig()) as ours:
            move_elsewhere(cluster)
            (run,) = ownership.find_runs(connect())
            assert abs(run.silent_s) < 30
            assert abs(run.age_s) < 30
            # As a colleague whose clock is the cluster's would say that it lives.
            _set_heartbeats(cluster, now(ahead_s))
            assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
            assert ("configmaps", ours.run.name) in everything(cluster)
            # And as nobody has for long.
            _set_heartbeats(cluster, now(ahead_s - 1000))
            assert main(["gc", "--backend", "kubevirt", "--yes"]) == 0
            assert ("configmaps", ours.run.name) not in everything(cluster)
    finally:
        cluster.store.ahead_s = 0.0


@pytest.mark.parametrize("command", ["list", "runs", "gc"])
def test_a_namespace_that_does_not_exist_is_not_taken_for_an_empty_one(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "--backend", "kubevirt", "--namespace", "nowhere"]) == 3
    assert "the cluster has no namespace nowhere; create it" in capsys.readouterr().err
    assert main([command, "--backend", "kubevirt"]) == 0
    assert everything(cluster) == set()


@pytest.mark.parametrize("command", ["list", "runs", "gc"])
def test_a_namespace_that_does_not_exist_is_told_if_the_configuration_names_it(
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "kboot.toml").write_text('backend = "kubevirt"\nnamespace = "nowhere"\n')
    monkeypatch.chdir(tmp_path)
    assert main([command]) == 3
    shown = capsys.readouterr()
    assert "the cluster has no namespace nowhere; create it" in shown.err
    assert shown.out == ""
    assert cluster.calls("nowhere")


def test_a_run_renews_its_heartbeat(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kboot.kubevirt.ownership.HEARTBEAT_S", 0.05)
    with open_kubevirt(ClusterConfig()) as backend:
        make_old(cluster)
        for _ in Deadline(5).poll(0.05):
            owner = cluster.call(lambda: cluster.store.get("configmaps", "team", backend.run.name))
            assert owner
            if not owner["metadata"]["annotations"][HEARTBEAT].startswith("2026-01-01"):
                return
    pytest.fail("the heartbeat is still old")


def test_a_heartbeat_goes_on_whatever_goes_wrong(cluster: Cluster) -> None:
    client, heard = connect(), []

    def hear(owner: Mapping[str, Any]) -> None:
        heard.append(owner["metadata"]["name"])
        raise KeyError("annotations")

    run = ownership.begin(client)
    try:
        with ownership.heartbeat(client, run, interval_s=0.05, heard=hear):
            for _ in Deadline(10).poll(0.05):
                if len(heard) >= 3:
                    break
    finally:
        ownership.end(client, run)
    assert len(heard) >= 3


def test_doctor_finds_a_cluster_that_is_fit(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--backend", "kubevirt", "--json"]) == 0
    findings = {each["subject"]: each for each in json.loads(capsys.readouterr().out)}
    assert findings["cluster"]["text"].endswith("namespace team")
    assert findings["objects"]["text"] == "the cluster would take all 6 of a run"
    assert findings["kubevirt"]["level"] == "warning"
    assert "runtimeDefaultProfile: true" in findings["kubevirt"]["remedy"]
    assert everything(cluster) == set()


def test_doctor_asks_for_an_action_as_a_run_does_without_effect(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def look() -> dict[str, Any]:
        main(["doctor", "--backend", "kubevirt", "--json"])
        findings = {each["subject"]: each for each in json.loads(capsys.readouterr().out)}
        found: dict[str, Any] = findings["actions"]
        return found

    assert look()["level"] == "ok"
    (asked,) = cluster.calls("/start")
    assert everything(cluster) == set()
    # What refuses it would refuse it to a run.
    cluster.order("PUT .*/start", status=406)
    finding = look()
    assert finding["level"] == "error"
    assert "/start: 406 " in finding["text"]
    assert asked not in cluster.calls("/start")[1:]


@pytest.mark.parametrize(
    ("options", "level"),
    [
        (["--firmware=bios"], "ok"),
        (["--firmware=uefi"], "warning"),
        (["--firmware=uefi", "--cluster-ipxe-disk=registry/ipxe:1"], "ok"),
    ],
)
def test_doctor_doubts_uefi_without_a_disk_that_has_ipxe(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], options: list[str], level: str
) -> None:
    assert main(["doctor", "--backend", "kubevirt", "--json", *options]) == 0
    findings = {each["subject"]: each for each in json.loads(capsys.readouterr().out)}
    assert (findings["firmware"]["level"], findings["objects"]["level"]) == (level, "ok")
    assert everything(cluster) == set()


def test_doctor_finds_what_an_account_may_not(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.call(lambda: cluster.api.rights.forbidden.add("create pods"))
    assert main(["doctor", "--backend", "kubevirt"]) == 3
    shown = capsys.readouterr().out
    assert "we may not get configmaps, list configmaps" in shown
    assert "--rbac" in shown
    assert "tester may not create pods" in shown


def test_doctor_prints_a_role_that_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert main(["doctor", "--rbac", "--namespace", "ci"]) == 0
    role, binding = yaml.safe_load_all(capsys.readouterr().out)
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "ci"
    assert lacking_rights(role["rules"]) == []
    assert lacking_rights([]) != []


def test_the_seccomp_setting_is_looked_for_where_it_is() -> None:
    profile = {"customProfile": {"runtimeDefaultProfile": True}}
    setting = {"seccompConfiguration": {"virtualMachineInstanceProfile": profile}}
    assert allows_restricted({"spec": {"configuration": setting}})
    assert not allows_restricted({"spec": {"configuration": {"seccompConfiguration": None}}})
    assert "customProfile.runtimeDefaultProfile" in errors.SECCOMP_SETTING


#: A test with a boot server and a machine on the cluster, which goes on for ever.
STAYS_UP = """
import pathlib, time
from kboot.machine_spec import MachineSpec
from kboot.deadline import Deadline

def test_it(kboot_session, boot_server):
    spec = MachineSpec(name="m", boot_file=boot_server.url("none"))
    with kboot_session.backend.power_on(spec, Deadline(20)):
        pathlib.Path("up").touch()
        time.sleep(60)
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_a_cancelled_ci_job_leaves_nothing_on_the_cluster(
    cluster: Cluster, quick_kernel: Path, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    (tmp_path / "test_it.py").write_text(STAYS_UP)
    before = everything(cluster)
    command = [
        *("env", "--default-signal=TERM", sys.executable, "-m", "pytest", "test_it.py", *workers),
        *(f"--kernel={quick_kernel}", "--kboot-backend=kubevirt"),
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as run:
        for _ in Deadline(150).poll(0.05):
            if (tmp_path / "up").exists():
                break
        assert everything(cluster) > before
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGTERM, output
    assert everything(cluster) == before
