"""Fetch what is needed to boot a kernel for another architecture than this host's.

    fetch_foreign.py ARCHITECTURE SUITE:PACKAGE TARGET
    fetch_foreign.py ARCHITECTURE ipxe TARGET

puts Debian's current kernel package to the given path: the one that an empty package, such as
linux-image-cloud-arm64, depends on; or iPXE as a UEFI program. The tiny system's busybox and iPXE
go to kboot's cache, where kboot would put them itself at the first boot. Needs no root; nothing is
installed.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from kboot import arch
from kboot.arch import Architecture
from kboot.errors import KbootError
from kboot.kernel.debian import fetch_file, fetch_package, stanza


def kernel_package(row: Architecture, suite: str, package: str) -> Path:
    """The kernel that an empty package depends on."""
    index = f"{arch.DEBIAN_MIRROR}/dists/{suite}/main/binary-{row.debian}/Packages.xz"
    found = re.match(r"linux-image-[^\s,|()]+", stanza(index, package).get("Depends", ""))
    name = found[0] if found else package
    return fetch_package(name, suite=suite, architecture=row.debian)


def main(name: str, what: str, target: Path) -> None:
    """Fetch all of it. `KbootError` if something cannot be had."""
    row = arch.of(name)
    cached = [
        fetch_file(file, architecture=row.debian)
        for file in (row.ipxe_file, row.busybox_file)
        if file
    ]
    suite, _, package = what.partition(":")
    fetched = kernel_package(row, suite, package) if package else cached[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    shutil.copyfile(fetched, unfinished)
    unfinished.replace(target)
    sys.stderr.write(f"{row.debian}: {fetched.name} is at {target}\n")


if __name__ == "__main__":
    name, what, target = sys.argv[1:]
    try:
        main(name, what, Path(target))
    except KbootError as error:
        sys.exit(f"{name}: {error}")
