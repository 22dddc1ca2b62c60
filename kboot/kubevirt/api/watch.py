"""Keep a picture of all objects of one kind: list, watch, and list again where a watch is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api.client import Client, Resource
from kboot.kubevirt.api.errors import ApiError
from kboot.log import logger

if TYPE_CHECKING:
    import urllib3

#: The server ends a watch after this; one that is silent for much longer is dead.
_LENGTH_S = 290
_SILENCE_S = 310.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_LIST_LIMIT_S = 60.0

_GONE = 410
_REFUSED = {401, 403, 404}


class Watch:
    """The objects of one kind that a selector selects, as the cluster tells. A context manager.

    Entering it lists them (and raises what the cluster refuses); from then on a thread follows.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        selector: str = "",
        changed: threading.Condition | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._selector = {"labelSelector": selector} if selector else {}
        #: Notified at every change; one condition may serve several watches.
        self.changed = changed or threading.Condition()
        self._objects: dict[str, dict[str, Any]] = {}
        self._fault: ClusterError | None = None
        self._lost = threading.Event()
        self._stopped = threading.Event()
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        version = self._list(Deadline(_LIST_LIMIT_S))
        self._thread = threading.Thread(
            target=self._run_thread,
            args=(version,),
            name=f"kboot-watch-{self._resource.plural}",
            daemon=True,
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self.changed:
            answer = self._answer
        if answer is not None:
            shut(answer)
        if self._thread:
            self._thread.join(timeout=5)

    def get(self, name: str) -> dict[str, Any] | None:
        """The object of this name as it is now, or None. Not to be changed."""
        with self.changed:
            return self._objects.get(name)

    def all(self) -> list[dict[str, Any]]:
        """All objects as they are now. Not to be changed."""
        with self.changed:
            return list(self._objects.values())

    def check(self) -> None:
        """Raise what ended the watch for good, if anything has."""
        if self._fault is not None:
            raise self._fault

    def wait_for(
        self, find: Callable[[], Any], deadline: Deadline, *, interval_s: float = 5.0
    ) -> Any:
        """Wait until `find` returns something, and return it; None at the deadline.

        It is called after every change, and at least every `interval_s`. What it raises, and what
        ended the watch, is raised.
        """
        with self.changed:
            while True:
                self.check()
                if (found := find()) is not None:
                    return found
                if deadline.expired:
                    return None
                self.changed.wait(min(deadline.remaining, interval_s))

    # -------------------------------------------------------------------------------- inside

    def _list(self, deadline: Deadline) -> str:
        objects, version = self._client.find(self._resource, deadline, **self._selector)
        with self.changed:
            self._objects = {each["metadata"]["name"]: each for each in objects}
            self.changed.notify_all()
        return version

    def _run_thread(self, version: str) -> None:
        try:
            self._follow(version)
        except Exception as error:
            what = self._resource.plural
            logger.debug("the watch of %s has failed", what, exc_info=True)
            self._end(ClusterError(f"the watch of {what} has failed: {error!r}"))

    def _follow(self, version: str) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                if not version:
                    version = self._list(Deadline(_LIST_LIMIT_S))
                for seen in self._events(version):
                    version, pause = seen, _FIRST_PAUSE_S
            except (ClusterError, OSError, ValueError) as error:
                status = error.status if isinstance(error, ApiError) else 0
                if self._stopped.is_set():
                    return
                if status == _GONE:
                    version = ""
                    continue
                if status in _REFUSED:
                    self._end(error)
                    return
                logger.debug("the watch of %s was interrupted: %s", self._resource.plural, error)
                self._stopped.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _end(self, error: Exception) -> None:
        with self.changed:
            self._fault = error if isinstance(error, ClusterError) else ClusterError(str(error))
            self.changed.notify_all()

    def _events(self, version: str) -> Iterator[str]:
        """Take the events since `version`; yield the version after each."""
        query = {
            **self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_LENGTH_S),
        }
        path = self._resource.path(self._client.namespace)
        with self._client.stream(path, query=query, read_s=_SILENCE_S) as answer:
            with self.changed:
                self._answer = answer
            if self._stopped.is_set():
                return
            try:
                for line in lines(answer):
                    yield self._take(json.loads(line))
            finally:
                with self.changed:
                    self._answer = None

    def _take(self, event: Mapping[str, Any]) -> str:
        changed = event["object"]
        if event["type"] == "ERROR":
            code = int(changed.get("code", 500))
            text = str(changed.get("message", changed))
            raise ApiError(text, status=code, reason=str(changed.get("reason", "")), text=text)
        metadata = changed["metadata"]
        with self.changed:
            if event["type"] == "DELETED":
                self._objects.pop(metadata["name"], None)
            elif event["type"] != "BOOKMARK":
                self._objects[metadata["name"]] = changed
            self.changed.notify_all()
        version: str = metadata["resourceVersion"]
        return version


def received(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The bytes of an answer as they come. OSError when it is cut."""
    import urllib3  # noqa: PLC0415

    try:
        while piece := answer.read1(65536):
            yield piece
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionError(str(error)) from error


def lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The whole lines of an answer as they come, without their ends. OSError when it is cut."""
    begun = b""
    for piece in received(answer):
        *whole, begun = (begun + piece).split(b"\n")
        yield from whole


def shut(answer: urllib3.BaseHTTPResponse) -> None:
    """End a read of `answer` in another thread."""
    try:
        answer.shutdown()
    except (OSError, ValueError, RuntimeError):
        # It has just ended by itself.
        return
