"""A machine's disks as KubeVirt has them: disks, and the volumes behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kboot.config import ClusterConfig
from kboot.machine_spec import Disk, MachineSpec

#: So that no disk of the user's is called as one of kboot's own.
_PREFIX = "disk-"


def fault(disk: Disk) -> str | None:
    """None if a cluster's machine can have such a disk, or else why not."""
    if disk.bus == "nvme":
        return "KubeVirt has no NVMe disks; give it bus=virtio or bus=scsi"
    if disk.kind == "image" and not disk.source.startswith(("http://", "https://")):
        return (
            f"a cluster's machine does not read {disk.source}: put the image where the cluster "
            "reads it: a URL (with CDI), a container image (container:IMAGE) or a volume claim "
            "(pvc:NAME)"
        )
    if disk.kind == "image" and "#" in disk.source:
        return "CDI, which imports it, compares no checksum: leave out what follows the #"
    return _size_fault(disk)


def _size_fault(disk: Disk) -> str | None:
    if disk.kind == "image" or (disk.kind == "container" and disk.keep):
        return (
            "how large its claim has to be is not known before it is imported; add size=SIZE"
            if disk.size_mib is None
            else None
        )
    things = {"pvc": "claim", "container": "container image"}
    if disk.kind in things and disk.size_mib is not None:
        return f"on a cluster it is as large as its {things[disk.kind]}; leave out size"
    return None


def add_disks(
    instance: dict[str, Any],
    spec: MachineSpec,
    claims: Mapping[str, str],
    settings: ClusterConfig,
) -> None:
    """Give a VirtualMachineInstance its disks, behind those that it has.

    `claims` has the name of the claim behind each disk, empty for none.
    """
    devices = instance["domain"]["devices"]
    for disk in spec.disks:
        name = f"{_PREFIX}{disk.name}"
        target: dict[str, Any] = {"bus": disk.bus}
        if disk.read_only:
            target["readonly"] = True
        # The guest cannot know the volume's name; the serial number is what it sees.
        entry: dict[str, Any] = {"name": name, "serial": disk.name, "disk": target}
        if disk.name == spec.boot_disk:
            entry["bootOrder"] = 1
        devices.setdefault("disks", []).append(entry)
        volume = {"name": name, **_source(disk, claims[disk.name], settings)}
        instance.setdefault("volumes", []).append(volume)


def _source(disk: Disk, claim_name: str, settings: ClusterConfig) -> Mapping[str, Any]:
    if claim_name:
        claim: dict[str, Any] = {"persistentVolumeClaim": {"claimName": claim_name}}
        # With nothing to be written, or all of it: else the writes go to a layer of the pod's.
        return claim if disk.keep or disk.read_only else {"ephemeral": claim}
    match disk.kind:
        case "blank":
            return {"emptyDisk": {"capacity": f"{disk.size_mib}Mi"}}
        case "container":
            image: dict[str, Any] = {"image": disk.source}
            if settings.cluster_pull_secrets:
                image["imagePullSecret"] = settings.cluster_pull_secrets[0]
            return {"containerDisk": image}
        case kind:
            raise AssertionError(f"{kind}: it has a claim")
