"""A machine's disks as KubeVirt has them: disks, and the volumes behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kboot.backend import Disk, MachineSpec
from kboot.config import ClusterConfig

#: So that no disk of the user's is called as one of kboot's own.
_PREFIX = "disk-"


def fault(disk: Disk) -> str | None:
    """None if a cluster's machine can have such a disk, or else why not."""
    if disk.bus == "nvme":
        return "KubeVirt has no NVMe disks; give it bus=virtio or bus=scsi"
    match disk.kind:
        case "image":
            return (
                f"a cluster's machine does not read {disk.source}: put the image into a container "
                "image (container:IMAGE) or on a volume claim (pvc:NAME)"
            )
        case "clone":
            return "disks of this host are cloned for local machines; give pvc:NAME"
        case "blank" | "container" if disk.keep:
            return "what is to be kept on a cluster needs a volume claim: pvc:NAME,keep"
        case "container" | "pvc" if disk.size_mib is not None:
            return f"on a cluster it is as large as its {disk.kind}; leave out size"
        case _:
            return None


def add_disks(instance: dict[str, Any], spec: MachineSpec, settings: ClusterConfig) -> None:
    """Give a VirtualMachineInstance its disks, behind those that it has."""
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
        volume = {"name": name, **_source(disk, settings)}
        instance.setdefault("volumes", []).append(volume)


def _source(disk: Disk, settings: ClusterConfig) -> Mapping[str, Any]:
    match disk.kind:
        case "blank":
            return {"emptyDisk": {"capacity": f"{disk.size_mib}Mi"}}
        case "container":
            image: dict[str, Any] = {"image": disk.source}
            if settings.cluster_pull_secrets:
                image["imagePullSecret"] = settings.cluster_pull_secrets[0]
            return {"containerDisk": image}
        case "pvc":
            claim: dict[str, Any] = {"persistentVolumeClaim": {"claimName": disk.source}}
            # With nothing to be written, or all of it: else the writes go to a layer of the pod's.
            return claim if disk.keep or disk.read_only else {"ephemeral": claim}
        case kind:
            raise AssertionError(f"{kind}: refused by `fault`")
