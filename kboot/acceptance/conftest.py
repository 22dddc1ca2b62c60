"""What only the acceptance suite needs."""

from __future__ import annotations

import pytest

from kboot.kernel import Kernel
from kboot.session import Session


@pytest.fixture
def uefi_fault(kboot_session: Session, kernel: Kernel) -> str | None:
    """None if the backend's machines can boot through UEFI, or else why not."""
    return kboot_session.backend.firmware_fault("uefi", kernel.architecture)
