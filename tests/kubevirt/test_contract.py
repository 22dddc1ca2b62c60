"""The test cluster says what the recorded cluster said: its lies would show here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import manifests, vm_manifest
from kboot.kubevirt.api import (
    PODS,
    VIRTUAL_MACHINES,
    VMIS,
    ApiError,
    Client,
    Watch,
    connect,
    open_websocket,
)
from kboot.kubevirt.api.client import SERVICES, VM_ACTIONS, VMI_ACTIONS
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import Cluster, machines, running_cluster
from tests.kubevirt.recordings import RECORDINGS, calls, needs_recordings, rows, watched
from tests.kubevirt.talking import talking

pytestmark = needs_recordings

RUN = manifests.Run(identifier="r123456789", namespace="team")
NAME = "kboot-r123456789-m"


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    client = connect()
    yield client
    for vm in cluster.objects("virtualmachines"):
        client.delete(VIRTUAL_MACHINES, vm["metadata"]["name"], Deadline(5))
    for _ in Deadline(5).poll(0.02):
        if not cluster.call(lambda: list(cluster.store.find("virtualmachines"))):
            break
    client.close()


def create(client: Client) -> None:
    spec = MachineSpec(name="m", boot_file="http://none/")
    client.create(vm_manifest.manifest(spec, RUN, ClusterConfig()), Deadline(5))


def ask(
    client: Client, action: str, name: str = NAME, accept: str = "application/json, */*"
) -> tuple[int, str]:
    """Status and message of a subresource call."""
    resource = VMI_ACTIONS if action in INSTANCE_ACTIONS else VM_ACTIONS
    path = resource.path(client.namespace, name, action)
    headers = {"Accept": accept}
    try:
        answer = client.send(
            "PUT", path, Deadline(5), body=lambda: [b"{}"], headers=headers, retry=False
        )
    except ApiError as error:
        return error.status, error.text
    return answer.status, ""


INSTANCE_ACTIONS = {"reset", "softreboot", "pause", "unpause"}


def console(client: Client, name: str = NAME) -> tuple[int, str]:
    path = VMI_ACTIONS.path(client.namespace, name, "console")
    try:
        open_websocket(client, path, Deadline(5)).close()
    except ApiError as error:
        return error.status, error.text
    return 101, ""


def recorded(action: str, *, nth: int = 0, machine: str = "m2") -> tuple[int, str]:
    """Status and message of a recorded call, with our machine's name in it."""
    method = "GET" if action == "console" else "PUT"
    found = calls("lifecycle-bios", method, f"/{machine}/{action}")[nth]
    message = found["response"].get("message", "") if found["response"] else ""
    return found["status"], message.replace(f'"{machine}"', f'"{NAME}"')


def wait_until_running(client: Client) -> list[str]:
    """The phases that the machine goes through from now on until it runs."""
    phases: list[str] = []
    with Watch(client, VMIS) as watch:

        def see() -> bool | None:
            vmi = watch.get(NAME)
            phase = vmi["status"]["phase"] if vmi else ""
            if phase and phases[-1:] != [phase]:
                phases.append(phase)
            return phase == "Running" or None

        assert watch.wait_for(see, Deadline(10), interval_s=0.01)
    return phases


def test_a_machine_that_is_stopped_answers_as_recorded(client: Client) -> None:
    create(client)
    assert console(client) == recorded("console")
    assert ask(client, "stop") == recorded("stop")
    assert ask(client, "restart") == recorded("restart")
    status, message = recorded("start", machine="nope")
    assert ask(client, "start", "nope") == (status, message.replace(NAME, "nope"))


def test_a_name_that_is_taken_is_refused_as_recorded(client: Client) -> None:
    create(client)
    other = MachineSpec(name="m", boot_file="http://other/")
    manifest = vm_manifest.manifest(other, RUN, ClusterConfig())
    manifest["metadata"]["labels"] = {"made-by": "somebody else"}
    with pytest.raises(ApiError) as error:
        client.create(manifest, Deadline(5))
    row = calls("lifecycle-bios", "POST", "/virtualmachines")[1]
    assert error.value.status == row["status"]
    assert error.value.reason == row["response"]["reason"]
    assert error.value.text == row["response"]["message"].replace('"m2"', f'"{NAME}"')


