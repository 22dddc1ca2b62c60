"""Volume claims, and CDI where it is installed: what is in the volumes are files on this host.

Claims are bound with their first pod (WaitForFirstConsumer); their storage can clone (CSI). CDI was
not on the recorded cluster: its objects are held to the schema that KubeVirt publishes of them, its
phases and messages are those of its sources (v1.6x).
"""

from __future__ import annotations

import asyncio
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from kboot.kubevirt.kept_disks import size_bytes
from tests.kubevirt.cluster import images
from tests.kubevirt.cluster.answers import status
from tests.kubevirt.cluster.store import Object, Store

_PIECES = 4
#: A pod of the cluster's knows nothing of the proxies of this process.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

#: Namespace and name.
Place = tuple[str, str]


class Failed(Exception):
    """An importer cannot do it; in its words."""


class Storage:
    def __init__(self, store: Store, directory: Path, resolve: Callable[[str], str]) -> None:
        """`resolve` returns a URL of the cluster's as it is to be reached on this host."""
        self._store = store
        self._resolve = resolve
        self.directory = directory
        #: What is on volumes, by the name of the claim: raw disks.
        self.claims: dict[str, Path] = {}
        #: The same in other namespaces.
        self.foreign: dict[Place, Path] = {}
        #: Namespaces from which we may clone.
        self.clonable: set[str] = set()
        #: CDI's catalogue: its DataSources.
        self.sources: dict[Place, Path] = {}
        #: Whether CDI is installed.
        self.cdi = False
        #: What was pushed to the registry, by reference: archives as of ``docker save``.
        self.images: dict[str, Path] = {}
        #: Between two steps of CDI's.
        self.step_s = 0.02
        self._made: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        store.listeners.append(self._notice)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def has(self, namespace: str, name: str) -> bool:
        there = self._store.get("persistentvolumeclaims", namespace, name)
        return name in self.claims or there is not None

    def file_of(self, namespace: str, name: str) -> Path:
        """The volume of a claim, which is bound now if it was not."""
        claim = self._store.get("persistentvolumeclaims", namespace, name)
        if name not in self.claims:
            assert claim is not None
            source = claim["spec"].get("dataSource", {}).get("name")
            below = self.file_of(namespace, source) if source else None
            self._fill(claim, below)
        return self.claims[name]

    def refusal(self, volume: Object) -> web.Response | None:
        """What CDI's webhooks refuse of a DataVolume."""
        source = volume["spec"].get("source", {}).get("pvc")
        here = volume["metadata"]["namespace"]
        if source and source["namespace"] != here and source["namespace"] not in self.clonable:
            where = source["namespace"]
            text = f"User tester has insufficient permissions in clone source namespace {where}"
            return status(
                422,
                "Invalid",
                f'admission webhook "datavolume-mutate.cdi.kubevirt.io" denied the request: {text}',
            )
        return None

    # -------------------------------------------------------------------------------- inside

    def _notice(self, event: str, plural: str, thing: Object) -> None:
        name = thing["metadata"]["name"]
        if plural == "datavolumes" and event == "ADDED":
            task = asyncio.get_running_loop().create_task(self._populate(thing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif plural == "pods" and event == "ADDED" and _has_claim_bound(thing):
            claim = thing["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
            self.file_of(thing["metadata"]["namespace"], claim)
            self._store.status("pods", thing, phase="Succeeded")
        elif plural == "persistentvolumeclaims" and event == "DELETED" and name in self._made:
            self._made.discard(name)
            self.claims.pop(name).unlink()

    def _fill(self, claim: Object, below: Path | None) -> None:
        """Provision a volume: a copy of `below`, or empty as KubeVirt makes it."""
        name = claim["metadata"]["name"]
        path = self.directory / f"volume-{claim['metadata']['uid'][:8]}"
        requested = claim["spec"]["resources"]["requests"]["storage"]
        if below:
            shutil.copyfile(below, path)
        with path.open("r+b" if below else "wb") as file:
            file.truncate(max(size_bytes(requested), below.stat().st_size if below else 0))
        self.claims[name] = path
        self._made.add(name)
        self._store.status(
            "persistentvolumeclaims", claim, phase="Bound", capacity={"storage": requested}
        )

    async def _populate(self, volume: Object) -> None:
        kind, read = self._source(volume)
        self._store.status("datavolumes", volume, phase=f"{kind}Scheduled", progress="N/A")
        await asyncio.sleep(self.step_s)
        for number in range(_PIECES):
            progress = f"{100 * number / _PIECES:.2f}%"
            self._store.status("datavolumes", volume, phase=f"{kind}InProgress", progress=progress)
            await asyncio.sleep(self.step_s)
        try:
            below = await asyncio.to_thread(read)
        except Failed as error:
            condition = {
                "type": "Running",
                "status": "False",
                "reason": "Error",
                "message": str(error),
            }
            self._store.status(
                "datavolumes", volume, phase=f"{kind}InProgress", conditions=[condition]
            )
            return
        metadata = volume["metadata"]
        owner = {
            "apiVersion": volume["apiVersion"],
            "kind": "DataVolume",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        wanted = volume["spec"]["storage"].get("resources", {}).get("requests", {}).get("storage")
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            # CDI passes a DataVolume's labels and annotations on.
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": metadata.get("labels", {}),
                "annotations": metadata.get("annotations", {}),
                "ownerReferences": [owner],
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": wanted or str(below.stat().st_size)}},
            },
        }
        if self._store.get("datavolumes", metadata["namespace"], metadata["name"]) is None:
            return
        self._fill(self._store.create("persistentvolumeclaims", claim), below)
        self._store.status("datavolumes", volume, phase="Succeeded", progress="100.0%")

    def _source(self, volume: Object) -> tuple[str, Callable[[], Path]]:
        """What CDI does, and how it comes by the file with the disk."""
        spec: dict[str, Any] = volume["spec"]
        if reference := spec.get("sourceRef"):
            return "Clone", lambda: self._listed(reference)
        source = spec["source"]
        if claim := source.get("pvc"):
            return "Clone", lambda: self._cloned(volume["metadata"]["namespace"], claim)
        name = volume["metadata"]["name"]
        if registry := source.get("registry"):
            return "Import", lambda: self._unpacked(registry["url"], name)
        return "Import", lambda: self._downloaded(source["http"]["url"], name)

    def _listed(self, reference: Object) -> Path:
        found = self.sources.get((reference["namespace"], reference["name"]))
        if found is None:
            raise Failed(f"DataSource {reference['name']} not found: unsupported")
        return found

    def _cloned(self, here: str, claim: Object) -> Path:
        place = (claim["namespace"], claim["name"])
        if claim["namespace"] == here:
            return self.file_of(*place)
        if place not in self.foreign:
            raise Failed(f"source claim {claim['name']} not found: unsupported")
        return self.foreign[place]

    def _unpacked(self, url: str, name: str) -> Path:
        path = self.directory / f"image-{name}"
        path.write_bytes(images.disk_of(self.images[url.removeprefix("docker://")]))
        return path

    def _downloaded(self, url: str, name: str) -> Path:
        path = self.directory / f"download-{name}"
        try:
            with _DIRECT.open(self._resolve(url), timeout=10) as answer, path.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except urllib.error.HTTPError as error:
            error.close()
            raise Failed(
                "Unable to connect to http data source: expected status code 200, got "
                f"{error.code}. Status: {error.code} {error.reason}"
            ) from error
        return path


def _has_claim_bound(pod: Object) -> bool:
    """Whether that is all that a pod is for."""
    containers = pod["spec"].get("containers", [])
    return [each.get("command") for each in containers] == [["true"]]
