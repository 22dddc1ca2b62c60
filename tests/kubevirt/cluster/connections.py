"""Connections of the API server's clients, which tests cut at any time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref

from aiohttp import web


class Connection:
    """A client's connection. It does not keep the transport alive."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = weakref.ref(transport)
        self._socket: socket.socket = transport.get_extra_info("socket")

    def cut(self) -> None:
        """End it at once: an orderly end of TLS may wait for its other side for long."""
        transport = self._transport()
        if transport is None:
            return
        try:
            transport.abort()
        except AttributeError:
            # CPython before 3.11.3, after a second close(): the transport has lost its protocol.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


#: Where a request has its connection.
_KEY = web.RequestKey("connection", Connection)


class Connections:
    """Those of all clients, idle ones as well."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[asyncio.Transport, Connection] = (
            weakref.WeakKeyDictionary()
        )

    def remember(self, request: web.Request) -> None:
        """Know the connection of a request that has just come in."""
        transport = request.transport
        if isinstance(transport, asyncio.Transport):
            request[_KEY] = self._known.setdefault(transport, Connection(transport))

    def transports(self) -> list[asyncio.Transport]:
        """What asyncio knows them as."""
        return list(self._known)

    def cut(self) -> None:
        """End them all."""
        for connection in list(self._known.values()):
            connection.cut()


def connection_of(request: web.Request) -> Connection | None:
    """The connection that a request came by; None if it was gone before the request was read."""
    return request.get(_KEY)


def cut(request: web.Request) -> None:
    """Drop a request's connection without a word."""
    if connection := connection_of(request):
        connection.cut()
