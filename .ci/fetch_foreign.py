"""Fetch what is needed to boot a kernel for another architecture than this host's.

    fetch_foreign.py ARCHITECTURE SUITE:PACKAGE TARGET
    fetch_foreign.py ARCHITECTURE ipxe TARGET
    fetch_foreign.py ARCHITECTURE SUITE:headers:KERNEL TARGET

puts Debian's current kernel package to the given path: the one that an empty package, such as
linux-image-cloud-arm64, depends on; or iPXE as a UEFI program; or a directory with the headers of
Debian 12's KERNEL package: `make -C TARGET/build ARCH=... CROSS_COMPILE=... M=...` builds modules.
The tiny system's busybox and iPXE go to kboot's cache, where kboot would put them itself at the
first boot. Needs no root; nothing is installed.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from kboot import arch, process
from kboot.arch import Architecture
from kboot.errors import InfraError, KbootError
from kboot.kernel.debian import fetch_file, fetch_package, stanza


def kernel_package(row: Architecture, suite: str, package: str) -> Path:
    """The kernel that an empty package depends on."""
    index = f"{arch.DEBIAN_MIRROR}/dists/{suite}/main/binary-{row.debian}/Packages.xz"
    found = re.match(r"linux-image-[^\s,|()]+", stanza(index, package).get("Depends", ""))
    name = found[0] if found else package
    return fetch_package(name, suite=suite, architecture=row.debian)


def unpack_headers(row: Architecture, suite: str, kernel: Path, target: Path) -> None:
    """What builds modules for the kernel, with the tools of this host's architecture."""
    release = control_of(kernel)["Package"].removeprefix("linux-image-")
    common = f"linux-headers-{release.rpartition('-')[0]}-common"
    headers = f"linux-headers-{release}"
    kbuild = f"linux-kbuild-{'.'.join(release.split('.')[:2])}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        root = Path(folder) / "root"
        for package, debian in (
            (headers, row.debian),
            (common, row.debian),
            (kbuild, arch.host().debian),
        ):
            fetched = fetch_package(package, suite=suite, architecture=debian)
            if control_of(fetched)["Version"] != control_of(kernel)["Version"]:
                raise InfraError(
                    f"{fetched.name} does not fit {kernel}; remove that, and try again"
                )
            process.run(["dpkg-deb", "-x", str(fetched), str(root)], timeout_s=300)
        # The package's own Makefile has the absolute path it would be installed to.
        (root / "usr/src" / headers / "Makefile").write_text(
            f"include $(dir $(lastword $(MAKEFILE_LIST)))../{common}/Makefile\n"
        )
        (root / "build").symlink_to(f"usr/src/{headers}")
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)


def control_of(package: Path) -> dict[str, str]:
    """The fields of a package that have one line."""
    text = process.run(["dpkg-deb", "-f", str(package)], timeout_s=30).stdout.decode()
    return dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", text, re.MULTILINE))


def main(name: str, what: str, target: Path) -> None:
    """Fetch all of it. `KbootError` if something cannot be had."""
    row = arch.of(name)
    suite, _, package = what.partition(":")
    if package.startswith("headers:"):
        unpack_headers(row, suite, Path(package.partition(":")[2]), target)
        return
    cached = [
        fetch_file(file, architecture=row.debian)
        for file in (row.ipxe_file, row.busybox_file)
        if file
    ]
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
