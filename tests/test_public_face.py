from __future__ import annotations

import subprocess
import sys

import pytest

import kboot


@pytest.mark.parametrize("name", kboot.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kboot, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bot'"):
        _ = kboot.Bot  # type: ignore[attr-defined]


def test_kboot_itself_imports_nothing() -> None:
    script = "import sys, kboot; print(sorted(name for name in sys.modules if 'kboot.' in name))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
