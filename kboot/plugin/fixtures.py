"""The fixtures that kboot gives to tests, and what is remembered of a test's machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kboot.errors import GuestError, KbootError
from kboot.plugin import matrix, retry, signals, workers
from kboot.plugin.options import (
    allowances,
    config_for,
    fleet_for,
    instance_settings,
    pool_for,
    read_config,
)
from kboot.plugin.reporting import Handover, unsaved

if TYPE_CHECKING:
    from kboot.backend import BootServer
    from kboot.fleet import Fleet
    from kboot.guest import Guest
    from kboot.isolation import User
    from kboot.kernel import Kernel
    from kboot.machine import Machine
    from kboot.machine.ipxe_machine import IpxeMachine
    from kboot.machine.kunit import KUnit
    from kboot.pool import LeasedMachine, Leases, RunPool
    from kboot.pool.leases import Source
    from kboot.session import Session

#: The machine of a test, from when it got it.
HANDOVER = pytest.StashKey[Handover]()

#: The machines of a test's fleet, or those that it had of a pool, in the order in which they came.
SEVERAL = pytest.StashKey[list[Handover]]()

#: What a test has of a pool of another process.
LEASES = pytest.StashKey["Leases"]()

#: The test that follows, if one does.
NEXT = pytest.StashKey[pytest.Item | None]()

#: The run's session, while there is one.
SESSION = pytest.StashKey["Session"]()


@pytest.fixture(scope="session")
def kboot_session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """What the run shares: backend, boot server, and the machine that is on."""
    from kboot.session import open_session  # noqa: PLC0415

    chosen: matrix.Combination | None = getattr(request, "param", None)
    config = read_config(request.config, chosen.settings if chosen else None)
    evidence = config.evidence or tmp_path_factory.mktemp("kboot-evidence", numbered=True)
    worker = workers.worker_id(request.config)
    if config.evidence and worker:
        evidence /= worker
    prefix = f"{worker or 'm'}-"
    if chosen:
        # The next one may share directory and boot server.
        evidence /= chosen.name
        prefix += f"{matrix.combinations(request.config).index(chosen)}-"
    shared_server = workers.shared_server_of(request.config)
    if shared_server:
        workers.sign_in(shared_server, worker)
    with (
        signals.unwinding(request.config.stash) as unwinding,
        open_session(
            config,
            evidence=evidence,
            prefix=prefix,
            shared_server=shared_server,
            workers=workers.count(request.config),
        ) as session,
    ):
        request.config.stash[SESSION] = session
        yield session
        del request.config.stash[SESSION]
        unwinding.hold()


@pytest.fixture(scope="session")
def kernel(kboot_session: Session) -> Kernel:
    """The kernel under test."""
    return kboot_session.kernel


@pytest.fixture(scope="session")
def boot_server(kboot_session: Session) -> BootServer:
    """The boot server that the machines of this run load from."""
    return kboot_session.server


@pytest.fixture
def machine(request: pytest.FixtureRequest, kboot_session: Session) -> Machine:
    """A machine on which the kernel under test is up and ready.

    The setting ``isolation`` says whether other tests have had it before. The marker ``kboot``
    chooses the machine, and ``fresh=True`` demands one that was booted for this very test.
    """
    config, fresh = config_for(request.node)
    if retry.is_repeated(request.node):
        # What has failed on a machine has left its traces there.
        kboot_session.power_off()

    def remember(machine: Machine) -> None:
        # Also one that fails to come up: the report of the test shows its console.
        request.node.stash[HANDOVER] = Handover(machine)
        machine.report_filter.allowances = allowances(request.node)

    _tell_hook_of_evidence(kboot_session, request.config)
    settings = kboot_session.settings(config)
    if config.isolation in {"auto", "test", "module"}:
        request.node.user_properties.extend(unsaved(kboot_session.snapshots.fault(settings)))
    try:
        machine = kboot_session.machine(
            settings,
            name=request.node.name,
            fresh=fresh,
            isolation=config.isolation,
            user=user_of(request.node),
            on_machine=remember,
            meanwhile=lambda: prepare_next(request.node),
        )
    except KbootError:
        if handover := request.node.stash.get(HANDOVER, None):
            handover.failed = True
        raise
    request.node.ihook.pytest_kboot_machine_ready(item=request.node, machine=machine)
    return machine


def _tell_hook_of_evidence(session: Session, config: pytest.Config) -> None:
    session.evidence.on_complete = lambda directory: config.hook.pytest_kboot_evidence_written(
        config=config, directory=directory
    )


def prepare_next(item: pytest.Item) -> None:
    """Have the next test's machine restored while this one runs, or waits for its own."""
    session = item.config.stash.get(SESSION, None)
    following = item.stash.get(NEXT, None)
    if session is None or following is None:
        return
    if "machine" not in getattr(following, "fixturenames", ()):
        return
    if instance_settings(following) != instance_settings(item):
        # Its session is another one.
        return
    try:
        config, fresh = config_for(following)
        if not fresh:
            settings = session.settings(config)
            session.prepare(settings, user=user_of(following), isolation=config.isolation)
    except KbootError:
        # It is the next test's, which will raise it.
        return


