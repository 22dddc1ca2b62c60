"""What is written down of how a machine ended."""

from __future__ import annotations

import pytest

from kboot.errors import ConfigError, GuestError, InfraError
from kboot.machine.evidence import verdict


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "passed"),
        (GuestError("no login prompt"), "failed"),
        (InfraError("nginx is gone"), "error"),
        (ConfigError("no kernel"), "error"),
        (KeyboardInterrupt(), "interrupted"),
        (AssertionError("1 == 2"), "test failed"),
        (KeyError("name"), "test failed"),
    ],
    ids=repr,
)
def test_only_a_guests_own_fault_is_its_failure(error: BaseException | None, told: str) -> None:
    assert verdict(error) == told
