"""Record the boot, and the panic, that `kboot.testing` replays: ``-m tests.record_boot KERNEL``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from kboot.config import Config
from kboot.session import open_session
from kboot.testing import RECORDED_BOOT

#: Fewer lines of the kernel; all that identifies it, and that belongs to a panic, are in the rest.
_QUIET = "loglevel=7 acpi=off nopvspin mitigations=off"

_FIRMWARE = b"SeaBIOS (version"


def main() -> None:
    """Boot the kernel in the first argument, let it panic and come back, and keep its evidence."""
    config = Config(kernel=sys.argv[1], cmdline=_QUIET, isolation="none")
    with tempfile.TemporaryDirectory() as folder:
        with open_session(config, evidence=Path(folder)) as session:
            machine = session.machine(session.settings(config), name="recorded")
            with machine.expect_crash("panic"):
                machine.panic()
            machine.wait_for_reboot()
            evidence = machine.evidence_directory
        RECORDED_BOOT.mkdir(exist_ok=True)
        for name in ("boot.ipxe", "access.jsonl"):
            shutil.copy(evidence / name, RECORDED_BOOT / name)
        console = (evidence / "serial.log").read_bytes()
        (RECORDED_BOOT / "serial.log").write_bytes(console[: second_boot(console)])


def second_boot(console: bytes) -> int:
    """Where the firmware speaks for the second time, at the beginning of its line."""
    first = console.index(_FIRMWARE)
    return console.rindex(b"\n", 0, console.index(_FIRMWARE, first + 1)) + 1


if __name__ == "__main__":
    main()
