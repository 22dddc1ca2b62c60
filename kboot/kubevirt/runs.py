"""What makes a run on a cluster: the object that owns all others, its heartbeat, its watches."""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube import CONFIG_MAPS, PODS, VIRTUAL_MACHINES, VMIS, Client, Watch
from kboot.kubevirt import manifests
from kboot.kubevirt.holder import user_and_host
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.names import new_run, selector
from kboot.kubevirt.view import Watches
from kboot.log import logger

#: A cluster that cannot be reached at the beginning is told soon.
START_LIMIT_S = 15.0
_END_LIMIT_S = 30.0
#: Well below the time to live, so that a few may be lost.
HEARTBEAT_S = 60.0


def begin(
    client: Client,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Run:
    """A new run, which lives from now on; with more labels and annotations on its owner object."""
    run = Run(identifier=new_run(), namespace=client.namespace)
    now = datetime.datetime.now(datetime.UTC)
    manifest = manifests.owner(run, user=user_and_host(), now=now)
    manifest["metadata"]["labels"] |= labels or {}
    manifest["metadata"]["annotations"] |= annotations or {}
    made = client.create(manifest, Deadline(START_LIMIT_S))
    return replace(run, owner_uid=made["metadata"]["uid"])


def join(client: Client, identifier: str) -> Run:
    """A run that is there. `ClusterError` if it is not."""
    run = Run(identifier=identifier, namespace=client.namespace)
    owner = client.get(CONFIG_MAPS, run.name, Deadline(START_LIMIT_S))
    return replace(run, owner_uid=owner["metadata"]["uid"])


def watch(stack: contextlib.ExitStack, client: Client, run: Run) -> Watches:
    """Watch the run's machines and pods until the stack ends."""
    changed = threading.Condition()
    vms, vmis, pods = (
        stack.enter_context(
            Watch(client, resource, selector=selector(run.identifier), changed=changed)
        )
        for resource in (VIRTUAL_MACHINES, VMIS, PODS)
    )
    return Watches(vms=vms, vmis=vmis, pods=pods)


def end(client: Client, run: Run) -> None:
    """Remove all that the run has made; a cluster that is gone is no reason to fail."""
    try:
        client.delete(CONFIG_MAPS, run.name, Deadline(_END_LIMIT_S))
    except ClusterError as error:
        logger.warning(
            "run %s could not be removed from the cluster: %s; kboot gc will do it", run.name, error
        )


@contextlib.contextmanager
def heartbeat(
    client: Client,
    run: Run,
    *,
    interval_s: float | None = None,
    heard: Callable[[Mapping[str, Any]], None] = lambda _owner: None,
) -> Iterator[None]:
    """Say from time to time that the run lives, for the length of the ``with``.

    `heard` is called with the owner object as it is after each beat.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(interval_s or HEARTBEAT_S):
            change = {"metadata": {"annotations": {manifests.HEARTBEAT: manifests.now()}}}
            try:
                heard(client.patch(CONFIG_MAPS, run.name, change, Deadline(HEARTBEAT_S)))
            except ClusterError as error:
                logger.debug("the run's heartbeat was not taken: %s", error)

    thread = threading.Thread(target=beat, name="kboot-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
