"""The volume claims behind a machine's disks: made, cloned, or imported by CDI, and waited for.

A disk that begins with something else than a claim or a container image has a claim of its own:
that of the run, which all its machines begin with and none writes to, or, if the disk is kept, that
of a persistent machine, which no run owns.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kernel.download import without_password
from kboot.kubevirt import manifests
from kboot.kubevirt.api import CLAIMS, DATA_VOLUMES, ApiError, Client
from kboot.kubevirt.api.errors import NO_CDI
from kboot.kubevirt.manifests import Manifest, Run, label
from kboot.log import logger
from kboot.machine_spec import Disk, MachineSpec

_LIMIT_S = 30.0
_MISSING = 404
_POLL_S = 0.5
#: How often progress is told, at most.
_TELL_S = 10.0
#: CDI that shows no progress for so long gets no further.
STALLED_S = 600.0
#: An importer that has failed so often will fail again.
_RESTARTS = 3

#: Of a claim that is waited for no longer than for its first pod, and of one that is filled.
_PENDING, _DONE = {"WaitForFirstConsumer", "PendingPopulation"}, "Succeeded"
#: What waiting does not mend, in an importer's words (CDI, pkg/importer).
_HOPELESS = re.compile(
    r"expected status code 200, got 4\d\d|is larger than the reported available|no such host"
    r"|x509:|invalid format|unsupported"
)
_CLONE_RIGHT = re.compile(
    r"User (\S+) has insufficient permissions in clone source namespace (\S+)"
)
#: On claims that kboot has made: what their disks began with, as `origin` has it.
SOURCE = "kboot.dev/source"
#: On kept ones: which disk of its machine it is.
DISK_LABEL = "kboot.dev/disk"
#: The components that they are, see `kboot.kubevirt.manifests.labels`.
OF_RUN, KEPT, GOLDEN = "disk", "kept-disk", "golden-disk"


def claim_of(disk: Disk, machine: str, run: Run, settings: ClusterConfig) -> str:
    """The name of the claim behind a disk; empty if there is none."""
    if disk.kind == "pvc":
        return disk.source
    if disk.keep:
        return kept_name(settings.cluster_owner, machine, disk.name)
    if disk.kind in {"blank", "container"}:
        return ""
    # One for all machines of the run that begin with the same.
    return manifests.object_name(run.identifier, label(f"disk {origin(disk)}", 24))


def kept_name(owner: str, machine: str, disk: str) -> str:
    """The name of the claim of a kept disk."""
    return f"kboot-disk-{label(f'{owner}-{machine}-{disk}', 50)}"


def origin(disk: Disk) -> str:
    """What a disk begins with, as users say it: ``clone:golden``."""
    kind = "" if disk.kind in {"blank", "image"} else f"{disk.kind}:"
    source = without_password(disk.source) if disk.kind != "blank" else "blank"
    return f"{kind}{source}" + (f",size={disk.size_mib}M" if disk.size_mib else "")


def prepare(client: Client, spec: MachineSpec, run: Run, settings: ClusterConfig) -> bool:
    """Have the claims that a machine's disks need, filled; whether there are any.

    It takes as long as an import takes. `ConfigError` for what the cluster has not, or a kept disk
    that began with something else; `ClusterError` if an import or a clone fails.
    """
    wanted = [(disk, claim_of(disk, spec.name, run, settings)) for disk in spec.disks]
    wanted = [(disk, name) for disk, name in wanted if name and disk.kind != "pvc"]
    cdi = bool(wanted) and has_cdi(client)
    for disk, name in wanted:
        if not disk.keep:
            own = manifests.labels(run.identifier, component=OF_RUN)
            metadata = manifests.owned(run, own, name)
        else:
            metadata = _kept_metadata(disk, spec.name, name, client.namespace, settings)
        metadata["annotations"] = {SOURCE: origin(disk)}
        ensure(client, metadata, disk, settings, cdi=cdi)
    return bool(wanted)


def ensure(
    client: Client,
    metadata: dict[str, Any],
    disk: Disk,
    settings: ClusterConfig,
    *,
    cdi: bool,
) -> None:
    """Have a claim with this metadata, filled as `disk` begins; `cdi` as `has_cdi` says."""
    name, what = metadata["name"], f"disk {disk.name}"
    volume = find(client, DATA_VOLUMES, name) if cdi else None
    there = volume or find(client, CLAIMS, name)
    if there is None:
        manifest = _manifest(client, metadata, disk, settings, cdi=cdi)
        try:
            there = client.create(manifest, Deadline(_LIMIT_S))
        except ApiError as error:
            raise _refusal(error, what) from error
        if manifest["kind"] == DATA_VOLUMES.kind:
            volume = there
    else:
        _require_same(there, metadata, disk)
    if volume is not None:
        _wait(client, name, f"{what} ({origin(disk)})")


def has_cdi(client: Client) -> bool:
    """Whether the cluster has the Containerized Data Importer."""
    try:
        client.json("GET", f"/apis/{DATA_VOLUMES.api_version}", Deadline(_LIMIT_S))
    except ApiError as error:
        if error.status != _MISSING:
            raise
        return False
    return True


def find(client: Client, resource: Any, name: str) -> dict[str, Any] | None:
    """An object, or None if it is not there."""
    try:
        return client.get(resource, name, Deadline(_LIMIT_S))
    except ApiError as error:
        if error.status != _MISSING:
            raise
    return None


def size_of(claim: Mapping[str, Any]) -> str:
    """How large a claim is, in Kubernetes' words."""
    found = claim.get("status", {}).get("capacity", {}).get("storage")
    return str(found or claim["spec"]["resources"]["requests"]["storage"])


