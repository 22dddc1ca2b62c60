"""What a boot leaves behind: a directory with enough in it to understand it, and to repeat it.

``boot.ipxe served.json serial.log serial.timing access.jsonl nginx.conf nginx.log qemu.argv
qemu.log result.json``
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kboot import __version__
from kboot.errors import ConfigError, GuestError, InfraError, KbootError
from kboot.evidence import FORMAT_VERSION
from kboot.log import logger
from kboot.machine.boot import Boot
from kboot.machine.phases import ORDER
from kboot.machine.script_watch import rows

if TYPE_CHECKING:
    from kboot.machine.machine import Machine


def prepare(directory: Path) -> None:
    """Make the directory; `ConfigError` if that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot keep evidence there: {error.strerror}; "
            "choose another place with --evidence"
        ) from error


def discard_script(directory: Path) -> None:
    """Remove the script of a machine that never was, and its directory, if that is empty."""
    with contextlib.suppress(OSError):
        (directory / "boot.ipxe").unlink(missing_ok=True)
        directory.rmdir()


def verdict(error: BaseException | None) -> str:
    """How the machine ended, by who was at fault.

    ``passed``; ``failed``: the guest; ``error``: the host or the user; ``interrupted``; ``test
    failed``: an exception of the caller's own, such as a test's AssertionError.
    """
    match error:
        case None:
            return "passed"
        case GuestError():
            return "failed"
        case InfraError() | ConfigError():
            return "error"
        case KeyboardInterrupt() | SystemExit():
            return "interrupted"
        case _:
            return "test failed"


def result(machine: Machine, error: BaseException | None, *, duration_s: float) -> dict[str, Any]:
    """The content of result.json, which `kboot.evidence` reads."""
    start = time.monotonic() - duration_s
    return {
        "version": FORMAT_VERSION,
        "kboot": __version__,
        "name": machine.name,
        "started": (datetime.now(UTC) - timedelta(seconds=duration_s)).isoformat(),
        "console_began_s": round(machine.console.started_s - start, 3),
        "verdict": verdict(error),
        "error": None if error is None else {"class": type(error).__name__, "message": str(error)},
        "kernel": {
            "source": machine.kernel.source,
            "release": machine.kernel.release,
            "version": machine.kernel.version,
            "architecture": machine.kernel.architecture,
            "sha256": machine.kernel.sha256,
        },
        "command_line": machine.command_line,
        "settings": machine.settings.as_dict(),
        "machine": machine.machine_description,
        "duration_s": round(duration_s, 3),
        "ipxe": machine.ipxe and dataclasses.asdict(machine.ipxe),
        "boots": [_boot(boot, start) for boot in machine.boots],
        "scripts": [rows(boot.script.chained, boot.start) for boot in machine.boots],
        "boot_ids": machine.boot_ids,
        # Then the first boot is that of the machine which was saved.
        "restored_from": machine.restored_from,
        "crashes": [dataclasses.asdict(report) for report in machine.console.reports],
        "allowed": [
            {"title": allowed.report.title, "by": str(allowed.by)}
            for allowed in machine.report_filter.allowed
        ],
        "commands": [dataclasses.asdict(command) for command in machine.commands],
    }


def _boot(boot: Boot, start: float) -> dict[str, Any]:
    """One boot of a machine that was powered on at `start`; its times are since its beginning."""
    return {
        "began_s": round(boot.start - start, 3),
        "milestones": [
            {
                "phase": phase.value,
                "time_s": round(boot.reached[phase].time - boot.start, 3),
                "witness": boot.reached[phase].witness,
                "witnesses": {
                    witness: round(time_ - boot.start, 3)
                    for (seen, witness), time_ in boot.sightings.items()
                    if seen is phase
                },
            }
            for phase in ORDER
            if phase in boot.reached
        ],
    }


def write(machine: Machine, error: BaseException | None, *, duration_s: float) -> None:
    """Write all but the serial record, which the console writes as it comes.

    A host that cannot be asked any more, or a full disk, costs a part of the evidence and a
    warning, never the error that it is evidence of.
    """
    directory = machine.evidence_directory
    faults: dict[str, None] = {}
    with _kept(faults):
        machine.server.evidence(directory)
    with _kept(faults):
        machine.vm.evidence(directory)
    with _kept(faults):
        _write_lines(directory / "access.jsonl", [dataclasses.asdict(f) for f in machine.fetches])
    with _kept(faults):
        text = json.dumps(result(machine, error, duration_s=duration_s), indent=2, default=_plain)
        (directory / "result.json").write_text(text + "\n", encoding="utf-8")
    if faults:
        logger.warning("%s: a part of the evidence is missing: %s", directory, "; ".join(faults))


def _plain(value: object) -> str:
    """What JSON does not know; a time in the form that is read again."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


@contextlib.contextmanager
def _kept(faults: dict[str, None]) -> Iterator[None]:
    """Keep what goes wrong in `faults`, the same words once."""
    try:
        yield
    except OSError as error:
        faults[error.strerror or str(error)] = None
    except KbootError as error:
        faults[str(error)] = None
