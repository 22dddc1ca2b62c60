"""Machines on the test cluster, and ways to wait for what they do."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from kboot.backend import Stream, VirtualMachine
from kboot.deadline import Deadline
from kboot.kubevirt import KubevirtBackend
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import Cluster
from tests.kubevirt.talking import TalkingGuest


def powered_on(
    backend: KubevirtBackend,
    name: str = "m",
    *,
    deadline: Deadline | None = None,
    **changes: Any,
) -> contextlib.AbstractContextManager[VirtualMachine]:
    spec = MachineSpec(name=name, boot_file="http://none/boot.ipxe", **changes)
    return backend.power_on(spec, deadline or Deadline(20))


def guest_of(cluster: Cluster) -> TalkingGuest:
    guest = cluster.instance().guest
    assert isinstance(guest, TalkingGuest)
    return guest


def read_until(stream: Stream, text: bytes, *, seconds: float = 60) -> bytes:
    heard, deadline = b"", Deadline(seconds)
    while text not in heard:
        data = stream.recv(65536)
        assert data, f"the stream ended after {heard[-200:]!r}"
        assert not deadline.expired, heard[-200:]
        heard += data
    return heard


def eventually(fault: type[Exception], words: str, check: Any, *, seconds: float = 5) -> None:
    """`check` raises such a fault, soon."""

    def check_for_a_while() -> None:
        for _ in Deadline(seconds).poll(0.05):
            check()

    with pytest.raises(fault, match=words):
        check_for_a_while()
