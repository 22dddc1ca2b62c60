"""Every refusal that a real cluster has given, told with who has to do what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from kboot.errors import InfraError
from kboot.kubevirt import diagnosis
from kboot.kubevirt.api import errors
from kboot.machine.boot import Boot
from kboot.machine.phases import Expected
from tests.kubevirt.recordings import calls, needs_recordings, rows, watched

pytestmark = needs_recordings


class Picture:
    """The objects of a recording as they were at a moment, by kind and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}

    def machine(self, name: str) -> tuple[Any, list[Any], Any]:
        pods = [each for (kind, _), each in self.objects.items() if kind == "pod"]
        return self.objects.get(("vmi", name)), pods, self.objects.get(("vm", name))


def history(recording: str) -> Iterator[tuple[float, str, Picture]]:
    """The moments of a recording at which an object changed: time, name, and what was there."""
    picture = Picture()
    for row in rows(recording, "watch"):
        event, kind = row["event"], row["resource"]
        name = event["object"]["metadata"]["name"]
        if event["type"] == "DELETED":
            picture.objects.pop((kind, name), None)
        else:
            picture.objects[kind, name] = event["object"]
        yield row["t"], name, picture


def first_fault(recording: str, machine: str) -> tuple[float, str]:
    """When, and in which words, a machine's fault is known first."""
    for time, _, picture in history(recording):
        if fault := diagnosis.machine_fault(*picture.machine(machine)):
            return time, fault
    raise AssertionError("no fault was found")


def refused(row: dict[str, Any]) -> str:
    """The words for a call of the recording that was refused."""
    body = json.dumps(row["response"]).encode()
    return str(errors.api_error(row["method"], row["path"], row["status"], body, namespace="ceo"))


def test_a_machine_that_fits_no_node_is_told_with_the_schedulers_reason() -> None:
    time, fault = first_fault("errors", "big")
    assert fault.startswith("machine big: pod virt-launcher-big-mcl8k finds no node: 0/1 nodes")
    assert "1 Insufficient memory" in fault
    assert "lower memory or cpus" in fault
    # The pod was refused 0.088 s after the machine was started.
    assert time < 0.2


def test_a_cluster_without_nodes_of_the_architecture_is_told_at_once() -> None:
    _, fault = first_fault("arm64", "ar-arm")
    assert re.match(r"machine ar-arm: pod virt-launcher-ar-arm-\w+ finds no node: ", fault)
    assert "the cluster has none for arm64" in fault
    assert "memory" not in fault
    for _, _, picture in history("arm64"):
        trouble = diagnosis.machine_trouble(*picture.machine("ar-arm"))
        assert trouble is None or trouble.obstacle is None


def test_a_machine_that_a_cluster_refuses_only_when_it_is_started_is_told() -> None:
    _, fault = first_fault("arm64", "ar-armkboot")
    assert fault.startswith("machine ar-armkboot: ")
    assert "Arm64 does not support bios boot" in fault


def test_a_machine_over_quota_is_told_with_the_quota() -> None:
    _, fault = first_fault("errors", "quota")
    assert "a quota of namespace ceo does not allow the pod: exceeded quota: q" in fault
    assert "used: pods=1, limited: pods=1" in fault


def test_pod_security_is_told_with_the_setting_to_change() -> None:
    time, fault = first_fault("psa-denied", "m1")
    assert "Pod Security of namespace ceo refuses KubeVirt's pod" in fault
    assert (
        "spec.configuration.seccompConfiguration.virtualMachineInstanceProfile.customProfile."
        "runtimeDefaultProfile: true" in fault
    )
    assert time < 1


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    pods = [pod for pod in watched("errors", "pod") if pod["metadata"]["name"] == "noimg"]
    fault = next(fault for pod in pods if (fault := diagnosis.pod_fault(pod)))
    assert "the image localhost/none:1 cannot be pulled (ErrImagePull)" in fault
    assert "connection refused" in fault
    assert "--cluster-pull-secret" in fault


