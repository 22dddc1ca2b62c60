"""Fetch what is needed to boot a kernel for another architecture than this host's.

    fetch_foreign.py ARCHITECTURE SUITE PACKAGE TARGET

puts Debian's current kernel package to the given path: the one that an empty package, such as
linux-image-cloud-arm64, depends on. The tiny system's busybox and iPXE go to kboot's cache, where
kboot would put them itself at the first boot. Needs no root; nothing is installed.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from kboot import arch
from kboot.errors import KbootError
from kboot.kernel.debian import fetch_file, fetch_package, stanza


def main(name: str, suite: str, package: str, target: Path) -> None:
    """Fetch all of it. `KbootError` if something cannot be had."""
    row = arch.of(name)
    for file in (row.ipxe_file, row.busybox_file):
        if file:
            fetch_file(file, architecture=row.debian)
    index = f"{arch.DEBIAN_MIRROR}/dists/{suite}/main/binary-{row.debian}/Packages.xz"
    depends = stanza(index, package).get("Depends", "")
    found = re.match(r"linux-image-[^\s,|()]+", depends)
    kernel = found[0] if found else package
    fetched = fetch_package(kernel, suite=suite, architecture=row.debian)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    shutil.copyfile(fetched, unfinished)
    unfinished.replace(target)
    sys.stderr.write(f"kernel: {kernel} is at {target}\n")


if __name__ == "__main__":
    name, suite, package, target = sys.argv[1:]
    try:
        main(name, suite, package, Path(target))
    except KbootError as error:
        sys.exit(f"kernel: {error}")
