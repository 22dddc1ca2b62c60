"""The objects of the test cluster, with versions, watches, owners and finalisation."""

from __future__ import annotations

import asyncio
import copy
import datetime
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

Object = dict[str, Any]
#: Plural, namespace, name.
Key = tuple[str, str, str]


class Gone(Exception):
    """The version a watch wants to begin at is not remembered any more."""


def now(ahead_s: float = 0.0) -> str:
    """The time of a clock that is so far ahead of ours, as Kubernetes writes it."""
    return moment(ahead_s).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(ahead_s: float = 0.0) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)


class Store:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.version = 100
        #: How far the cluster's clock is ahead of its clients'.
        self.ahead_s = 0.0
        self.oldest = 0
        self.history: list[tuple[int, str, str, Object]] = []
        #: Raised by one when all watches shall end.
        self.epoch = 0
        self._changed = asyncio.Condition()
        #: Told about every change: event type, plural, object.
        self.listeners: list[Callable[[str, str, Object], None]] = []

    def find(self, plural: str, namespace: str = "") -> Iterator[Object]:
        for (kind, space, _), each in list(self.objects.items()):
            if kind == plural and namespace in {"", space}:
                yield each

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        return self.objects.get((plural, namespace, name))

    def create(self, plural: str, thing: Object) -> Object:
        thing = copy.deepcopy(thing)
        metadata = thing["metadata"]
        if "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        metadata |= {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(self.ahead_s),
            "generation": 1,
        }
        self.objects[plural, metadata["namespace"], metadata["name"]] = thing
        self._record("ADDED", plural, thing)
        return copy.deepcopy(thing)

    def update(self, plural: str, thing: Object, change: Callable[[Object], None]) -> Object | None:
        """Change an object that may be gone by now."""
        metadata = thing["metadata"]
        current = self.get(plural, metadata["namespace"], metadata["name"])
        if current is None or current["metadata"]["uid"] != metadata["uid"]:
            return None
        change(current)
        self._record("MODIFIED", plural, current)
        return current

    def status(self, plural: str, thing: Object, **fields: Any) -> Object | None:
        def change(current: Object) -> None:
            current.setdefault("status", {}).update(fields)

        return self.update(plural, thing, change)

    def delete(self, plural: str, thing: Object) -> None:
        metadata = thing["metadata"]
        key = (plural, metadata["namespace"], metadata["name"])
        current = self.objects.get(key)
        if current is None or current["metadata"]["uid"] != metadata["uid"]:
            return
        del self.objects[key]
        current["metadata"]["deletionTimestamp"] = now(self.ahead_s)
        self._record("DELETED", plural, current)
        for (kind, _, _), each in list(self.objects.items()):
            owners = each["metadata"].get("ownerReferences", ())
            # Launcher pods end later: KubeVirt sees to that.
            launcher = "kubevirt.io" in each["metadata"].get("labels", {})
            if any(owner["uid"] == metadata["uid"] for owner in owners) and not launcher:
                self.delete(kind, each)

    def bookmark(self, plural: str) -> None:
        """Tell the watches how far they have come, though nothing has changed for them."""
        self.tell(plural, "BOOKMARK", {"kind": plural, "metadata": {}})

    def tell(self, plural: str, event: str, thing: Object) -> None:
        """Tell the watches something that is not about an object there is."""
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, event, plural, thing))
        asyncio.get_running_loop().create_task(self._wake())

    def forget(self) -> None:
        """Forget all changes, and end all watches: who resumes has to list again."""
        self.oldest = self.version
        self.history.clear()
        self.end_watches()

    def end_watches(self) -> None:
        self.epoch += 1
        asyncio.get_running_loop().create_task(self._wake())

    async def watch(self, plural: str, namespace: str, version: int) -> AsyncIterator[Object]:
        """Events after `version`, until the watches are ended."""
        if version < self.oldest:
            raise Gone
        epoch = self.epoch
        while epoch == self.epoch:
            events = [event for event in self.history if event[0] > version and event[2] == plural]
            version = self.version
            for _, kind, _, thing in events:
                if thing["metadata"].get("namespace", namespace) == namespace:
                    yield {"type": kind, "object": thing}
            async with self._changed:
                if version == self.version and epoch == self.epoch:
                    await self._changed.wait()

    def _record(self, event: str, plural: str, thing: Object) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        seen = copy.deepcopy(thing)
        self.history.append((self.version, event, plural, seen))
        for listener in self.listeners:
            listener(event, plural, seen)
        asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
