"""Where kboot keeps things on this host, and how it cleans up after a run that was killed.

A *run directory* lives as long as the ``with`` that made it. Its owner holds a lock on it
(``flock`` on the directory, which the kernel drops when the owner dies, however it dies), and every
process it starts has ``KBOOT_RUN=<directory>`` in its environment. So a directory whose lock can be
taken is stale, and the processes that name it are its orphans: `sweep` ends them and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kboot import process
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.locks import is_locked, lock_directory, try_lock
from kboot.log import logger

#: Names the run directory in the environment of every process of a run.
RUN_VARIABLE = "KBOOT_RUN"

_PREFIX = "run-"
#: In a run directory: leads to one of the run's that is elsewhere.
_OUTSIDE = "outside-"
# Others may pass, but not list: started by root, nginx serves its files as an ordinary user.
_PASSABLE = 0o711
_KILL_TIMEOUT_S = 5.0
#: How long a process may have a program and not yet its environment.
_EXEC_S = 0.02
_MAPPED_LIMIT_S = 30.0
_KEPT_BOOTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleRun:
    """What a run that was killed left behind."""

    directory: Path
    #: Seconds since the run began, or since it last added a file to its directory.
    age_s: float
    #: The process ids of its orphans.
    pids: tuple[int, ...]


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A fresh directory for one run, removed with all it holds at the end of the ``with``.

    What killed runs have left is swept first. Put `environment` of it into the environment of every
    process started on its behalf. `InfraError` if no place for it can be written to.
    """
    sweep()
    directory, lock = _create(runs_directory())
    try:
        yield directory
    finally:
        _remove(directory)
        os.close(lock)


@contextlib.contextmanager
def open_directory(run: Path) -> Iterator[Path]:
    """A directory for what other users make on our behalf; it goes when the run directory does.

    It lies beside other temporary files: the run directory may be where they do not get to.
    """
    folder = _temporary_directory() / f"kboot-open-{secrets.token_hex(8)}"
    # Who is killed in between has left nothing but a link.
    note = run / f"{_OUTSIDE}{folder.name}"
    note.symlink_to(folder)
    folder.mkdir(mode=0o700)
    folder.chmod(0o1777)
    try:
        yield folder
    finally:
        _remove_tree(folder)
        note.unlink(missing_ok=True)


def environment(directory: Path) -> dict[str, str]:
    """What a process of the run needs in its environment to be found by `sweep`."""
    return {RUN_VARIABLE: str(directory)}


#: No room, no quota, a limit of the process, a file system that became read-only, a bad disk.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def disk_fault(error: OSError, *directories: Path) -> InfraError | None:
    """What to tell about an error of the disk, with its place; None for any other one.

    The operating system does not say which file could not be written. `directories`, and those that
    kboot keeps things in, are looked at.
    """
    if error.errno not in _DISK_FAULTS:
        return None
    if error.filename is not None:
        where = str(error.filename)
    else:
        full = (str(place) for place in (*directories, *_places()) if is_full(place))
        where = next(full, str(directories[0]) if directories else "the output cannot be written")
    return InfraError(f"{where}: {error.strerror}; make room there")


@contextlib.contextmanager
def disk_faults_named(*directories: Path) -> Iterator[None]:
    """In the ``with``, what the disk refuses is an `InfraError`; see `disk_fault`."""
    try:
        yield
    except OSError as error:
        if fault := disk_fault(error, *directories):
            raise fault from error
        raise


