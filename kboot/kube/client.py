"""Requests to the API server: typed by their paths, with back-off inside a deadline."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube.errors import ApiError, api_error
from kboot.kube.resources import Resource, resource_for
from kboot.log import logger

if TYPE_CHECKING:
    import urllib3

#: For one attempt; the whole is under the caller's deadline.
_CONNECT_S = 10.0
_READ_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

#: A connection that a firewall has forgotten is found out: a probe each 20 s, dead after three.
KEEPALIVE = (
    ((socket.IPPROTO_TCP, socket.TCP_NODELAY), 1),
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 20),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 20),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3),
)

_BUSY = 429
_UNAUTHORISED = 401
#: Of the server itself or a proxy before it: asking again is right.
_PASSING = {_BUSY, 500, 502, 503, 504}

Body = Callable[[], Iterable[bytes]]


class Client:
    """One cluster, as one user, in one namespace. Safe for several threads."""

    def __init__(self, load: Callable[[], tuple[Any, str]], *, namespace: str | None) -> None:
        """`load` returns a configuration of the kubernetes library, and its namespace."""
        self._load = load
        self._lock = threading.Lock()
        self._generation = 0
        self.configuration, default = load()
        #: Where everything is done.
        self.namespace = namespace or default
        self._pool, self._headers = _open(self.configuration)
        #: Requests sent so far, whatever came of them.
        self.calls = 0

    @property
    def host(self) -> str:
        """The URL of the API server."""
        return str(self.configuration.host).rstrip("/")

    def authorisation(self) -> dict[str, str]:
        """The headers that say who we are, with a token that is good now."""
        with self._lock:
            return self._headers()

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
            if not metadata.get("labels", {}).items() <= labels.items():
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
            headers={"Content-Type": content_type, "Accept": "application/json"},
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
    ) -> urllib3.BaseHTTPResponse:
        """As `json`, with a body in pieces, and the answer as it came.

        `body` is called for each attempt, and `length` is the number of its bytes.
        """
        pause = _FIRST_PAUSE_S
        reloaded = False
        sized = {} if length is None else {"Content-Length": str(length)}
        while True:
            generation = self._generation
            try:
                answer = self._once(
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
                if answer.status == _UNAUTHORISED and not reloaded:
                    reloaded = True
                    self._reload(generation)
                    continue
                passing = answer.status in _PASSING
                wanted_s = _retry_after_s(answer.headers.get("Retry-After"))
            delay = max(wanted_s, pause * random.uniform(0.8, 1.2))  # noqa: S311  no secret
            if not (passing and retry) or deadline.remaining < delay:
                raise trouble
            logger.debug("%s; again in %.1f s", trouble, delay)
            time.sleep(delay)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @contextlib.contextmanager
    def stream(
        self, path: str, *, query: Mapping[str, str], read_s: float
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer to be read while it comes; `read_s` is the longest silence.

        `ApiError` for a refusal, OSError when the connection is lost. Its ``shutdown`` ends a read
        in another thread.
        """
        answer = self._once("GET", _with_query(path, query), {}, None, read_s=read_s)
        try:
            if answer.status >= 300:
                raise api_error("GET", path, answer.status, answer.data, namespace=self.namespace)
            yield answer
        finally:
            answer.close()

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self._pool.clear()

    # -------------------------------------------------------------------------------- inside

    def _once(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | None,
        *,
        read_s: float,
    ) -> urllib3.BaseHTTPResponse:
        import urllib3  # noqa: PLC0415

        self.calls += 1
        streamed = "watch=" in path or "follow=" in path
        try:
            answer: urllib3.BaseHTTPResponse = self._pool.request(
                method,
                self.host + path,
                headers={**self.authorisation(), **headers},
                body=body,
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=read_s),
                retries=False,
                redirect=False,
                preload_content=not streamed,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(_root(error)) from error
        return answer

    def _reload(self, generation: int) -> None:
        """Read the credentials anew, once for all threads that found them refused."""
        with self._lock:
            if generation == self._generation:
                logger.debug("the cluster refused our credentials; reading them anew")
                self.configuration, _ = self._load()
                self._pool, self._headers = _open(self.configuration)
                self._generation += 1

    def _unreachable(self, error: OSError) -> str:
        return f"the cluster at {self.host} cannot be reached: {error}"


def _open(configuration: Any) -> tuple[Any, Callable[[], dict[str, str]]]:
    from kubernetes import client  # noqa: PLC0415

    # Watches, logs and consoles keep connections; more than these are opened and closed.
    configuration.connection_pool_maxsize = 32
    configuration.socket_options = [(*option, value) for option, value in KEEPALIVE]
    api = client.ApiClient(configuration)

    def headers() -> dict[str, str]:
        # Asked each time: the library renews a token that is about to end.
        token = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": token} if token else {}

    return api.rest_client.pool_manager, headers


def _with_query(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _retry_after_s(value: str | None) -> float:
    # The other form, a date, is not used by API servers.
    return float(value) if value and value.isdecimal() else 0.0


def _root(error: BaseException) -> str:
    """The innermost cause, which is the one that says something."""
    reason = getattr(error, "reason", None)
    return _root(reason) if isinstance(reason, BaseException) else str(error)
