"""What one run shares, without pytest around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import InfraError
from kboot.session import open_session


def test_a_machine_may_be_given_less_time_than_the_settings_say(
    quick_kernel: Path, tmp_path: Path
) -> None:
    config = Config(kernel=str(quick_kernel), accel="tcg", isolation="session")
    with (
        open_session(config, evidence=tmp_path) as session,
        pytest.raises(InfraError, match=r"reached its time limit \(timeout 0\.5 s\)"),
    ):
        session.machine(session.settings(config), name="hasty", timeout=0.5)