def is_failed(volume: Mapping[str, Any]) -> str:
    """Why a DataVolume will not be filled; empty while it may be."""
    status = volume.get("status", {})
    running: Mapping[str, Any] = {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "Running":
            running = condition
    said = " ".join(str(running.get("message") or running.get("reason") or "").split())
    if status.get("phase") == "Failed":
        return said or "it failed"
    failed = running.get("status") == "False" and running.get("reason") == "Error"
    if failed and (_HOPELESS.search(said) or status.get("restartCount", 0) >= _RESTARTS):
        return said
    return ""


# ------------------------------------------------------------------------------------------ inside


def _kept_metadata(
    disk: Disk, machine: str, name: str, namespace: str, settings: ClusterConfig
) -> dict[str, Any]:
    own = manifests.lasting_labels(component=KEPT) | {
        manifests.NAME_LABEL: machine,
        manifests.OWNER_LABEL: label(settings.cluster_owner),
        DISK_LABEL: disk.name,
    }
    return {"name": name, "namespace": namespace, "labels": own}


def _require_same(there: Mapping[str, Any], metadata: Mapping[str, Any], disk: Disk) -> None:
    """A kept disk goes on only above what it began with."""
    before = (there["metadata"].get("annotations") or {}).get(SOURCE, "something else")
    if before != metadata["annotations"][SOURCE]:
        own = metadata["labels"]
        kept = f"{own.get(manifests.NAME_LABEL, '')}/{disk.name}".strip("/")
        raise ConfigError(
            f"disk {disk.name} was kept above another source ({before}); give that one, or give up "
            f"what the disk has: kboot disks rm {kept}"
        )


def _manifest(
    client: Client,
    metadata: dict[str, Any],
    disk: Disk,
    settings: ClusterConfig,
    *,
    cdi: bool,
) -> Manifest:
    """The claim itself, or a DataVolume that makes it."""
    if disk.kind == "blank":
        return _claim(metadata, {"storage": f"{disk.size_mib}Mi"}, settings)
    if disk.kind == "clone" and "/" not in disk.source and not cdi:
        return _csi_clone(client, metadata, disk)
    if not cdi:
        raise ConfigError(
            f"disk {disk.name}: {NO_CDI}: {_without_cdi(disk)}, or have an administrator install it"
        )
    return _data_volume(metadata, disk, settings, client.namespace)


def _without_cdi(disk: Disk) -> str:
    if disk.kind == "clone":
        return "give a claim of this namespace, clone:NAME"
    return "give a container image (container:IMAGE) or a claim (pvc:NAME, clone:NAME)"


def _claim(metadata: dict[str, Any], requests: dict[str, str], settings: ClusterConfig) -> Manifest:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": requests},
    }
    if settings.cluster_storage_class:
        spec["storageClassName"] = settings.cluster_storage_class
    return {
        "apiVersion": CLAIMS.api_version,
        "kind": CLAIMS.kind,
        "metadata": metadata,
        "spec": spec,
    }


