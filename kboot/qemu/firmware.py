"""Find UEFI firmware through the descriptors that distributions install for QEMU.

The format is docs/interop/firmware.json in QEMU's sources: one JSON file for each firmware, read in
the order of their names. Where there is none, the usual places are looked at.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import arch
from kboot.errors import InfraError

_FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))

#: What EDK II's own network boot says first: it does not know what to do with a URL from DHCP.
EDK2_CLIENT = re.compile(r">>Start (?:PXE|HTTP Boot) over IPv[46]")

#: Firmware that refuses an unsigned kernel, or needs a machine that kboot does not build.
_UNWANTED = {"enrolled-keys", "secure-boot", "requires-smm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UefiFirmware:
    """A firmware image and the template of its variables."""

    code: Path
    variables_template: Path
    format: str


def parse_descriptor(text: str, *, architecture: str, machine: str) -> UefiFirmware | None:
    """The firmware of one descriptor, or None if it does not fit. ValueError if it is damaged."""
    descriptor: dict[str, Any] = json.loads(text)
    try:
        mapping = descriptor["mapping"]
        fits = (
            "uefi" in descriptor["interface-types"]
            and mapping["device"] == "flash"
            and mapping.get("mode", "split") == "split"
            and not _UNWANTED & set(descriptor["features"])
            and any(
                target["architecture"] == architecture
                and any(fnmatch.fnmatch(machine, pattern) for pattern in target["machines"])
                for target in descriptor["targets"]
            )
        )
        if not fits:
            return None
        return UefiFirmware(
            code=Path(mapping["executable"]["filename"]),
            variables_template=Path(mapping["nvram-template"]["filename"]),
            format=mapping["executable"]["format"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a firmware descriptor: {error!r}") from error


def find_uefi(
    architecture: str,
    *,
    folders: tuple[Path, ...] = _FOLDERS,
    root: Path = Path("/"),
) -> UefiFirmware:
    """The first installed UEFI firmware that fits; `InfraError` if there is none."""
    row = arch.of(architecture)
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "qemu/firmware"
    for folder in (user, *folders):
        for path in sorted(folder.glob("*.json")):
            try:
                found = parse_descriptor(
                    path.read_text(encoding="utf-8"),
                    architecture=architecture,
                    machine=row.machine_version,
                )
            except (OSError, ValueError):
                continue
            if found and found.code.is_file() and found.variables_template.is_file():
                return found
    for code, variables in ((root / code, root / variables) for code, variables in row.uefi_places):
        if code.is_file() and variables.is_file():
            image_format = "qcow2" if code.suffix == ".qcow2" else "raw"
            return UefiFirmware(code=code, variables_template=variables, format=image_format)
    raise InfraError(
        f"no UEFI firmware for {architecture} on this host; "
        f"install it: apt-get install {row.uefi_package}"
    )
