"""A Debian system for the benchmarks: systemd, a login on the serial line, 55 MB compressed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from kboot import process

IMAGE = Path("build/bench/debian.cpio.zst")

_SETUP = (
    "echo root:kboot | chpasswd; ln -s sbin/init /init; echo bench >/etc/hostname; "
    "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin"
)


def debian_initramfs() -> Path:
    """An initramfs made by mmdebstrap; kept in build/, since that takes a minute. Needs root."""
    if IMAGE.is_file():
        return IMAGE
    sys.stderr.write("bench: mmdebstrap makes a Debian system\n")
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder:
        root = Path(folder, "root")
        process.run(
            [
                "mmdebstrap",
                "--variant=minbase",
                "--include=systemd-sysv,udev,dbus,iproute2",
                f"--customize-hook=chroot $1 sh -c '{_SETUP}'",
                "bookworm",
                str(root),
            ],
            timeout_s=900,
        )
        names = b"\n".join(_names(root))
        archive = process.run(
            ["cpio", "--create", "--format=newc", "--quiet"], stdin=names, cwd=root, timeout_s=300
        ).stdout
        packed = process.run(["zstd", "-10", "-T0", "-q"], stdin=archive, timeout_s=600).stdout
        new = IMAGE.with_suffix(".new")
        new.write_bytes(packed)
        shutil.move(new, IMAGE)
    return IMAGE


def _names(root: Path) -> list[bytes]:
    """Everything below `root`, each directory before what it holds."""
    return [bytes(path.relative_to(root)) for path in sorted(root.rglob("*"))]
