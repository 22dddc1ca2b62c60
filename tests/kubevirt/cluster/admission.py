"""KubeVirt's webhooks: what they refuse of a machine, in the recorded words.

That of VirtualMachines looks at less than that of their instances, which refuses what would be
refused when a machine is started.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

from tests.kubevirt.cluster.answers import status
from tests.kubevirt.cluster.store import Object

_BUSES = ["virtio", "scsi", "sata", "usb"]
_QUANTITY = re.compile(r"[+-]?[0-9.]+[eEinumkKMGTP]*[-+]?[0-9]*")
_QUANTITY_WORDS = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_BINDINGS = ("masquerade", "bridge", "sriov", "passtBinding", "binding")
_GONE = {
    "slirp": "Slirp interface support",
    "passt": "Passt network binding",
    "macvtap": "Macvtap network binding",
}
_USER_DATA = ("userData", "userDataBase64", "secretRef")
_NETWORK_DATA = ("networkData", "networkDataBase64", "networkDataSecretRef")
_MACHINES = {
    "amd64": ("q35*", "pc-q35*"),
    "arm64": ("virt*",),
    "s390x": ("s390-ccw-virtio*",),
}

#: A field's path, and what is wrong with it.
Cause = tuple[str, str]


def refusal(manifest: Object) -> web.Response | None:
    """The answer to a machine, or an instance, that the webhooks refuse; None for a good one."""
    is_vm = manifest["kind"] == "VirtualMachine"
    path = "spec.template.spec" if is_vm else "spec"
    spec = manifest["spec"]["template"]["spec"] if is_vm else manifest["spec"]
    for code, message in _undecodable(spec, path):
        return _denied("virtualmachines-mutator", code, [(path, message)])
    rules = _RULES if is_vm else (*_RULES, *_OF_INSTANCES)
    causes = [cause for rule in rules for cause in rule(spec, path)]
    if not causes:
        return None
    name = "virtualmachine-validator" if is_vm else "virtualmachineinstances-create-validator"
    return _denied(name, 422, causes)


def _denied(webhook: str, code: int, causes: list[Cause]) -> web.Response:
    text = ", ".join(message for _, message in causes)
    found = [
        {"reason": "FieldValueInvalid", "message": message, "field": field}
        for field, message in causes
    ]
    return status(
        code,
        "Invalid" if code == 422 else "BadRequest",
        f'admission webhook "{webhook}.kubevirt.io" denied the request: {text}',
        causes=found,
    )


def _undecodable(spec: Object, path: str) -> Iterator[tuple[int, str]]:
    for volume in spec.get("volumes", ()):
        if "emptyDisk" in volume:
            capacity = volume["emptyDisk"].get("capacity")
            if capacity is None:
                yield 422, f"{path}.volumes.emptyDisk.capacity in body is required"
            elif not _QUANTITY.fullmatch(capacity):
                yield 400, _QUANTITY_WORDS


def _disks(spec: Object, path: str) -> Iterator[Cause]:
    disks = spec["domain"]["devices"].get("disks", [])
    volumes = {each["name"]: each for each in spec.get("volumes", ())}
    for number, disk in enumerate(disks):
        where = f"{path}.domain.devices.disks[{number}]"
        for before in range(number):
            if disks[before]["name"] == disk["name"]:
                other = f"{path}.domain.devices.disks[{before}]"
                yield where, f"{where} and {other} must not have the same Name."
        if disk["name"] not in volumes:
            yield f"{where}.name", f"{where}.Name '{disk['name']}' not found."
        kind = next((key for key in ("disk", "cdrom", "lun") if key in disk), "disk")
        bus = (disk.get(kind) or {}).get("bus")
        if bus == "ide":
            yield where, "IDE bus is not supported"
        elif bus is not None and bus not in _BUSES:
            allowed = " ".join(_BUSES)
            yield (
                where,
                f"{where} is set with an unrecognized bus {bus}, must be one of: [{allowed}]",
            )
        if kind == "cdrom" and bus == "virtio":
            yield where, "Bus type virtio is invalid for CD-ROM device"
        volume = volumes.get(disk["name"], {})
        if kind == "lun" and not {"dataVolume", "persistentVolumeClaim"} & volume.keys():
            yield (
                where,
                f"{where}.lun can only be mapped to a DataVolume or PersistentVolumeClaim volume.",
            )
        serial = disk.get("serial", "")
        if len(serial) > 256:
            yield where, f"{where} must be less than or equal to 256 in length, if specified"
        elif not re.fullmatch(r"[A-Za-z0-9_.+-]*", serial):
            allowed = "must be made up of the following characters [A-Za-z0-9_.+-], if specified"
            yield where, f"{where} {allowed}"


def _boot_orders(spec: Object, path: str) -> Iterator[Cause]:
    devices, seen = spec["domain"]["devices"], set()
    for kind in ("disks", "interfaces"):
        for number, device in enumerate(devices.get(kind, ())):
            order = device.get("bootOrder")
            if order is not None and order in seen:
                where = f"{path}.domain.devices.{kind}[{number}].bootOrder"
                yield where, f"Boot order for {where} already set for a different device."
            seen.add(order)


def _volumes(spec: Object, path: str) -> Iterator[Cause]:
    volumes = spec.get("volumes", [])
    for number, volume in enumerate(volumes):
        where = f"{path}.volumes[{number}]"
        for before in range(number):
            if volumes[before]["name"] == volume["name"]:
                yield where, f"{where} and {path}.volumes[{before}] must not have the same Name."
        if not _LABEL.fullmatch(volume["name"]):
            yield where, _LABEL_WORDS
        if len(volume.keys() - {"name"}) != 1:
            yield where, f"{where} must have exactly one source type set"
        if "hostDisk" in volume:
            yield where, "HostDisk feature gate is not enabled"
        if "cloudInitNoCloud" in volume:
            yield from _cloud_init(volume["cloudInitNoCloud"], f"{where}.cloudInitNoCloud")


def _cloud_init(source: Object, where: str) -> Iterator[Cause]:
    given = [key for key in _USER_DATA if source.get(key)]
    if not given and not any(source.get(key) for key in _NETWORK_DATA):
        yield (
            where,
            f"{where} must have at least one userdatasource or one networkdatasource set.",
        )
    elif len(given) > 1:
        yield where, f"{where} must have only one userdatasource set."
    elif "userDataBase64" in given:
        try:
            base64.b64decode(source["userDataBase64"], validate=True)
        except binascii.Error:
            field = "cloudInitNoCloud.userDataBase64"
            yield where, f"{where}.userDataBase64.{field} is not a valid base64 value."
    if len(source.get("userData", "")) > 2048:
        yield (
            where,
            f"{where} userdata exceeds 2048 byte limit. Should use UserDataSecretRef for larger "
            "data.",
        )


def _processors(spec: Object, path: str) -> Iterator[Cause]:
    domain = spec["domain"]
    cpu, memory = domain.get("cpu", {}), domain.get("memory", {})
    where = f"{path}.domain.cpu"
    if cpu.get("sockets", 1) > cpu.get("maxSockets", cpu.get("sockets", 1)):
        yield (
            f"{where}.sockets",
            "Number of sockets in CPU topology is greater than the maximum sockets allowed",
        )
    numa = f"{where}.numa.guestMappingPassthrough"
    strategy = f"when NUMA topology strategy is set in {numa}"
    if "guestMappingPassthrough" in cpu.get("numa", {}):
        if not cpu.get("dedicatedCpuPlacement"):
            yield numa, f"{where}.dedicatedCpuPlacement must be set to true {strategy}"
        if "hugepages" not in memory:
            yield numa, f"{path}.domain.memory.hugepages must be requested {strategy}"
    if cpu.get("isolateEmulatorThread") and not cpu.get("dedicatedCpuPlacement"):
        yield (
            where,
            "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement",
        )
    if "realtime" in cpu:
        used = f"when {where}.realtime is used"
        if not cpu.get("dedicatedCpuPlacement"):
            yield where, f"{where}.dedicatedCpuPlacement must be set to true {used}"
        if "guestMappingPassthrough" not in cpu.get("numa", {}):
            yield where, f"{numa} must be defined {used}"
    yield from _placement(domain, where)


def _placement(domain: Object, where: str) -> Iterator[Cause]:
    cpu = domain.get("cpu", {})
    for feature in cpu.get("features", ()):
        policy = feature.get("policy", "require")
        if policy not in {"force", "require", "optional", "disable", "forbid"}:
            name = feature["name"]
            yield where, f"CPU feature {name} uses policy {policy} that is not supported."
    if cpu.get("dedicatedCpuPlacement"):
        resources = domain.get("resources", {})
        limit = str(resources.get("limits", {}).get("cpu", "1"))
        if not limit.isdecimal():
            for kind in ("requests", "limits"):
                yield where, f"provided resources CPU {kind} must be an interger"


_BYTES = {"": 1, "M": 10**6, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Ei": 1 << 60}


def _mib(quantity: str) -> float | None:
    """A quantity in MiB; None for one that this does not understand."""
    match = re.fullmatch(r"(-?[0-9.]+)([MGTE]i|M|)", quantity)
    return float(match[1]) * _BYTES[match[2]] / (1 << 20) if match else None


def _memory(spec: Object, path: str) -> Iterator[Cause]:
    memory = spec["domain"].get("memory", {})
    guest = _mib(memory.get("guest", "0")) or 0
    where = f"{path}.domain.memory.hugepages.pageSize"
    if "hugepages" in memory:
        page = memory["hugepages"].get("pageSize", "")
        size = _mib(page)
        asked = f"{path}.domain.resources.requests.memory '0'"
        if not _QUANTITY.fullmatch(page):
            yield where, f"{where} '{page}': {_QUANTITY_WORDS}"
        elif size and guest < size:
            yield where, f"{asked} must be equal to or larger than page size {where} '{page}'"
        elif size and guest % size:
            yield where, f"{asked} is not a multiple of the page size {where} '{page}'"
    if "maxGuest" in memory:
        if guest > (_mib(memory["maxGuest"]) or 0):
            yield where, "Guest memory is greater than the configured maxGuest memory"
        elif guest < 1024:
            yield (
                where,
                "Memory hotplug is only available for VMs with at least 1Gi of guest memory",
            )


def _interfaces(spec: Object, path: str) -> Iterator[Cause]:
    interfaces = spec["domain"]["devices"].get("interfaces", [])
    networks = {each["name"]: each for each in spec.get("networks", ())}
    pods = [each for each in interfaces if "pod" in networks.get(each["name"], {})]
    if len(pods) > 1:
        where = f"{path}.interfaces"
        yield where, f"more than one interface is connected to a pod network in {where}"
    for number, card in enumerate(interfaces):
        yield from _interface(
            card, networks.get(card["name"], {}), f"{path}.domain.devices.interfaces[{number}]"
        )


def _interface(card: Object, network: Object, where: str) -> Iterator[Cause]:
    name, gone = card["name"], [each for each in _GONE if each in card]
    for binding in gone:
        yield f"{where}.{binding}", f"{_GONE[binding]} has been discontinued since v1.3"
    # Only the webhook of instances says it of these as well.
    if not any(each in card for each in _BINDINGS) and (not gone or where.startswith("spec.dom")):
        one = "must have exactly one binding method or binding plugin"
        yield where, f"logical {name} interface {one}"
    if "masquerade" in card and "pod" not in network:
        yield f"{where}.name", "Masquerade interface only implemented with pod network"
    state = card.get("state", "up")
    if state == "absent":
        cannot = f'"{name}" interface\'s state "absent" is'
        yield f"{where}.state", f"{cannot} supported only for bridge binding"
        yield f"{where}.state", f"{cannot} not supported on default networks"
    elif state not in {"up", "down"}:
        yield f"{where}.state", f"logical {name} interface state value is unsupported: {state}"
    if card.get("model") == "ne3000":
        yield where, f"interface {where}.name uses model ne3000 that is not supported."
    yield from _ports(card, where)


def _ports(card: Object, where: str) -> Iterator[Cause]:
    names: list[str] = []
    for number, port in enumerate(card.get("ports", ())):
        place = f"{where}.ports[{number}]"
        if not port.get("port"):
            yield f"{place}.port", "Port field is mandatory."
        elif port["port"] > 65535:
            yield f"{place}.port", "Port field must be in range 0 < x < 65536."
        if port.get("protocol", "TCP") not in {"TCP", "UDP"}:
            yield f"{place}.protocol", "Unknown protocol, only TCP or UDP allowed"
        name = port.get("name", "")
        if name and name in names:
            yield f"{place}.name", f"Duplicate name of the port: {name}"
        if name and not _LABEL.fullmatch(name):
            yield f"{place}.name", f"Invalid name of the port: {name}"
        names.append(name)


def _machine_type(spec: Object, path: str) -> Iterator[Cause]:
    domain = spec["domain"]
    allowed = _MACHINES.get(spec.get("architecture", "amd64"), ())
    kind = domain.get("machine", {}).get("type", "")
    if kind and allowed and not any(kind.startswith(each[:-1]) for each in allowed):
        where = f"{path}.domain.machine.type"
        yield where, f"{where} is not supported: {kind} (allowed values: [{' '.join(allowed)}])"
    efi = domain.get("firmware", {}).get("bootloader", {}).get("efi")
    smm = domain.get("features", {}).get("smm", {"enabled": False})
    if efi is not None and efi.get("secureBoot", True) and not smm.get("enabled", True):
        yield (
            f"{path}.domain",
            f"{path}.domain has EFI SecureBoot enabled. SecureBoot requires SMM, which is "
            "currently disabled.",
        )


def _architecture(spec: Object, path: str) -> Iterator[Cause]:
    """What only the webhook of instances looks at."""
    name, domain = spec.get("architecture") or "amd64", spec["domain"]
    if name not in _MACHINES:
        yield f"{path}.architecture", f"unsupported architecture: {name}"
    watchdog = domain["devices"].get("watchdog")
    if watchdog is not None and name != "arm64":
        known = {"amd64": ("i6300esb", "I6300ESB"), "s390x": ("diag288", "Diag288")}
        kind, words = known.get(name, ("", ""))
        others = {"i6300esb", "diag288"} - {kind}
        if kind and others & watchdog.keys():
            yield (
                f"{path}.domain.devices.watchdog",
                f"{name} only supports {words} watchdog device",
            )
    if name == "arm64":
        yield from _of_arm(domain, path)


def _of_arm(domain: Object, path: str) -> Iterator[Cause]:
    if "bios" in domain.get("firmware", {}).get("bootloader", {}):
        yield (
            f"{path}.domain.firmware.bootloader.bios",
            "Arm64 does not support bios boot, please change to uefi boot",
        )
    if "watchdog" in domain["devices"]:
        yield f"{path}.domain.devices.watchdog", "Arm64 not support Watchdog device"
    for number, disk in enumerate(domain["devices"].get("disks", ())):
        if (disk.get("disk") or {}).get("bus", "virtio") not in {"virtio", "scsi"}:
            yield (
                f"{path}.domain.devices.disks[{number}].disk.bus",
                "Arm64 not support this disk bus type, please use virtio or scsi",
            )
    if domain.get("cpu", {}).get("model", "host-passthrough") != "host-passthrough":
        yield (
            f"{path}.domain.cpu.model",
            "currently, host-passthrough is the only model supported on Arm64",
        )
    if "sound" in domain["devices"]:
        yield f"{path}.domain.devices.sound", "Arm64 not support sound device"


def _requests(spec: Object, path: str) -> Iterator[Cause]:
    domain = spec["domain"]
    asked = domain.get("resources", {}).get("requests", {}).get("memory")
    if not (domain.get("memory") or asked):
        yield (
            f"{path}.domain",
            "no memory requested, at least one of 'spec.domain.memory.guest', "
            "'spec.domain.memory.hugepages.pageSize' or 'spec.domain.resources.requests.memory' "
            "must be set",
        )
    for number, volume in enumerate(spec.get("volumes", ())):
        image = str(volume.get("containerDisk", {}).get("path", "/"))
        if not image.startswith("/") or ".." in image:
            where = f"{path}.volumes[{number}].containerDisk"
            yield (
                where,
                f"{where} must be an absolute path to a file without relative components",
            )


Rule = Callable[[Any, str], Iterator[Cause]]
_RULES: tuple[Rule, ...] = (
    _disks,
    _boot_orders,
    _volumes,
    _processors,
    _memory,
    _interfaces,
    _machine_type,
)
_OF_INSTANCES: tuple[Rule, ...] = (_architecture, _requests)