def user_of(item: pytest.Item) -> User:
    """Who has asked for a machine: a test, of a module."""
    from kboot.isolation import User  # noqa: PLC0415

    return User(test=item.nodeid, module=item.nodeid.partition("::")[0])


@pytest.fixture
def guest(machine: Machine) -> Guest:
    """The booted system, logged in."""
    return machine.guest


@pytest.fixture
def fleet(request: pytest.FixtureRequest, kboot_session: Session) -> Iterator[Fleet]:
    """Machines with roles on one network, for this test alone: see the marker ``kboot_fleet``."""
    from kboot.fleet import open_fleet  # noqa: PLC0415

    item = request.node
    roles, configs = fleet_for(item)
    handovers = item.stash.setdefault(SEVERAL, [])

    def remember(machine: Machine) -> None:
        machine.report_filter.allowances = allowances(item)
        handovers.append(Handover(machine))

    _tell_hook_of_evidence(kboot_session, request.config)
    if "machine" not in request.fixturenames:
        # It may take the memory that these need.
        kboot_session.power_off()
    with open_fleet(kboot_session, roles, configs, on_machine=remember) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def kboot_pools(kboot_session: Session) -> Iterator[RunPool]:
    """The pool of the run, once a test asks for it."""
    from kboot.pool import RunPool  # noqa: PLC0415

    with RunPool(kboot_session) as pools:
        yield pools


@pytest.fixture
def pool(
    request: pytest.FixtureRequest, kboot_session: Session, kboot_pools: RunPool
) -> Iterator[Leases]:
    """Machines that are always fresh: what a test acquires is its alone, and is given back.

    The marker ``kboot_pool`` says of which pool.
    """
    from kboot import service  # noqa: PLC0415
    from kboot.pool import Leases, OwnPool, PersistentPool  # noqa: PLC0415
    from kboot.pool.service import KIND  # noqa: PLC0415

    item = request.node
    wanted = pool_for(item)
    handovers = item.stash.setdefault(SEVERAL, [])

    def on_machine(machine: Machine) -> None:
        kboot_session.assign(machine, item.name)
        kboot_session.forgive_boot(machine)
        machine.report_filter.allowances = allowances(item)

    def on_lease(lease: LeasedMachine) -> None:
        if not wanted.name:
            handovers.append(Handover(lease.machine, lease.check))

    _tell_hook_of_evidence(kboot_session, request.config)
    kboot_session.tell_of_evidence()
    source: Source
    if wanted.name:
        source = PersistentPool(service.find(KIND, wanted.name))
    else:
        settings = kboot_session.settings(config_for(item)[0])
        own = kboot_pools.open(
            settings, replicas=wanted.replicas, max_age_s=wanted.max_age_s, check=wanted.check
        )
        source = OwnPool(own, on_machine)
    leases = Leases(
        source, holder=item.nodeid, ttl=wanted.ttl_s, timeout=wanted.wait_s, on_lease=on_lease
    )
    if wanted.name:
        item.stash[LEASES] = leases
    with contextlib.closing(leases):
        yield leases


@pytest.fixture
def kunit(request: pytest.FixtureRequest) -> KUnit:
    """KUnit in the kernel of the test's machine.

    Where that crashes when it boots, the cases of suites that are built in are reported as well.
    """
    from kboot.machine.kunit import KUnit, read_boot  # noqa: PLC0415

    try:
        machine: Machine = request.getfixturevalue("machine")
    except GuestError:
        if handover := request.node.stash.get(HANDOVER, None):
            read_boot(handover.machine)
        raise
    return KUnit(machine)


@pytest.fixture
def ipxe(request: pytest.FixtureRequest, kboot_session: Session) -> Iterator[IpxeMachine]:
    """A machine at iPXE's prompt, its network up, for this test alone."""
    config, _ = config_for(request.node)
    with kboot_session.ipxe(config, name=request.node.name) as machine:
        yield machine


def handovers_of(item: pytest.Item) -> list[Handover]:
    """The machines that a test has got."""
    alone = item.stash.get(HANDOVER, None)
    return [*([alone] if alone else []), *item.stash.get(SEVERAL, [])]
