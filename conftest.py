"""What pytest takes from the root of the rootdir only."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``pytest --kernel=FILE`` tests that kernel; without it, kboot's own tests test kboot."""
    tests = Path(__file__).parent / "tests"
    return True if collection_path == tests and config.getoption("kboot_kernel") else None