def test_a_killed_launcher_pod_is_no_fault_of_the_guests() -> None:
    fault = ""
    for _, _, picture in history("errors"):
        vmi, pods, vm = picture.machine("paused")
        if diagnosis.phase_of(vmi) == "Failed":
            fault = diagnosis.machine_fault(vmi, pods, vm) or ""
            break
    assert fault.startswith("machine paused was ended from outside: its launcher pod is gone")


def test_a_launcher_that_fails_is_told_by_the_error_in_its_log() -> None:
    entry = '{{"component":"virt-launcher","level":"{}","msg":"{}","pos":"x.go:1"{}}}'
    log = "\n".join(
        [
            'ent":"virt-launcher","level":"info","msg":"the first line is cut"}',
            *(entry.format("info", f"step {number}", "") for number in range(40)),
            entry.format("error", "failed to start", ',"reason":"no space left on device"'),
            entry.format("info", "Exiting...", ""),
        ]
    )
    pod = {
        "metadata": {"name": "virt-launcher-m-1", "ownerReferences": [{"uid": "u"}]},
        "status": {
            "containerStatuses": [
                {
                    "name": "compute",
                    "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": log}},
                }
            ]
        },
    }
    vmi = {"metadata": {"name": "m", "namespace": "t", "uid": "u"}, "status": {"phase": "Failed"}}
    assert diagnosis.machine_fault(vmi, [pod], None) == (
        "machine m failed: KubeVirt could not run it (compute exited with 1, Error: failed to "
        "start: no space left on device)"
    )


def test_a_machine_that_boots_has_no_fault_on_its_way() -> None:
    seen = set()
    for time, _, picture in history("lifecycle-bios"):
        vmi, pods, vm = picture.machine("m2")
        if time > 60:
            break
        seen.add(diagnosis.phase_of(vmi))
        assert diagnosis.machine_fault(vmi, pods, vm) is None
    assert {"", "Pending", "Scheduling", "Scheduled", "Running"} <= seen


def verdicts(recording: str, machine: str) -> list[str]:
    """What ended a machine, at each moment after its end: a fault, or that its guest did."""
    found = []
    for _, _, picture in history(recording):
        vmi, pods, vm = picture.machine(machine)
        if vmi is not None and diagnosis.has_succeeded(vmi):
            found.append(diagnosis.machine_fault(vmi, pods, vm) or "its guest")
    assert found
    return found


def test_a_guests_power_off_is_its_own_doing_however_long_ago_it_was() -> None:
    found = verdicts("ended-by-guest-poweroff", "kboot-r9e758ea69-m1")
    assert len(found) > 8
    assert set(found) == {"its guest"}


def test_a_guests_power_off_stays_its_own_when_the_machine_is_restarted_later() -> None:
    moments = []
    for time, _, picture in history("lifecycle-bios"):
        vmi, pods, vm = picture.machine("m2")
        if 101 < time < 106 and diagnosis.has_succeeded(vmi):
            moments.append(diagnosis.machine_fault(vmi, pods, vm))
    assert len(moments) > 8
    assert set(moments) == {None}


def test_an_eviction_is_told_as_such_in_all_its_course() -> None:
    for fault in verdicts("ended-by-eviction", "kboot-r4b8deea1b-m0"):
        assert fault == (
            "machine kboot-r4b8deea1b-m0 was ended from outside: its launcher pod "
            "virt-launcher-kboot-r4b8deea1b-m0-sfp86 was evicted, as kubectl drain and autoscalers "
            "do (EvictionByEvictionAPI: Eviction API: evicting)"
        )


def test_an_eviction_is_told_before_the_machine_is_gone() -> None:
    time, fault = first_fault("ended-by-eviction", "kboot-r4b8deea1b-m0")
    assert "was evicted" in fault
    # It succeeded 1.3 s later.
    assert time < 1795734754.8


