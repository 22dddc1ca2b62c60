"""A `MachineSpec` as a KubeVirt VirtualMachine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from kboot import arch
from kboot.config import ClusterConfig
from kboot.errors import ConfigError
from kboot.kubevirt import patch, processors
from kboot.kubevirt.claims import claim_of
from kboot.kubevirt.disks import add_disks
from kboot.kubevirt.manifests import (
    MACHINE_LABEL,
    MEMBER_LABEL,
    NETWORK_LABEL,
    Manifest,
    Run,
    labels,
    object_name,
    owned,
)
from kboot.machine_spec import Firmware, MachineSpec
from kboot.network_cards import FLEET_MODEL

#: Option 67 has one byte for its length (RFC 2132).
_LONGEST_BOOT_FILE = 255

#: The network card that the machine boots from.
INTERFACE = "default"
#: The one behind it, on a fleet's network, where that is another one.
FLEET_INTERFACE = "fleet"
_IPXE_VOLUME = "ipxe"
#: What ``ipxe.lkrn`` looks like: a Linux kernel, as loaders know it.
_LINUX_MAGIC, _LINUX_MAGIC_AT = b"HdrS", 0x202


def firmware_fault(firmware: Firmware, architecture: str, settings: ClusterConfig) -> str | None:
    """None if machines are sure to boot from the network with this firmware, or else why not."""
    if firmware == "bios" and not arch.of(architecture).has_bios:
        return f"a machine for {architecture} has no BIOS"
    if firmware == "bios" or settings.cluster_ipxe_disk:
        return None
    return (
        "whether UEFI boots over HTTP depends on the cluster's firmware; give its machines a "
        "disk with iPXE: --cluster-ipxe-disk"
    )


def require_loadable(ipxe: Path) -> bool:
    """True if a BIOS machine's own iPXE can load this one. `ConfigError` with what to do if not."""
    try:
        with ipxe.open("rb") as file:
            head = file.read(_LINUX_MAGIC_AT + len(_LINUX_MAGIC))
    except OSError as error:
        raise ConfigError(f"ipxe: {ipxe} cannot be read: {error.strerror}") from error
    if not head.endswith(_LINUX_MAGIC) or len(head) <= _LINUX_MAGIC_AT:
        raise ConfigError(
            f"ipxe: {ipxe} cannot be loaded by the iPXE of a BIOS machine on a cluster; give the "
            "ipxe.lkrn of the same build"
        )
    return True


def manifest(spec: MachineSpec, run: Run, settings: ClusterConfig) -> Manifest:
    """The VirtualMachine for `spec`: stopped, owned by the run, to be started by hand.

    `ConfigError` for what a cluster's machine cannot have.
    """
    if arch.of(spec.architecture).kubevirt is None:
        raise ConfigError(
            f"KubeVirt has no machine for {spec.architecture}; boot the kernel on this host: "
            "--backend qemu"
        )
    if spec.firmware == "bios" and not arch.of(spec.architecture).has_bios:
        raise ConfigError(
            f"a machine for {spec.architecture} has no BIOS: boot it with --firmware uefi"
        )
    if spec.extra_arguments:
        raise ConfigError(
            "qemu_arguments are for the qemu backend; on a cluster, change the machine by a patch"
        )
    if spec.dhcp in {"silent", "late"}:
        raise ConfigError(
            f"a cluster's DHCP answers at once: dhcp = {spec.dhcp} is for local machines"
        )
    if spec.impairment:
        raise ConfigError("a cluster's network is what it is: impairment is for local machines")
    if len(spec.boot_file) > _LONGEST_BOOT_FILE:
        raise ConfigError(
            f"DHCP takes a boot file name of {_LONGEST_BOOT_FILE} characters, and {spec.boot_file} "
            f"has {len(spec.boot_file)}; choose a shorter --namespace or --cluster-domain"
        )
    name = object_name(run.identifier, spec.name)
    own = labels(run.identifier, component="machine") | {
        MACHINE_LABEL: name.removeprefix(run.name + "-")
    }
    for link in spec.links:
        own |= {NETWORK_LABEL: link.network, MEMBER_LABEL: link.member}
    metadata = owned(run, own, name)
    template = {"metadata": {"labels": own}, "spec": _instance(name, spec, run, settings)}
    whole = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": metadata,
        # A machine that powers itself off stays off, for the test to see.
        "spec": {"runStrategy": "Manual", "template": template},
    }
    return patch.apply(settings.cluster_patch, whole)


