"""The boot server on a cluster: an nginx Pod, filled through the API server's service proxy."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kboot import nginx
from kboot.artifacts import sha256_of
from kboot.backend import Fetch, OnProgress, ignore_progress
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kube import ApiError, Client, Watch
from kboot.kube.client import Body
from kboot.kube.resources import PODS, SERVICES
from kboot.kube.watch import lines, shut
from kboot.kubevirt import diagnosis
from kboot.kubevirt.manifests import Run
from kboot.log import logger, step

if TYPE_CHECKING:
    import urllib3

#: For one file; a kernel with its modules through a slow line takes a while.
_PUT_LIMIT_S = 900.0
_WRITE_LIMIT_S = 60.0
#: For how long troubles that may pass are waited out.
_TROUBLE_LIMIT_S = 60.0
_TROUBLE_PAUSE_S = 0.5
_PASSING = {429, 500, 502, 503, 504}
_PIECE_BYTES = 1 << 20
_TOKEN_HEADER = "X-Kboot-Token"  # noqa: S105  the header's name

#: Lines of the access log that may come again after an interruption.
_MEMORY_LINES = 10_000
_FOLLOW_SILENCE_S = 3600.0
_FOLLOW_PAUSE_S = 0.5


class ClusterServer:
    """A boot server (see `kboot.backend.BootServer`). Made by `kboot.kubevirt.backend`."""

    def __init__(
        self, client: Client, run: Run, pods: Watch, *, token: str, domain: str, conf: str
    ) -> None:
        self._client = client
        self._run = run
        self._pods = pods
        self._token = token
        self._conf = conf
        self._base = f"http://{run.name}.{run.namespace}.svc.{domain}/{run.identifier}/"
        proxy = SERVICES.path(run.namespace, f"http:{run.name}:upload", "proxy")
        self._upload = f"{proxy}/files/"
        self._put: dict[tuple[str, int, int, int], str] = {}
        self._log = AccessLog(client, run)

    # ------------------------------------------------------------------ what the protocol promises

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it, whether anything is there or not."""
        return self._base + path

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256 and return its URL; what is there is not sent again."""
        try:
            stat = artifact.stat()
            # A file that was rewritten has another inode, length or change time.
            key = (str(artifact), stat.st_ino, stat.st_size, stat.st_ctime_ns)
            if key not in self._put:
                self._put[key] = self._store(artifact, stat.st_size)
        except OSError as error:
            raise ConfigError(f"cannot read {artifact}: {error.strerror}") from error
        return self.url(f"artifacts/{self._put[key]}")

    def remove(self, url: str) -> int:
        """Drop what `put` has published there; the bytes that it took, 0 if there was nothing."""
        digest = url.rpartition("/")[2]
        path = f"artifacts/{digest}"
        # First what remembers it: another put then sends it again.
        self._put = {key: value for key, value in self._put.items() if value != digest}
        deadline = Deadline(_WRITE_LIMIT_S)
        size = self._size_of(path, deadline)
        if size is not None:
            self._send("DELETE", path, deadline)
        return size or 0

    def write(self, name: str, text: str) -> str:
        """Publish or replace a small text atomically and return its URL."""
        data = text.encode()
        path = f"scripts/{self._run.identifier}/{name}"
        self._send("PUT", path, Deadline(_WRITE_LIMIT_S), pieces=lambda: [data], length=len(data))
        return self.url(f"scripts/{name}")

    def fetches(self) -> Sequence[Fetch]:
        """Every request so far, in the order in which they ended."""
        return self._log.fetches()

    def catch_up(self, deadline: Deadline) -> None:
        """Read the pod's log once more: what is followed may lag, or stand still unnoticed."""
        self._log.catch_up(deadline)

    def check(self) -> None:
        """Raise `ClusterError` if the server's pod is gone or has failed."""
        self._pods.check()
        pod = self._pods.get(self._run.name)
        if pod is None or "deletionTimestamp" in pod["metadata"]:
            raise ClusterError(
                f"the boot server's pod {self._run.name} is gone: deleted, evicted, or its node "
                "lost"
            )
        if fault := diagnosis.pod_fault(pod):
            raise ClusterError(f"the boot server is down: {fault}")

    def evidence(self, directory: Path) -> None:
        """Write nginx.conf and, as nginx.log, what nginx said beside its access log."""
        (directory / "nginx.conf").write_text(self._conf, encoding="utf-8")
        text = "".join(line + "\n" for line in self._log.other_lines())
        (directory / "nginx.log").write_text(text, encoding="utf-8")

    # ------------------------------------------------------------------------------------ its life

    @contextlib.contextmanager
    def running(self, deadline: Deadline) -> Iterator[None]:
        """Wait until it serves, and follow its log for the length of the ``with``."""
        with step(f"boot server {self._run.name}"):
            ready = self._pods.wait_for(self._find_ready, deadline)
            if ready is None:
                raise ClusterError(
                    f"the boot server's pod {self._run.name} was not ready in "
                    f"{deadline.seconds:.0f} s; see: kubectl describe pod {self._run.name}"
                )
        with self._log:
            yield

    # -------------------------------------------------------------------------------------- inside

    def _find_ready(self) -> bool | None:
        pod = self._pods.get(self._run.name)
        if pod and (fault := diagnosis.pod_fault(pod)):
            raise ClusterError(fault)
        return True if diagnosis.is_ready(pod) else None

    def _store(self, artifact: Path, size: int) -> str:
        digest = sha256_of(artifact)
        path = f"artifacts/{digest}"
        deadline = Deadline(_PUT_LIMIT_S)
        with step(f"push {artifact.name} ({size / 1e6:.1f} MB)"):
            if self._size_of(path, deadline) == size:
                logger.debug("%s is there already", digest)
                return digest
            self._send("PUT", path, deadline, pieces=lambda: _pieces(artifact), length=size)
            # A proxy on the way may cut a body short and still say that all is well.
            if (stored := self._size_of(path, deadline)) != size:
                raise ClusterError(
                    f"the boot server has {stored} bytes of {artifact.name}, not {size}"
                )
        return digest

    def _size_of(self, path: str, deadline: Deadline) -> int | None:
        """How long a stored file is, or None if it is not there."""
        try:
            answer = self._send("HEAD", path, deadline)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return int(answer.headers.get("Content-Length", -1))

    def _send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        pieces: Body | None = None,
        length: int | None = None,
    ) -> urllib3.BaseHTTPResponse:
        trouble = ClusterError(f"no time was left to {method} {path}")
        # Not the client's own patience: a server that is gone is told at once.
        for _ in deadline.within(_TROUBLE_LIMIT_S).poll(_TROUBLE_PAUSE_S):
            try:
                return self._client.send(
                    method,
                    self._upload + path,
                    deadline,
                    body=pieces,
                    length=length,
                    headers={_TOKEN_HEADER: self._token},
                    retry=False,
                )
            except ApiError as error:
                if error.status not in _PASSING:
                    raise
                trouble = error
            except ClusterError as error:
                trouble = error
            logger.debug("%s of %s: %s", method, path, trouble)
            self.check()
        raise trouble