def test_a_stop_and_a_restart_are_told_apart_by_what_was_asked_of_the_machine() -> None:
    found: dict[str, None] = {}
    for time, _, picture in history("lifecycle-bios"):
        vmi, pods, vm = picture.machine("m2")
        if vmi and "deletionTimestamp" in vmi["metadata"] and (time < 101 or 109 < time < 117):
            found[diagnosis.machine_fault(vmi, pods, vm) or "nobody"] = None
    assert [fault.partition(" (")[0] for fault in found] == [
        "machine m2 was restarted from outside",
        "machine m2 was stopped from outside",
    ]


def test_a_machine_that_is_deleted_is_told_as_such() -> None:
    for fault in verdicts("network", "m4"):
        assert fault.startswith("machine m4 was deleted from outside (kubectl delete vm")


@pytest.mark.parametrize(
    ("recording", "machine", "words"),
    [
        ("disks", "dk-nopvc", "there is no volume claim kboot/dk-none; create it"),
        ("disks", "dk-pvc", "waits for a volume claim that is not bound"),
        ("disks", "dk-dvt", "the cluster has no CDI, which imports and clones disks"),
        ("disks", "dk-dvmiss", "there is no volume claim kboot/dk-dvnone; create it"),
        ("disks", "dk-noimg", "cannot be pulled (ErrImageNeverPull)"),
        ("disks", "d2-pull", "cannot be pulled (ImagePullBackOff)"),
        ("disks", "d2-img", "a disk's container image has no name"),
        ("disks", "d2-zero", "an empty disk is too small for KubeVirt: give it size=1M"),
        ("disks", "d2-1k", "an empty disk is too small for KubeVirt: give it size=1M"),
        ("disks", "d2-path", "a container image of its disks has no disk in it"),
        ("numa", "nu-cpu512", "Insufficient cpu"),
        ("numa", "nu-mem1ti", "lower memory or cpus"),
        ("numa", "nu-ded", "the cluster has none with dedicated processors"),
        ("numa", "nu-huge", "set huge pages up on a node"),
        ("numa", "nu-numa", "the cluster has none with dedicated processors"),
        ("numa", "nu-model", "the cluster has none with processors of the model bogus"),
    ],
)
def test_each_recorded_way_to_fail_has_its_own_line(
    recording: str, machine: str, words: str
) -> None:
    time, fault = first_fault(recording, machine)
    begun = next(at for at, name, _ in history(recording) if name == machine)
    assert words in fault
    assert "\n" not in fault
    assert time - begun < 12


def test_a_secret_that_is_missing_is_read_from_the_events_about_the_pod() -> None:
    found: dict[str, None] = {}
    awaited = False
    for _, _, picture in history("disks"):
        for pod in picture.machine("dk-nosec")[1]:
            if pod["metadata"]["name"].startswith("virt-launcher-dk-nosec"):
                about = pod["metadata"]["name"]
                events = [
                    each
                    for (kind, _), each in picture.objects.items()
                    if kind == "events" and each["involvedObject"]["name"] == about
                ]
                awaited = awaited or diagnosis.awaits_volumes(pod)
                if fault := diagnosis.mount_fault(pod, events):
                    found[fault.partition(": ")[2]] = None
    assert awaited
    assert list(found) == [
        "its volume ci-udata needs the secret dk-none, which is not there; create it: kubectl "
        "create secret, or correct its name in the patch"
    ]


@pytest.mark.parametrize(
    ("method", "path_end", "words"),
    [
        ("PUT", "x/start", "may not update virtualmachines/start (subresources.kubevirt.io)"),
        ("GET", "x/console", "may not get virtualmachineinstances/console"),
        ("GET", "proxy/boot.ipxe", "may not get services/proxy in namespace ceo"),
    ],
)
def test_what_an_account_may_not_do_is_named_with_the_remedy(
    method: str, path_end: str, words: str
) -> None:
    (row,) = calls("errors", method, path_end)
    message = refused(row)
    assert "system:serviceaccount:ceo:weak may not" in message
    assert words in message
    assert "kboot doctor --backend kubevirt --rbac" in message


