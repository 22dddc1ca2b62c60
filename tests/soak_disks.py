"""A kept disk, and a machine that is killed: ``python -m tests.soak_disks KERNEL.deb [COUNT]``.

It is killed while it writes to the disk's file system, by turns with its supervisor, and alone.
After each kill, all that the guest has ever synced is there, the file system is clean once its
journal has been replayed, the layer is whole, and the image below is untouched.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kboot.disks import kept_disks
from tests.users import User

DISK = "/dev/disk/by-id/virtio-data"
MOUNT = f"mkdir -p /mnt; grep -q /mnt /proc/mounts || mount -t ext4 {DISK} /mnt"
#: In the background, until the machine dies.
WRITE = "(while :; do dd if=/dev/urandom of=/mnt/noise bs=64k count=16 2>/dev/null; done) &"
_SIZE_MIB = 64


def digest(path: Path) -> str:
    """Of an image."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(user: User, command: str) -> str:
    """What the guest's shell answers."""
    return user.type("exec", "--", "sh", "-c", command)


def qemu_of(supervisor: int) -> int:
    """The machine's own process."""
    children = Path(f"/proc/{supervisor}/task").glob("*/children")
    pids = {int(word) for path in children for word in path.read_text().split()}
    (found,) = (pid for pid in pids if "qemu-system" in Path(f"/proc/{pid}/cmdline").read_text())
    return found


def check(layer: Path, image: Path, before: str, scratch: Path) -> str:
    """What e2fsck says of the disk as the kill has left it."""
    checked = subprocess.run(["qemu-img", "check", "-U", layer], capture_output=True, check=False)
    # 3: leaked clusters, which cost room and nothing else.
    assert checked.returncode in {0, 3}, checked
    assert digest(image) == before, "the image was written to"
    subprocess.run(
        ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", layer, scratch], check=True
    )
    # As at boot: replay the journal, mend what is safe, and no more.
    preened = subprocess.run(["e2fsck", "-p", scratch], capture_output=True, text=True, check=False)
    assert preened.returncode in {0, 1}, preened
    again = subprocess.run(["e2fsck", "-fn", scratch], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again
    return "recovered" if "recovering journal" in preened.stdout else "clean"


def kill(user: User, image: Path, package: str, count: int) -> None:
    """Kill the machine so many times, and look at its disk each time."""
    scratch = image.with_name("scratch.raw")
    before, written = digest(image), dict[str, str]()
    up = ("up", "--kernel", package, "--disk", f"data={image},keep", "--module", "ext4")
    user.type(*up)
    for number in range(count):
        run(user, MOUNT)
        texts = run(user, "cd /mnt; for f in kill*; do echo $f $(cat $f); done").splitlines()
        there = dict(line.split() for line in texts if "*" not in line)
        assert there == written, f"lost: {written.items() - there.items()}"
        name, text = f"kill{number:04d}", f"{random.getrandbits(64):x}"
        run(user, f"echo {text} >/mnt/{name}; sync; {WRITE}")
        written[name] = text
        time.sleep(random.uniform(0, 2))
        supervisor, alone = user.ask("status")["pid"], bool(number % 2)
        os.kill(qemu_of(supervisor) if alone else supervisor, signal.SIGKILL)
        time.sleep(0.5)
        (disk,) = kept_disks()
        state = check(disk.path, image, before, scratch)
        print(f"{number + 1}: {len(written)} files are there, {state}", flush=True)
        user.type(*(("restart",) if alone else up))


def main() -> None:
    """Run it."""
    package = str(Path(sys.argv[1]).resolve())
    count = int(sys.argv[2]) if sys.argv[2:] else 20
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder:
        os.environ["XDG_STATE_HOME"] = str(Path(folder, "state"))
        image = Path(folder, "image.raw")
        subprocess.run(["mkfs.ext4", "-q", image, f"{_SIZE_MIB}M"], check=True)
        user = User(Path(folder))
        try:
            kill(user, image, package, count)
        finally:
            user.try_("down")


if __name__ == "__main__":
    main()
