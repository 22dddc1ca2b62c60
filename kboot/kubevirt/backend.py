"""One run on a cluster: its owner object and heartbeat, its boot server, its machines."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kboot import arch
from kboot.backend import BootServer, VirtualMachine
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.kubevirt import claims, disks, manifests, ownership, preflight, processors, vm_manifest
from kboot.kubevirt.api import CONFIG_MAPS, SECRETS, ApiError, Client, connect
from kboot.kubevirt.ipxe_disk import IpxeDisk
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.network import AttachedNetwork, PodNetwork, open_pod_network
from kboot.kubevirt.ownership import Holder
from kboot.kubevirt.replica_set import ReplicaSet, open_replica_set
from kboot.kubevirt.server import ClusterServer
from kboot.kubevirt.virtual_machine import ClusterVirtualMachine
from kboot.kubevirt.watches import Watches, create_when_allowed
from kboot.log import logger
from kboot.machine_spec import Disk, Firmware, MachineSpec

_FORBIDDEN = 403
_PUBLISH_LIMIT_S = 30.0


class KubevirtBackend:
    """Serve and boot on a cluster (see `kboot.backend.Backend`). Made by `open_kubevirt`."""

    name = "kubevirt"

    def __init__(self, client: Client, run: Run, settings: ClusterConfig, watches: Watches) -> None:
        self.client = client
        self.run = run
        self.settings = settings
        self.watches = watches
        #: The keys of the disks with iPXE that are on the cluster.
        self._brought: set[str] = set()

    @property
    def run_name(self) -> str:
        """The run's identifier, for `join_kubevirt`."""
        return self.run.identifier

    def firmware_fault(
        self, firmware: Firmware, architecture: str = arch.DEFAULT.name
    ) -> str | None:
        """None if its machines can have this firmware, or else why not."""
        return vm_manifest.firmware_fault(firmware, architecture, self.settings)

    def disk_fault(self, disk: Disk) -> str | None:
        """None if its machines can have such a disk, or else why not."""
        return disks.fault(disk)

    def processor_fault(self, spec: MachineSpec) -> str | None:
        """None if it has machines with these NUMA nodes and huge pages, or else why not."""
        return processors.fault(spec)

    def chain_loads(self, spec: MachineSpec) -> bool:
        """Whether the machine's own iPXE has to be loaded by the one that is there, from a server.

        `ConfigError` if it cannot be had at all.
        """
        if spec.firmware == "uefi":
            # Its firmware starts it, from a disk; whether it can, is told now.
            IpxeDisk.of(spec)
            return False
        return spec.ipxe is not None and vm_manifest.require_loadable(spec.ipxe)

    def share_fault(self) -> str | None:
        """None if its machines can have directories of this host, or else why not."""
        return "a cluster's machine does not see directories of this host; give it a disk: --disk"

    @contextlib.contextmanager
    def serve(self, deadline: Deadline) -> Iterator[BootServer]:
        """Start an nginx Pod of the run."""
        token = secrets.token_hex(32)
        if self.settings.cluster_claim:
            self._claim_storage(deadline)
        objects = manifests.boot_server(self.run, self.settings, token=token)
        for manifest in objects:
            self.create(manifest, deadline)
        conf = next(each["data"]["nginx.conf"] for each in objects if each["kind"] == "ConfigMap")
        server = self.server(token, conf)
        with server.running(deadline):
            yield server

    @contextlib.contextmanager
    def join_server(self, deadline: Deadline) -> Iterator[BootServer]:
        """The boot server that the run has already. It stays at the end of the ``with``."""
        server = self.server(*self.find_server(deadline))
        with server.running(deadline):
            yield server

    @contextlib.contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[VirtualMachine]:
        """Switch a machine on; it is deleted at the end of the ``with``."""
        machine = self.machine(spec)
        with machine.powered_on(deadline):
            yield machine

    @contextlib.contextmanager
    def open_network(
        self, members: Sequence[str], deadline: Deadline
    ) -> Iterator[PodNetwork | AttachedNetwork]:
        """Names on the pod network for these machines, or addresses on the one that is named."""
        if self.settings.cluster_network:
            yield AttachedNetwork(self.run, members)
            return
        domain = self.settings.cluster_domain
        with open_pod_network(self.client, self.run, members, domain, deadline) as network:
            yield network

    @contextlib.contextmanager
    def open_replicas(
        self, spec: MachineSpec, replicas: int, deadline: Deadline
    ) -> Iterator[ReplicaSet]:
        """A set of machines that the cluster keeps (see `kboot.backend.ReplicaBackend`)."""
        disk = IpxeDisk.of(spec)
        with open_replica_set(
            self.client,
            self.watches,
            self.run,
            spec,
            self._settings_for(disk),
            replicas=replicas,
            deadline=deadline,
            prepare=lambda: self._bring_disks(spec, disk),
        ) as found:
            yield found

    def find_server(self, deadline: Deadline) -> tuple[str, str]:
        """The token and the configuration of the boot server that the run has already."""
        secret = self.client.get(SECRETS, self.run.name, deadline)
        conf = self.client.get(CONFIG_MAPS, self.run.nginx_name, deadline)
        return manifests.token_of(secret), conf["data"]["nginx.conf"]

    def server(self, token: str, conf: str) -> ClusterServer:
        """The boot server's pod, whether it is there or not."""
        return ClusterServer(
            self.client,
            self.run,
            self.watches.pods,
            self.settings,
            token=token,
            conf=conf,
        )

    def machine(self, spec: MachineSpec) -> ClusterVirtualMachine:
        """The machine of this name, whether it is there or not."""
        disk = IpxeDisk.of(spec)
        manifest = vm_manifest.manifest(spec, self.run, self._settings_for(disk))

        def prepare(deadline: Deadline) -> Deadline:
            preflight.check(self.client, manifest, self.settings.cluster_patch, deadline)
            if self._bring_disks(spec, disk):
                # An import takes what it takes: that is not the boot's time.
                return Deadline(deadline.seconds)
            return deadline

        return ClusterVirtualMachine(
            self.client,
            self.watches,
            spec,
            manifest,
            paused=self.settings.cluster_attach == "paused",
            ours=self.is_ours,
            prepare=prepare,
        )

    def is_ours(self) -> bool:
        """Whether nobody else has a right to its machines."""
        return True

    def create(self, manifest: manifests.Manifest, deadline: Deadline) -> None:
        """Make an object of the run; a network policy may be done without."""
        try:
            create_when_allowed(self.client, manifest, f"the run's {manifest['kind']}", deadline)
        except ApiError as error:
            if manifest["kind"] != "NetworkPolicy" or error.status != _FORBIDDEN:
                raise
            logger.info("going on without a network policy: %s", error)

    def _settings_for(self, disk: IpxeDisk | None) -> ClusterConfig:
        """The settings of one machine, which boots from a disk with its own iPXE if it has one."""
        if disk is None:
            return self.settings
        return replace(self.settings, cluster_ipxe_disk=disk.place(self.run, self.settings))

    def _bring_disks(self, spec: MachineSpec, disk: IpxeDisk | None) -> bool:
        """Have on the cluster what the machine's disks are made of; whether there was anything."""
        there = claims.prepare(self.client, spec, self.run, self.settings)
        if disk is None or disk.key in self._brought:
            return there
        disk.bring(self.client, self.run, self.settings, self._publish)
        self._brought.add(disk.key)
        return True

    def _publish(self, file: Path) -> str:
        """Put a file on the run's boot server, for others than machines to fetch."""
        return self.server(*self.find_server(Deadline(_PUBLISH_LIMIT_S))).put(file)

    def _claim_storage(self, deadline: Deadline) -> None:
        """Make the claim that is shared with other runs, unless it is there."""
        try:
            self.client.create(manifests.storage(self.run.namespace, self.settings), deadline)
        except ApiError as error:
            if error.reason != "AlreadyExists" and error.status != _FORBIDDEN:
                raise
            logger.debug("using the claim %s as it is: %s", self.settings.cluster_claim, error.text)


