"""The pytest plugin: options, fixtures, markers, hooks, and how results are reported.

It is loaded in every pytest run of everyone who has kboot installed, so it imports next to nothing
until a test asks for a kboot fixture.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain
from pathlib import Path

import pytest

from kboot.config import SETTINGS, read_cpus
from kboot.errors import ConfigError, KbootError
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

# pytest finds the fixtures here.
from kboot.plugin.fixtures import (  # noqa: F401
    HANDOVER,
    LEASES,
    NEXT,
    SESSION,
    SEVERAL,
    boot_server,
    fleet,
    guest,
    handovers_of,
    ipxe,
    kboot_pools,
    kboot_session,
    kernel,
    kunit,
    machine,
    pool,
    prepare_next,
)
from kboot.plugin.options import (
    ALLOW_MARKER,
    CHOICES,
    FLEET_MARKER,
    MARKER,
    POOL_MARKER,
    allowances,
    any_option,
    config_for,
    dest,
    fleet_for,
    option,
    pool_for,
    read_config,
    tests_kernel,
)
from kboot.plugin.reporting import (
    allowed_lines,
    correct_junit,
    hide_our_frames,
    mark_verdict,
    new_reports,
    properties,
    script_lines,
    sections,
    unsaved_lines,
    verdict_of,
)


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
    config.addinivalue_line(
        "markers",
        f"{POOL_MARKER}(name='', replicas=2, max_age=None, ttl='1h', wait='5m'): the pool of the "
        "fixture pool, by the name of a persistent one (kboot pool up), or the run's own one",
    )
    config.pluginmanager.register(_JUnit(config), "kboot-junit")
    config.addinivalue_line("markers", "kboot_acceptance: a test of kboot's acceptance suite")
    results.register(config)
    if not tests_kernel(config):
        _check_options(config)
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


def _check_options(config: pytest.Config) -> None:
    """`pytest.UsageError` for mistakes in options of ours where none says what is booted."""
    if not any_option(config):
        return
    try:
        read_config(config)
    except ConfigError as error:
        raise pytest.UsageError(f"kboot: {error}") from error
    if option(config, "kselftest") is not None:
        raise pytest.UsageError("kboot: --kboot-kselftest: say with which kernel: --kernel=FILE")


def pytest_report_header(config: pytest.Config) -> str | None:
    """One line on what is tested, if a kernel was named on the command line."""
    if not tests_kernel(config):
        return None
    from kboot.machine import firmware_for, kernel_of  # noqa: PLC0415

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
        f"kboot: {kernel}; "
        f"backend {settings.backend}, {firmware}, rootfs {settings.rootfs}"
        + (f", iPXE {settings.ipxe}" if settings.ipxe else "")
        + (f", boot script {settings.ipxe_script}" if settings.ipxe_script else "")
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto`` with a kernel to test: as many workers as the host has room for machines."""
    if not tests_kernel(config):
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
        markers = (MARKER, ALLOW_MARKER, FLEET_MARKER, POOL_MARKER)
        if any(map(item.get_closest_marker, markers)):
            try:
                config_for(item)
                allowances(item)
                if item.get_closest_marker(FLEET_MARKER):
                    fleet_for(item)
                if item.get_closest_marker(POOL_MARKER):
                    pool_for(item)
            except ConfigError as error:
                raise pytest.UsageError(f"kboot: {item.nodeid}: {error}") from error


# --------------------------------------------------------------------------------- judgement


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Remember which test is next: its machine may be restored while this one runs.

    With the setting ``retry``, run what fails again.
    """
    item.stash[NEXT] = nextitem
    if not retry.applies(item):
        return None
    retry.run(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Tell the hooks what the kernel reported in a boot that failed."""
    # Of an earlier run of the same test.
    if HANDOVER in item.stash:
        del item.stash[HANDOVER]
    if SEVERAL in item.stash:
        del item.stash[SEVERAL]
    try:
        return (yield)
    except BaseException:
        _tell_of_crashes(item)
        _tell_of_cases(item)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test whose kernel crashed or complained has failed, even if it has not looked."""
    prepare_next(item)
    try:
        result = yield
        for handover in handovers_of(item):
            if not handover.failed:
                handover.check()
            for suite in handover.suites:
                suite.check()
        if (leases := item.stash.get(LEASES, None)) is not None:
            # What was wrong with a machine that another process holds is told when it comes back.
            leases.close()
    finally:
        _tell_of_crashes(item)
        _tell_of_cases(item)
    return result


def _tell_of_cases(item: pytest.Item) -> None:
    for handover in handovers_of(item):
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
        if session := item.config.stash.get(SESSION, None):
            session.clear_faults()


def _tell_of_crashes(item: pytest.Item) -> None:
    for handover in handovers_of(item):
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
    handovers = handovers_of(item)
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
        ("kboot: machines that are not saved, but boot", unsaved_lines(reports)),
    ):
        if lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
