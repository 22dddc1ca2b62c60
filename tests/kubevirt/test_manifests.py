"""What kboot asks a cluster for, held against the schemas that a real one published."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kboot.cli import main
from kboot.config import ClusterConfig, read_disks
from kboot.errors import ConfigError
from kboot.kubevirt import manifests, patch, vm_manifest
from kboot.machine_spec import MachineSpec
from tests.kubevirt import sample_manifests, schema
from tests.kubevirt.cluster import admission
from tests.kubevirt.recordings import needs_recordings

RUN = manifests.Run(identifier="r123456789", namespace="team", owner_uid="c0ffee")
SPEC = MachineSpec(name="m-1", boot_file="http://kboot/boot.ipxe")
FULL = ClusterConfig(
    cluster_pull_secrets=("registry",),
    cluster_claim="artifacts",
    cluster_ipxe_disk="registry/ipxe:1",
    cluster_attach="paused",
)


def everything(settings: ClusterConfig) -> list[dict[str, Any]]:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    return [
        manifests.owner(RUN, user="someone", now=now),
        *manifests.boot_server(RUN, settings, token="t0ken"),
        manifests.storage(
            "team", ClusterConfig(cluster_claim="artifacts", cluster_storage_class="fast")
        ),
    ]


def machine(**changes: Any) -> dict[str, Any]:
    settings = changes.pop("settings", ClusterConfig())
    spec = MachineSpec(**({"name": "m-1", "boot_file": "http://kboot/boot.ipxe"} | changes))
    return vm_manifest.manifest(spec, RUN, settings)


@pytest.mark.parametrize("settings", [ClusterConfig(), FULL], ids=["plain", "full"])
def test_the_api_server_knows_every_field_of_the_boot_server(settings: ClusterConfig) -> None:
    for manifest in everything(settings):
        assert schema.faults(manifest) == []


#: What people with special nodes write into --cluster-patch.
SPECIAL: dict[str, Any] = {
    "kind": "VirtualMachine",
    "metadata": {"labels": {"team": "kernel"}, "annotations": {"note": "under test"}},
    "spec": {
        "template": {
            "metadata": {"labels": {"team": "kernel"}},
            "spec": {
                "nodeSelector": {"kernel-tests": "true"},
                "tolerations": [{"key": "kernel-tests", "operator": "Exists"}],
                "affinity": {"podAntiAffinity": {}},
                "priorityClassName": "low",
                "domain": {
                    "cpu": {"dedicatedCpuPlacement": True, "model": "host-passthrough"},
                    "memory": {"hugepages": {"pageSize": "1Gi"}},
                    "resources": {"requests": {"memory": "2Gi"}},
                    "ioThreadsPolicy": "auto",
                },
            },
        }
    },
}
ON_CLAIM = ClusterConfig(cluster_ipxe_disk="pvc:ipxe")


@needs_recordings
@pytest.mark.parametrize(
    "settings", [ClusterConfig(), FULL, ON_CLAIM], ids=["plain", "full", "patched"]
)
@pytest.mark.parametrize(
    ("architecture", "firmware"), [("x86_64", "bios"), ("x86_64", "uefi"), ("aarch64", "uefi")]
)
@pytest.mark.parametrize("cpus", [1, 384])
def test_the_api_server_knows_every_field_of_a_machine(
    settings: ClusterConfig, firmware: str, architecture: str, cpus: int, tmp_path: Path
) -> None:
    if settings is ON_CLAIM:
        path = tmp_path / "patch.yaml"
        path.write_text(json.dumps(SPECIAL))
        settings = replace(settings, cluster_patch=path)
    made = machine(settings=settings, firmware=firmware, architecture=architecture, cpus=cpus)
    assert schema.faults(made) == []
    cpu = made["spec"]["template"]["spec"]["domain"]["cpu"]
    assert cpu["sockets"] * cpu["cores"] * cpu["threads"] == cpus
    if settings.cluster_patch:
        assert cpu["dedicatedCpuPlacement"] is True


def test_the_network_card_is_of_the_model_that_is_asked_for() -> None:
    made = machine(nic_model="virtio")
    (card,) = made["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]
    assert (card["model"], card["bootOrder"]) == ("virtio", 1)


def test_a_machine_for_arm64_asks_for_nothing_that_kubevirt_refuses_it() -> None:
    settings = ClusterConfig(cluster_ipxe_disk="registry/ipxe-arm64:1")
    disks = read_disks(("data=blank,size=1G", "more=blank,size=1G,bus=scsi"))
    made = machine(settings=settings, firmware="uefi", architecture="aarch64", disks=disks)
    instance = made["spec"]["template"]["spec"]
    assert instance["architecture"] == "arm64"
    domain = instance["domain"]
    # Its default is a secure boot, which takes what machines for arm64 do not have.
    assert domain["firmware"]["bootloader"] == {"efi": {"secureBoot": False}}
    devices = domain["devices"]
    assert [card["model"] for card in devices["interfaces"]] == ["e1000e"]
    # A disk without a bus would be put on one.
    buses = [each["disk"]["bus"] for each in devices["disks"]]
    assert buses == ["virtio", "virtio", "scsi"]
    assert not {"watchdog", "sound"} & devices.keys()
    assert "model" not in domain["cpu"]
    whole = {"kind": "VirtualMachineInstance", "metadata": {"name": "m"}, "spec": instance}
    assert admission.refusal(whole) is None


@needs_recordings
def test_the_validator_finds_a_field_in_the_wrong_place() -> None:
    wrong = machine()
    wrong["spec"]["template"]["spec"]["domain"]["bootFileName"] = "http://kboot/"
    assert schema.faults(wrong) == ["$.spec.template.spec.domain: unknown field bootFileName"]
    pod = manifests.boot_server(RUN, ClusterConfig(), token="t")[3]
    pod["spec"]["containers"][0]["imagePolicy"] = "Always"
    assert schema.faults(pod) == ["$.spec.containers[0]: unknown field imagePolicy"]


def test_the_boot_server_keeps_to_restricted_pod_security() -> None:
    pod = manifests.boot_server(RUN, ClusterConfig(), token="t")[3]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])


def test_the_token_is_in_the_secret_only() -> None:
    secret, *others = manifests.boot_server(RUN, ClusterConfig(), token="s3cr3t")
    assert secret["kind"] == "Secret"
    assert "s3cr3t" in str(secret)
    assert "s3cr3t" not in str(others)


def test_everything_of_a_run_carries_its_labels_and_goes_with_its_owner() -> None:
    owner, *rest = [*everything(ClusterConfig())[:-1], machine()]
    assert owner["metadata"]["labels"] == manifests.labels("r123456789", component="run")
    for manifest in rest:
        assert manifest["metadata"]["labels"].items() >= {manifests.RUN_LABEL: "r123456789"}.items()
        assert manifest["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "kboot-r123456789", "uid": "c0ffee"}
        ]


def test_a_machine_boots_from_the_network_with_its_serial_line_on() -> None:
    spec = machine()["spec"]
    assert spec["runStrategy"] == "Manual"
    domain = spec["template"]["spec"]["domain"]
    assert domain["firmware"]["bootloader"] == {"bios": {"useSerial": True}}
    (card,) = domain["devices"]["interfaces"]
    assert card["bootOrder"] == 1
    assert card["dhcpOptions"] == {"bootFileName": "http://kboot/boot.ipxe"}
    assert "panicDevices" not in domain["devices"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 0


def test_a_machine_has_an_address_of_its_own_that_stays() -> None:
    def address(**changes: Any) -> str:
        devices = machine(**changes)["spec"]["template"]["spec"]["domain"]["devices"]
        return str(devices["interfaces"][0]["macAddress"])

    assert address() == address(memory_mib=1024) != address(name="m-2")
    # Locally administered, and not a group's.
    assert int(address().partition(":")[0], 16) & 3 == 2
    assert address(mac_address="52:54:00:00:00:01") == "52:54:00:00:00:01"


def test_a_boot_file_name_that_dhcp_cannot_carry_is_refused() -> None:
    assert machine(boot_file="http://" + "x" * 248)
    with pytest.raises(ConfigError, match=r"255 characters.* has 256"):
        machine(boot_file="http://" + "x" * 249)


def test_a_uefi_machine_boots_ipxe_from_its_disk_where_there_is_one() -> None:
    def boot_order(settings: ClusterConfig, firmware: str) -> tuple[int, list[int]]:
        devices = machine(settings=settings, firmware=firmware)["spec"]["template"]["spec"][
            "domain"
        ]["devices"]
        disks = [disk["bootOrder"] for disk in devices.get("disks", [])]
        return devices["interfaces"][0]["bootOrder"], disks

    assert boot_order(FULL, "uefi") == (2, [1])
    assert boot_order(FULL, "bios") == (1, [])
    assert boot_order(ClusterConfig(), "uefi") == (1, [])
    on_a_claim = machine(settings=ClusterConfig(cluster_ipxe_disk="pvc:ipxe"), firmware="uefi")
    spec = on_a_claim["spec"]["template"]["spec"]
    assert spec["volumes"] == [{"name": "ipxe", "persistentVolumeClaim": {"claimName": "ipxe"}}]
    # Several machines may have it at once.
    assert spec["domain"]["devices"]["disks"][0]["disk"]["readonly"] is True


@given(st.integers(1, 255))
def test_processors_are_in_sockets_that_are_alike(cpus: int) -> None:
    cpu = machine(cpus=cpus)["spec"]["template"]["spec"]["domain"]["cpu"]
    assert cpu["sockets"] * cpu["cores"] * cpu["threads"] == cpus
    assert cpu["cores"] <= 64
    assert cpu["maxSockets"] == cpu["sockets"]


def test_what_a_cluster_does_not_have_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="KubeVirt has no machine for riscv64"):
        machine(architecture="riscv64")
    with pytest.raises(ConfigError, match="has no BIOS"):
        machine(architecture="aarch64")
    with pytest.raises(ConfigError, match="qemu_arguments are for the qemu backend"):
        machine(extra_arguments=("-cpu", "host"))
    with pytest.raises(ConfigError, match="answers at once: dhcp = silent is for local machines"):
        machine(dhcp="silent")
    for path, words in (
        ("/a/none.lkrn", "/a/none.lkrn cannot be read: No such file"),
        (__file__, "cannot be loaded by the iPXE of a BIOS machine on a cluster"),
    ):
        with pytest.raises(ConfigError, match=words):
            vm_manifest.require_loadable(Path(path))


def test_dhcp_on_a_cluster_may_name_no_boot_file_or_one_that_is_not_there() -> None:
    def options(**changes: Any) -> Any:
        domain = machine(**changes)["spec"]["template"]["spec"]["domain"]
        (card,) = domain["devices"]["interfaces"]
        return card.get("dhcpOptions")

    name = options()["bootFileName"]
    assert options(dhcp="wrong-file") == {"bootFileName": f"{name}.none"}
    assert options(dhcp="no-file") is None


LABEL = r"[a-z]([a-z0-9-]*[a-z0-9])?"


@given(st.text(max_size=90))
def test_every_name_is_a_dns_label(what: str) -> None:
    import re

    name = manifests.object_name("r123456789", what)
    assert re.fullmatch(LABEL, name)
    assert len(name) <= 63


@given(st.lists(st.text("abcXYZ-_.ä", max_size=80), unique=True, max_size=20))
def test_different_machines_have_different_names(machines: list[str]) -> None:
    found = {manifests.object_name("r123456789", what) for what in machines}
    assert len(found) == len(machines)


def test_runs_do_not_share_a_name() -> None:
    assert len({manifests.new_run() for _ in range(1000)}) == 1000


def test_a_patch_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "patch.yaml"
    path.write_text("""
