"""Raw byte streams through the API server: KubeVirt's console and port-forward.

The client library's own ``stream()`` asks for another subprotocol and takes the first byte of each
frame for a channel number. KubeVirt wants binary frames of the bare bytes; text frames it drops.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt.api.client import KEEPALIVE, Client
from kboot.kubevirt.api.errors import UNAUTHORISED, ApiError, api_error

if TYPE_CHECKING:
    import websocket

_SUBPROTOCOL = "plain.kubevirt.io"
_CONNECT_S = 20.0


class WebSocket:
    """A connected websocket as a `kboot.backend.Stream`."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection
        self._left = b""
        self._closed = threading.Event()

    def recv(self, size: int, /) -> bytes:
        """Wait for bytes; empty at the end of the stream, however it came."""
        import websocket  # noqa: PLC0415

        while not self._left:
            try:
                code, data = self._connection.recv_data(control_frame=False)
            except (OSError, websocket.WebSocketException, AttributeError):
                # AttributeError: closed by another thread, the library has no socket any more.
                return b""
            if code == websocket.ABNF.OPCODE_CLOSE:
                return b""
            self._left = data.encode() if isinstance(data, str) else data
        found, self._left = self._left[:size], self._left[size:]
        return found

    def readable(self, timeout_s: float) -> bool:
        """Wait for bytes, or the end of the stream, and say whether `recv` would return now."""
        connection: Any = self._connection
        try:
            # Decrypted already, or not yet off the wire.
            if self._left or (connection.is_ssl() and connection.sock.pending()):
                return True
            return bool(select.select([connection.sock], [], [], timeout_s)[0])
        except (OSError, ValueError, AttributeError):
            return True

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data` in binary frames."""
        import websocket  # noqa: PLC0415

        try:
            self._connection.send_binary(data)
        except (websocket.WebSocketException, AttributeError) as error:
            raise ConnectionError(f"the websocket is closed: {error}") from error

    def close(self) -> None:
        """Give the stream up; a `recv` that waits in another thread returns."""
        if self._closed.is_set():
            return
        self._closed.set()
        connection: Any = self._connection
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, AttributeError):
            connection.shutdown()


def open_websocket(client: Client, path: str, deadline: Deadline) -> WebSocket:
    """Connect to a path of the API server.

    Raises `ApiError` if the server refuses, `ClusterError` if it cannot be reached.
    """
    generation = client.session.generation
    try:
        return _connect(client, path, deadline)
    except ApiError as error:
        if error.status != UNAUTHORISED:
            raise
        client.session.reload(generation)
    return _connect(client, path, deadline)


def _connect(client: Client, path: str, deadline: Deadline) -> WebSocket:
    import websocket  # noqa: PLC0415

    url = "ws" + (client.host + path).removeprefix("http")
    client.session.calls += 1
    timeout_s = max(0.1, min(_CONNECT_S, deadline.remaining))
    try:
        connection = websocket.create_connection(
            url,
            timeout=timeout_s,
            subprotocols=[_SUBPROTOCOL],
            header=client.session.authorisation(),
            enable_multithread=True,
            **_route(client.session.configuration, timeout_s),
        )
    except websocket.WebSocketBadStatusException as error:
        body = error.resp_body or b""
        raise api_error("GET", path, error.status_code, body, namespace=client.namespace) from error
    except (OSError, websocket.WebSocketException) as error:
        raise ClusterError(f"no websocket to {client.host}: {error}") from error
    connection.settimeout(None)
    return WebSocket(connection)


def _tls(configuration: Any) -> dict[str, Any]:
    """How to be sure of the server, and it of us, as the kubeconfig says."""
    if not configuration.host.startswith("https"):
        return {}
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    name = getattr(configuration, "tls_server_name", None)
    return {"context": context} | ({"server_hostname": name} if name else {})


def _connected(configuration: Any, timeout_s: float) -> socket.socket:
    """A connection to the API server itself."""
    server = urlsplit(configuration.host)
    tls = _tls(configuration)
    host, port = str(server.hostname), server.port or (443 if tls else 80)
    connection = socket.create_connection((host, port), timeout=timeout_s)
    for option, value in KEEPALIVE:
        connection.setsockopt(*option, value)
    if not tls:
        return connection
    secured: ssl.SSLSocket = tls["context"].wrap_socket(
        connection, server_hostname=tls.get("server_hostname", host)
    )
    return secured


def _route(configuration: Any, timeout_s: float) -> dict[str, Any]:
    """The options for the way to the server: straight, or by the kubeconfig's proxy.

    Without a proxy the connection is our own: the library would look for one in the environment.
    """
    if not configuration.proxy:
        return {"socket": _connected(configuration, timeout_s)}
    proxy = urlsplit(configuration.proxy)
    if not proxy.hostname:
        raise ConfigError(f"the kubeconfig's proxy-url has no host: {configuration.proxy}")
    options: dict[str, Any] = {
        "http_proxy_host": proxy.hostname,
        "http_proxy_port": proxy.port or 80,
        "proxy_type": {"https": "http"}.get(proxy.scheme, proxy.scheme),
        # Given, so that the environment's list of exceptions is not looked at.
        "http_no_proxy": [""],
        "sslopt": _tls(configuration),
    }
    if proxy.username:
        options["http_proxy_auth"] = (proxy.username, proxy.password or "")
    return options
