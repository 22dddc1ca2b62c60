"""A boot server that is made once more when its pod is gone: evicted, or its node lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube import PODS, Client, Watch
from kboot.kubevirt import manifests, waiting
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.server import ClusterServer
from kboot.log import step


class MendedServer(ClusterServer):
    """See `kboot.backend.MendableServer`."""

    def __init__(
        self, client: Client, run: Run, pods: Watch, *, pod: Callable[[], str], **about: Any
    ) -> None:
        """`pod` returns its pod's manifest, as YAML."""
        super().__init__(client, run, pods, **about)
        self._manifest = pod

    def mend(self, deadline: Deadline) -> None:
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
            self.wait_until_ready(deadline)

    def has(self, url: str) -> bool:
        """Whether a file that was published is there still."""
        return self._files.has(url.rpartition("/")[2])
