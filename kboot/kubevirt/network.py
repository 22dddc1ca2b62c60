"""The machines of a run on the cluster's pod network, under names of their own, or on another one.

On the pod network, one headless Service names them all: a pod with ``hostname`` and ``subdomain``
is known by both, also before it is ready. Their cables are those that they boot from. On a network
of Multus that the user names, each has a second card, and the guest is told its address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence

from kboot.backend import VirtualMachine
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import manifests
from kboot.kubevirt.api import SERVICES, VMIS, Client
from kboot.kubevirt.manifests import MEMBER_LABEL, NETWORK_LABEL, Run
from kboot.kubevirt.virtual_machine import ClusterVirtualMachine
from kboot.kubevirt.vm_manifest import mac_address
from kboot.kubevirt.watches import create_when_allowed
from kboot.log import logger
from kboot.machine_network import Interface, PathCondition, together
from kboot.machine_spec import Link
from kboot.network_cards import FLEET_CARD

_LIMIT_S = 30.0
#: Each has a thread here, and its console; more would only wait for the cluster longer.
_STARTS_AT_ONCE = 25
#: 10.64.0.0/10: each fleet has a network of 254 addresses there.
_ADDRESSES = 10 << 24 | 64 << 16
_PATH_FAULT = (
    "on a cluster, frames between some machines cannot be lost or late, as they go through "
    "the cluster's own network; cut machines off: fleet.cut(...)"
)


class PodNetwork:
    """One such network (see `kboot.machine_network.MachineNetwork`). Made by `open_pod_network`."""

    def __init__(self, client: Client, run: Run, name: str, domain: str) -> None:
        self._client = client
        self._run = run
        self.name = name
        self._domain = domain

    @property
    def drivers(self) -> None:
        """Its card is the one that it boots from."""

    @property
    def search_domain(self) -> str:
        """Where the members' names are found."""
        return f"{self.name}.{self._run.namespace}.svc.{self._domain}"

    @property
    def starts_at_once(self) -> int:
        """Their processors and memory are the cluster's: it is its own API that bounds them."""
        return _STARTS_AT_ONCE

    def link(self, member: str) -> Link:
        """The card that it boots from."""
        return Link(network=self.name, member=member)

    def interface(self, _member: str) -> None:
        """DHCP has done it."""
        return

    def addresses(self) -> Mapping[str, str]:
        """The address of each member's pod, by which the others reach it."""
        found, _ = self._client.find(
            VMIS, Deadline(_LIMIT_S), labelSelector=f"{NETWORK_LABEL}={self.name}"
        )
        addresses = {}
        for vmi in found:
            cards = vmi.get("status", {}).get("interfaces", [])
            if cards and "ipAddress" in cards[0]:
                addresses[vmi["metadata"]["labels"][MEMBER_LABEL]] = cards[0]["ipAddress"]
        return addresses

    def set_links(self, machines: Mapping[str, VirtualMachine], *, up: bool) -> Mapping[str, float]:
        """Patch the link state of all their cards at the same time; when each was answered."""

        def pull(member: str) -> float:
            machines[member].set_link(up=up)
            return time.monotonic()

        return together(tuple(machines), pull)

    def path_fault(self) -> str:
        """Why frames cannot be lost or late here."""
        return _PATH_FAULT

    def set_paths(self, _paths: Mapping[tuple[str, str], PathCondition]) -> float:
        """`ConfigError`."""
        raise ConfigError(self.path_fault())


class AttachedNetwork:
    """A NetworkAttachmentDefinition that the user has named (see `MachineNetwork`)."""

    def __init__(self, run: Run, members: Sequence[str]) -> None:
        self.name = f"{run.name}-{secrets.token_hex(3)}"
        # Others may be on it as well.
        network = ipaddress.ip_network((_ADDRESSES + (secrets.randbelow(1 << 14) << 8), 24))
        self._prefix = network.prefixlen
        self._addresses = {
            member: str(address) for member, address in zip(members, network.hosts(), strict=False)
        }

    @property
    def drivers(self) -> tuple[str, ...]:
        """Of virtio-net."""
        return FLEET_CARD.modules

    @property
    def search_domain(self) -> str:
        """No DNS knows the members."""
        return ""

    @property
    def starts_at_once(self) -> int:
        """As on the pod network."""
        return _STARTS_AT_ONCE

    def link(self, member: str) -> Link:
        """A card of its own."""
        return Link(network=self.name, member=member, mac_address=self._mac_address(member))

    def interface(self, member: str) -> Interface:
        """What its guest has to set."""
        own = self._mac_address(member)
        address = f"{self._addresses[member]}/{self._prefix}"
        return Interface(pattern=own, mac_address=own, address=address)

    def addresses(self) -> Mapping[str, str]:
        """The IP address of each member."""
        return self._addresses

    def set_links(self, machines: Mapping[str, VirtualMachine], *, up: bool) -> Mapping[str, float]:
        """Patch the link state of these cards at the same time; when each was answered."""

        def pull(member: str) -> float:
            machine = machines[member]
            if isinstance(machine, ClusterVirtualMachine):
                machine.set_fleet_link(up=up)
            return time.monotonic()

        return together(tuple(machines), pull)

    def path_fault(self) -> str:
        """Why frames cannot be lost or late here."""
        return _PATH_FAULT

    def set_paths(self, _paths: Mapping[tuple[str, str], PathCondition]) -> float:
        """`ConfigError`."""
        raise ConfigError(self.path_fault())

    def _mac_address(self, member: str) -> str:
        return mac_address(f"{self.name}-{member}")


@contextlib.contextmanager
def open_pod_network(
    client: Client, run: Run, members: Sequence[str], domain: str, deadline: Deadline
) -> Iterator[PodNetwork]:
    """Make the Service for the length of the ``with``; `members` are in the order of a fleet."""
    name = f"{run.name}-{secrets.token_hex(3)}"
    logger.debug("network %s for %d machines", name, len(members))
    manifest = manifests.network_service(run, name)
    create_when_allowed(client, manifest, f"the Service {name}", deadline)
    try:
        yield PodNetwork(client, run, name, domain)
    finally:
        try:
            client.delete(SERVICES, name, Deadline(_LIMIT_S))
        except ClusterError as error:
            # The run's owner takes it along in the end, and this must not hide what went wrong.
            logger.warning("the Service %s could not be deleted: %s", name, error)
