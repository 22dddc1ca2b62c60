"""The boot server on a cluster: an nginx Pod, filled through the API server's service proxy.

Its access log is the pod's log, which is followed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from kboot import nginx
from kboot.backend import Fetch, OnProgress, ignore_progress
from kboot.cache import FileStamp
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, InfraError
from kboot.kubevirt import diagnosis, manifests
from kboot.kubevirt.api import PODS, Client, Watch
from kboot.kubevirt.api.watch import lines, shut
from kboot.kubevirt.file_store import FileStore, stamp_of
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.watches import Patience, create_when_allowed, wait_for
from kboot.log import logger, step
from kboot.server_faults import Fault, Faulty
from kboot.server_tls import Certificate, TlsServer, WithTls

if TYPE_CHECKING:
    import urllib3

#: Lines that the kubelet has stamped by so much before the newest one are known: it writes those of
#: stdout and of stderr as they come, each in order, and may swap neighbours.
_HORIZON_S = 10.0
#: From where on the log is read again, before the newest line. The API server counts whole seconds.
_AGAIN_S = 5.0
_OTHERS_KEPT = 5_000
_FOLLOW_SILENCE_S = 3600.0
_FOLLOW_PAUSE_S = 0.5


class AccessLog:
    """The server's access log, read by following its pod's log. A context manager.

    The kubelet stamps each line with its time. After an interruption the log is read again from a
    little before the newest line, and a line with the same stamp and text is the same line.
    """

    def __init__(self, client: Client, run: Run) -> None:
        self._client = client
        self._run = run
        self._fetches = nginx.FetchLog()
        #: For all that follows: the thread that reads, and those that catch up, take lines.
        self._lock = threading.Lock()
        self._others: deque[str] = deque(maxlen=_OTHERS_KEPT)
        #: The lines since the horizon, with their stamps, in the order in which they came.
        self._known: OrderedDict[str, float] = OrderedDict()
        self._newest: float | None = None
        #: What to add to the server's clock to get ours.
        self._offset_s: float | None = None
        self._fault: InfraError | None = None
        self._stopped = threading.Event()
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._thread = threading.Thread(target=self._run_thread, name="kboot-access-log")
        self._thread.daemon = True

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
        """The newest requests, in order, with times by our own clock."""
        self.check()
        return self._fetches.all()

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """See `kboot.backend.BootServer`."""
        self.check()
        return self._fetches.since(position)

    def check(self) -> None:
        """Raise `InfraError` if the log is not followed any more."""
        with self._lock:
            if self._fault is not None:
                raise self._fault

    def catch_up(self, deadline: Deadline) -> None:
        """Take the lines that the pod's log has by now. `ClusterError` if it cannot be read."""
        path = PODS.path(self._run.namespace, self._run.name, "log")
        answer = self._client.send("GET", path, deadline, query=self._query(), retry=False)
        for line in answer.data.splitlines():
            self.take(line.decode(errors="replace"), now=time.time())

    def forget(self) -> None:
        """The pod is another one, on a node with another clock: its log begins anew."""
        with self._lock:
            self._known.clear()
            self._newest = self._offset_s = None

    def other_lines(self) -> Sequence[str]:
        """What the server said last beside: warnings and errors."""
        with self._lock:
            return tuple(self._others)

    def take(self, line: str, *, now: float) -> None:
        """One line of the pod's log, with its stamp, that came at `now`."""
        stamp, _, text = line.partition(" ")
        try:
            stamped = datetime.datetime.fromisoformat(stamp).timestamp()
        except ValueError:
            # The kubelet itself, about a log that it cannot read to its end.
            logger.debug("in the boot server's log: %s", line)
            return
        with self._lock:
            if not self._is_new(line, stamped):
                return
            try:
                entry = json.loads(text)
                said_at = float(entry["time"])
            except (ValueError, KeyError, TypeError):
                self._others.append(text)
                return
            # The least delay seen is the difference of the clocks, and a little for the way.
            offset_s = now - said_at
            if self._offset_s is None or offset_s < self._offset_s:
                self._offset_s = offset_s
            entry["time"] = said_at + self._offset_s
            if fetch := nginx.parse_fetch(json.dumps(entry), token=self._run.identifier):
                self._fetches.append(fetch)

    # -------------------------------------------------------------------------------- inside

    def _is_new(self, line: str, stamped: float) -> bool:
        """Whether a line was not seen before; it is known from now on. Under the lock."""
        newest = stamped if self._newest is None else max(self._newest, stamped)
        if line in self._known or stamped < newest - _HORIZON_S:
            return False
        self._known[line], self._newest = stamped, newest
        while next(iter(self._known.values())) < newest - _HORIZON_S:
            self._known.popitem(last=False)
        return True

    def _query(self) -> dict[str, str]:
        query = {"container": "nginx", "timestamps": "true"}
        with self._lock:
            if self._newest is not None:
                since = datetime.datetime.fromtimestamp(self._newest - _AGAIN_S, datetime.UTC)
                query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        return query

    def _run_thread(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    self._follow()
                except (ClusterError, OSError) as error:
                    logger.debug("the boot server's log was interrupted: %s", error)
                self._stopped.wait(_FOLLOW_PAUSE_S)
        except Exception as error:
            logger.debug("the boot server's log is not followed any more", exc_info=True)
            with self._lock:
                self._fault = InfraError(f"the boot server's log cannot be followed: {error!r}")

    def _follow(self) -> None:
        """Take lines until the stream ends."""
        path = PODS.path(self._run.namespace, self._run.name, "log")
        query = {"follow": "true", **self._query()}
        with self._client.stream(path, query=query, read_s=_FOLLOW_SILENCE_S) as answer:
            with self._lock:
                self._answer = answer
            try:
                if self._stopped.is_set():
                    return
                for line in lines(answer):
                    self.take(line.decode(errors="replace"), now=time.time())
            finally:
                with self._lock:
                    self._answer = None


class ClusterServer(Faulty, WithTls):
    """A boot server (see `kboot.backend.BootServer`). Made by `kboot.kubevirt.backend`."""

    def __init__(
        self,
        client: Client,
        run: Run,
        pods: Watch,
        settings: ClusterConfig,
        *,
        token: str,
        conf: str,
    ) -> None:
        self._client = client
        self._run = run
        self._pods = pods
        self._conf = conf
        self._base = (
            f"http://{run.name}.{run.namespace}.svc.{settings.cluster_domain}/{run.identifier}/"
        )
        self._files = FileStore(
            client, run, token=token, claim=settings.cluster_claim, check=self.check
        )
        self._put: dict[FileStamp, str] = {}
        #: What was published in each folder of the scripts, by name.
        self._trees: dict[str, dict[str, FileStamp]] = {}
        self._log = AccessLog(client, run)

    # ------------------------------------------------------------------ what the protocol promises

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it, whether anything is there or not."""
        return self._base + path

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256 and return its URL; what is there is not sent again."""
        stamp = stamp_of(artifact)
        if stamp not in self._put:
            self._put[stamp] = self._files.put(artifact, stamp, on_progress)
        return self.url(f"artifacts/{self._put[stamp]}")

    def remove(self, url: str) -> int:
        """Drop what `put` has published there; the bytes that it took, 0 if there was nothing."""
        digest = url.rpartition("/")[2]
        # First what remembers it: another put then sends it again.
        self._put = {key: value for key, value in self._put.items() if value != digest}
        return self._files.remove(digest)

    def write(self, name: str, text: str) -> str:
        """Publish or replace a small text atomically and return its URL."""
        self._files.write(f"scripts/{self._run.identifier}/{name}", text.encode())
        return self.url(f"scripts/{name}")

    def publish_tree(self, folder: str, files: Mapping[str, Path]) -> Sequence[str]:
        """See `kboot.backend.BootServer`."""
        stamps = {name: stamp_of(path) for name, path in files.items()}
        known = self._trees.get(folder, {})
        place = f"scripts/{self._run.identifier}/{folder}"
        gone = known.keys() - stamps.keys()
        for name in gone:
            self._files.remove_at(f"{place}/{quote(name)}")
        changed = [name for name in stamps if known.get(name) != stamps[name]]
        for name in changed:
            self._files.put_at(f"{place}/{quote(name)}", files[name], stamps[name])
        self._trees[folder] = stamps
        return sorted({*changed, *gone})

    def fetches(self) -> Sequence[Fetch]:
        """The newest requests, in the order in which they ended."""
        return self._log.fetches()

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """See `kboot.backend.BootServer`."""
        return self._log.fetches_since(position)

    def catch_up(self, deadline: Deadline) -> bool:
        """Read the pod's log once more: what is followed may lag, or stand still unnoticed.

        That log lags as well.
        """
        self._log.catch_up(deadline)
        return False

    def faults_fault(self) -> str | None:
        """Why it cannot do wrong on purpose."""
        return (
            "a boot server on a cluster does no wrong on purpose: its nginx stands there alone; "
            "use the qemu backend for that"
        )

    def set_fault(self, _fault: Fault) -> int:
        """It cannot."""
        raise ConfigError(str(self.faults_fault()))

    def clear_faults(self, number: int | None = None) -> None:
        """There are none."""

    def fault_hits(self, _number: int) -> int:
        """There are none."""
        return 0

    def tls_fault(self) -> str | None:
        """Why it does not serve by HTTPS."""
        return (
            "a boot server on a cluster serves by HTTP only: its machines' firmware cannot be told "
            "whom to trust; use the qemu backend for HTTPS"
        )

    def serve_tls(self, _certificate: Certificate) -> TlsServer:
        """It cannot."""
        raise ConfigError(str(self.tls_fault()))

    def check(self) -> None:
        """Raise `ClusterError` if the server's pod is gone or has failed."""
        self._pods.check()
        self._log.check()
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
            self.wait_until_ready(deadline)
        with self._log:
            yield

    def wait_until_ready(self, deadline: Deadline) -> None:
        """Wait for its pod. `ClusterError` says what is wrong with it."""
        patience = Patience(self._client, f"boot server {self._run.name}")
        found = wait_for(self._pods, self._find_ready, self._find_trouble, patience, deadline)
        if found is None:
            raise ClusterError(
                f"the boot server's pod {self._run.name} was not ready in "
                f"{deadline.seconds:.0f} s; see: kubectl describe pod {self._run.name}"
            )

    # -------------------------------------------------------------------------------------- inside

    def _find_ready(self) -> bool | None:
        return True if diagnosis.is_ready(self._pods.get(self._run.name)) else None

    def _find_trouble(self) -> diagnosis.Trouble | None:
        pod = self._pods.get(self._run.name)
        return diagnosis.pod_trouble(pod) if pod else None


class RecreatingServer(ClusterServer):
    """See `kboot.backend.RecreatableServer`."""

    def __init__(
        self,
        client: Client,
        run: Run,
        pods: Watch,
        settings: ClusterConfig,
        *,
        pod: Callable[[], str],
        token: str,
        conf: str,
    ) -> None:
        """`pod` returns its pod's manifest, as YAML."""
        super().__init__(client, run, pods, settings, token=token, conf=conf)
        self._manifest = pod

    def recreate(self, deadline: Deadline) -> None:
        """Make its pod once more. What was on it is lost, but for what is on a claim."""
        with step(f"boot server {self._run.name}, once more"):
            # Two of one name cannot be, and one that is ending keeps its name until it is gone.
            self._client.delete(PODS, self._run.name, deadline)
            gone = self._pods.wait_for(
                lambda: True if self._pods.get(self._run.name) is None else None, deadline
            )
            if gone is None:
                raise ClusterError(
                    f"the boot server's pod {self._run.name} does not go away; "
                    f"see: kubectl describe pod {self._run.name}"
                )
            manifest = manifests.from_yaml(self._manifest())
            create_when_allowed(self._client, manifest, f"boot server {self._run.name}", deadline)
            self._put.clear()
            self._trees.clear()
            self._log.forget()
            self.wait_until_ready(deadline)

    def has(self, url: str) -> bool:
        """Whether a file that was published is there still."""
        return self._files.has(url.rpartition("/")[2])
