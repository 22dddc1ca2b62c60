"""The boot server's access log on a cluster: its pod's log, which is followed."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kboot import nginx
from kboot.backend import Fetch
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api import PODS, Client
from kboot.kubevirt.api.watch import lines, shut
from kboot.kubevirt.manifests import Run
from kboot.log import logger

if TYPE_CHECKING:
    import urllib3

#: Lines of the access log that may come again after an interruption.
_MEMORY_LINES = 10_000
_FOLLOW_SILENCE_S = 3600.0
_FOLLOW_PAUSE_S = 0.5


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
