"""Room for pods: the memory of the cluster's one node, a quota, an autoscaler that adds nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tests.kubevirt.cluster.instances import event_about
from tests.kubevirt.cluster.pods import UNBOUND
from tests.kubevirt.cluster.store import Object, Store

#: As recorded.
QUOTA = (
    'pods "{pod}" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1'
)
_NO_ROOM = (
    "0/1 nodes are available: 1 Insufficient memory. no new claims to deallocate, preemption: "
    "0/1 nodes are available: 1 Preemption is not helpful for scheduling."
)


class Room:
    def __init__(self, store: Store, *, node_mib: int) -> None:
        self._store = store
        #: What there is for launcher pods.
        self.node_mib = node_mib
        #: The most pods of a namespace; None for no quota.
        self.quota_pods: int | None = None
        #: After how many seconds an autoscaler says that it adds a node, and after how many more
        #: that node is there; None without one.
        self.scale_up_s: tuple[float, float] | None = None
        #: The memory of launcher pods that have a node, by uid.
        self._taken: dict[str, int] = {}
        store.listeners.append(self._notice)

    def _notice(self, event: str, plural: str, thing: Object) -> None:
        if plural == "pods" and event == "DELETED":
            self._taken.pop(thing["metadata"]["uid"], None)

    def quota_is_used_up(self, namespace: str) -> bool:
        pods = list(self._store.find("pods", namespace))
        return self.quota_pods is not None and len(pods) >= self.quota_pods

    async def schedule(self, pod: Object, memory_mib: int, bound_s: float) -> AsyncIterator[str]:
        """Give a pod its memory; why not yet, each time that there is another reason."""
        if bound_s:
            yield UNBOUND
            await asyncio.sleep(bound_s)
        if self._fits(memory_mib):
            self._taken[pod["metadata"]["uid"]] = memory_mib
            return
        yield _NO_ROOM
        adding = asyncio.create_task(self._scale_up(pod, memory_mib))
        while not self._fits(memory_mib):
            await asyncio.sleep(0.05)
            metadata = pod["metadata"]
            if self._store.get("pods", metadata["namespace"], metadata["name"]) is None:
                adding.cancel()
                return
        adding.cancel()
        self._taken[pod["metadata"]["uid"]] = memory_mib

    def _fits(self, memory_mib: int) -> bool:
        return sum(self._taken.values()) + memory_mib <= self.node_mib

    async def _scale_up(self, pod: Object, memory_mib: int) -> None:
        if self.scale_up_s is None:
            return
        says_s, takes_s = self.scale_up_s
        await asyncio.sleep(says_s)
        message = "pod triggered scale-up: [{workers 1->2 (max: 3)}]"
        self._store.create("events", event_about(pod, "Normal", "TriggeredScaleUp", message))
        await asyncio.sleep(takes_s)
        self.node_mib += memory_mib