def test_a_start_goes_through_the_recorded_phases(client: Client) -> None:
    create(client)
    assert ask(client, "start")[0] == recorded("start")[0] == 202
    phases = wait_until_running(client)
    there: list[str] = []
    for vmi in watched("lifecycle-bios", "vmi"):
        phase = vmi["status"].get("phase", "") if "status" in vmi else ""
        if phase and there[-1:] != [phase]:
            there.append(phase)
    assert there[:4] == ["Pending", "Scheduling", "Scheduled", "Running"]
    assert phases == [phase for phase in there[:4] if phase in phases]
    assert phases[-1] == "Running"


def test_a_second_start_is_answered_as_recorded(client: Client) -> None:
    create(client)
    ask(client, "start")
    at_once = ask(client, "start")
    wait_until_running(client)
    # Within some milliseconds "already underway", a 500; from then on a conflict.
    conflict = calls("uefi-pxe-e99", "PUT", "/m3/start")[1]
    assert conflict["status"] == 409
    words = conflict["response"]["message"].replace('"m3"', f'"{NAME}"')
    assert at_once in {recorded("start", nth=1), (409, words)}
    assert recorded("start", nth=1)[0] == 500
    assert ask(client, "start") == (409, words)


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that take their time, for who looks at what comes before they run."""
    monkeypatch.setattr(machines, "SPEED", 0.5)


@pytest.mark.usefixtures("slow_start")
def test_a_console_before_the_machine_runs_is_refused_as_recorded(client: Client) -> None:
    create(client)
    ask(client, "start")
    refusals = {(row["status"], row["response"]["message"]) for row in _consoles()}
    seen = set()
    for _ in Deadline(5).poll(0.02):
        status, message = console(client)
        if status == 101:
            break
        seen.add((status, message.replace(NAME, "m2")))
    assert (400, "VMI is not running") in seen
    assert seen <= refusals


def test_a_second_console_takes_the_first_ones_place_without_a_word(client: Client) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    path = VMI_ACTIONS.path(client.namespace, NAME, "console")
    first = open_websocket(client, path, Deadline(5))
    assert first.recv(10)
    second = open_websocket(client, path, Deadline(5))
    end = Deadline(5)
    while first.recv(65536):
        assert not end.expired
    assert second.recv(10)
    second.close()
    opened = next(rows("lifecycle-bios", "console_open"))
    assert opened["subprotocol"] == "plain.kubevirt.io"
    lost = next(rows("lifecycle-bios", "console_error"))
    assert "Connection to remote host was lost" in lost["error"]


def test_reset_pause_and_unpause_are_answered_as_recorded(client: Client) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    for action in ("reset", "softreboot", "pause", "unpause"):
        assert ask(client, action) == (200, "")
        assert calls("lifecycle-bios", "PUT", f"/m2/{action}")[0]["status"] == 200


@pytest.mark.usefixtures("slow_start")
def test_actions_refuse_who_takes_nothing_but_json_as_recorded(client: Client) -> None:
    with (RECORDINGS / "accept-406.jsonl").open(encoding="utf-8") as file:
        recording = [json.loads(line) for line in file]
    create(client)
    assert {row["path"].rpartition("/")[2] for row in recording} == {
        *INSTANCE_ACTIONS,
        "start",
        "stop",
        "restart",
    }
    for row in recording:
        action = row["path"].rpartition("/")[2]
        status, message = ask(client, action, accept=row["accept"])
        if row["status"] == 406:
            assert (status, message) == (406, row["response"].strip())
        else:
            # 400: one that has been started and does not run yet.
            assert status in {202, 400, 404, 409, 500}


def test_the_service_proxy_without_a_server_is_answered_as_recorded(client: Client) -> None:
    service = manifests.boot_server(RUN, ClusterConfig(), token="t")[2]
    service["metadata"]["name"] = "empty"
    client.create(service, Deadline(5))
    for name in ("http:empty:http", "http:empty:nope", "http:none:http"):
        path = SERVICES.path(client.namespace, name, "proxy")
        with pytest.raises(ApiError) as error:
            client.send("GET", f"{path}/x", Deadline(5), retry=False)
        (row,) = calls("errors", "GET", f"/{name}/proxy/x")
        assert (error.value.status, error.value.text) == (
            row["status"],
            row["response"]["message"],
        )
    client.delete(SERVICES, "empty", Deadline(5))


def test_what_an_account_may_not_is_refused_as_recorded(cluster: Cluster, client: Client) -> None:
    cluster.call(lambda: cluster.api.rights.forbidden.add("update virtualmachines/start"))
    cluster.call(lambda: cluster.api.rights.forbidden.add("create virtualmachines"))
    status, message = ask(client, "start", "x")
    (row,) = calls("errors", "PUT", "/x/start")
    assert status == row["status"] == 403
    pattern = r'cannot update resource "virtualmachines/start" in API group "(\S+)"'
    theirs = re.search(pattern, row["response"]["message"])
    ours = re.search(pattern, message)
    assert theirs
    assert ours
    assert ours[1] == theirs[1]
    with pytest.raises(ClusterError, match=r"may not create virtualmachines \(kubevirt.io\)"):
        create(client)


def test_a_field_in_the_wrong_place_is_refused(client: Client) -> None:
    spec = MachineSpec(name="m", boot_file="http://none/")
    manifest = vm_manifest.manifest(spec, RUN, ClusterConfig())
    manifest["spec"]["template"]["spec"]["domain"]["bootFileName"] = "http://none/"
    with pytest.raises(ApiError, match=r"domain: unknown field bootFileName") as error:
        client.create(manifest, Deadline(5))
    assert error.value.status == 400


def test_a_guest_that_powers_off_ends_as_recorded(cluster: Cluster, client: Client) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    guest: Any = cluster.instance().guest
    guest.off = True
    with Watch(client, VMIS) as watch:

        def ended() -> str | None:
            phase = (watch.get(NAME) or {}).get("status", {}).get("phase")
            return phase if phase != "Running" else None

        assert watch.wait_for(ended, Deadline(5)) == "Succeeded"
    assert any(vmi["status"].get("phase") == "Succeeded" for vmi in _instances())
    # A start then is taken, and makes another instance.
    assert ask(client, "start")[0] == 202
    wait_until_running(client)


def test_a_launcher_pod_that_is_deleted_takes_its_machine_along_at_once(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    pod = next(pod for pod in cluster.objects("pods") if "virt-launcher" in json.dumps(pod))
    # Not when its time to end is over, either.
    monkeypatch.setattr(cluster.virt, "ending_s", 3600.0)
    cluster.delete("pods", pod["metadata"]["name"])
    with Watch(client, VMIS) as watch:

        def failed() -> bool | None:
            return (watch.get(NAME) or {})["status"]["phase"] == "Failed" or None

        assert watch.wait_for(failed, Deadline(20))


_ENDED = {"Failed", "Succeeded"}

#: What tells one end of a machine from another, as an object's event shows it.
Sign = tuple[str, str]


def signs(rows: Iterator[dict[str, Any]], machine: str) -> list[Sign]:
    """What the events of a machine's objects show of its end, in their order, each once."""
    seen: list[Sign] = []
    for row in rows:
        kind, thing = row["resource"], row["event"]["object"]
        named = thing["metadata"].get("labels", {}).get("vm.kubevirt.io/name")
        if machine not in {thing["metadata"]["name"], named} or kind not in {"vm", "vmi", "pod"}:
            continue
        status = thing.get("status", {})
        marked = "deletionTimestamp" in thing["metadata"]
        requests = status.get("stateChangeRequests") or ()
        conditions = status.get("conditions") or ()
        why = [each["reason"] for each in conditions if each["type"] == "DisruptionTarget"]
        shown = [
            (kind, "is deleted") if row["event"]["type"] == "DELETED" else None,
            *((kind, f"is asked to {request['action']}") for request in requests),
            *((kind, reason) for reason in why),
            (kind, "is to be deleted") if marked else None,
            (kind, status["phase"]) if kind == "vmi" and status["phase"] in _ENDED else None,
        ]
        seen += [sign for sign in shown if sign and sign not in seen]
    return seen


