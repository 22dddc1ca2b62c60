"""Machines of a pool that their backend keeps: alike, booted by one script, proved one by one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from kboot import ipxe
from kboot.backend import ReplicaBackend, Replicas, ReplicaVirtualMachine
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.log import logger
from kboot.machine import Machine, join
from kboot.machine.publishing import Load, booting, publish_script, upload
from kboot.pool.pool import Supply
from kboot.session import Session

#: What all of them are called on the boot server.
_NAME = "pool"


class ReplicaSource:
    """Hands the machines of a set to a pool. Made by `open_replicas`."""

    def __init__(self, session: Session, replicas: Replicas, load: Load, nonce: str) -> None:
        self._session = session
        self._replicas = replicas
        self._load = load
        self._nonce = nonce
        self._numbers = itertools.count(1)
        #: Machines that boot, by their names.
        self._starting: dict[str, ReplicaVirtualMachine] = {}

    @property
    def supply(self) -> Supply:
        """For the pool."""
        return Supply(take=_take_out, scale=self._replicas.scale, end=self._end)

    @contextlib.contextmanager
    def start(self) -> Iterator[Machine]:
        """The next machine of the set that is ready; it is gone after the ``with``."""
        name = f"{_NAME}-{next(self._numbers)}"
        limit = Deadline(self._load.settings.timeout_s)
        with contextlib.ExitStack() as stack:
            vm = stack.enter_context(self._replicas.machine(limit))
            self._starting[name] = vm
            try:
                machine = stack.enter_context(
                    join(
                        vm,
                        self._session.server,
                        self._load,
                        self._nonce,
                        name=name,
                        evidence_directory=self._session.evidence.place(name)[1],
                    )
                )
            finally:
                del self._starting[name]
            yield machine

    def _end(self) -> None:
        self._replicas.close()
        for vm in list(self._starting.values()):
            vm.delete()

    def take_out_broken(self, machine: Machine, fault: str) -> None:
        """Before one is ended that is broken: another takes its place while it is looked into."""
        if fault:
            try:
                _take_out(machine, f"broken: {fault}")
            except InfraError as error:
                # It may be gone already: then the set has replaced it.
                logger.debug("%s: %s", machine.name, error)


def _take_out(machine: Machine, why: str) -> None:
    if not isinstance(machine.vm, ReplicaVirtualMachine):
        raise TypeError(f"{machine.name} is of no set")
    machine.vm.take_out(why)


@contextlib.contextmanager
def open_replicas(
    session: Session, backend: ReplicaBackend, replicas: int
) -> Iterator[ReplicaSource]:
    """A set of such machines, for the length of the ``with``."""
    settings = session.settings(session.config).named(_NAME)
    _, directory = session.evidence.place(_NAME)
    directory.mkdir(parents=True, exist_ok=True)
    load = upload(session.server, session.kernel, settings)
    nonce = ipxe.new_nonce()
    expected = publish_script(session.server, load, evidence_directory=directory, nonce=nonce)
    spec = booting(session.backend, session.server, settings.spec, expected.script_path)
    logger.debug("a set of %d machines boots %s", replicas, spec.boot_file)
    with backend.open_replicas(spec, replicas, Deadline(settings.timeout_s)) as found:
        yield ReplicaSource(session, found, load, nonce)
