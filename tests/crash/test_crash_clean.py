"""What looks like a crash and is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.crash.crash_logs import DATA, encode, reports, scan

CLEAN = sorted((DATA / "clean").glob("*.log"))
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ")


@pytest.mark.parametrize("path", CLEAN, ids=lambda path: path.stem)
def test_a_clean_log_raises_no_alarm(path: Path) -> None:
    lines = _lines(path)
    assert scan(encode(lines)) == []


@pytest.mark.parametrize("path", CLEAN, ids=lambda path: path.stem)
def test_a_clean_log_without_times_raises_no_alarm(path: Path) -> None:
    assert scan(encode([_STAMP.sub("", line) for line in _lines(path)])) == []


@pytest.mark.parametrize("path", CLEAN, ids=lambda path: path.stem)
def test_a_clean_log_behind_a_prefix_raises_no_alarm(path: Path) -> None:
    assert scan(encode([f"2024-01-02T03:04:05Z {line}" for line in _lines(path)])) == []


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


@pytest.mark.parametrize(
    "command",
    [
        "# echo 'Kernel panic - not syncing: test'",
        '$ printf "BUG: unable to handle kernel NULL pointer dereference at 0\\n"',
        "/ # grep 'general protection fault: 0000 [#1]' /var/log/kern.log",
        "+ echo 'kernel BUG at mm/slub.c:1!'",
        'expecting "Oops: 0000 [#1]"',
    ],
)
def test_ones_own_input_and_its_echo_are_no_crash(command: str) -> None:
    quoted = re.split("['\"]", command)[1]
    assert reports(encode(["[    1.000000] Run /init", command, quoted, "# "])) == []
    assert reports(encode([command, quoted, "# "])) == []


def test_a_first_line_without_time_needs_a_trace_where_the_kernel_stamps_its_lines() -> None:
    before = "[    1.000000] Linux version 6.1.0 (a@b) (gcc) #1 SMP"
    first = "general protection fault: 0000 [#1] SMP"
    assert reports(encode([before, first, *["user text"] * 20])) == []
    trace = ["CPU: 0 PID: 1 Comm: init Not tainted", "RIP: 0010:foo+0x1/0x2"]
    assert reports(encode([before, first, *trace]))[0].function == "foo"


def test_a_vague_line_of_a_program_is_no_crash_without_a_trace() -> None:
    assert reports(encode(["BUG: cannot find the thing", "next test"])) == []
    assert reports(encode(["WARNING: this is only a test", "next test"])) == []


def test_a_vague_line_of_the_kernel_is_one() -> None:
    report = reports(encode(["[    3.000000] BUG: arch topology borken"]))[0]
    assert (report.kind, report.title) == ("bug", "BUG: arch topology borken")


BANNER = "Linux version 6.1.0 (a@b) (gcc 12.2.0) #1 SMP Wed Mar  5"


@pytest.mark.parametrize(
    "prefix", ["Mar  5 06:07:08 box kernel: ", "2024-03-05T06:07:08 b kernel: "]
)
def test_a_syslog_of_many_days_holds_many_boots(prefix: str) -> None:
    for stamp in ("", "[    0.000000] "):
        lines = [f"{prefix}{stamp}{BANNER}", "Mar  5 18:00:00 box systemd[1]: Reached Power-Off."]
        assert reports(encode(lines * 3)) == []


def test_a_reset_by_the_magic_key_was_asked_for() -> None:
    lines = [
        f"[    0.000000] {BANNER}",
        "[    9.000000] sysrq: Resetting",
        "SeaBIOS (version 1.16)",
    ]
    assert reports(encode([*lines, f"[    0.000000] {BANNER}"])) == []


def test_a_compilers_words_about_a_bug_are_none() -> None:
    assert reports(encode(["foo.c:12:3: warning: kernel BUG at is not printed [-Wformat]"])) == []


def test_the_kernels_passing_on_of_other_peoples_words_is_no_crash() -> None:
    lines = [
        "[    5.000000] audit: type=1400 audit(1): msg='kernel BUG at fs/x.c:12!' res=success",
        "[    6.000000] lastlog: previous boot: Kernel panic - not syncing: Fatal exception",
        "[    7.000000] lastlog: Oops: 0002 [#1] in slot 3",
        *[f"[    8.{number:06}] eth0: link is up" for number in range(20)],
    ]
    assert reports(encode(lines)) == []


@pytest.mark.parametrize(
    "change",
    [
        " - Check for overflows [#132]",
        "debug [#12]",
        "fix an invalid opcode on old machines [#7]",
        "* **util**: improve debuglog (A. Author) [#28956](https://example.org/28956)",
        "   - Oops on reload, see [#12](https://example.org/12)",
        "    - NFSv4.2: fix nfs4_listxattr kernel BUG at mm/usercopy.c:102",
        "    - igc: Fixes BUG: scheduling while atomic",
    ],
)
def test_a_list_of_changes_that_is_shown_is_no_crash(change: str) -> None:
    assert reports(encode([change, *["- more of the like"] * 20])) == []
