"""Whole boots of a real Debian 6.1 kernel under QEMU, each ended by a crash of its own."""

from __future__ import annotations

import pytest

from kboot.crash import CrashKind
from tests.crash.crash_logs import DATA, reports

DEATHS = [
    ("sysrq-c", CrashKind.PANIC, "sysrq_handle_crash", 318),
    ("init-exit", CrashKind.INIT_KILLED, "do_exit", 320),
    ("oom", CrashKind.OOM_PANIC, "out_of_memory", 390),
    ("no-root", CrashKind.NO_ROOT, "mount_block_root", 311),
]


@pytest.mark.parametrize(("name", "kind", "function", "line"), DEATHS)
def test_a_real_death_is_the_one_report_of_its_boot(
    name: str, kind: CrashKind, function: str, line: int
) -> None:
    (report,) = reports((DATA / "boots" / f"debian-6.1-{name}.log").read_bytes())
    assert (report.kind, report.function, report.start_line) == (kind, function, line)
    assert report.fatal
    assert not report.truncated
    assert "Kernel Offset: " in report.text
