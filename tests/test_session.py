"""What one run shares, without pytest around it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.machine import Machine
from kboot.machine.follower import BootCancelled
from kboot.session import open_session
from kboot.testing import FakeBackend, write_kernel
from tests.test_testing import recording_that_hangs


def test_a_machine_may_be_given_less_time_than_the_settings_say(
    quick_kernel: Path, tmp_path: Path
) -> None:
    config = Config(kernel=str(quick_kernel), accel="tcg", isolation="session")
    with (
        open_session(config, evidence=tmp_path) as session,
        pytest.raises(InfraError, match=r"reached its time limit \(timeout 0\.5 s\)"),
    ):
        session.machine(session.settings(config), name="hasty", timeout=0.5)


def test_who_ends_a_session_waits_for_no_boot(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "vmlinuz", "6.99.1-mine")
    config = Config(kernel=str(kernel), isolation="none", timeout_s=600)
    backend = FakeBackend(recording_that_hangs(tmp_path))
    on: list[Machine] = []
    with (
        open_session(config, evidence=tmp_path / "e", backend=backend) as session,
        ThreadPoolExecutor() as threads,
    ):
        settings = session.settings(config)
        boot = threads.submit(session.machine, settings, name="hangs", on_machine=on.append)
        for _ in Deadline(60).poll(0.01):
            if on:
                break
        session.leave_boots()
        assert isinstance(boot.exception(), BootCancelled)
        with pytest.raises(BootCancelled, match="no more machines are started"):
            session.machine(settings, name="late")