@contextlib.contextmanager
def open_kubevirt(settings: ClusterConfig) -> Iterator[KubevirtBackend]:
    """The backend, for the length of a run: all that it makes belongs to one object.

    Raises `ConfigError` if no cluster is configured, `ClusterError` if it cannot be used.
    """
    client = connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)
    run = ownership.begin(client, annotations=_process())
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(ownership.heartbeat(client, run))
            watches = ownership.watch(stack, client, run)
            yield KubevirtBackend(client, run, settings, watches)
    finally:
        ownership.end(client, run)
        client.close()


def _process() -> dict[str, str]:
    """Which process has the run, for others on this host; nothing where that cannot be known."""
    try:
        return {manifests.PROCESS: Holder.this_process().to_text()}
    except OSError as error:
        logger.debug("the run's process is not noted: %s", error)
        return {}


@contextlib.contextmanager
def join_kubevirt(settings: ClusterConfig, identifier: str) -> Iterator[KubevirtBackend]:
    """The backend for a run that another process has begun, and will end.

    `ClusterError` if there is no such run.
    """
    client = connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)
    try:
        run = ownership.join(client, identifier)
        with contextlib.ExitStack() as stack:
            yield KubevirtBackend(client, run, settings, ownership.watch(stack, client, run))
    finally:
        client.close()