def _places() -> Iterator[Path]:
    """Where kboot keeps things, whether they are there or not."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime)
    yield Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108  only looked at
    with contextlib.suppress(InfraError):
        yield _base("XDG_STATE_HOME", ".local/state")
        yield _base("XDG_CACHE_HOME", ".cache")


def is_full(place: Path) -> bool:
    """Whether the file system of `place` has no room for another byte, or another file."""
    try:
        found = os.statvfs(next(each for each in (place, *place.parents) if each.is_dir()))
    except OSError:
        return False
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def stale_runs() -> list[StaleRun]:
    """What killed runs have left on this host; nothing is changed."""
    runs = runs_directory()
    with lock_directory(runs, shared=True):
        stale = [directory for directory in _directories_of_ours(runs) if not is_locked(directory)]
    described = map(_describe, stale)
    return [run for run in described if run is not None]


def sweep() -> list[StaleRun]:
    """End the processes of killed runs, remove their directories, and say what has gone.

    Runs that live are never touched, nor is what belongs to others; several sweeps may run at once.
    `InfraError` if a process cannot be ended; its directory then stays.
    """
    claimed = _claim_stale()
    try:
        swept = [_sweep_one(directory) for directory, _ in claimed]
        return [run for run in swept if run is not None]
    finally:
        for _, lock in claimed:
            os.close(lock)


def runs_directory() -> Path:
    """The directory that holds this user's run directories, made if it is not there.

    ``$XDG_RUNTIME_DIR/kboot``, else ``kboot-<uid>`` in the directory for temporary files.
    `InfraError` if it belongs to somebody else, or cannot be made.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_usable(Path(runtime)):
        directory = Path(runtime) / "kboot"
    else:
        directory = _temporary_directory() / f"kboot-{os.geteuid()}"
    try:
        directory.mkdir(mode=_PASSABLE, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise InfraError(
            f"no directory for runs: {error}; free or mend {directory.parent}, or set TMPDIR"
        ) from error
    # In a world-writable place, anybody can have made it before us.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InfraError(f"{directory} is not a directory of ours; remove it, or set TMPDIR")
    if stat.S_IMODE(found.st_mode) != _PASSABLE:
        # The umask had its say when it was made.
        directory.chmod(_PASSABLE)
    return directory


def _temporary_directory() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InfraError(
            "no directory for temporary files can be written to (TMPDIR, /tmp, /var/tmp); "
            "make room in one, or set TMPDIR to another"
        ) from error


def cache_directory(name: str) -> Path:
    """``~/.cache/kboot/<name>`` (XDG), made if it is not there: what can be made again.

    `InfraError` if it cannot be made.
    """
    return _home_directory("XDG_CACHE_HOME", ".cache", name)


def state_directory() -> Path:
    """``~/.local/state/kboot`` (XDG), made if it is not there: what must outlive a process.

    `InfraError` if it cannot be made.
    """
    return _home_directory("XDG_STATE_HOME", ".local/state", "")


def evidence_directory(what: str) -> Path:
    """A fresh directory to keep what a boot of `what` leaves; the oldest ones make room for it.

    ``$XDG_STATE_HOME/kboot/boots/<time>-<what>``, of which the newest 50 are kept, and those of
    processes that run. `InfraError` if it cannot be made.
    """
    boots = state_directory() / "boots"
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    try:
        boots.mkdir(exist_ok=True)
        # Whoever makes room waits here, and never sees a directory that is not locked yet.
        with lock_directory(boots):
            for old in sorted(boots.iterdir())[: -(_KEPT_BOOTS - 1)]:
                if (lock := try_lock(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(lock)
            made = Path(tempfile.mkdtemp(prefix=f"{stamp}-{what}-", dir=boots))
            # Not closed: the lock is held for as long as this process runs.
            try_lock(made)
    except OSError as error:
        raise InfraError(
            f"cannot keep evidence in {boots}: {error.strerror}; set XDG_STATE_HOME"
        ) from error
    return made


def _home_directory(variable: str, default: str, name: str) -> Path:
    directory = _base(variable, default) / "kboot" / name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InfraError(f"cannot make {directory}: {error.strerror}; set {variable}") from error
    return directory


def _base(variable: str, default: str) -> Path:
    configured = Path(os.environ.get(variable, ""))
    # "All paths must be absolute; a relative one is to be ignored": XDG Base Directory 0.8.
    if configured.is_absolute():
        return configured
    try:
        return Path("~", default).expanduser()
    except RuntimeError as error:
        raise InfraError(f"this user has no home directory; set HOME or {variable}") from error


def _is_usable(runtime: Path) -> bool:
    try:
        found = runtime.stat()
    except OSError:
        return False
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    # /run/user/0 is closed to the ordinary user that nginx becomes when root starts it.
    return ours and os.access(runtime, os.W_OK) and (os.geteuid() != 0 or found.st_mode & 1 == 1)


def _create(runs: Path) -> tuple[Path, int]:
    """A new run directory, and the file descriptor that holds its lock."""
    try:
        # Whoever looks for stale runs waits here, and never sees a directory not locked yet.
        with lock_directory(runs):
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=runs))
            directory.chmod(_PASSABLE)
            lock = try_lock(directory)
    except OSError as error:
        raise InfraError(f"no run directory in {runs}: {error.strerror}; set TMPDIR") from error
    if lock is None:
        raise InfraError(f"{directory} was taken by another program as soon as it was made")
    return directory, lock


def _claim_stale() -> list[tuple[Path, int]]:
    """Every stale run directory, with the lock on it that we now hold."""
    claimed = []
    runs = runs_directory()
    with lock_directory(runs):
        for directory in _directories_of_ours(runs):
            with contextlib.suppress(FileNotFoundError):
                if (lock := try_lock(directory)) is not None:
                    claimed.append((directory, lock))
    return claimed


def _directories_of_ours(runs: Path) -> Iterator[Path]:
    """This user's run directories, live or stale. Each is there for as long as its owner likes."""
    for directory in sorted(runs.glob(f"{_PREFIX}*")):
        with contextlib.suppress(FileNotFoundError):
            found = directory.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                yield directory


def _describe(directory: Path) -> StaleRun | None:
    """None if it is gone by now."""
    try:
        age_s = max(0.0, time.time() - directory.stat().st_mtime)
    except FileNotFoundError:
        return None
    return StaleRun(directory=directory, age_s=age_s, pids=_processes_of(directory))


def _sweep_one(directory: Path) -> StaleRun | None:
    stale = _describe(directory)
    if stale is None:
        return None
    for _ in Deadline(_KILL_TIMEOUT_S).poll(0.02):
        # Looked at again until there is none: a process may have forked before it died.
        pids = _processes_of(directory)
        if not pids:
            break
        for pid in pids:
            _kill(pid, directory)
    else:
        raise InfraError(
            f"processes {_processes_of(directory)} of a killed run do not end; their directory"
            f" {directory} stays"
        )
    _remove(directory)
    logger.info("swept %s, and its processes %s", directory, list(stale.pids))
    return stale


def _remove(directory: Path) -> None:
    for note in directory.glob(f"{_OUTSIDE}*"):
        with contextlib.suppress(OSError):
            folder = note.readlink()
            if folder.lstat().st_uid == os.geteuid() and not folder.is_symlink():
                _remove_tree(folder)
    _remove_tree(directory)


def _remove_tree(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except PermissionError as error:
        # What was made in a user namespace belongs to others of this user's subordinate ids.
        mapped = ("unshare", "--map-root-user", "--map-auto")
        # Those whom nobody else can end may still write there, and give up without their files.
        for _ in Deadline(_MAPPED_LIMIT_S).poll(0.5):
            process.run([*mapped, "rm", "-rf", str(directory)], timeout_s=60, check=False)
            if not directory.exists():
                return
        logger.warning("%s could not be removed: %s", directory, error)
    except OSError as error:
        logger.warning("%s could not be removed: %s", directory, error)


def _processes_of(directory: Path) -> tuple[int, ...]:
    """The ids of all processes, ours excepted, that name `directory` in their environment."""
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
    pids.discard(os.getpid())
    if any(_is_in_exec(pid) for pid in pids):
        time.sleep(_EXEC_S)
    return tuple(sorted(pid for pid in pids if _names(pid, directory)))


def _is_in_exec(pid: int) -> bool:
    """Whether a process has a program and no environment: it is just being given both, perhaps."""
    try:
        Path(f"/proc/{pid}/exe").readlink()
        return not Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _names(pid: int, directory: Path) -> bool:
    try:
        # Empty for a zombie, and closed to us for other users' processes.
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(f"{RUN_VARIABLE}={directory}") in variables


def _kill(pid: int, directory: Path) -> None:
    """Kill `pid` if it still is the process that names `directory`, and wait a moment for it."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            # Only now that the descriptor pins the process down, its id cannot go to another one.
            if _names(pid, directory):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], 1.0)
        finally:
            os.close(descriptor)
