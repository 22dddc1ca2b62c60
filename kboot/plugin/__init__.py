"""The pytest plugin: options, fixtures, markers, hooks, and how results are reported.

It is loaded in every pytest run of everyone who has kboot installed, so it imports next to nothing
until a test asks for a kboot fixture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kboot.config import SETTINGS, read_cpus
from kboot.errors import ConfigError, GuestError, KbootError
from kboot.plugin import (
    hookspecs,
    kselftest,
    matrix,
    results,
    retry,
    signals,
    subtests,
    workers,
)
from kboot.plugin.options import (
    ALLOW_MARKER,
    CHOICES,
    FLEET_MARKER,
    MARKER,
    allowances,
    config_for,
    dest,
    fleet_for,
    instance_settings,
    option,
    read_config,
)
from kboot.plugin.reporting import (
    Handover,
    allowed_lines,
    correct_junit,
    hide_our_frames,
    mark_verdict,
    new_reports,
    properties,
    script_lines,
    sections,
    verdict_of,
)

if TYPE_CHECKING:
    from kboot.backend import BootServer
    from kboot.fleet import Fleet
    from kboot.guest import Guest
    from kboot.isolation import User
    from kboot.kernel import Kernel
    from kboot.machine import Machine
    from kboot.machine.ipxe_machine import IpxeMachine
    from kboot.machine.kunit import KUnit
    from kboot.session import Session

#: The machine of a test, from when it got it.
_HANDOVER = pytest.StashKey[Handover]()

#: The machines of a test's fleet, in the order in which they came.
_FLEET = pytest.StashKey[list[Handover]]()

#: The run's session, while there is one.
_SESSION = pytest.StashKey["Session"]()

#: The test after this one, None for the last one.
_NEXT = pytest.StashKey[pytest.Item | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every setting is an option; see `kboot.config`."""
    group = parser.getgroup("kboot", "kboot: boot a kernel and test it")
    for setting in SETTINGS:
        group.addoption(
            setting.pytest_option,
            dest=dest(setting),
            metavar=setting.metavar,
            action="append" if setting.repeated or setting.name in CHOICES else "store",
            default=None,
            help=setting.help,
        )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that users may implement."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; with ``--kernel`` and no arguments, run the acceptance suite too."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(**settings): settings for this test's machine, such as memory='2G', cpus=4, "
        "firmware='uefi', cmdline='...'; fresh=True demands one that was booted for this very test",
    )
    config.addinivalue_line(
        "markers",
        f"{ALLOW_MARKER}(kind=None, match=None): a report of the kernel that does not fail this "
        "test, by its kind, or by a pattern for its title or first line, or both",
    )
    config.addinivalue_line(
        "markers",
        f"{FLEET_MARKER}(**roles): the machines of the fixture fleet, as control=3, or with "
        "settings of that role, worker={'count': 5, 'memory': '1G'}",
    )
    config.pluginmanager.register(_JUnit(config), "kboot-junit")
    config.addinivalue_line("markers", "kboot_acceptance: a test of kboot's acceptance suite")
    results.register(config)
    if option(config, "kernel") is None:
        return
    try:
        # Before anything is collected: a wrong path is better told at once.
        settings = read_config(config)
        matrix.combinations(config)
        kselftest.configure(config, settings)
    except ConfigError as error:
        raise pytest.UsageError(f"kboot: {error}") from error
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.append(str(Path(__file__).parent.parent / "acceptance"))