def recorded_signs(name: str, machine: str, *, since: float = 0.0) -> list[Sign]:
    return signs((row for row in rows(name, "watch") if row["t"] >= since), machine)


def signs_until_it_ends(cluster: Cluster, act: Any, *, last: Sign) -> list[Sign]:
    """The same of the test cluster's machine, from `act` on until the `last` one."""
    kinds = {"virtualmachines": "vm", "virtualmachineinstances": "vmi", "pods": "pod"}
    began = cluster.call(lambda: cluster.store.version)
    mine = cluster.instance().pod["metadata"]["uid"]
    # Pods of machines before this one, which had its name, may end only now.
    others = {
        thing["metadata"]["uid"]
        for version, _, plural, thing in cluster.call(lambda: list(cluster.store.history))
        if plural == "pods" and version <= began
    } - {mine}
    act()

    def seen() -> list[Sign]:
        events = [
            {"resource": kinds.get(plural, plural), "event": {"type": event, "object": thing}}
            for version, event, plural, thing in cluster.store.history
            if version > began and thing["metadata"]["uid"] not in others
        ]
        return signs(iter(events), NAME)

    for _ in Deadline(10).poll(0.05):
        if last in (found := cluster.call(seen)):
            return found
    raise AssertionError(f"{last} was not seen: {found}")