def _instance(name: str, spec: MachineSpec, run: Run, settings: ClusterConfig) -> dict[str, Any]:
    instance: dict[str, Any] = {
        "architecture": arch.of(spec.architecture).kubevirt,
        # A machine under test has nothing to save: stopping one means cutting its power.
        "terminationGracePeriodSeconds": 0,
        "domain": {
            "memory": processors.memory(spec),
            "cpu": processors.cpu(spec),
            "firmware": {"bootloader": _bootloader(spec)},
            "devices": _devices(name, spec),
        },
        "networks": [{"name": INTERFACE, "pod": {}}],
    }
    for link in spec.links:
        if link.mac_address:
            attachment = {"networkName": settings.cluster_network}
            instance["networks"].append({"name": FLEET_INTERFACE, "multus": attachment})
        else:
            # By these, its pod is known to DNS.
            instance |= {"hostname": link.member, "subdomain": link.network}
    if settings.cluster_attach == "paused":
        instance["startStrategy"] = "Paused"
    if settings.cluster_ipxe_disk and spec.firmware == "uefi" and not spec.boot_disk:
        _add_ipxe_disk(instance, settings)
    claims = {disk.name: claim_of(disk, spec.name, run, settings) for disk in spec.disks}
    add_disks(instance, spec, claims, settings)
    return instance


def mac_address(name: str) -> str:
    """An address for the machine of this name, the same at each start; no other one has it.

    Behind masquerade all could have the same; but a cluster that keeps a register of addresses
    (KubeMacPool) refuses the second one.
    """
    # Locally administered, unicast: the two lowest bits of the first byte are 1 and 0.
    digest = hashlib.sha256(name.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _devices(name: str, spec: MachineSpec) -> dict[str, Any]:
    interface: dict[str, Any] = {
        "name": INTERFACE,
        "masquerade": {},
        "model": spec.nic_model,
        # Without an order, KubeVirt switches the card's boot ROM off.
        "bootOrder": 1,
        "macAddress": spec.mac_address or mac_address(name),
    }
    if spec.boot_disk:
        # Nothing boots from it.
        del interface["bootOrder"]
    if spec.offered_file:
        interface["dhcpOptions"] = {"bootFileName": spec.offered_file}
    cards = [
        {
            "name": FLEET_INTERFACE,
            "bridge": {},
            "model": FLEET_MODEL,
            "macAddress": link.mac_address,
        }
        for link in spec.links
        if link.mac_address
    ]
    if len(cards) == len(spec.links):
        # Behind masquerade, only ports that are named can be reached; all, where none is.
        interface["ports"] = [{"port": 22}]
    return {
        "autoattachGraphicsDevice": False,
        "autoattachSerialConsole": True,
        # The record that gaps are filled from.
        "logSerialConsole": True,
        "rng": {},
        "interfaces": [interface, *cards],
    }


def _bootloader(spec: MachineSpec) -> dict[str, Any]:
    if spec.firmware == "uefi":
        return {"efi": {"secureBoot": False}}
    # Without useSerial, SeaBIOS and iPXE write to a screen that nobody sees.
    return {"bios": {"useSerial": True}}


def _add_ipxe_disk(instance: dict[str, Any], settings: ClusterConfig) -> None:
    """A disk that UEFI boots iPXE from, for firmware whose own network boot is not iPXE."""
    kind, _, claim = settings.cluster_ipxe_disk.partition(":")
    target: dict[str, Any] = {"bus": "virtio"}
    if kind == "pvc":
        # Not to be written, so that QEMU does not keep it from the other machines.
        target["readonly"] = True
        source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": claim}}
    else:
        source = {"containerDisk": {"image": settings.cluster_ipxe_disk}}
        if settings.cluster_pull_secrets:
            source["containerDisk"]["imagePullSecret"] = settings.cluster_pull_secrets[0]
    devices = instance["domain"]["devices"]
    devices["interfaces"][0]["bootOrder"] = 2
    devices["disks"] = [{"name": _IPXE_VOLUME, "disk": target, "bootOrder": 1}]
    instance["volumes"] = [{"name": _IPXE_VOLUME, **source}]