def test_refused_creations_say_why() -> None:
    machines = [row for row in calls("errors", "POST", "/virtualmachines") if row["status"] >= 400]
    texts = [refused(row) for row in machines]
    assert any("uses model ne3000 that is not supported" in text for text in texts)
    assert any("a lowercase RFC 1123 subdomain" in text for text in texts)
    assert any("may not create virtualmachines (kubevirt.io)" in text for text in texts)
    pods = [refused(row) for row in calls("errors", "POST", "/pods") if row["status"] >= 400]
    assert any("Pod Security of namespace ceo refuses the boot server's pod" in it for it in pods)
    assert any("a quota of namespace ceo does not allow the pod" in text for text in pods)


def test_a_service_without_a_server_is_told_so() -> None:
    (row,) = calls("errors", "GET", "http:empty:http/proxy/x")
    assert "the boot server does not answer behind its Service" in refused(row)


def test_a_cluster_without_kubevirt_and_a_missing_namespace_are_told_apart() -> None:
    def words(path: str, text: str) -> str:
        body = json.dumps({"kind": "Status", "message": text}).encode()
        return str(errors.api_error("GET", path, 404, body, namespace="gone"))

    path = "/apis/kubevirt.io/v1/namespaces/gone/virtualmachines"
    assert "has no KubeVirt" in words(path, "the server could not find the requested resource")
    assert "has no KubeVirt" in str(
        errors.api_error("GET", path, 404, b"404 page not found\n", namespace="gone")
    )
    assert "no namespace gone" in words(path, 'namespaces "gone" not found')
    assert "no KubeVirt" not in words(path, 'virtualmachines.kubevirt.io "m1" not found')


#: Group, resources and verbs of the smallest account that a whole run was tried with.
TRIED = (
    ("", "configmaps secrets services pods", "get list watch create patch delete"),
    ("", "pods/log events", "get list watch"),
    ("", "services/proxy", "get create update delete"),
    ("kubevirt.io", "virtualmachines", "get list watch create patch delete"),
    ("kubevirt.io", "virtualmachineinstances", "get list watch"),
    (
        "subresources.kubevirt.io",
        "virtualmachines/start virtualmachines/stop virtualmachines/restart "
        "virtualmachineinstances/pause virtualmachineinstances/unpause "
        "virtualmachineinstances/reset virtualmachineinstances/softreboot",
        "update",
    ),
    (
        "subresources.kubevirt.io",
        "virtualmachineinstances/console virtualmachineinstances/portforward",
        "get",
    ),
)


def rights_of(rules: Iterable[Mapping[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_holds_the_rights_that_were_tried_and_those_that_can_be_done_without() -> None:
    role, binding = errors.role("team")
    rights = rights_of(errors.RULES)
    optional = rights_of(rule for rules in errors.OPTIONAL_RULES.values() for rule in rules)
    assert rights_of(role["rules"]) == rights | optional
    tried = {
        (group, resource, verb)
        for group, resources, verbs in TRIED
        for resource in resources.split()
        for verb in verbs.split()
    }
    # A hardening, which is done without where it may not be made.
    policies = {("networking.k8s.io", "networkpolicies", verb) for verb in ("create", "delete")}
    assert rights == tried | policies
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_uefi_that_does_not_boot_by_ipxe_is_told_with_the_remedy() -> None:
    expected = Expected(
        nonce="n",
        query="m=m",
        script_path="scripts/m/boot.ipxe",
        kernel_path="artifacts/0",
        initrd_paths={},
        release="6.1.0",
        command_line="",
    )
    milestones = Boot(expected, start=0)
    text = "".join(row["text"] for row in rows("uefi-pxe-e99", "console_data"))
    with pytest.raises(
        InfraError, match=r"NBP filesize is 0; .* a disk with iPXE \(--cluster-ipxe-disk"
    ):
        _see_all(milestones, text)


def _see_all(milestones: Boot, text: str) -> None:
    for line in text.splitlines():
        milestones.see_line(line, 1)
