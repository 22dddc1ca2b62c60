"""Connections to one API server, and the credentials that are good now."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kboot.log import logger

if TYPE_CHECKING:
    import urllib3

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
    """One attempt at a time: what is made of the answers is `kboot.kube.Client`'s business."""

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

    @property
    def host(self) -> str:
        """The URL of the API server."""
        return str(self.configuration.host).rstrip("/")

    def authorisation(self) -> dict[str, str]:
        """The headers that say who we are, with a token that is good now."""
        with self._lock:
            return self._headers()

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