def pytest_report_header(config: pytest.Config) -> str | None:
    """One line on what is tested, if a kernel was named on the command line."""
    if option(config, "kernel") is None:
        return None
    from kboot.machine import firmware_for  # noqa: PLC0415
    from kboot.session import kernel_of  # noqa: PLC0415

    settings = read_config(config)
    where = f"backend {settings.backend}, rootfs {settings.rootfs}"
    if found := matrix.combinations(config):
        return "\n".join(
            [f"kboot: {where}; each test with:", *(f"  {each.about}" for each in found)]
        )
    try:
        kernel = kernel_of(settings)
        firmware = firmware_for(kernel, settings)
    except KbootError as error:
        raise pytest.UsageError(f"kboot: {error}") from error
    return (
        f"kboot: Linux {kernel.release} ({kernel.architecture}) from {kernel.source}; "
        f"backend {settings.backend}, {firmware}, rootfs {settings.rootfs}"
        + (f", iPXE {settings.ipxe}" if settings.ipxe else "")
        + (f", boot script {settings.ipxe_script}" if settings.ipxe_script else "")
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto`` with a kernel to test: as many workers as the host has room for machines."""
    if option(config, "kernel") is None:
        return None
    from kboot import capacity  # noqa: PLC0415

    settings = read_config(config)
    return capacity.workers(
        cpus=capacity.host_cpus(),
        available_mib=capacity.host_available_mib(),
        machine_cpus=read_cpus(settings.cpus)[0],
        machine_mib=settings.memory_mib,
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: workers.Node) -> None:
    """Each worker of pytest-xdist is told where to find the run's boot server."""
    workers.tell_of_shared_server(node)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that a signal has ended says so by its exit status; a worker's is xdist's business."""
    status = signals.exit_status(session.config)
    if status is not None and not workers.worker_id(session.config):
        session.exitstatus = status


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the workers shared."""
    workers.end(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test runs for each kernel and firmware, and for each program of a kselftest tree."""
    matrix.parametrize(metafunc)
    kselftest.parametrize(metafunc)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Boot scripts are tried where there is one of the user's."""
    ours = Path(__file__).parent.parent / "acceptance" / "test_ipxe_script.py"
    if collection_path == ours and read_config(config).ipxe_script is None:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mistake in a marker ends the run before it starts."""
    for item in items:
        if any(map(item.get_closest_marker, (MARKER, ALLOW_MARKER, FLEET_MARKER))):
            try:
                config_for(item)
                allowances(item)
                if item.get_closest_marker(FLEET_MARKER):
                    fleet_for(item)
            except ConfigError as error:
                raise pytest.UsageError(f"kboot: {item.nodeid}: {error}") from error


# ------------------------------------------------------------------------------------ fixtures


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
        request.config.stash[_SESSION] = session
        yield session
        del request.config.stash[_SESSION]
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
        request.node.stash[_HANDOVER] = Handover(machine)
        machine.report_filter.allowances = allowances(request.node)

    _tell_hook_of_evidence(kboot_session, request.config)
    machine = kboot_session.machine(
        kboot_session.settings(config),
        name=request.node.name,
        fresh=fresh,
        isolation=config.isolation,
        user=_user(request.node),
        on_machine=remember,
    )
    request.node.ihook.pytest_kboot_machine_ready(item=request.node, machine=machine)
    return machine


def _tell_hook_of_evidence(session: Session, config: pytest.Config) -> None:
    session.on_evidence = lambda directory: config.hook.pytest_kboot_evidence_written(
        config=config, directory=directory
    )


def _user(item: pytest.Item) -> User:
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
    handovers = item.stash[_FLEET] = []

    def remember(machine: Machine) -> None:
        machine.report_filter.allowances = allowances(item)
        handovers.append(Handover(machine))

    _tell_hook_of_evidence(kboot_session, request.config)
    if "machine" not in request.fixturenames:
        # It may take the memory that these need.
        kboot_session.power_off()
    with open_fleet(kboot_session, roles, configs, on_machine=remember) as fleet:
        yield fleet


@pytest.fixture
def kunit(request: pytest.FixtureRequest) -> KUnit:
    """KUnit in the kernel of the test's machine.

    Where that crashes when it boots, the cases of suites that are built in are reported as well.
    """
    from kboot.machine.kunit import KUnit, read_boot  # noqa: PLC0415

    try:
        machine: Machine = request.getfixturevalue("machine")
    except GuestError:
        if handover := request.node.stash.get(_HANDOVER, None):
            read_boot(handover.machine)
        raise
    return KUnit(machine)


@pytest.fixture
def ipxe(request: pytest.FixtureRequest, kboot_session: Session) -> Iterator[IpxeMachine]:
    """A machine at iPXE's prompt, its network up, for this test alone."""
    config, _ = config_for(request.node)
    with kboot_session.ipxe(config, name=request.node.name) as machine:
        yield machine


# --------------------------------------------------------------------------------- judgement


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Remember which test is next: its machine may be restored while this one runs.

    With the setting ``retry``, run what fails again.
    """
    item.stash[_NEXT] = nextitem
    if not retry.applies(item):
        return None
    retry.run(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Tell the hooks what the kernel reported in a boot that failed."""
    if _HANDOVER in item.stash:
        # Of an earlier run of the same test.
        del item.stash[_HANDOVER]
    try:
        return (yield)
    except BaseException:
        _tell_of_crashes(item)
        _tell_of_cases(item)
        raise


def _prepare_next(item: pytest.Item) -> None:
    """Have the next test's machine restored while this one runs."""
    session = item.config.stash.get(_SESSION, None)
    following = item.stash.get(_NEXT, None)
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
            session.prepare(settings, user=_user(following), isolation=config.isolation)
    except KbootError:
        # It is the next test's, which will raise it.
        return


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test whose kernel crashed or complained has failed, even if it has not looked."""
    _prepare_next(item)
    try:
        result = yield
        for handover in _handovers(item):
            handover.machine.check_reports()
            for suite in handover.suites:
                suite.check()
    finally:
        _tell_of_crashes(item)
        _tell_of_cases(item)
    return result


def _tell_of_cases(item: pytest.Item) -> None:
    for handover in _handovers(item):
        for report in subtests.reports_of(item, handover.suites, handover.machine.tolerates):
            if not retry.hold(item, report):
                item.ihook.pytest_runtest_logreport(report=report)
        for suite in handover.suites:
            item.user_properties.append((subtests.PROPERTY, subtests.summary(suite)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """What a test has had the boot server do wrong ends with it."""
    try:
        return (yield)
    finally:
        if session := item.config.stash.get(_SESSION, None):
            session.clear_faults()


def _handovers(item: pytest.Item) -> list[Handover]:
    """The machines that a test has got."""
    alone = item.stash.get(_HANDOVER, None)
    return [*([alone] if alone else []), *item.stash.get(_FLEET, [])]


def _tell_of_crashes(item: pytest.Item) -> None:
    for handover in _handovers(item):
        for report in new_reports(handover):
            item.ihook.pytest_kboot_crash_seen(item=item, machine=handover.machine, report=report)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what was done and what the kernel said; note whether the host or the kernel failed."""
    error = call.excinfo.value if call.excinfo else None
    shown = True
    if isinstance(error, KbootError) and not item.config.getoption("fulltrace"):
        shown = hide_our_frames(error)
    handovers = _handovers(item)
    if call.when == "call":
        for machine in (each.machine for each in handovers):
            # A test that failed by itself does not leave its reports to the next one.
            machine.report_filter.sort(machine.console.reports)
            item.user_properties.extend(properties(machine))
    report = yield
    if not shown:
        report.longrepr = f"{type(error).__name__}: {error}"
    results.note_fault(report, error)
    if handovers:
        results.note_machine(report, handovers[0])
    if report.failed:
        for handover in handovers:
            report.sections.extend(sections(handover, named=len(handovers) > 1))
    mark_verdict(report, error)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A fault of the host is an error, and one of the kernel a failure, whenever it happened.

    What fails only sometimes is flaky.
    """
    if (counts := retry.flaky(report)) is not None:
        return "flaky", "K", f"FLAKY {counts}"
    match verdict_of(report):
        case "error":
            return "error", "E", "ERROR"
        case "failed":
            return "failed", "F", "FAILED"
    return None


class _JUnit:
    """The same in JUnit's file, which has its own view of what is an error."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After pytest has added the report."""
        correct_junit(self._config, report)
        retry.mark_junit(subtests.split_junit(self._config, report), report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what test suites have given, and what the kernel reported and tests had allowed."""
    reports = list(chain.from_iterable(terminalreporter.stats.values()))
    for title, lines in (
        ("kboot: tests that were run again", retry.summary_lines(reports)),
        ("kboot: test suites", subtests.summary_lines(reports)),
        ("kboot: the boot script under faults", script_lines(reports)),
        ("kboot: reports of the kernel that tests allow", allowed_lines(reports)),
    ):
        if lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
