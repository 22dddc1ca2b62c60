"""Fixtures for all tests, and a look at the end that nothing was left behind."""

from __future__ import annotations

import contextlib
import gc
import getpass
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kboot import state
from kboot.deadline import Deadline
from kboot.locks import is_locked, try_lock
from kboot.plugin import signals
from tests import schedule

_DEBIAN_KERNEL = Path(__file__).parent.parent / "build" / "kernel" / "debian.deb"

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

    from tests.zoo.zoo import Zoo


def pytest_configure(config: pytest.Config) -> None:
    """Have signals end the tests in good order, and remove what killed ones have left.

    A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that.
    Those of the tests are to hear it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    stack = contextlib.ExitStack()
    stack.enter_context(signals.unwinding(config.stash))
    config.add_cleanup(stack.close)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _remove_what_killed_tests_left()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes have no name of their own: all workers of a run must know a test by the same one."""
    return argname if isinstance(val, bytes) and not val.decode("latin1").isprintable() else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests are no garbage: to look for some among them takes half of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: schedule.rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """What shares a machine goes to one worker.

    Not by pytest-xdist's marks: 3.8 does not see them with pytest 9.2 (its issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class InGroups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return schedule.group(nodeid)

    # In the order of the tests.
    config.option.loadscopereorder = False
    return InGroups(config, log)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own settings do not change what kboot's tests test."""
    for variable in os.environ:
        if variable.startswith("KBOOT_") and variable != "KBOOT_TEST_KERNEL":
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def runs_of_pytest_start_soon(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test has a use for hypothesis in a pytest that it runs; to load it takes a second."""
    if "pytester" in request.fixturenames:
        # It removes the variable from the environment first.
        request.getfixturevalue("pytester")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")


_RUNS_PREFIX = "kboot-test-"


def _remove_what_killed_tests_left() -> None:
    """Whoever uses such a place holds a lock on it."""
    for place in Path(tempfile.gettempdir()).glob(f"{_RUNS_PREFIX}*"):
        with contextlib.suppress(OSError):
            # One that was made in this minute may not be locked yet.
            is_old = time.time() - place.stat().st_mtime > 60
            if is_old and place.owner() == getpass.getuser() and not is_locked(place):
                shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def runs_directory_apart(patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another place for what runs: others on this host neither see ours nor sweep them."""
    # Not in tmp_path: nginx, an ordinary user when root starts it, has to get there.
    with tempfile.TemporaryDirectory(prefix=_RUNS_PREFIX) as folder:
        Path(folder).chmod(0o711)
        patch.setenv("XDG_RUNTIME_DIR", folder)
        patch.setenv("XDG_STATE_HOME", f"{folder}/state")
        lock = try_lock(Path(folder))
        assert lock is not None
        try:
            yield Path(folder)
        finally:
            os.close(lock)


@pytest.fixture
def runs_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of the test's own, for tests that look at what is in it."""
    # By the test's own patch: what it changes after us would else be set back to our place.
    with runs_directory_apart(monkeypatch) as folder:
        yield folder


@pytest.fixture(scope="session")
def debian_kernel() -> Path:
    """A real Debian kernel package, with its modules; ``make kernel`` fetches it."""
    path = Path(os.environ.get("KBOOT_TEST_KERNEL") or _DEBIAN_KERNEL)
    if not path.is_file():
        pytest.fail(f"no kernel at {path}: run make kernel, or set KBOOT_TEST_KERNEL")
    return path


@pytest.fixture(scope="session")
def second_kernel() -> Path:
    """Another real kernel; ``make test`` fetches it."""
    path = _DEBIAN_KERNEL.with_name("cloud.deb")
    if not path.is_file():
        pytest.fail(f"no kernel at {path}: run make kernel")
    return path


@pytest.fixture(scope="session")
def arm64_kernel() -> Path:
    """A real kernel for another architecture than most hosts'; ``make test`` fetches it."""
    path = Path(__file__).parent.parent / "build" / "kernel" / "arm64.deb"
    if not path.is_file():
        pytest.fail(f"no kernel at {path}: run make build/kernel/{path.name}")
    return path


@pytest.fixture(scope="session")
def quick_kernel(debian_kernel: Path, second_kernel: Path) -> Path:
    """A real kernel for tests that have no need of a certain one: the one that boots soonest.

    Debian 12's for clouds is compressed with LZ4, the other with XZ, which is half of the work of a
    boot under emulation. If a kernel was chosen (``make test KERNEL=PATH``), it is that.
    """
    is_chosen = debian_kernel.resolve() != _DEBIAN_KERNEL.resolve()
    return debian_kernel if is_chosen else second_kernel


@pytest.fixture(scope="session")
def other_kernel(quick_kernel: Path, debian_kernel: Path, second_kernel: Path) -> Path:
    """Another one than `quick_kernel`."""
    return debian_kernel if quick_kernel == second_kernel else second_kernel


@pytest.fixture(scope="session")
def saved_machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of saved machines that all workers of this run have."""
    base = tmp_path_factory.getbasetemp()
    store = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "saved-machines"
    store.mkdir(exist_ok=True)
    return store


@pytest.fixture(scope="session")
def saved_zoo(tmp_path_factory: pytest.TempPathFactory, saved_machines: Path) -> Iterator[Zoo]:
    """The zoo's kernel module, built, and its machine, saved."""
    from tests.zoo.zoo import open_zoo

    with open_zoo(tmp_path_factory.mktemp("zoo"), saved_machines) as zoo:
        yield zoo


@pytest.fixture(scope="module")
def zoo(saved_zoo: Zoo) -> Iterator[Zoo]:
    """A machine that crashes on demand, pristine at the beginning of a module."""
    with contextlib.closing(saved_zoo):
        yield saved_zoo


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """After the last test there is no process and no run directory of ours, or of our workers'."""
    with pytest.MonkeyPatch.context() as patch, runs_directory_apart(patch):
        yield
        for _ in Deadline(5.0).poll(0.1):
            if not (left := _ours()):
                return
        pytest.fail(f"left behind: {', '.join(sorted(left))}")


def _ours() -> set[str]:
    """Processes that this very process, or one that came from it, started on behalf of a run."""
    found = {f"directory {run.directory} of a killed run" for run in state.stale_runs()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (name := _descendant(int(entry.name))):
            found.add(f"process {entry.name} ({name})")
    return found


def _descendant(pid: int) -> str:
    """The name of a child of ours that names a run in its environment; else an empty text."""
    try:
        # After the name, in parentheses: state, parent: proc(5).
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    is_child = rest.split()[1] == str(os.getpid())
    return name.partition("(")[2] if is_child and b"KBOOT_RUN=" in environ else ""
