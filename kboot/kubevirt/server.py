"""The boot server on a cluster: an nginx Pod, filled through the API server's service proxy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kboot.backend import Fetch, OnProgress, ignore_progress
from kboot.cache import FileStamp
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import diagnosis, manifests, waiting
from kboot.kubevirt.access_log import AccessLog
from kboot.kubevirt.api import PODS, Client, Watch
from kboot.kubevirt.file_store import FileStore, stamp_of
from kboot.kubevirt.manifests import Run
from kboot.log import step


class ClusterServer:
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

    def fetches(self) -> Sequence[Fetch]:
        """The newest requests, in the order in which they ended."""
        return self._log.fetches()

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """See `kboot.backend.BootServer`."""
        return self._log.fetches_since(position)

    def catch_up(self, deadline: Deadline) -> None:
        """Read the pod's log once more: what is followed may lag, or stand still unnoticed."""
        self._log.catch_up(deadline)

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
        patience = waiting.Patience(self._client, f"boot server {self._run.name}")
        found = waiting.wait_for(
            self._pods, self._find_ready, self._find_trouble, patience, deadline
        )
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
            waiting.create(self._client, manifest, f"boot server {self._run.name}", deadline)
            self._put.clear()
            self._log.forget()
            self.wait_until_ready(deadline)

    def has(self, url: str) -> bool:
        """Whether a file that was published is there still."""
        return self._files.has(url.rpartition("/")[2])
