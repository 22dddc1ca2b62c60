"""What a cluster refuses of a machine is told before anything is made, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.cli import main
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import KubevirtBackend, open_kubevirt, preflight, watches
from kboot.kubevirt.api.errors import RULES
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import Cluster, admission, running_cluster
from tests.kubevirt.cluster.answers import message_of
from tests.kubevirt.powered import powered_on
from tests.kubevirt.recordings import needs_recordings, rows
from tests.kubevirt.talking import talking

#: What the JSON decoder of KubeVirt's first webhook says of numbers; here it is the schema's part.
_OF_THE_DECODER = ("cannot unmarshal number", "in body must be of type", "parse quantity's suffix")
_GENERAL = "kboot doctor --backend kubevirt shows"


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def judged() -> Iterator[dict[str, Any]]:
    """All recorded requests for a machine or an instance that the webhooks have judged."""
    for recording in ("disks", "numa", "fleet", "arm64", "errors"):
        for row in rows(recording, "call"):
            kind = row["path"].partition("?")[0].rpartition("/")[2]
            if row["method"] != "POST" or row["status"] not in {201, 400, 422}:
                continue
            if kind in {"virtualmachines", "virtualmachineinstances"} and (
                row["status"] == 201 or "admission webhook" in row["response"]["message"]
            ):
                yield row


def causes(message: str) -> set[str]:
    """What a webhook says, each once: it says some of it twice."""
    return set(message.partition("denied the request: ")[2].split(", "))


@needs_recordings
def test_the_test_clusters_webhooks_answer_as_the_recorded_ones() -> None:
    wrong, seen = [], 0
    for row in judged():
        message = "" if row["status"] == 201 else row["response"]["message"]
        if any(words in message for words in _OF_THE_DECODER):
            continue
        seen += 1
        answer = admission.refusal(row["request"])
        said = message_of(answer) if answer else ""
        status = answer.status if answer else 201
        webhook, _, _ = message.partition(" denied")
        if status != row["status"] or causes(said) != causes(message) or webhook not in said:
            wrong.append((status, said, row["status"], message))
    assert wrong == []
    assert seen > 300


@needs_recordings
def test_every_recorded_refusal_is_one_line_with_its_remedy() -> None:
    told = {}
    for row in judged():
        if row["status"] != 201 and "unmarshal" not in row["response"]["message"]:
            message, manifest = row["response"]["message"], row["request"]
            spec = manifest["spec"].get("template", manifest)["spec"]
            told[message] = preflight.refusal(message, spec, None)
    assert len(told) > 50
    for message, line in told.items():
        assert line.startswith("the cluster refuses it: "), message
        assert "\n" not in line
        assert "admission webhook" not in line
        remedy = line.rpartition("; ")[2]
        assert remedy, line
        if "in body must be of type" not in message:
            assert not remedy.startswith(_GENERAL), line


def test_a_refusal_names_the_disk_and_the_patch_that_may_be_wrong(tmp_path: Path) -> None:
    spec = {"domain": {"devices": {"disks": [{"name": "disk-a"}, {"name": "disk-b"}]}}}
    said = (
        'admission webhook "virtualmachineinstances-create-validator.kubevirt.io" denied the '
        "request: spec.domain.devices.disks[1] is set with an unrecognized bus nvme, must be one "
        "of: [virtio scsi sata usb]"
    )
    assert preflight.refusal(said, spec, tmp_path / "patch.yaml") == (
        "the cluster refuses it: spec.domain.devices.disks[1] is set with an unrecognized bus "
        "nvme, must be one of: [virtio scsi sata usb] (disks[1] is disk-b); give the disk "
        f"bus=virtio or bus=scsi; {tmp_path}/patch.yaml may be what sets it"
    )


def patched(tmp_path: Path, domain: str) -> ClusterConfig:
    path = tmp_path / "patch.yaml"
    path.write_text(
        f"kind: VirtualMachine\nspec:\n  template:\n    spec:\n      domain: {domain}\n"
    )
    return ClusterConfig(cluster_patch=path)


def test_a_machine_that_would_be_refused_is_not_made(cluster: Cluster, tmp_path: Path) -> None:
    # The webhook of VirtualMachines takes it.
    settings = patched(tmp_path, "{devices: {watchdog: {name: w, diag288: {action: reset}}}}")
    with (
        open_kubevirt(settings) as backend,
        pytest.raises(
            ConfigError, match=r"only supports I6300ESB watchdog.*; leave the device out; .*patch"
        ),
        powered_on(backend),
    ):
        pytest.fail("it runs")
    assert cluster.calls("POST /apis/kubevirt.io/v1/namespaces/team/virtualmachines?") == []
    assert cluster.objects("virtualmachines") == []


@needs_recordings
def test_a_field_that_the_cluster_does_not_know_is_named(cluster: Cluster, tmp_path: Path) -> None:
    settings = patched(tmp_path, "{devices: {bootFileName: x}}")
    with (
        open_kubevirt(settings) as backend,
        pytest.raises(ConfigError, match=r"unknown field bootFileName; .*; correct .*patch.yaml$"),
        powered_on(backend),
    ):
        pytest.fail("it runs")


def test_doctor_has_the_settings_judged(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = patched(tmp_path, "{memory: null}").cluster_patch
    assert main(["doctor", "--backend", "kubevirt", f"--cluster-patch={patch}"]) == 3
    assert "no memory requested" in capsys.readouterr().out


def test_an_account_that_may_not_rehearse_starts_machines_all_the_same(
    cluster: Cluster, backend: KubevirtBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.api.rights.forbidden.add("create virtualmachineinstances")
    with powered_on(backend):
        pass
    cluster.api.rights.forbidden.clear()
    cluster.api.rights.rules = [*RULES]
    assert main(["doctor", "--backend", "kubevirt"]) == 0
    assert (
        "all that a run needs; machines are judged before they are started only with the right to "
        "create virtualmachineinstances" in capsys.readouterr().out
    )


def test_what_is_refused_at_the_start_only_is_told_as_well(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.api.rights.forbidden.add("create virtualmachineinstances")
    settings = patched(tmp_path, "{devices: {watchdog: {name: w, diag288: {action: reset}}}}")
    with (
        open_kubevirt(settings) as backend,
        pytest.raises(ClusterError, match="only supports I6300ESB watchdog"),
        powered_on(backend),
    ):
        pytest.fail("it runs")


def volume(tmp_path: Path, source: str) -> ClusterConfig:
    path = tmp_path / "patch.yaml"
    path.write_text(
        "kind: VirtualMachine\nspec:\n  template:\n    spec:\n"
        "      domain: {devices: {disks: [{name: own, disk: {bus: virtio}}]}}\n"
        f"      volumes: [{{name: own, {source}}}]\n"
    )
    return ClusterConfig(cluster_patch=path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "cloudInitNoCloud: {secretRef: {name: none}}",
            "its volume own-udata needs the secret none, which is not there; create it",
        ),
        ("emptyDisk: {capacity: 1k}", "an empty disk is too small for KubeVirt: give it size=1M"),
    ],
)
def test_what_only_the_pod_or_its_events_show_is_read_there(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    monkeypatch.setattr(watches, "LOOK_CLOSER_S", 0.2)
    deadline = Deadline(120)
    with (
        open_kubevirt(volume(tmp_path, source)) as backend,
        pytest.raises(ClusterError, match=re.escape(words)),
        powered_on(backend, deadline=deadline),
    ):
        pytest.fail("it runs")
    assert not deadline.expired


def test_a_cluster_that_is_gone_while_it_judges_is_no_fault_of_the_users(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    cluster.order("POST .*virtualmachineinstances", count=9, status=503)
    spec = MachineSpec(name="m", boot_file="http://none/boot.ipxe")
    with pytest.raises(ClusterError), backend.power_on(spec, Deadline(1)):
        pytest.fail("it runs")
