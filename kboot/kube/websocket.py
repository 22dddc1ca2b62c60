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
from kboot.kube.client import Client
from kboot.kube.errors import api_error

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
    import websocket  # noqa: PLC0415

    url = "ws" + (client.host + path).removeprefix("http")
    client.calls += 1
    try:
        connection = websocket.create_connection(
            url,
            timeout=max(0.1, min(_CONNECT_S, deadline.remaining)),
            subprotocols=[_SUBPROTOCOL],
            header=client.authorisation(),
            sslopt=_tls(client.configuration),
            enable_multithread=True,
            **_proxy(client.configuration),
        )
    except websocket.WebSocketBadStatusException as error:
        body = error.resp_body or b""
        raise api_error("GET", path, error.status_code, body, namespace=client.namespace) from error
    except (OSError, websocket.WebSocketException) as error:
        raise ClusterError(f"no websocket to {client.host}: {error}") from error
    connection.settimeout(None)
    return WebSocket(connection)


def _tls(configuration: Any) -> dict[str, Any]:
    if not configuration.host.startswith("https"):
        return {}
    options: dict[str, Any] = {
        "cert_reqs": ssl.CERT_REQUIRED if configuration.verify_ssl else ssl.CERT_NONE,
        "check_hostname": bool(configuration.verify_ssl),
        "ca_certs": configuration.ssl_ca_cert,
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
        "server_hostname": getattr(configuration, "tls_server_name", None),
    }
    return {key: value for key, value in options.items() if value is not None}


def _proxy(configuration: Any) -> dict[str, Any]:
    """The kubeconfig's proxy; without one, none: the library would look into the environment."""
    if not configuration.proxy:
        return {"http_no_proxy": ["*"]}
    proxy = urlsplit(configuration.proxy)
    if not proxy.hostname:
        raise ConfigError(f"the kubeconfig's proxy-url has no host: {configuration.proxy}")
    options: dict[str, Any] = {
        "http_proxy_host": proxy.hostname,
        "http_proxy_port": proxy.port or 80,
        "proxy_type": {"https": "http"}.get(proxy.scheme, proxy.scheme),
        # Given, so that the environment's list of exceptions is not looked at.
        "http_no_proxy": [""],
    }
    if proxy.username:
        options["http_proxy_auth"] = (proxy.username, proxy.password or "")
    return options
