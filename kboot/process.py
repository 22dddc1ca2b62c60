"""Start and stop programs: the only home of `subprocess`.

Every program kboot starts dies with kboot, even when kboot is killed with SIGKILL: ``setpriv`` asks
the kernel for a signal on the parent's death (``PR_SET_PDEATHSIG``). That signal is sent when the
*thread* that forked ends, so all forks happen on one thread that lives as long as the process. What
`start_detached` starts is the one exception: it outlives us.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import arch
from kboot.deadline import Deadline
from kboot.errors import ProcessError, ProcessTimeout
from kboot.log import logger

_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kboot-forker")

#: Which Debian package brings a program, for the remedy in an error.
PACKAGES = {
    **{row.qemu: row.qemu_package for row in arch.ARCHITECTURES},
    "qemu-img": "qemu-utils",
    "nginx": "nginx-light",
    "setpriv": "util-linux",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "addr2line": "binutils",
    "strip": "binutils",
    **{
        f"{row.name}-linux-gnu-strip": f"binutils-{row.name}-linux-gnu"
        for row in arch.ARCHITECTURES
    },
    "depmod": "kmod",
    "mformat": "mtools",
    "ssh": "openssh-client",
}


def find_program(name: str) -> str:
    """The path of a program. `ProcessError` says which package brings it."""
    # Debian keeps nginx in /usr/sbin, which is not on an ordinary user's PATH.
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    path = shutil.which(name, path=search)
    if path is None:
        if "/" in name and Path(name).exists():
            raise ProcessError(f"{name} cannot be run: it is not an executable file; chmod +x it")
        package = PACKAGES.get(Path(name).name)
        remedy = (
            f"install it: apt-get install {package}" if package else "install it, or fix its path"
        )
        raise ProcessError(f"{name} not found on this host; {remedy}")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A program that has ended: what it printed, and its exit status (negative: the signal)."""

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes


class Process:
    """A running program that we started. Use `spawn`, which stops it in the end."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its process group."""
        return self._popen.pid

    def exit_status(self) -> int | None:
        """Its exit status (negative: the signal that ended it), or None while it runs."""
        if self._popen.returncode is not None:
            return self._popen.returncode
        # Looked at, not reaped: as long as it is a zombie, nobody can get its id, and `kill` can
        # signal its process group without hitting a stranger.
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end: the exit status, or None if it still runs after `timeout_s`."""
        for _ in Deadline(timeout_s).poll(0.01):
            if self.exit_status() is not None:
                break
        return self.exit_status()

    def busiest_thread(self) -> tuple[float, float]:
        """Seconds that its busiest thread has run, and has waited for a processor; 0 if unknown.

        From ``/proc/PID/task/TID/schedstat`` (Documentation/scheduler/sched-stats.rst).
        """
        times = [(0.0, 0.0)]
        for path in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError):
                run_ns, wait_ns, _ = map(int, path.read_text(encoding="ascii").split())
                times.append((run_ns / 1e9, wait_ns / 1e9))
        return max(times, key=sum)

    def last_words(self, limit: int = 400) -> str:
        """The end of its log, on one line, for an error message."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return " | ".join(line.strip() for line in text.strip().splitlines()[-4:])[-limit:]

    def stop(self, grace_s: float = 5.0) -> None:
        """Ask it to end, wait, then kill it and whatever it started. At once if `grace_s` is 0."""
        if grace_s and self.exit_status() is None:
            os.kill(self.pid, signal.SIGTERM)
            if self.wait(grace_s) is None:
                logger.warning("pid %d: no end %g s after SIGTERM; killing it", self.pid, grace_s)
        self.kill()

    def kill(self) -> None:
        """End it at once, with whatever it started."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()


@contextlib.contextmanager
def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    stop_grace_s: float = 5.0,
) -> Iterator[Process]:
    """Run `argv` in the background for the length of the ``with``; its output goes to `log`.

    It is a session of its own, so that Ctrl-C on our terminal does not reach it, and it is killed
    when we die. `env` is added to our environment; `user` is a numeric id to run as (root only).
    """
    wrapper = []
    if user is not None:
        wrapper = ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
    with log.open("ab") as output:
        popen = _fork(
            argv,
            wrapper,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            env={**os.environ, **(env or {})},
        )
    process = Process(popen, log)
    try:
        yield process
    finally:
        process.stop(stop_grace_s)


def start_detached(
    argv: Sequence[str], *, log: Path, env: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> Process:
    """Start a program that outlives us, in a session of its own; its output goes to `log`.

    Nobody stops it but itself. `env` is its whole environment.
    """
    logger.debug("$ %s", shlex.join(argv))
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [find_program(argv[0]), *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    return Process(popen, log)


def foreground(argv: Sequence[str], *, env: Mapping[str, str]) -> int:
    """Run `argv` to its end on our own terminal; its exit status, as shells have it.

    Ctrl-C is its affair, as it reaches both. It gets a SIGTERM when we die. `env` is its whole
    environment. `ProcessError` if it cannot be started.
    """
    setpriv = [find_program("setpriv"), "--pdeathsig", "TERM", "--"]
    command = [*setpriv, find_program(argv[0]), *argv[1:]]
    logger.debug("$ %s", shlex.join(argv))
    popen = _forker.submit(lambda: subprocess.Popen(command, env=env)).result()
    while True:
        try:
            status = popen.wait()
        except KeyboardInterrupt:
            continue
        except BaseException:
            popen.terminate()
            popen.wait()
            raise
        return status if status >= 0 else 128 - status


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Completed:
    """Run `argv` to its end.

    `ProcessTimeout` if it takes too long, `ProcessError` if (with `check`) it fails.
    """
    popen = _fork(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    try:
        stdout, stderr = popen.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ProcessTimeout(f"no end after {timeout_s:g} s: {shlex.join(argv)}") from error
    finally:
        if popen.returncode is None:
            os.killpg(popen.pid, signal.SIGKILL)
            popen.communicate()
    if check and popen.returncode != 0:
        words = stderr.decode(errors="replace").strip()[-400:]
        raise ProcessError(f"exit status {popen.returncode}: {shlex.join(argv)}: {words}")
    return Completed(argv=tuple(argv), exit_status=popen.returncode, stdout=stdout, stderr=stderr)


def _fork(
    argv: Sequence[str], wrapper: Sequence[str] = (), **options: Any
) -> subprocess.Popen[bytes]:
    """Start `argv` as a session of its own that dies with us."""
    setpriv = [find_program("setpriv"), "--pdeathsig", "KILL", *wrapper, "--"]
    command = [*setpriv, find_program(argv[0]), *argv[1:]]
    logger.debug("$ %s", shlex.join(argv))

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, start_new_session=True, **options)

    try:
        return _forker.submit(start).result()
    except OSError as error:
        raise ProcessError(f"{argv[0]} cannot be started: {error}") from error
