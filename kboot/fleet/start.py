"""Start the machines of a fleet: restored from one that was saved, or booted, several at once."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from kboot import capacity
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError
from kboot.fleet import identity
from kboot.fleet.fleet import Fleet
from kboot.fleet.layout import Role, members_of
from kboot.log import logger, step
from kboot.machine import Machine, MachineSettings
from kboot.machine.follower import BootCancelled
from kboot.machine.network_card import nic_model_for
from kboot.machine.saved import SavedMachine
from kboot.machine_network import MachineNetwork, NetworkBackend, naming, together
from kboot.network_cards import CARDS
from kboot.rootfs import modules_there, overlay_initramfs
from kboot.session import Session

_NETWORK_LIMIT_S = 60.0


@contextlib.contextmanager
def open_fleet(
    session: Session,
    roles: tuple[Role, ...],
    configs: Mapping[str, Config],
    *,
    on_machine: Callable[[Machine], None] = lambda _machine: None,
) -> Iterator[Fleet]:
    """A fleet whose machines are ready and find each other, for the length of the ``with``.

    `configs` has the configuration of each role. `on_machine` is told of each machine before it is
    waited for, on any thread. `ConfigError` if the backend has no such networks; what is wrong with
    one machine is raised with its name.
    """
    backend = session.backend
    if not isinstance(backend, NetworkBackend):
        raise ConfigError(f"the backend {backend.name} has no networks of several machines")
    members = members_of(roles)
    # Not on several threads at once.
    session.server.check()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(
            backend.open_network(tuple(members), Deadline(_NETWORK_LIMIT_S))
        )
        settings = _settings(session, configs, network, roles)
        starter = _Starter(session, network, on_machine)
        stack.callback(session.tell_of_evidence)
        stack.callback(starter.power_off)
        with step(f"start a fleet of {len(members)}"):
            machines = starter.start(settings)
        yield Fleet(roles, machines, network)


def _settings(
    session: Session,
    configs: Mapping[str, Config],
    network: MachineNetwork,
    roles: tuple[Role, ...],
) -> dict[str, MachineSettings]:
    """The settings of each member. `ConfigError` has the name of the role."""
    found: dict[str, MachineSettings] = {}
    for role in roles:
        config = configs[role.name]
        with naming(f"the role {role.name}"):
            # To cloud-init, each of them is an instance of its own, with its own name.
            names = role.members if config.cloud_init else ("",)
            settings = [_settings_of(session, config, network, role, name) for name in names]
        found |= dict(zip(role.members, itertools.cycle(settings), strict=False))
    return found


def _settings_of(
    session: Session, config: Config, network: MachineNetwork, role: Role, host_name: str
) -> MachineSettings:
    """The settings of a role's machines, which have what their network needs."""
    # What boots from its disk has its own.
    if config.boot != "disk":
        needed = network.drivers
        if needed is None:
            model = nic_model_for(config, session.kernel, uses_network=True)
            config = replace(config, nic_model=model)
            needed = CARDS[model].modules
        drivers = modules_there(session.kernel, needed)
        config = replace(config, module=tuple(dict.fromkeys((*config.module, *drivers))))
    settings = session.settings(config, host_name=host_name)
    if config.rootfs == "tiny" and network.interface(role.members[0]) is None:
        dhcp = overlay_initramfs({"/etc/kboot/network": b""})
        settings = replace(settings, initrds=(*settings.initrds, dhcp))
    return settings


