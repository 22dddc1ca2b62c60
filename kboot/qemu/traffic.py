"""For how long a QEMU has received nothing, asked of the kernel: ``sock_diag(7)``."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
#: NLM_F_REQUEST and NLM_F_DUMP.
_DUMP = 0x301
_DONE = 3
_ESTABLISHED = 1
#: INET_DIAG_INFO: an attribute with the ``struct tcp_info``; and its bit among those wanted.
_INFO = 2
_INFO_WANTED = 1 << (_INFO - 1)
#: In that: milliseconds since data came last (``tcpi_last_data_recv``).
_LAST_DATA = 52
#: Of a ``struct inet_diag_msg``: its length, and where the inode is in it.
_MESSAGE_BYTES = 72
_INODE = 68

_SOCKET = re.compile(r"socket:\[(\d+)\]")


def silence_s(pid: int) -> float | None:
    """For how many seconds a process has received nothing on any TCP connection that it has made.

    None if it has none, or if this host does not tell.
    """
    try:
        ours = _sockets_of(pid)
        silent_ms = [ms for inode, ms in _connections() if inode in ours]
    except OSError:
        return None
    return min(silent_ms) / 1000 if silent_ms else None


def _sockets_of(pid: int) -> set[int]:
    """The inodes of a process's sockets."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with contextlib.suppress(OSError):
            if match := _SOCKET.fullmatch(str(link.readlink())):
                found.add(int(match[1]))
    return found


def _connections() -> Iterator[tuple[int, int]]:
    """Of each connection on this host: its socket's inode, and the milliseconds since data came."""
    wanted = struct.pack(
        "BBBxI48x", socket.AF_INET, socket.IPPROTO_TCP, _INFO_WANTED, 1 << _ESTABLISHED
    )
    head = struct.pack("IHHII", 16 + len(wanted), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(1)
        diag.send(head + wanted)
        while True:
            for kind, message in _messages(diag.recv(1 << 16)):
                if kind == _DONE:
                    return
                if kind == _SOCK_DIAG_BY_FAMILY and (info := _info_in(message)):
                    inode = struct.unpack_from("I", message, _INODE)[0]
                    yield inode, struct.unpack_from("I", info, _LAST_DATA)[0]


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The netlink messages in what was received: kind and content."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("IH", data)
        if length < 16:
            raise OSError("a netlink message without a length")
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def _info_in(message: bytes) -> bytes:
    """The ``struct tcp_info`` among a message's attributes; empty if there is none."""
    rest = message[_MESSAGE_BYTES:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("HH", rest)
        if length < 4:
            break
        if kind == _INFO and length >= 4 + _LAST_DATA + 4:
            return rest[4:length]
        rest = rest[(length + 3) & ~3 :]
    return b""
