"""DHCP that answers late: only to a machine that has asked before, and asks again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

#: So long after the machine's first packet. iPXE asks 0, 1, 3 and 7 s after it has begun (1.0.0),
#: or 0, 4 and 12 s (1.21.1), and gives up later.
ANSWER_AFTER_S = 5.0
_POLL_S = 0.1
#: A file of packets without any: libpcap's header.
_HEADER_BYTES = 24


@contextlib.contextmanager
def answering_late(
    packets: Path,
    lock: threading.Lock,
    connect: Callable[[], None],
    *,
    after_s: float = ANSWER_AFTER_S,
) -> Iterator[None]:
    """`connect` the network a while after the machine has sent something.

    `packets` is the file in which QEMU writes what it sends. From its power-on it may take any time
    to that: firmware is emulated. `connect` is called under the `lock`, which who ends the ``with``
    may have.
    """
    ended = threading.Event()

    def wait() -> None:
        while not ended.wait(_POLL_S):
            if packets.is_file() and packets.stat().st_size > _HEADER_BYTES:
                break
        ended.wait(after_s)
        while not ended.is_set():
            if lock.acquire(timeout=_POLL_S):
                try:
                    connect()
                finally:
                    lock.release()
                return

    thread = threading.Thread(target=wait, name="kboot-late-dhcp", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        packets.unlink(missing_ok=True)
