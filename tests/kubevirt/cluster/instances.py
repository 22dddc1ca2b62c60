"""The objects that KubeVirt makes of a VirtualMachine, and what runs behind them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from aiohttp import web

from kboot import arch
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import architectures
from tests.kubevirt.cluster.connections import Connection
from tests.kubevirt.cluster.guests import Guest
from tests.kubevirt.cluster.store import Object

#: The factor by which this cluster is quicker than the recorded one.
SPEED = 0.05


class Instance:
    """A VirtualMachineInstance with its guest and its serial line."""

    def __init__(self, vmi: Object, pod: Object) -> None:
        self.vmi = vmi
        self.pod = pod
        self.guest: Guest | None = None
        self.record = b""
        self.session: web.WebSocketResponse | None = None
        self.connection: Connection | None = None
        self.paused = False
        #: Its phases, with their times.
        self.transitions: list[Object] = []
        self.tasks: list[asyncio.Task[None]] = []

    def lines(self) -> bytes:
        """What the log container has: whole lines, without carriage returns."""
        whole, newline, _ = self.record.replace(b"\r", b"").rpartition(b"\n")
        return whole + newline

    def drop_session(self) -> None:
        """Cut the console as KubeVirt does: the TCP connection ends, without a close frame."""
        self.session = None
        if self.connection is not None:
            self.connection.cut()
            self.connection = None


def instance_of(vm: Object) -> Object:
    """The VirtualMachineInstance of a machine that is started."""
    template, metadata = vm["spec"]["template"], vm["metadata"]
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": dict(template.get("metadata", {}).get("labels", {})),
            "ownerReferences": [_owner(vm)],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }


def machine_of(vmi: Object) -> Object:
    """An instance in the form of a VirtualMachine, which not every instance has."""
    metadata = {key: vmi["metadata"][key] for key in ("name", "namespace")}
    owners = [it for it in vmi["metadata"]["ownerReferences"] if it["kind"] == "VirtualMachine"]
    # What is told of a machine is told of this one, and of no later one of the name.
    metadata["uid"] = owners[0]["uid"] if owners else ""
    return {"metadata": metadata, "spec": {"template": {"spec": vmi["spec"]}}}


def launcher_pod(vmi: Object) -> Object:
    """The pod that runs an instance; it has the instance's labels, and some more."""
    name = vmi["metadata"]["name"]
    own = {
        "kubevirt.io": "virt-launcher",
        "kubevirt.io/created-by": vmi["metadata"]["uid"],
        "vm.kubevirt.io/name": name,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"virt-launcher-{name}-",
            "namespace": vmi["metadata"]["namespace"],
            "labels": {**vmi["metadata"]["labels"], **own},
            "ownerReferences": [_owner(vmi)],
        },
        "spec": {
            "nodeSelector": {architectures.LABEL: vmi["spec"].get("architecture", "amd64")},
            "containers": [{"name": "compute", "image": "virt-launcher"}],
            "volumes": [
                {"name": each["name"], "persistentVolumeClaim": {"claimName": claim}}
                for each in vmi["spec"].get("volumes", ())
                if (claim := claim_of(each))
            ],
        },
        "status": {"phase": "Pending"},
    }


def event_about(thing: Object, kind: str, reason: str, message: str) -> Object:
    metadata = thing["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{secrets.token_hex(8)}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "kind": thing["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message,
    }


def claim_of(volume: Object) -> str:
    """The claim behind a volume, also where what is written to it is not kept; else empty."""
    claim = volume.get("ephemeral", volume).get("persistentVolumeClaim") or {}
    return str(claim.get("claimName", ""))


def _owner(thing: Object) -> Object:
    return {
        "apiVersion": thing["apiVersion"],
        "kind": thing["kind"],
        "name": thing["metadata"]["name"],
        "uid": thing["metadata"]["uid"],
        "controller": True,
    }


def volumes_of(vm: Object) -> list[tuple[Object, Object]]:
    """The machine's disks, each with its volume; the one that it boots from, if any, first."""
    spec = vm["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    disks = spec["domain"]["devices"].get("disks", ())
    pairs = [(disk, volumes[disk["name"]]) for disk in disks]
    return sorted(pairs, key=lambda pair: pair[0].get("bootOrder", 99))


def boots_from_disk(vm: Object) -> bool:
    """Whether a disk comes before the network card."""
    card = vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]
    orders = [disk["bootOrder"] for disk, _ in volumes_of(vm) if "bootOrder" in disk]
    return bool(orders) and min(orders) < card.get("bootOrder", 99)


def machine_spec(
    vm: Object, resolve: Callable[[str], str], disks: tuple[str, ...] = ()
) -> MachineSpec:
    """What to run for a machine; `disks` are QEMU's words for those that it has."""
    spec = vm["spec"]["template"]["spec"]
    domain = spec["domain"]
    card = domain["devices"]["interfaces"][0]
    guest = domain["memory"]["guest"]
    assert guest.endswith("Mi")
    wanted = spec.get("architecture", "amd64")
    row = next(row for row in arch.ARCHITECTURES if row.kubevirt == wanted)
    return MachineSpec(
        name=vm["metadata"]["name"],
        architecture=row.name,
        boot_file=resolve(card["dhcpOptions"]["bootFileName"]),
        memory_mib=int(guest.removesuffix("Mi")),
        cpus=domain["cpu"]["cores"] * domain["cpu"].get("sockets", 1),
        firmware="uefi" if "efi" in domain["firmware"]["bootloader"] else "bios",
        mac_address=card.get("macAddress"),
        extra_arguments=disks,
    )
