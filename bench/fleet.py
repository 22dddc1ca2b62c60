"""What a fleet costs: eight machines up, over one boot; and how far apart a cut pulls cables."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.qemu.segment import open_segment
from kboot.session import Session, open_session

_ROLES = read_roles({"control": 1, "worker": 7})
_FRAMES = 20_000
_FRAME = bytes(1500)


def run(*, quick: bool) -> dict[str, Figure]:
    """``fleet_start_ratio``, ``fleet_cut_skew_ms``, ``switch_frames_per_s``."""
    kernel = str(Path(os.environ["KBOOT_TEST_KERNEL"]).resolve())
    config = Config(kernel=kernel, accel="tcg")
    with (
        tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder,
        open_session(config, evidence=Path(folder)) as session,
    ):
        # The first one boots, and saves the machine: that is not what is measured.
        with _fleet(session, config) as fleet:
            skews = tuple(_skew_ms(fleet) for _ in range(3 if quick else 20))
        pairs = interleaved(
            lambda: _start_s(session, config),
            lambda: _boot_s(session, config),
            rounds=1 if quick else 5,
        )
        rates = tuple(_frames_per_s(Path(folder)) for _ in range(1 if quick else 5))
    return {
        "fleet_start_ratio": median_ratio(pairs),
        "fleet_cut_skew_ms": Figure(value=statistics.median(skews), unit="ms", runs=skews),
        "switch_frames_per_s": Figure(value=statistics.median(rates), unit="1/s", runs=rates),
    }


def _fleet(session: Session, config: Config) -> contextlib.AbstractContextManager[Fleet]:
    return open_fleet(session, _ROLES, {role.name: config for role in _ROLES})


def _start_s(session: Session, config: Config) -> float:
    """Seconds until eight machines are up and know each other."""
    begin = time.monotonic()
    with _fleet(session, config):
        return time.monotonic() - begin


def _boot_s(session: Session, config: Config) -> float:
    """Seconds until one is up that boots."""
    begin = time.monotonic()
    with session.powered_on(session.settings(config), name="alone") as machine:
        machine.wait_until_ready()
        return time.monotonic() - begin


def _skew_ms(fleet: Fleet) -> float:
    with fleet.cut("worker") as cut:
        return 1000 * cut.skew_s


def _frames_per_s(directory: Path) -> float:
    """How many frames of 1500 bytes go from one port to another."""
    with (
        open_segment(directory, ("a", "b"), Deadline(20)) as segment,
        segment.plug("a") as a,
        segment.plug("b") as b,
    ):
        address = bytes.fromhex(segment.interface("b").mac_address.replace(":", ""))
        frame = address + _FRAME[6:]
        raw = len(frame).to_bytes(4, "big") + frame
        # Where b is, the switch knows from what it sends.
        b.sendall(len(frame).to_bytes(4, "big") + bytes(6) + address + _FRAME[12:])
        a.recv(len(raw), socket.MSG_WAITALL)
        got = 0

        def receive() -> None:
            nonlocal got
            b.settimeout(1)
            with contextlib.suppress(TimeoutError):
                while got < _FRAMES * len(raw):
                    got += len(b.recv(1 << 18))

        begin = time.monotonic()
        thread = threading.Thread(target=receive)
        thread.start()
        for _ in range(_FRAMES // 20):
            a.sendall(raw * 20)
        thread.join()
        return got / len(raw) / (time.monotonic() - begin)
