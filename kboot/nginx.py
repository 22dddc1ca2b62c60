"""A private nginx: its configuration, its life, and its access log as values."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import secrets
import shutil
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kboot import nginx_process, process, state, templates
from kboot.backend import Fetch, OnProgress, Progress, file_path, ignore_progress
from kboot.cache import FileStamp
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.fault_proxy import FaultList, FaultProxy
from kboot.log import logger, step
from kboot.nginx_tls import AUTHORITY_FILE, TlsServers
from kboot.server_faults import Fault, Faulty
from kboot.server_tls import Certificate, TlsServer, WithTls

#: ``nobody``: what nginx runs as when kboot is run by root.
_NOBODY = 65534

_PIECE_BYTES = 1 << 20

#: How many requests are remembered: those of 2,000 boots and more.
FETCHES_KEPT = 20_000

#: For nginx to start again, listening elsewhere.
_RESTART_LIMIT_S = 10.0


def configuration(*, port: int, token: str, hidden: str = "") -> str:
    """The text of nginx.conf for a server on a loopback port; paths are relative to its prefix.

    With `hidden`, it listens on that socket in the file system instead.
    """
    return templates.render("nginx/nginx.conf", port=port, token=token, hidden=hidden)


def parse_fetch(line: str, *, token: str) -> Fetch | None:
    """One line of the access log as a `Fetch`; None if it was not for this run.

    The format is ``log_format kboot`` in ``nginx/nginx.conf.j2``.
    """
    entry = json.loads(line)
    prefix = f"/{token}/"
    path, _, query = entry["uri"].partition("?")
    path = file_path(path)
    if not path.startswith(prefix):
        return None
    return Fetch(
        time=entry["time"],
        path=path.removeprefix(prefix),
        query=query,
        status=int(entry["status"]),
        size=entry["size"],
        complete=entry["completion"] == "OK",
        user_agent=entry["user_agent"],
    )


class FetchLog:
    """The newest fetches, each with a running number; older ones are dropped.

    Several threads may use it at once.
    """

    def __init__(self, limit: int = FETCHES_KEPT) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Fetch] = deque(maxlen=limit)
        self._count = 0

    def append(self, fetch: Fetch) -> None:
        """Take one more."""
        with self._lock:
            self._kept.append(fetch)
            self._count += 1

    def all(self) -> Sequence[Fetch]:
        """All that are kept, in their order."""
        with self._lock:
            return tuple(self._kept)

    def since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """See `kboot.backend.BootServer.fetches_since`."""
        with self._lock:
            wanted = max(min(self._count - position, len(self._kept)), 0)
            # From the new end: the old one is far away, and a deque counts every step.
            newest = list(itertools.islice(reversed(self._kept), wanted))
            return tuple(reversed(newest)), self._count


class Nginx(Faulty, WithTls):
    """A boot server on this host (see `kboot.backend.BootServer`). Made by `serve`."""

    def __init__(self, prefix: Path, *, guest_host: str, tls_authority: Path | None = None) -> None:
        self.prefix = prefix
        self.token = secrets.token_hex(8)
        self.port = 0
        self._guest_host = guest_host
        self._tls_authority = tls_authority
        self._tls: TlsServers
        self._process: process.Process
        self._put: dict[FileStamp, str] = {}
        #: What was published in each folder of the scripts, by name.
        self._trees: dict[str, dict[str, FileStamp]] = {}
        self._fetches = FetchLog()
        self._faults = FaultList()
        #: nginx runs for as long as this; and what starts it.
        self._life = contextlib.ExitStack()
        self._start: Callable[[], contextlib.AbstractContextManager[process.Process]]
        #: Held by who puts the fault proxy before nginx, or takes it away.
        self._switching = threading.Lock()
        self._proxy = contextlib.ExitStack()
        self._proxied = False
        #: For who reads on in the access log.
        self._reading = threading.Lock()
        self._access_log = prefix / "access.jsonl"
        self._log_offset = 0
        self._user = _NOBODY if os.geteuid() == 0 else None
        self._files = prefix / "files"
        for folder in (prefix / "tmp", self._files / "artifacts", self._files / "scripts"):
            folder.mkdir(parents=True)
        if self._user is not None:
            for folder in (prefix, *(path for path in prefix.rglob("*"))):
                os.chown(folder, self._user, self._user)

    # ------------------------------------------------------------------ what the protocol promises

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it, whether anything is there or not."""
        return f"http://{self._guest_host}:{self.port}/{self.token}/{path}"

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256 and return its URL. `ConfigError` if it is unreadable."""
        stamp = _stamp(artifact)
        if stamp not in self._put:
            self._put[stamp] = self._store(artifact, stamp.size, on_progress)
        return self.url(f"artifacts/{self._put[stamp]}")

    def remove(self, url: str) -> int:
        """Drop what `put` has published there; the bytes that it took, 0 if there was nothing."""
        digest = url.rpartition("/")[2]
        path = self._files / "artifacts" / digest
        # First what remembers it: another put then stores it again.
        self._put = {key: value for key, value in self._put.items() if value != digest}
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def write(self, name: str, text: str) -> str:
        """Publish or replace a small text atomically and return its URL."""
        target = self._files / "scripts" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.write_text(text, encoding="utf-8")
        self._hand_over(target.parent, new)
        new.replace(target)
        return self.url(f"scripts/{name}")

    def publish_tree(self, folder: str, files: Mapping[str, Path]) -> Sequence[str]:
        """See `kboot.backend.BootServer`."""
        stamps = {name: _stamp(path) for name, path in files.items()}
        known = self._trees.get(folder, {})
        place = self._files / "scripts" / folder
        for name in known.keys() - stamps.keys():
            (place / name).unlink(missing_ok=True)
            # A file may come in the place of a directory.
            for emptied in (place / each for each in Path(name).parents[:-1]):
                with contextlib.suppress(OSError):
                    emptied.rmdir()
        changed = [name for name in stamps if known.get(name) != stamps[name]]
        for name in changed:
            self._link(self.put(files[name]), place, name)
        self._trees[folder] = stamps
        return sorted({*changed, *(known.keys() - stamps.keys())})

    def fetches(self) -> Sequence[Fetch]:
        """The newest requests, in the order in which they ended."""
        self._read_on()
        return self._fetches.all()

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """See `kboot.backend.BootServer`."""
        self._read_on()
        return self._fetches.since(position)

    def catch_up(self, _deadline: Deadline) -> bool:
        """Nothing to do: `fetches` reads nginx's own file."""
        return True

    def check(self) -> None:
        """Raise `InfraError` if nginx is not running any more."""
        with self._switching:
            status = self.exit_status
        if status is not None:
            how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
            words = self._process.last_words()
            raise InfraError(f"nginx {how}{': ' + words if words else ''}")
        self._tls.check()

    def tls_fault(self) -> str | None:
        """None: an nginx before nginx does."""
        return None

    def serve_tls(self, certificate: Certificate) -> TlsServer:
        """See `kboot.server_tls.TlsTarget`."""
        return self._tls.serve(certificate, upstream=self.port, path=f"/{self.token}/")

    def faults_fault(self) -> str | None:
        """None: a proxy before nginx does what nginx cannot."""
        return None

    def set_fault(self, fault: Fault) -> int:
        """Set a fault; its number. From the first one on, a proxy stands on nginx's port."""
        with self._switching:
            number = self._faults.add(fault)
            if not self._proxied:
                self._put_proxy()
            return number

    def clear_faults(self, number: int | None = None) -> None:
        """Take a fault away, or all; with the last one, the proxy goes."""
        with self._switching:
            if self._faults.remove(number) and self._proxied:
                self._take_proxy()

    def fault_hits(self, number: int) -> int:
        """How often a fault has happened."""
        return self._faults.hits(number)

    @property
    def pid(self) -> int:
        """nginx's process id: its only one."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How nginx ended (negative: the signal), or None while it runs."""
        return self._process.exit_status()

    def evidence(self, directory: Path) -> None:
        """Write nginx.conf and nginx.log, and what there is of HTTPS, without its keys."""
        https = [path.name for path in self.prefix.glob("tls-*") if path.suffix != ".pem"]
        for name in ("nginx.conf", "nginx.log", AUTHORITY_FILE, *https):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.prefix / name, directory / name)

    # ------------------------------------------------------------------------------------ its life

    @contextlib.contextmanager
    def running(self, program: str, *, deadline: Deadline, env: dict[str, str]) -> Iterator[None]:
        """Run nginx for the length of the ``with``."""
        self._start = lambda: self._spawn(program, env)
        self._tls = TlsServers(
            self.prefix,
            program=program,
            host=self._guest_host,
            authority_file=self._tls_authority,
            env=env,
            user=self._user,
        )
        for _ in range(nginx_process.PORT_ATTEMPTS):
            self.port = nginx_process.free_port()
            self._configure()
            with self._life, self._proxy, contextlib.closing(self._tls):
                self._process = self._life.enter_context(self._start())
                if self._wait_until_up(deadline.within(20)):
                    logger.debug("nginx serves %s on port %d", self.prefix, self.port)
                    yield
                    return
        raise nginx_process.no_free_port()

    def _read_on(self) -> None:
        """Take what nginx has logged since the last time."""
        with self._reading:
            try:
                # Who follows a boot asks many times a second, and mostly there is nothing new.
                if self._access_log.stat().st_size == self._log_offset:
                    return
                with self._access_log.open("rb") as log:
                    log.seek(self._log_offset)
                    lines = log.read()
            except FileNotFoundError:
                return
            whole, newline, _unfinished = lines.rpartition(b"\n")
            self._log_offset += len(whole) + len(newline)
            for line in whole.decode("utf-8", errors="replace").splitlines():
                if fetch := parse_fetch(line, token=self.token):
                    self._fetches.append(fetch)

    @contextlib.contextmanager
    def _spawn(self, program: str, env: dict[str, str]) -> Iterator[process.Process]:
        log = self.prefix / "nginx.log"
        log.unlink(missing_ok=True)
        conf = self.prefix / "nginx.conf"
        argv = [program, "-e", "stderr", "-p", str(self.prefix), "-c", str(conf)]
        with process.spawn(argv, log=log, env=env, user=self._user) as child:
            yield child

    def _configure(self, hidden: str = "") -> None:
        """Write nginx.conf. With a `hidden` socket, it listens there, and not on the port."""
        text = configuration(port=self.port, token=self.token, hidden=hidden)
        (self.prefix / "nginx.conf").write_text(text, encoding="utf-8")

    def _restart(self, hidden: str = "") -> None:
        """Have nginx listen elsewhere: a single process (see nginx.conf) does so from its start."""
        self._life.close()
        self._configure(hidden)
        self._process = self._life.enter_context(self._start())

    def _put_proxy(self) -> None:
        """Have nginx listen elsewhere, and the proxy in its place."""
        hidden = self.prefix / "tmp" / f"{secrets.token_hex(4)}.sock"
        self._restart(str(hidden))
        self._wait_for_socket(hidden)
        proxy = FaultProxy(
            port=self.port,
            upstream=str(hidden),
            prefix=f"/{self.token}/",
            faults=self._faults,
            on_fetch=self._log_fault,
        )
        self._proxy.enter_context(proxy.running())
        self._proxied = True

    def _take_proxy(self) -> None:
        self._proxied = False
        self._proxy.close()
        self._restart()
        if not self._wait_until_up(Deadline(_RESTART_LIMIT_S)):
            raise InfraError(f"nginx does not get its port {self.port} back")

    def _wait_for_socket(self, path: Path) -> None:
        for _ in Deadline(_RESTART_LIMIT_S).poll(0.005):
            if self._process.exit_status() is not None:
                break
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                return
        raise InfraError(f"nginx did not start again: {self._process.last_words()}")

    def _log_fault(self, fetch: Fetch) -> None:
        self._read_on()
        self._fetches.append(fetch)

    def _wait_until_up(self, deadline: Deadline) -> bool:
        """Whether it answers for our token; False if the port was taken."""
        for _ in deadline.poll(0.01):
            if nginx_process.port_was_taken(self._process, self.prefix):
                return False
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
                try:
                    connection.request("GET", f"/{self.token}/beacon/up")
                    if connection.getresponse().status == http.HTTPStatus.OK:
                        return True
                finally:
                    connection.close()
        raise InfraError(f"nginx does not answer on 127.0.0.1:{self.port}")

    def _store(self, artifact: Path, size: int, on_progress: OnProgress) -> str:
        """The checksum of a file, which is there then."""
        stored = self._files / "artifacts"
        # To be sent again or not: that is worth a look at a file that may be there.
        if any(path.stat().st_size == size for path in stored.glob("[!.]*")):
            digest = _digest(artifact, size, on_progress)
            if (stored / digest).is_file():
                return digest
        return self._copy(artifact, size, on_progress)

    def _copy(self, artifact: Path, size: int, on_progress: OnProgress) -> str:
        """Copy a file and make its checksum on the way; that."""
        new = self._files / "artifacts" / f".{secrets.token_hex(8)}.new"
        digest = hashlib.sha256()
        try:
            # A copy, not a link: the user's next build may write into the same inode.
            with new.open("wb") as copy:
                for piece in _pieces(artifact):
                    digest.update(piece)
                    copy.write(piece)
                    on_progress(Progress(file=artifact, step="send", done=copy.tell(), size=size))
            self._hand_over(new)
            new.replace(self._files / "artifacts" / digest.hexdigest())
        except OSError as error:
            raise InfraError(
                f"cannot store {artifact}: {error.strerror}; make room in {self._files}"
            ) from error
        finally:
            new.unlink(missing_ok=True)
        return digest.hexdigest()

    def _link(self, url: str, place: Path, name: str) -> None:
        """Give a file that was published another name."""
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._hand_over(*(place / each for each in Path(name).parents))
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        os.link(self._files / "artifacts" / url.rpartition("/")[2], new)
        new.replace(target)

    def _hand_over(self, *paths: Path) -> None:
        for path in paths:
            if self._user is not None:
                os.chown(path, self._user, self._user)


