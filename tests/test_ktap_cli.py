"""``kboot ktap`` as people use it."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.test_ktap import KSELFTEST, KUNIT, OOPS, PANIC

FINE = "TAP version 13\n1..2\nok 1 a\nok 2 b # SKIP not here\n"


def ktap(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kboot", "ktap", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_good_log_is_a_table_and_exit_code_0(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(FINE)
    done = ktap(tmp_path / "log")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "RESULT   CASE  REASON",
        "passed   a",
        "skipped  b     not here",
        "1 passed, 1 skipped",
    ]


def test_a_crash_is_exit_code_1_and_names_its_case(tmp_path: Path) -> None:
    (tmp_path / "junit.log").write_text(KUNIT + OOPS + PANIC)
    done = ktap(tmp_path / "junit.log", "--failures", "--junit", tmp_path / "junit.xml")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].split(maxsplit=2) == [
        "crashed",
        "example/example_crashes",
        "NULL pointer dereference in example_crashes",
    ]
    assert "2 passed" in done.stdout.splitlines()[-1]
    root = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314  our own
    assert len(list(root.iter("testcase"))) == 6


def test_standard_input_is_read_and_json_has_all() -> None:
    done = ktap("-", "--json", given=KSELFTEST)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["counts"]["expected failure"] == 1
    assert not found["passed"]
    assert found["cases"][-1]["name"] == "selftests: kcmp: kcmp_test"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello\n", "there are no KTAP results in it"),
        (b"", "there are no KTAP results in it"),
        (b"\x1f\x8b\x08\0", "gzip; unpack it first"),
        (None, "there is no such file"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    done = ktap(tmp_path / "log")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kboot: error: {tmp_path / 'log'}")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(FINE)
    done = ktap(tmp_path / "log", "--junit", tmp_path / "nowhere" / "x.xml")
    assert done.returncode == 2
    assert "cannot be written: No such file or directory" in done.stderr
