"""kboot.log: steps are nested and timed, and the library is quiet."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from kboot.log import logger, step


def test_a_step_tells_when_it_begins_and_how_long_it_took(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, "kboot"), step("boot m0"):
        logger.debug("in between")
    first, middle, last = caplog.messages
    assert (first, middle) == ("boot m0", "in between")
    assert last.startswith("boot m0: done in ")
    assert last.endswith(" s")


def test_steps_within_a_step_are_indented(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "kboot"), step("outer"), step("inner"):
        pass
    assert [len(text) - len(text.lstrip()) for text in caplog.messages] == [0, 2, 2, 0]


def test_a_step_that_fails_names_the_error_and_lets_it_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, "kboot"):
        with pytest.raises(OSError, match="gone"), step("outer"), step("inner"):
            raise OSError("gone")
        with step("next"):
            pass
    assert "  inner: OSError after 0.00 s" in caplog.messages
    assert "next" in caplog.messages, "the indentation is as before"


def test_the_library_prints_nothing_by_itself() -> None:
    code = "from kboot.log import logger, step\nwith step('x'): logger.info('y')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")
