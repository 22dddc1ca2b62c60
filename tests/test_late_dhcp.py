"""DHCP that answers late: when the network is connected, and when it no more is."""

from __future__ import annotations

import threading
from pathlib import Path

from kboot.deadline import Deadline
from kboot.qemu.late_dhcp import answering_late


def test_the_network_is_connected_once_the_machine_has_asked(tmp_path: Path) -> None:
    packets, lock, connected = tmp_path / "asked.pcap", threading.Lock(), threading.Event()

    def connect() -> None:
        assert lock.locked()
        connected.set()

    with answering_late(packets, lock, connect, after_s=0.01):
        packets.write_bytes(bytes(24))
        assert not connected.wait(0.3)
        packets.write_bytes(bytes(400))
        assert connected.wait(20)
    assert not packets.exists()


def test_a_machine_that_ends_is_not_connected_any_more(tmp_path: Path) -> None:
    packets, lock, connected = tmp_path / "asked.pcap", threading.Lock(), threading.Event()
    packets.write_bytes(bytes(400))
    # Who ends it holds the lock, and does not wait for somebody who wants it.
    with lock, answering_late(packets, lock, connected.set, after_s=0):
        for _ in Deadline(0.3).poll(0.05):
            assert not connected.is_set()
    assert lock.acquire(timeout=1)
    assert not connected.is_set()