class AccessLog:
    """The server's access log, read by following its pod's log. A context manager."""

    def __init__(self, client: Client, run: Run) -> None:
        self._client = client
        self._run = run
        self._lock = threading.Lock()
        self._fetches: list[Fetch] = []
        self._others: list[str] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        #: What to add to the server's clock to get ours.
        self._offset_s: float | None = None
        self._stopped = threading.Event()
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._thread = threading.Thread(target=self._follow, name="kboot-access-log", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._lock:
            answer = self._answer
        if answer is not None:
            shut(answer)
        self._thread.join(timeout=5)

    def fetches(self) -> Sequence[Fetch]:
        """Every request so far, in order, with times by our own clock."""
        with self._lock:
            return tuple(self._fetches)

    def catch_up(self, deadline: Deadline) -> None:
        """Take the lines that the pod's log has by now. `ClusterError` if it cannot be read."""
        answer = self._client.send(
            "GET",
            PODS.path(self._run.namespace, self._run.name, "log"),
            deadline,
            query={"container": "nginx", "tailLines": str(_MEMORY_LINES)},
            retry=False,
        )
        for line in answer.data.splitlines():
            self.take(line.decode(errors="replace"), now=time.time())

    def other_lines(self) -> Sequence[str]:
        """What the server said beside: warnings and errors."""
        with self._lock:
            return tuple(self._others)

    def take(self, line: str, *, now: float) -> None:
        """One line of the pod's log, that came at `now`."""
        try:
            entry = json.loads(line)
            identifier, said_at = entry["id"], float(entry["time"])
        except (ValueError, KeyError, TypeError):
            with self._lock:
                self._others.append(line)
            return
        with self._lock:
            if identifier in self._known:
                return
            self._known[identifier] = None
            if len(self._known) > _MEMORY_LINES:
                self._known.popitem(last=False)
            # The least delay seen is the difference of the clocks, and a little for the way.
            offset_s = now - said_at
            if self._offset_s is None or offset_s < self._offset_s:
                self._offset_s = offset_s
            entry["time"] = said_at + self._offset_s
            if fetch := nginx.parse_fetch(json.dumps(entry), token=self._run.identifier):
                self._fetches.append(fetch)

    def _follow(self) -> None:
        path = PODS.path(self._run.namespace, self._run.name, "log")
        query = {"follow": "true", "container": "nginx"}
        while not self._stopped.is_set():
            try:
                with self._client.stream(path, query=query, read_s=_FOLLOW_SILENCE_S) as answer:
                    with self._lock:
                        self._answer = answer
                    if self._stopped.is_set():
                        return
                    for line in lines(answer):
                        self.take(line.decode(errors="replace"), now=time.time())
            except (ClusterError, OSError) as error:
                logger.debug("the boot server's log was interrupted: %s", error)
            finally:
                with self._lock:
                    self._answer = None
            self._stopped.wait(_FOLLOW_PAUSE_S)


def _pieces(path: Path) -> Iterator[bytes]:
    """A file, piece by piece: its size does not matter to our memory."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
