"""The supervisor's parts that need no machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from kboot.machine.boot import Boot
from kboot.machine.phases import ORDER, Expected
from kboot.supervisor.events import BootProgress

EXPECTED = Expected(
    nonce="abcd1234",
    query="m=m0&b=abcd1234",
    script_path="scripts/m0/boot.ipxe",
    kernel_path="artifacts/k1",
    initrd_paths={"artifacts/i1": "tiny.cpio.gz"},
    release="6.1.0-56-amd64",
    command_line="kboot.nonce=abcd1234",
)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_how_far_a_boot_is_can_be_asked_for_while_it_is_followed() -> None:
    boots = [Boot(EXPECTED, start=0.0)]
    shown = [BootProgress.of(boots[-1], boots=0, release="6.1", boot_ids=[])]
    ended = threading.Event()

    def follow() -> None:
        """The thread that the machine belongs to: it alone reads and changes a boot."""
        for number in range(1, 501):
            boots.append(Boot(EXPECTED, start=0.0))
            for phase in ORDER:
                boots[-1].reach(phase, 1.0, "console")
                shown[0] = BootProgress.of(boots[-1], boots=number, release="6.1", boot_ids=["id"])
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    seen, last = 0, (0, "")
    while not ended.is_set():
        progress = shown[0]
        assert progress.phase in ORDER
        assert progress.boots >= last[0]
        seen, last = seen + 1, (progress.boots, progress.phase)
    thread.join()
    assert seen > 10
    assert (shown[0].boots, shown[0].phase, shown[0].boot_id) == (500, "ready", "id")
