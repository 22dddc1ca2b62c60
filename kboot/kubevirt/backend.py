"""One run on a cluster: its owner object and heartbeat, its boot server, its machines."""

from __future__ import annotations

import contextlib
import datetime
import getpass
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

from kboot.backend import BootServer, Firmware, Machine, MachineSpec
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube import (
    CONFIG_MAPS,
    PODS,
    SECRETS,
    VIRTUAL_MACHINES,
    VMIS,
    ApiError,
    Client,
    Watch,
    connect,
)
from kboot.kubevirt import manifests, virtual_machine
from kboot.kubevirt.machine import ClusterMachine
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.names import new_run, selector
from kboot.kubevirt.server import ClusterServer
from kboot.kubevirt.settings import ClusterSettings
from kboot.kubevirt.view import Watches
from kboot.log import logger

#: A cluster that cannot be reached at the beginning is told soon.
_START_LIMIT_S = 15.0
_END_LIMIT_S = 30.0
#: Well below the time to live, so that a few may be lost.
_HEARTBEAT_S = 60.0

_FORBIDDEN = 403


class KubevirtBackend:
    """Serve and boot on a cluster (see `kboot.backend.Backend`). Made by `open_kubevirt`."""

    name = "kubevirt"

    def __init__(
        self, client: Client, run: Run, settings: ClusterSettings, watches: Watches
    ) -> None:
        self.client = client
        self.run = run
        self._settings = settings
        self._watches = watches

    @property
    def run_name(self) -> str:
        """The run's identifier, for `join_kubevirt`."""
        return self.run.identifier

    def firmware_fault(self, firmware: Firmware) -> str | None:
        """None if its machines can have this firmware, or else why not."""
        if firmware == "bios" or self._settings.ipxe_disk:
            return None
        return (
            "whether UEFI boots over HTTP depends on the cluster's firmware; give its machines a "
            "disk with iPXE: --ipxe-disk"
        )

    @contextlib.contextmanager
    def serve(self, deadline: Deadline) -> Iterator[BootServer]:
        """Start an nginx Pod of the run."""
        token = secrets.token_hex(32)
        if self._settings.claim:
            self._claim_storage(deadline)
        objects = manifests.boot_server(self.run, self._settings, token=token)
        for manifest in objects:
            self._create(manifest, deadline)
        conf = next(each["data"]["nginx.conf"] for each in objects if each["kind"] == "ConfigMap")
        with self._served(token, conf, deadline) as server:
            yield server

    @contextlib.contextmanager
    def join_server(self, deadline: Deadline) -> Iterator[BootServer]:
        """The boot server that the run has already. It stays at the end of the ``with``."""
        secret = self.client.get(SECRETS, self.run.name, deadline)
        conf = self.client.get(CONFIG_MAPS, self.run.nginx_name, deadline)
        token = manifests.token_of(secret)
        with self._served(token, conf["data"]["nginx.conf"], deadline) as server:
            yield server

    @contextlib.contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[Machine]:
        """Switch a machine on; it is deleted at the end of the ``with``."""
        machine = ClusterMachine(
            self.client,
            self._watches,
            spec,
            virtual_machine.manifest(spec, self.run, self._settings),
            paused=self._settings.attach == "paused",
        )
        with machine.powered_on(deadline):
            yield machine

    @contextlib.contextmanager
    def _served(self, token: str, conf: str, deadline: Deadline) -> Iterator[BootServer]:
        server = ClusterServer(
            self.client,
            self.run,
            self._watches.pods,
            token=token,
            domain=self._settings.domain,
            conf=conf,
        )
        with server.running(deadline):
            yield server

    def _create(self, manifest: manifests.Manifest, deadline: Deadline) -> None:
        try:
            self.client.create(manifest, deadline)
        except ApiError as error:
            if manifest["kind"] != "NetworkPolicy" or error.status != _FORBIDDEN:
                raise
            logger.info("going on without a network policy: %s", error)

    def _claim_storage(self, deadline: Deadline) -> None:
        """Make the claim that is shared with other runs, unless it is there."""
        try:
            self.client.create(manifests.storage(self.run.namespace, self._settings), deadline)
        except ApiError as error:
            if error.reason != "AlreadyExists" and error.status != _FORBIDDEN:
                raise
            logger.debug("using the claim %s as it is: %s", self._settings.claim, error.text)


@contextlib.contextmanager
def open_kubevirt(settings: ClusterSettings) -> Iterator[KubevirtBackend]:
    """The backend, for the length of a run: all that it makes belongs to one object.

    Raises `ConfigError` if no cluster is configured, `ClusterError` if it cannot be used.
    """
    client = connect(settings.context, settings.namespace)
    deadline = Deadline(_START_LIMIT_S)
    run = Run(identifier=new_run(), namespace=client.namespace)
    made = client.create(
        manifests.owner(run, user=_user(), now=datetime.datetime.now(datetime.UTC)), deadline
    )
    run = replace(run, owner_uid=made["metadata"]["uid"])
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_heartbeat(client, run))
            watches = _watch(stack, client, run)
            yield KubevirtBackend(client, run, settings, watches)
    finally:
        _end(client, run)


@contextlib.contextmanager
def join_kubevirt(settings: ClusterSettings, identifier: str) -> Iterator[KubevirtBackend]:
    """The backend for a run that another process has begun, and will end.

    `ClusterError` if there is no such run.
    """
    client = connect(settings.context, settings.namespace)
    try:
        run = Run(identifier=identifier, namespace=client.namespace)
        owner = client.get(CONFIG_MAPS, run.name, Deadline(_START_LIMIT_S))
        run = replace(run, owner_uid=owner["metadata"]["uid"])
        with contextlib.ExitStack() as stack:
            yield KubevirtBackend(client, run, settings, _watch(stack, client, run))
    finally:
        client.close()


def _watch(stack: contextlib.ExitStack, client: Client, run: Run) -> Watches:
    changed = threading.Condition()
    vms, vmis, pods = (
        stack.enter_context(
            Watch(client, resource, selector=selector(run.identifier), changed=changed)
        )
        for resource in (VIRTUAL_MACHINES, VMIS, PODS)
    )
    return Watches(vms=vms, vmis=vmis, pods=pods)


def _end(client: Client, run: Run) -> None:
    try:
        client.delete(CONFIG_MAPS, run.name, Deadline(_END_LIMIT_S))
    except ClusterError as error:
        logger.warning(
            "run %s could not be removed from the cluster: %s; kboot gc will do it", run.name, error
        )
    client.close()


@contextlib.contextmanager
def _heartbeat(client: Client, run: Run) -> Iterator[None]:
    """Say from time to time that the run lives, for the length of the ``with``."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_HEARTBEAT_S):
            now = manifests.timestamp(datetime.datetime.now(datetime.UTC))
            change = {"metadata": {"annotations": {manifests.HEARTBEAT: now}}}
            try:
                client.patch(CONFIG_MAPS, run.name, change, Deadline(_HEARTBEAT_S))
            except ClusterError as error:
                logger.debug("the run's heartbeat was not taken: %s", error)

    thread = threading.Thread(target=beat, name="kboot-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _user() -> str:
    """Who runs this, for people who look at what is on their cluster."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