def _digest(path: Path, size: int, on_progress: OnProgress) -> str:
    digest, done = hashlib.sha256(), 0
    for piece in _pieces(path):
        digest.update(piece)
        done += len(piece)
        on_progress(Progress(file=path, step="read", done=done, size=size))
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    """A file, piece by piece. `ConfigError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise _unreadable(path, error) from error


def _stamp(path: Path) -> FileStamp:
    try:
        return FileStamp.of(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot read {path}: {error.strerror}")


@contextlib.contextmanager
def serve(
    directory: Path,
    *,
    guest_host: str,
    program: str,
    deadline: Deadline,
    tls_authority: Path | None = None,
) -> Iterator[Nginx]:
    """A private nginx in a new folder of the run directory `directory`.

    `guest_host` is the host name or address under which the guest reaches our loopback interface.
    By HTTPS, it shows certificates of the authority in the file `tls_authority`, or of its own.
    Raises `ProcessError` if nginx is not installed, `InfraError` if it does not start.
    """
    process.find_program(program)
    prefix = directory / f"nginx-{secrets.token_hex(4)}"
    with state.disk_faults_named(directory):
        server = Nginx(prefix, guest_host=guest_host, tls_authority=tls_authority)
        running = server.running(program, deadline=deadline, env=state.environment(directory))
        try:
            with contextlib.ExitStack() as stack:
                with step("nginx"):
                    stack.enter_context(running)
                yield server
        finally:
            shutil.rmtree(prefix, ignore_errors=True)
