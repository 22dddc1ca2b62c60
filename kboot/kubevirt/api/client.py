"""Requests to the API server: typed by their paths, with back-off inside a deadline."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api.errors import UNAUTHORISED, ApiError, api_error
from kboot.log import logger

if TYPE_CHECKING:
    import urllib3


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object."""

    api_version: str
    kind: str
    #: Its name in paths: ``virtualmachines``.
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The path of its list, of one object, or of a subresource of one."""
        prefix = "/apis/" if "/" in self.api_version else "/api/"
        inside = f"/namespaces/{namespace}" if namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return f"{prefix}{self.api_version}{inside}/{'/'.join(parts)}"


CONFIG_MAPS = Resource(api_version="v1", kind="ConfigMap", plural="configmaps")
SECRETS = Resource(api_version="v1", kind="Secret", plural="secrets")
SERVICES = Resource(api_version="v1", kind="Service", plural="services")
PODS = Resource(api_version="v1", kind="Pod", plural="pods")
EVENTS = Resource(api_version="v1", kind="Event", plural="events")
CLAIMS = Resource(api_version="v1", kind="PersistentVolumeClaim", plural="persistentvolumeclaims")
#: The Containerized Data Importer's, where it is installed.
DATA_VOLUMES = Resource(
    api_version="cdi.kubevirt.io/v1beta1", kind="DataVolume", plural="datavolumes"
)
NETWORK_POLICIES = Resource(
    api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies"
)
KUBEVIRTS = Resource(api_version="kubevirt.io/v1", kind="KubeVirt", plural="kubevirts")
VIRTUAL_MACHINES = Resource(
    api_version="kubevirt.io/v1", kind="VirtualMachine", plural="virtualmachines"
)
VMIS = Resource(
    api_version="kubevirt.io/v1", kind="VirtualMachineInstance", plural="virtualmachineinstances"
)

REPLICA_SETS = Resource(
    api_version="kubevirt.io/v1",
    kind="VirtualMachineInstanceReplicaSet",
    plural="virtualmachineinstancereplicasets",
)

#: What is done to machines, beside the objects themselves: start, stop, console...
VM_ACTIONS = Resource(
    api_version="subresources.kubevirt.io/v1", kind="VirtualMachine", plural="virtualmachines"
)
VMI_ACTIONS = Resource(
    api_version="subresources.kubevirt.io/v1",
    kind="VirtualMachineInstance",
    plural="virtualmachineinstances",
)

_ALL = (
    CONFIG_MAPS,
    SECRETS,
    SERVICES,
    PODS,
    EVENTS,
    CLAIMS,
    DATA_VOLUMES,
    NETWORK_POLICIES,
    KUBEVIRTS,
    VIRTUAL_MACHINES,
    VMIS,
    REPLICA_SETS,
)


def resource_for(manifest: Mapping[str, Any]) -> Resource:
    """The kind that a manifest is of. KeyError for one that kboot does not deal with."""
    known = {(resource.api_version, resource.kind): resource for resource in _ALL}
    return known[manifest["apiVersion"], manifest["kind"]]


_CONNECT_S = 10.0
#: For a piece of a body, by a line that is slow or stands still for a while.
_SEND_S = 60.0

#: A connection that a firewall has forgotten is found out: a probe each 20 s, dead after three.
KEEPALIVE = (
    ((socket.IPPROTO_TCP, socket.TCP_NODELAY), 1),
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 20),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 20),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3),
)


class Session:
    """One attempt at a time: `Client` decides what is made of the answers."""

    def __init__(self, load: Callable[[], tuple[Any, str]]) -> None:
        """`load` returns a configuration of the kubernetes library, and its namespace."""
        self._load = load
        self._lock = threading.Lock()
        self.configuration, self.namespace = load()
        self._pool, self._headers = _open(self.configuration)
        #: How often the credentials were read anew, see `reload`.
        self.generation = 0
        #: Requests sent so far, whatever came of them.
        self.calls = 0
        #: What to add to our clock to get the server's; None before its first answer.
        self._clock_offset_s: float | None = None

    @property
    def host(self) -> str:
        """The URL of the API server."""
        return str(self.configuration.host).rstrip("/")

    def authorisation(self) -> dict[str, str]:
        """The headers that say who we are, with a token that is good now."""
        with self._lock:
            return self._headers()

    def now(self) -> datetime.datetime | None:
        """The time by the server's clock, within a second; None if it was not heard of yet."""
        with self._lock:
            offset_s = self._clock_offset_s
        if offset_s is None:
            return None
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)

    def _see_clock(self, date: str | None) -> None:
        """Take the time of an answer, as of RFC 9110."""
        try:
            moment = email.utils.parsedate_to_datetime(date or "")
        except ValueError:
            return
        with self._lock:
            self._clock_offset_s = moment.timestamp() - time.time()

    def reload(self, generation: int) -> None:
        """Read the credentials of this `generation` anew: the cluster has refused them.

        Once for all threads that found them refused.
        """
        with self._lock:
            if generation == self.generation:
                logger.debug("the cluster refused our credentials; reading them anew")
                self.configuration, _ = self._load()
                self._pool, self._headers = _open(self.configuration)
                self.generation += 1

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | None,
        *,
        read_s: float,
        streamed: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; OSError if it or its answer is lost. `streamed` leaves the answer unread.

        `read_s` is the longest silence.
        """
        import urllib3  # noqa: PLC0415

        self.calls += 1
        try:
            answer: urllib3.BaseHTTPResponse = self._pool.request(
                method,
                self.host + path,
                headers={**self.authorisation(), **headers},
                body=body,
                # urllib3 sends a body under the limit for connecting (2.8).
                timeout=urllib3.Timeout(connect=_SEND_S if body else _CONNECT_S, read=read_s),
                retries=False,
                redirect=False,
                preload_content=not streamed,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(_root(error)) from error
        self._see_clock(answer.headers.get("Date"))
        return answer

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self._pool.clear()


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


def _root(error: BaseException) -> str:
    """The innermost cause, which is the one that says something."""
    reason = getattr(error, "reason", None)
    return _root(reason) if isinstance(reason, BaseException) else str(error)


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

    def now(self, deadline: Deadline) -> datetime.datetime:
        """The time by the cluster's clock, within a second: clients' clocks may differ.

        Ours where no answer of the cluster has a time. `ClusterError` if it cannot be reached.
        """
        if (now := self.session.now()) is None:
            # Any answer tells, a refusal too.
            with contextlib.suppress(ApiError):
                self.send("GET", "/version", deadline)
            now = self.session.now()
        return now or datetime.datetime.now(datetime.UTC)

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
        self,
        resource: Resource,
        name: str,
        deadline: Deadline,
        *,
        grace_s: int = 0,
        version: str = "",
    ) -> bool:
        """Delete an object and, in the background, what it owns; whether it was there.

        With `version`, only that version of it: one that was changed meanwhile stays.
        """
        body: dict[str, Any] = {"gracePeriodSeconds": grace_s, "propagationPolicy": "Background"}
        if version:
            body["preconditions"] = {"resourceVersion": version}
        try:
            self.json("DELETE", resource.path(self.namespace, name), deadline, body=body)
        except ApiError as error:
            if error.status == 404 or (version and error.status == 409):
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
