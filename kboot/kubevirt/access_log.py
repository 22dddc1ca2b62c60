"""The boot server's access log on a cluster: its pod's log, which is followed."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kboot import nginx
from kboot.backend import Fetch
from kboot.deadline import Deadline
from kboot.errors import ClusterError, InfraError
from kboot.kubevirt.api import PODS, Client
from kboot.kubevirt.api.watch import lines, shut
from kboot.kubevirt.manifests import Run
from kboot.log import logger

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
