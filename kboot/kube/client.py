"""Requests to the API server: typed by their paths, with back-off inside a deadline."""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube.errors import UNAUTHORISED, ApiError, api_error
from kboot.kube.resources import Resource, resource_for
from kboot.kube.session import Session
from kboot.log import logger

if TYPE_CHECKING:
    import urllib3

#: For one attempt; the whole is under the caller's deadline.
_READ_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

#: As client-go asks. KubeVirt's actions (start, stop, reset...) declare no type of answer, so that
#: JSON alone is refused with 406 (1.9).
_ACCEPT = "application/json, */*"

_BUSY = 429
#: Of the server itself or a proxy before it: asking again is right.
_PASSING = {_BUSY, 500, 502, 503, 504}

Body = Callable[[], Iterable[bytes]]


class Client:
    """One cluster, as one user, in one namespace. Safe for several threads."""

    def __init__(self, load: Callable[[], tuple[Any, str]], *, namespace: str | None) -> None:
        """`load` returns a configuration of the kubernetes library, and its namespace."""
        #: The connections and the credentials.
        self.session = Session(load)
        #: Where everything is done.
        self.namespace = namespace or self.session.namespace

    @property
    def host(self) -> str:
        """The URL of the API server."""
        return self.session.host

    # ------------------------------------------------------------------------------- objects

    def get(self, resource: Resource, name: str, deadline: Deadline) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = self.json("GET", resource.path(self.namespace, name), deadline)
        return found

    def find(
        self, resource: Resource, deadline: Deadline, **query: str
    ) -> tuple[list[dict[str, Any]], str]:
        """All objects that the query (``labelSelector``...) selects, and the list's version."""
        answer = self.json("GET", resource.path(self.namespace), deadline, query=query)
        return answer["items"] or [], answer["metadata"].get("resourceVersion", "")

    def create(self, manifest: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Create an object; a field that the cluster does not know is an error.

        One of this name and with these labels that is there already counts as created: it was, by
        an attempt whose answer was lost.
        """
        resource, metadata = resource_for(manifest), manifest["metadata"]
        query = {"fieldValidation": "Strict"}
        try:
            path = resource.path(metadata["namespace"])
            made: dict[str, Any] = self.json("POST", path, deadline, query=query, body=manifest)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            made = self.get(resource, metadata["name"], deadline)
            labels = made["metadata"].get("labels") or {}
            ours = metadata.get("labels", {}).items() <= labels.items()
            # One that is ending keeps its name until it is gone.
            if not ours or "deletionTimestamp" in made["metadata"]:
                raise
        return made

    def patch(
        self, resource: Resource, name: str, change: object, deadline: Deadline
    ) -> dict[str, Any]:
        """Change an object: by a JSON patch if `change` is a list, else by a merge patch."""
        kind = "json-patch+json" if isinstance(change, list) else "merge-patch+json"
        changed: dict[str, Any] = self.json(
            "PATCH",
            resource.path(self.namespace, name),
            deadline,
            query={"fieldValidation": "Strict"},
            body=change,
            content_type=f"application/{kind}",
        )
        return changed

    def delete(
        self, resource: Resource, name: str, deadline: Deadline, *, grace_s: int = 0
    ) -> bool:
        """Delete an object and, in the background, what it owns; whether it was there."""
        body = {"gracePeriodSeconds": grace_s, "propagationPolicy": "Background"}
        try:
            self.json("DELETE", resource.path(self.namespace, name), deadline, body=body)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def json(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        retry: bool = True,
    ) -> Any:
        """Send a request and return the answer, parsed; None for an answer without a body.

        Raises `ApiError` for what the cluster refuses, `ClusterError` if it cannot be reached.
        With `retry`, passing troubles (429, 5xx, lost connections) are waited out until `deadline`.
        """
        data = None if body is None else json.dumps(body).encode()
        answer = self.send(
            method,
            path,
            deadline,
            query=query,
            body=None if data is None else lambda: [data],
            headers={"Content-Type": content_type, "Accept": _ACCEPT},
            length=None if data is None else len(data),
            retry=retry,
        )
        return json.loads(answer.data) if answer.data else None

    # ------------------------------------------------------------------------------ requests

    def send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
        retry: bool = True,
        patience_s: float = math.inf,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> urllib3.BaseHTTPResponse:
        """As `json`, with a body in pieces, and the answer as it came.

        `body` is called for each attempt, and `length` is the number of its bytes. Troubles are
        waited out for `patience_s` in all, not counting the attempts; `on_trouble` is called after
        each, and what it raises ends it.
        """
        pause, waited_s = _FIRST_PAUSE_S, 0.0
        reloaded = False
        sized = {} if length is None else {"Content-Length": str(length)}
        while True:
            generation = self.session.generation
            try:
                answer = self.session.request(
                    method,
                    _with_query(path, query),
                    {**sized, **(headers or {})},
                    body() if body else None,
                    read_s=min(_READ_S, max(deadline.remaining, 0.1)),
                )
            except OSError as error:
                trouble, wanted_s = ClusterError(self._unreachable(error)), 0.0
                passing = True
            else:
                if answer.status < 300:
                    return answer
                trouble = api_error(
                    method, path, answer.status, answer.data, namespace=self.namespace
                )
                if answer.status == UNAUTHORISED and not reloaded:
                    reloaded = True
                    self.session.reload(generation)
                    continue
                passing = answer.status in _PASSING
                wanted_s = _retry_after_s(answer.headers.get("Retry-After"))
            delay = max(wanted_s, pause * random.uniform(0.8, 1.2))  # noqa: S311  no secret
            waited_s += delay
            if not (passing and retry) or waited_s > patience_s or deadline.remaining < delay:
                raise trouble
            logger.debug("%s; again in %.1f s", trouble, delay)
            on_trouble()
            time.sleep(delay)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @contextlib.contextmanager
    def stream(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        read_s: float,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer to be read while it comes; `read_s` is the longest silence.

        `ApiError` for a refusal, OSError when the connection is lost. Its ``shutdown`` ends a read
        in another thread.
        """
        where = _with_query(path, query)
        generation = self.session.generation
        answer = self.session.request(
            "GET", where, headers or {}, None, read_s=read_s, streamed=True
        )
        if answer.status == UNAUTHORISED:
            answer.close()
            self.session.reload(generation)
            answer = self.session.request(
                "GET", where, headers or {}, None, read_s=read_s, streamed=True
            )
        try:
            if answer.status >= 300:
                raise api_error("GET", path, answer.status, answer.data, namespace=self.namespace)
            yield answer
        finally:
            answer.close()

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self.session.close()

    def _unreachable(self, error: OSError) -> str:
        return f"the cluster at {self.host} cannot be reached: {error}"


def _with_query(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _retry_after_s(value: str | None) -> float:
    # The other form, a date, is not used by API servers.
    return float(value) if value and value.isdecimal() else 0.0