def launcher(cluster: Cluster) -> str:
    return str(cluster.instance().pod["metadata"]["name"])


def test_an_eviction_ends_a_machine_in_the_recorded_order(cluster: Cluster, client: Client) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    path = PODS.path(client.namespace, launcher(cluster), "eviction")
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": launcher(cluster)}}
    ours = signs_until_it_ends(
        cluster,
        lambda: client.json("POST", path, Deadline(5), body=body),
        last=("pod", "is deleted"),
    )
    theirs = recorded_signs("ended-by-eviction", "kboot-r4b8deea1b-m0", since=1795734750)
    # Then the run, which had seen it, was removed.
    theirs = theirs[: theirs.index(("vmi", "Succeeded")) + 1]
    assert theirs == [
        ("pod", "EvictionByEvictionAPI"),
        ("pod", "is to be deleted"),
        ("vmi", "Succeeded"),
    ]
    assert ours == [*theirs, ("pod", "is deleted")]


def test_a_launcher_pod_that_is_deleted_with_grace_ends_its_machine_in_good_order(
    cluster: Cluster, client: Client
) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    ours = signs_until_it_ends(
        cluster,
        lambda: client.delete(PODS, launcher(cluster), Deadline(5), grace_s=30),
        last=("pod", "is deleted"),
    )
    assert ours == [("pod", "is to be deleted"), ("vmi", "Succeeded"), ("pod", "is deleted")]


@pytest.mark.parametrize(("action", "since"), [("stop", 109.26), ("restart", 70.2)])
def test_a_stop_ends_a_machine_in_the_recorded_order(
    cluster: Cluster, client: Client, action: str, since: float
) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    ours = signs_until_it_ends(cluster, lambda: ask(client, action), last=("vmi", "is deleted"))
    theirs = recorded_signs("lifecycle-bios", "m2", since=since)
    assert _until_instance_is_gone(ours) == _until_instance_is_gone(theirs)


def _until_instance_is_gone(found: list[Sign]) -> list[Sign]:
    """Without the end of the pod, which may be a moment later."""
    left_out = {
        ("pod", "is deleted"),
        # The recorder deleted the machine while it was stopped.
        ("vm", "is to be deleted"),
    }
    return [sign for sign in found[: found.index(("vmi", "is deleted"))] if sign not in left_out]


def test_a_machine_that_is_deleted_ends_in_the_recorded_order(
    cluster: Cluster, client: Client
) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)
    ours = signs_until_it_ends(
        cluster,
        lambda: client.delete(VIRTUAL_MACHINES, NAME, Deadline(5)),
        last=("vmi", "Succeeded"),
    )
    theirs = recorded_signs("network", "m4", since=25.57)
    assert theirs[-1] == ("vmi", "Succeeded")
    assert ours[: len(theirs)] == theirs


def test_a_guest_that_powers_off_leaves_none_of_these_signs(
    cluster: Cluster, client: Client
) -> None:
    create(client)
    ask(client, "start")
    wait_until_running(client)

    def power_off() -> None:
        guest: Any = cluster.instance().guest
        guest.off = True

    ours = signs_until_it_ends(cluster, power_off, last=("vmi", "Succeeded"))
    theirs = recorded_signs("ended-by-guest-poweroff", "kboot-r9e758ea69-m1")
    assert ours == theirs == [("vmi", "Succeeded")]


def _consoles() -> Iterator[dict[str, Any]]:
    for name in ("lifecycle-bios", "uefi-pxe-e99", "psa-denied"):
        for row in rows(name, "call"):
            if row["path"].endswith("/console") and row["status"] >= 400:
                row["response"]["message"] = re.sub(r'"m\d"', '"m2"', row["response"]["message"])
                yield row


def _instances() -> Iterator[dict[str, Any]]:
    return (vmi for vmi in watched("lifecycle-bios", "vmi") if "status" in vmi)