def _csi_clone(client: Client, metadata: dict[str, Any], disk: Disk) -> Manifest:
    """A clone by the storage itself: of the same class, mode and size as its source."""
    source = find(client, CLAIMS, disk.source)
    if source is None:
        raise ConfigError(
            f"disk {disk.name}: there is no volume claim {disk.source} to clone in namespace "
            f"{client.namespace}; make one of a kept disk: kboot disks clone MACHINE/NAME "
            f"{disk.source}"
        )
    size = f"{disk.size_mib}Mi" if disk.size_mib else size_of(source)
    spec = {
        "accessModes": source["spec"].get("accessModes") or ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
        "dataSource": {"kind": CLAIMS.kind, "name": disk.source},
    }
    for key in ("storageClassName", "volumeMode"):
        if key in source["spec"]:
            spec[key] = source["spec"][key]
    return {
        "apiVersion": CLAIMS.api_version,
        "kind": CLAIMS.kind,
        "metadata": metadata,
        "spec": spec,
    }


def _data_volume(
    metadata: dict[str, Any], disk: Disk, settings: ClusterConfig, namespace: str
) -> Manifest:
    first, slash, rest = disk.source.partition("/")
    where, name = (first, rest) if slash else (namespace, first)
    spec: dict[str, Any]
    match disk.kind:
        case "clone":
            spec = {"source": {"pvc": {"namespace": where, "name": name}}}
        case "source":
            spec = {"sourceRef": {"kind": "DataSource", "namespace": where, "name": name}}
        case "container":
            spec = {"source": {"registry": {"url": f"docker://{disk.source}"}}}
        case _:
            spec = {"source": {"http": {"url": disk.source}}}
    storage: dict[str, Any] = {}
    if disk.size_mib:
        storage["resources"] = {"requests": {"storage": f"{disk.size_mib}Mi"}}
    if settings.cluster_storage_class:
        storage["storageClassName"] = settings.cluster_storage_class
    spec["storage"] = storage
    # Else, where volumes wait for their first pod, nothing is imported before the machine starts.
    annotations = {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}
    own = {**metadata, "annotations": {**metadata["annotations"], **annotations}}
    return {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": DATA_VOLUMES.kind,
        "metadata": own,
        "spec": spec,
    }


def _refusal(error: ApiError, what: str) -> Exception:
    """The error for a claim that the cluster does not make."""
    if found := _CLONE_RIGHT.search(error.text):
        return ConfigError(
            f"{what}: {found[1]} may not clone from namespace {found[2]}; an administrator of it "
            "can allow to create datavolumes/source (cdi.kubevirt.io) there: kubectl create "
            f"rolebinding -n {found[2]} kboot-clones --clusterrole=cdi.kubevirt.io:clone-sourcer "
            f"--user={found[1]}"
        )
    return ClusterError(f"{what}: {error}")


def _wait(client: Client, name: str, what: str) -> None:
    """Until CDI has filled a claim; its progress is logged."""
    seen, told_at = "", 0.0
    stalled = Deadline(STALLED_S)
    while not stalled.expired:
        volume = client.get(DATA_VOLUMES, name, Deadline(_LIMIT_S))
        status = volume.get("status", {})
        phase = status.get("phase", "")
        if phase == _DONE or phase in _PENDING:
            return
        if said := is_failed(volume):
            # It would be taken for one that is on its way, the next time.
            client.delete(DATA_VOLUMES, name, Deadline(_LIMIT_S))
            raise ClusterError(f"{what}: {_advised(said)}")
        progress = f"{phase} {status.get('progress', '')}".strip()
        if progress != seen:
            seen, stalled = progress, Deadline(STALLED_S)
            if time.monotonic() - told_at >= _TELL_S:
                told_at = time.monotonic()
                logger.warning("%s: %s", what, _progress(phase, status.get("progress", "")))
        time.sleep(_POLL_S)
    raise ClusterError(
        f"{what}: no progress for {STALLED_S:.0f} s ({seen}); see: kubectl describe dv {name}"
    )


def _progress(phase: str, progress: str) -> str:
    """``ImportInProgress`` and ``41.20%`` in words."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", phase or "Pending").lower()
    share = re.match(r"[0-9]+", progress)
    return f"{words}, {share[0]} %" if share else words


def _advised(said: str) -> str:
    if "status code 200, got 4" in said:
        return f"{said}; correct the URL, which the cluster has to reach"
    if "larger than the reported available" in said:
        return f"{said}; give it a larger size=SIZE"
    return f"{said}; see the importer's log: kubectl logs"
