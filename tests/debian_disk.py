"""A Debian on a disk that boots by itself: ``python -m tests.debian_disk TARGET.qcow2 [SUITE]``.

Made of Debian's packages by mmdebstrap: its own kernel and initramfs, GRUB for a BIOS and for UEFI,
cloud-init, ssh. Nobody can log in but by what cloud-init is given. Needs root, for the owners of
files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kboot.arch import DEBIAN_MIRROR
from tests.disk_images import bootable, ext4

PACKAGES = (
    *("systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "iproute2", "ifupdown"),
    *("isc-dhcp-client", "openssh-server", "ca-certificates", "cloud-init"),
    *("initramfs-tools", "linux-image-cloud-amd64"),
)
#: GRUB shows a menu, as that of a distribution does.
CONFIGURATION = """\
set timeout=1
menuentry Debian {
    search --no-floppy --label --set=root root
    linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0,115200
    initrd /initrd.img
}
"""
_SIZE_MIB = 2048


def tree(place: Path, suite: str) -> Path:
    """The files of the system."""
    root = place / "root"
    command = [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        '--customize-hook=echo "LABEL=root / ext4 defaults 0 1" > "$1/etc/fstab"',
        '--customize-hook=echo debian > "$1/etc/hostname"',
        '--customize-hook=chroot "$1" passwd --lock root',
        suite,
        str(root),
        DEBIAN_MIRROR,
    ]
    apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    subprocess.run([*apart, *command], check=True)
    return root


def make(target: Path, suite: str) -> None:
    """Write the image."""
    with tempfile.TemporaryDirectory(prefix="kboot-disk-", dir=target.parent) as folder:
        place = Path(folder)
        root = ext4(place / "root.ext4", tree(place, suite), size_mib=_SIZE_MIB, label="root")
        raw = bootable(place / "disk.raw", CONFIGURATION, {}, root)
        compressed = ("qemu-img", "convert", "-c", "-O", "qcow2", raw, place / "disk.qcow2")
        subprocess.run(compressed, check=True)
        (place / "disk.qcow2").rename(target)


def main() -> None:
    """Make it, if it is not there."""
    target, suite = Path(sys.argv[1]).absolute(), (sys.argv[2:] or ["bookworm"])[0]
    if target.is_file():
        return
    if os.geteuid():
        sys.exit(f"{target}: only root can give files in a file system their owners")
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    make(target, suite)
    print(f"{target}: {target.stat().st_size >> 20} MiB in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