class _Starter:
    """The machines of one fleet, and how to power them off."""

    def __init__(
        self, session: Session, network: MachineNetwork, on_machine: Callable[[Machine], None]
    ) -> None:
        self._session = session
        self._network = network
        self._on_machine = on_machine
        self._power: dict[str, contextlib.ExitStack] = {}
        self._machines: dict[str, Machine] = {}
        #: For what is not made for several threads: saved machines.
        self._lock = threading.Lock()

    def start(self, settings: Mapping[str, MachineSettings]) -> dict[str, Machine]:
        """Each member's machine, ready, with its identity."""
        # Machines that differ only in who they are go on from the same saved one; those with
        # cloud-init, which gave each its name, from one of their own.
        link = self._network.link(next(iter(settings)))
        kinds = {
            member: replace(each, spec=replace(each.spec, links=(link,)))
            for member, each in settings.items()
        }
        saved = self._save_each(kinds)
        rest = [member for member in kinds if member not in self._machines]
        at_once = self._network.starts_at_once or min(
            _at_once(kinds[member], restored=saved[kinds[member]] is not None) for member in kinds
        )
        together(
            rest, lambda member: self._start(member, kinds[member], saved[kinds[member]]), at_once
        )
        together(list(kinds), self._join, at_once)
        return {member: self._machines[member] for member in kinds}

    def power_off(self) -> None:
        """Power all of them off, whatever goes wrong with some."""
        power, self._power = self._power, {}
        together(list(power), lambda member: power[member].close())

    def _save_each(
        self, kinds: Mapping[str, MachineSettings]
    ) -> dict[MachineSettings, SavedMachine | None]:
        """What the machines of each kind go on from; None if they boot."""
        firsts: dict[MachineSettings, str] = {}
        for member, kind in kinds.items():
            firsts.setdefault(kind, member)
        at_once = min(_at_once(kind, restored=False) for kind in firsts)
        found = together(
            list(firsts.values()),
            lambda member: self._saved(kinds[member]) or self._boot_and_save(member, kinds[member]),
            at_once,
        )
        return {kinds[member]: saved for member, saved in found.items()}

    def _saved(self, kind: MachineSettings) -> SavedMachine | None:
        snapshots = self._session.snapshots
        return snapshots.find(kind) if snapshots.can_have(kind) else None

    def _boot_and_save(self, member: str, kind: MachineSettings) -> SavedMachine | None:
        """The first of its kind, from which the others go on; None if it cannot be saved."""
        snapshots = self._session.snapshots
        if not snapshots.can_have(kind):
            return None
        with snapshots.making(kind, Deadline(kind.timeout_s)):
            # Another process may have made it in the meantime.
            if (found := snapshots.find(kind)) is not None:
                self._start(member, kind, found)
                return found
            machine = self._power_on(member, kind, savable=True)
            if interface := self._network.interface(member):
                identity.wait_for_carrier(machine.console_guest, self._network, interface)
            snapshots.save(machine, kind)
            return self._saved(kind)

    def _start(self, member: str, kind: MachineSettings, saved: SavedMachine | None) -> None:
        if saved is not None:
            try:
                self._power_on(member, kind, saved=saved)
            except BootCancelled:
                raise
            except (GuestError, InfraError) as error:
                self._session.server.check()
                logger.warning("%s: the saved machine does not run: %s", member, error)
                with self._lock:
                    self._session.snapshots.refuse(saved)
            else:
                return
        self._power_on(member, kind)

    def _power_on(
        self,
        member: str,
        kind: MachineSettings,
        *,
        saved: SavedMachine | None = None,
        savable: bool = False,
    ) -> Machine:
        spec = replace(kind.spec, links=(self._network.link(member),))
        with contextlib.ExitStack() as power:
            machine = power.enter_context(
                self._session.powered_on(
                    replace(kind, spec=spec),
                    name=member,
                    label=f"-{member}",
                    saved=saved,
                    savable=savable,
                )
            )
            self._on_machine(machine)
            if saved is None:
                machine.wait_until_ready()
            self._machines[member] = machine
            self._power[member] = power.pop_all()
        return machine

    def _join(self, member: str) -> None:
        """Make it this member, now and after each of its boots."""
        machine = self._machines[member]

        def become(*, restored: bool) -> None:
            guest = machine.console_guest
            identity.become(guest, member, network=self._network, restored=restored)

        become(restored=machine.restored_from is not None)
        machine.on_ready = lambda: become(restored=False)


def _at_once(settings: MachineSettings, *, restored: bool) -> int:
    """How many such machines are to be started at a time."""
    cpus = capacity.host_cpus()
    if restored:
        return cpus
    return capacity.workers(
        cpus=cpus,
        available_mib=capacity.host_available_mib(),
        machine_cpus=settings.spec.cpus,
        machine_mib=settings.spec.memory_mib,
    )
