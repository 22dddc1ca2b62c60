"""Have the cluster judge a machine before anything is made, and say what it refuses, in one line.

KubeVirt's webhook for VirtualMachines looks at little (1.9): what is wrong with a machine shows
once it is started, as a condition of one that stays ``Stopped``. That for their instances looks at
all of it, and a request to make one can be a rehearsal.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ConfigError
from kboot.kubevirt.api import VMIS, ApiError, Client
from kboot.kubevirt.manifests import Manifest
from kboot.log import logger

#: How the webhook begins what it says; its name differs.
_PREAMBLE = re.compile(r'^admission webhook "[^"]*kubevirt\.io" denied the request: ')
_FORBIDDEN = 403
_REFUSED = {400, 422}
_UNKNOWN_FIELD = "strict decoding error"

#: A disk or a volume in a message.
_PLACE = re.compile(r"\b(disks|volumes|interfaces)\[(\d+)\]")

#: What a message is about, and which setting of kboot's decides it.
_REMEDIES = (
    (re.compile(r"bios boot", re.IGNORECASE), "boot it with --firmware uefi"),
    (
        re.compile(r"unsupported architecture|machine\.type is not supported"),
        "KubeVirt has no such machine: boot the kernel on this host, --backend qemu",
    ),
    (re.compile(r"SecureBoot"), "switch secureBoot off, or smm on"),
    (
        re.compile(r"hugepages|page size|NUMA topology"),
        "make --memory a multiple of --hugepages; NUMA needs dedicatedCpuPlacement and huge pages",
    ),
    (re.compile(r"no memory requested|[Gg]uest memory|Memory hotplug"), "correct --memory"),
    (
        re.compile(r"[Ss]ockets|CPU (?:requests|limits)|DedicatedCPU|dedicatedCpu|realtime"),
        "correct --cpus, or domain.cpu",
    ),
    (re.compile(r"CPU feature|model supported"), "correct domain.cpu"),
    (
        re.compile(r"\bbus\b|Bus type"),
        "give the disk bus=virtio or bus=scsi",
    ),
    (re.compile(r"\.lun can only"), "give the volume a claim: --disk pvc:NAME"),
    (re.compile(r"emptyDisk|quantities must|quantity's suffix"), "correct its size"),
    (
        re.compile(r"userdata exceeds"),
        "put the user-data into a Secret (secretRef), or use --cloud-init, which has no limit",
    ),
    (
        re.compile(r"userdatasource|userDataBase64"),
        "give one user-data, or use --cloud-init",
    ),
    (
        re.compile(
            r"Name '[^']*' not found|same Name|RFC 1123|in length, if|made up of|exactly one"
            r" source"
        ),
        "each disk needs one volume of its name, in small letters, digits and hyphens",
    ),
    (re.compile(r"Boot order"), "give each device another bootOrder"),
    (re.compile(r"containerDisk must be"), "name the disk in the image by an absolute path"),
    (re.compile(r"feature gate"), "an administrator can enable it in the KubeVirt object"),
    (
        re.compile(r"discontinued|binding|[Mm]asquerade|pod network"),
        "leave kboot's network card as it is: masquerade on the pod network",
    ),
    (re.compile(r"\bport\b|protocol", re.IGNORECASE), "correct the card's ports"),
    (re.compile(r"state"), "the card's state is up or down"),
    (re.compile(r"[Ww]atchdog|sound|model"), "leave the device out"),
)


def check(client: Client, machine: Manifest, patch: Path | None, deadline: Deadline) -> None:
    """Raise `ConfigError` if the cluster would refuse to start this VirtualMachine.

    `patch` is the user's own, which may be what is wrong. An account that may not make instances is
    told when the machine is started.
    """
    metadata, template = machine["metadata"], machine["spec"]["template"]
    instance = {
        "apiVersion": VMIS.api_version,
        "kind": VMIS.kind,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": template.get("metadata", {}).get("labels", {}),
        },
        "spec": template["spec"],
    }
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    try:
        client.json("POST", VMIS.path(metadata["namespace"]), deadline, query=query, body=instance)
    except ApiError as error:
        if error.status == _FORBIDDEN and not error.text.startswith("admission webhook"):
            logger.debug("machine %s is not judged before it starts: %s", metadata["name"], error)
            return
        if error.status not in _REFUSED:
            raise
        raise ConfigError(
            f"machine {metadata['name']}: {refusal(error.text, template['spec'], patch)}"
        ) from error


def refusal(text: str, spec: dict[str, Any], patch: Path | None) -> str:
    """What the cluster has said of an instance with this spec, with the remedy, in one line."""
    said = _PREAMBLE.sub("", " ".join(text.split()))
    # It says many things twice (1.9).
    causes = list(dict.fromkeys(said.split(", ")))
    words = ", ".join(causes).rstrip(".")
    named = "; ".join(dict.fromkeys(_named(spec, *found) for found in _PLACE.findall(words)))
    where = f" ({named})" if named.strip("; ") else ""
    return f"the cluster refuses it: {words}{where}; {_remedy(words, patch)}"


def _named(spec: dict[str, Any], kind: str, number: str) -> str:
    """Which one it is that a message knows by its number."""
    place: Any = spec if kind == "volumes" else spec["domain"]["devices"]
    things = place.get(kind, ())
    found = things[int(number)] if int(number) < len(things) else {}
    return f"{kind}[{number}] is {found['name']}" if "name" in found else ""


def _remedy(words: str, patch: Path | None) -> str:
    if words.startswith(_UNKNOWN_FIELD):
        own = f"correct {patch}" if patch else "a newer KubeVirt may know it"
        return f"its KubeVirt does not know the field; {own}"
    remedy = next((text for pattern, text in _REMEDIES if pattern.search(words)), "")
    own = f"{patch} may be what sets it" if patch else ""
    parts = [part for part in (remedy, own) if part]
    return "; ".join(parts) or "kboot doctor --backend kubevirt shows what the cluster takes"
