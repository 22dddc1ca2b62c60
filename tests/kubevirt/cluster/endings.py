"""How machines end that somebody ends: the order and the marks of the recordings."""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING

from aiohttp import web

from tests.kubevirt.cluster.instances import SPEED, Instance
from tests.kubevirt.cluster.store import Object

if TYPE_CHECKING:
    from tests.kubevirt.cluster.machines import Virt

#: What a pod is given to end, if nobody says otherwise.
POD_GRACE_S = 30
#: From the mark of deletion on a launcher pod to the end of its instance, and to its own.
_POD_TO_INSTANCE_S, _INSTANCE_TO_POD_S = 1.3, 9.7
#: From the mark of deletion on an instance to its end.
_INSTANCE_S = 0.3

#: What the Eviction API leaves on a pod.
EVICTED: Object = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "EvictionByEvictionAPI",
    "message": "Eviction API: evicting",
}


def mark(thing: Object, *, grace_s: int) -> None:
    """What the API server writes on an object that is to be deleted."""
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=grace_s)
    thing["metadata"] |= {
        "deletionTimestamp": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "deletionGracePeriodSeconds": grace_s,
    }


def instance_behind(virt: Virt, pod: Object) -> Instance | None:
    """The instance that a launcher pod runs."""
    found = (it for it in virt.instances.values() if _uid(it.pod) == _uid(pod))
    return next(found, None)


def delete_pod(virt: Virt, instance: Instance, *, grace_s: int, why: Object | None = None) -> None:
    """A launcher pod is told to end: by its deletion, or by its eviction (`why`)."""
    if why is not None:
        conditions = [*instance.pod["status"].get("conditions", ()), why]
        virt.store.status("pods", instance.pod, conditions=conditions)
    virt.store.update("pods", instance.pod, lambda pod: mark(pod, grace_s=grace_s))
    virt.spawn(_end_pod(virt, instance))


async def _end_pod(virt: Virt, instance: Instance) -> None:
    running = virt.phase_of(instance) == "Running"
    virt.set_phase(instance, virt.phase_of(instance), reason="PodTerminating")
    if running:
        await asyncio.sleep(_POD_TO_INSTANCE_S * SPEED)
        finish(virt, instance)
    await asyncio.sleep(_INSTANCE_TO_POD_S * SPEED)
    virt.store.delete("pods", instance.pod)


def finish(virt: Virt, instance: Instance, phase: str = "Succeeded") -> None:
    """The guest is gone, and its instance has ended."""
    virt.cut(instance)
    virt.set_phase(instance, phase, reason="PodTerminating")
    virt.set_status(instance, "Stopped")


def delete_instance(virt: Virt, instance: Instance) -> None:
    """An instance is told to end: it and its pod are marked."""
    virt.store.update("virtualmachineinstances", instance.vmi, lambda vmi: mark(vmi, grace_s=0))
    virt.store.update("pods", instance.pod, lambda pod: mark(pod, grace_s=POD_GRACE_S))


async def end_instance(virt: Virt, instance: Instance, phase: str = "Succeeded") -> None:
    """The end of an instance that is to be deleted; it and its pod are there still."""
    delete_instance(virt, instance)
    running = virt.phase_of(instance) == "Running"
    if running:
        virt.set_phase(instance, "Running", reason="PodTerminating")
    await asyncio.sleep(_INSTANCE_S * SPEED)
    if running:
        finish(virt, instance, phase)


async def delete_machine(virt: Virt, vm: Object) -> None:
    """``kubectl delete vm``: the machine stays, marked, until its instance has ended."""
    store, instance = virt.store, virt.instances.get(vm["metadata"]["name"])
    store.update("virtualmachines", vm, lambda current: mark(current, grace_s=0))
    if instance is not None:
        store.status("virtualmachines", vm, printableStatus="Terminating")
        await end_instance(virt, instance)
    store.delete("virtualmachines", vm)


def grace_of(request: web.Request, body: Object) -> int | None:
    """The seconds that a request for a deletion gives; None if it does not say."""
    seconds = request.query.get("gracePeriodSeconds", body.get("gracePeriodSeconds"))
    return None if seconds is None else int(seconds)


def _uid(thing: Object) -> str:
    return str(thing["metadata"]["uid"])
