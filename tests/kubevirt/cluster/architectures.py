"""Machines for arm64: what KubeVirt refuses when they are started, and which node they may run on.

As recorded: a VirtualMachine is accepted whatever it asks for; its instance is not.
"""

from __future__ import annotations

from tests.kubevirt.cluster.store import Object

LABEL = "kubernetes.io/arch"
NO_NODE = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."

_DENIED = 'admission webhook "virtualmachineinstances-create-validator.kubevirt.io" denied the '


def refusal(vm: Object) -> str:
    """Why no instance is made of a machine; empty if one is."""
    instance = vm["spec"]["template"]["spec"]
    if instance.get("architecture") != "arm64":
        return ""
    domain = instance["domain"]
    devices = domain["devices"]
    buses = {
        each.get("disk", each.get("cdrom", {})).get("bus") for each in devices.get("disks", ())
    }
    if "bios" in domain.get("firmware", {}).get("bootloader", {}):
        return f"{_DENIED}request: Arm64 does not support bios boot, please change to uefi boot"
    if "watchdog" in devices:
        return f"{_DENIED}request: Arm64 not support Watchdog device"
    if buses & {"sata", "usb"}:
        return f"{_DENIED}request: Arm64 not support this disk bus type, please use virtio or scsi"
    return ""