kind: VirtualMachine
spec:
  template:
    spec:
      nodeSelector: {disk: fast}
      tolerations: [{key: ci, operator: Exists}]
      domain:
        cpu: {dedicatedCpuPlacement: true}
        devices:
          rng: null
          interfaces:
            - {name: default, model: virtio}
---
kind: Pod
spec:
  containers:
    - name: nginx
      resources: {limits: {memory: 1Gi}}
""")
    settings = ClusterConfig(cluster_patch=path)
    plain, patched = machine(), machine(settings=settings)
    spec = patched["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["domain"]["cpu"]["dedicatedCpuPlacement"] is True
    assert spec["domain"]["cpu"]["cores"] == 1
    assert "rng" not in spec["domain"]["devices"]
    (card,) = spec["domain"]["devices"]["interfaces"]
    assert card["model"] == "virtio"
    assert card["bootOrder"] == 1
    assert machine() == plain
    pod = manifests.boot_server(RUN, settings, token="t")[3]
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}
    assert pod["spec"]["containers"][0]["command"][0] == "nginx"


def test_directives_delete_and_replace() -> None:
    base = {"list": [{"name": "a", "x": 1}, {"name": "b"}], "map": {"x": 1, "y": 2}}
    change = {
        "list": [{"name": "a", "$patch": "delete"}, {"name": "c", "x": 3}],
        "map": {"$patch": "replace", "z": 3},
    }
    assert patch.merge(base, change) == {
        "list": [{"name": "b"}, {"name": "c", "x": 3}],
        "map": {"z": 3},
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: Secret", "a kind of VirtualMachine, Pod"),
        ("- 1", "a kind of VirtualMachine, Pod"),
        ("kind: Pod\nmetadata: {name: mine}", "metadata.name is kboot's to choose"),
        ("kind: [", "cannot be read"),
    ],
)
def test_a_patch_that_is_none_is_told_with_its_file(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "patch.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as error:
        patch.read(path)
    assert str(path) in str(error.value)


def test_the_manifests_can_be_printed_and_applied_by_hand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import yaml

    assert main(["manifests", "--namespace", "mine"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = ["ConfigMap", "Secret", "ConfigMap", "Service", "Pod", "NetworkPolicy"]
    assert [manifest["kind"] for manifest in printed] == kinds
    for manifest in printed:
        assert schema.faults(manifest) == []
        assert manifest["metadata"]["namespace"] == "mine"
        assert "ownerReferences" not in manifest["metadata"]


def test_the_manifests_in_the_checkout_are_those_of_a_run() -> None:
    text = sample_manifests.PATH.read_text(encoding="utf-8")
    assert text == sample_manifests.text(), "run: python -m tests.kubevirt.sample_manifests"


@pytest.mark.parametrize("name", ["yes", "12", "0x1f", "2026-01-02", "a: b", "null", "~"])
def test_names_are_texts_whatever_they_look_like(name: str) -> None:
    import yaml

    settings = ClusterConfig(cluster_claim=name, cluster_storage_class=name)
    run = manifests.Run(identifier="r1", namespace=name)
    made = [*manifests.boot_server(run, settings, token="t"), manifests.storage(name, settings)]
    assert list(yaml.safe_load_all(manifests.to_yaml(made))) == made
    assert all(manifest["metadata"]["namespace"] == name for manifest in made)
    files, *_ = made[3]["spec"]["volumes"]
    assert files["persistentVolumeClaim"] == {"claimName": name}
    assert made[-1]["metadata"]["name"] == made[-1]["spec"]["storageClassName"] == name
