"""The disks that are kept on a cluster: claims of persistent machines, and golden ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kboot.backend import StoredDisk
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import claims, manifests
from kboot.kubevirt.api import CLAIMS, DATA_VOLUMES, PODS, Client, connect
from kboot.kubevirt.manifests import NAME_LABEL, OWNER_LABEL, label
from kboot.kubevirt.ownership import user_name
from kboot.machine_spec import Disk

_LIMIT_S = 30.0
#: For storage that does not wait for a first pod, and for all others to clone.
_BIND_AT_ONCE_S, _BIND_LIMIT_S = 1.0, 600.0
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{unit}i": 1 << (10 * power) for power, unit in enumerate("KMGTPE", 1)
}


class ClusterDisks:
    """See `kboot.backend.DiskStore`: those of the namespace that are of this owner."""

    def __init__(self, settings: ClusterConfig) -> None:
        self._settings = replace(settings, cluster_owner=settings.cluster_owner or user_name())
        self._client: Client = connect(
            settings.context, settings.namespace, kubeconfig=settings.kubeconfig
        )

    @property
    def place(self) -> str:
        """Which namespace."""
        return f"in namespace {self._client.namespace}"

    def disks(self) -> list[StoredDisk]:
        """Those of machines, then golden ones."""
        used = self._used()
        mine = f"{OWNER_LABEL}={label(self._settings.cluster_owner)}"
        kept = self._find(f"{manifests.selector(component=claims.KEPT)},{mine}")
        golden = self._find(manifests.selector(component=claims.GOLDEN))
        return [_stored(each, used) for each in (*kept, *golden)]

    def remove(self, disk: StoredDisk) -> None:
        """Delete its claim, and the DataVolume that would make it once more."""
        if claims.has_cdi(self._client):
            self._client.delete(DATA_VOLUMES, disk.place, Deadline(_LIMIT_S))
        self._client.delete(CLAIMS, disk.place, Deadline(_LIMIT_S))

    def clone(self, disk: StoredDisk, name: str) -> None:
        """Have the storage, or CDI, clone its claim to one called `name`."""
        if claims.find(self._client, CLAIMS, name):
            raise ConfigError(
                f"there is a volume claim {name} already; choose another name, or remove it: kboot "
                f"disks rm {name}"
            )
        source = Disk(name=disk.name, kind="clone", source=disk.place)
        metadata = {
            "name": name,
            "namespace": self._client.namespace,
            "labels": manifests.lasting_labels(component=claims.GOLDEN),
            "annotations": {claims.SOURCE: disk.label},
        }
        cdi = claims.has_cdi(self._client)
        claims.ensure(self._client, metadata, source, self._settings, cdi=cdi)
        if not cdi:
            self._have_bound(name)

    def _have_bound(self, name: str) -> None:
        """Have a claim filled now: storage that waits for a first pod would clone what is then."""
        if self._is_bound(name, Deadline(_BIND_AT_ONCE_S)):
            return
        claim = self._client.get(CLAIMS, name, Deadline(_LIMIT_S))
        pod = manifests.first_pod(claim, self._settings)
        self._client.create(pod, Deadline(_LIMIT_S))
        try:
            if not self._is_bound(name, Deadline(_BIND_LIMIT_S)):
                raise ClusterError(
                    f"the volume claim {name} was not bound in {_BIND_LIMIT_S:.0f} s: its storage "
                    f"may not be able to clone; see: kubectl describe pvc {name}"
                )
        finally:
            self._client.delete(PODS, pod["metadata"]["name"], Deadline(_LIMIT_S))

    def _is_bound(self, name: str, deadline: Deadline) -> bool:
        for _ in deadline.poll(0.5):
            claim = self._client.get(CLAIMS, name, Deadline(_LIMIT_S))
            if claim.get("status", {}).get("phase") == "Bound":
                return True
        return False

    def _find(self, selector: str) -> list[dict[str, Any]]:
        return self._client.find(CLAIMS, Deadline(_LIMIT_S), labelSelector=selector)[0]

    def _used(self) -> set[str]:
        """The claims that pods of kboot's have which have not ended."""
        pods, _ = self._client.find(PODS, Deadline(_LIMIT_S), labelSelector=manifests.selector())
        return {
            volume["persistentVolumeClaim"]["claimName"]
            for pod in pods
            if pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}
            for volume in pod["spec"].get("volumes") or ()
            if "persistentVolumeClaim" in volume
        }


def _stored(claim: Mapping[str, Any], used: set[str]) -> StoredDisk:
    metadata = claim["metadata"]
    own = metadata["labels"]
    phase = str(claim.get("status", {}).get("phase", "Pending"))
    return StoredDisk(
        name=own.get(claims.DISK_LABEL, metadata["name"]),
        machine=own.get(NAME_LABEL),
        size_bytes=size_bytes(claims.size_of(claim)),
        stored_bytes=None,
        source=(metadata.get("annotations") or {}).get(claims.SOURCE, ""),
        place=metadata["name"],
        in_use=metadata["name"] in used,
        condition="" if phase == "Bound" else phase.lower(),
    )


def size_bytes(quantity: str) -> int:
    """A quantity of Kubernetes' in bytes; 0 for one that cannot be read."""
    match = re.fullmatch(r"([0-9.]+)([KMGTPE]i|[kMGT]|)", quantity)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0
