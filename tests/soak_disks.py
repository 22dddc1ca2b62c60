"""A kept disk, and a supervisor that is killed: ``python -m tests.soak_disks KERNEL.deb [COUNT]``.

After each kill, all that the guest has ever written to the disk is there, the layer is whole, and
the image below is untouched.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from kboot.disks import kept_disks
from tests.users import User

_BLOCKS = 2048
DISK = "/dev/disk/by-id/virtio-data"


def digest(path: Path) -> str:
    """Of an image."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_block(user: User, number: int) -> str:
    """What is in a block of the guest's disk."""
    return user.type(
        "exec", "--", "sh", "-c", f"dd if={DISK} bs=4096 skip={number} count=1 | head -c 8"
    )


def main() -> None:
    """Run it."""
    package = str(Path(sys.argv[1]).resolve())
    count = int(sys.argv[2]) if sys.argv[2:] else 20
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder:
        os.environ["XDG_STATE_HOME"] = str(Path(folder, "state"))
        image = Path(folder, "image.raw")
        image.write_bytes(bytes(range(1, 201)) + bytes((_BLOCKS * 4096) - 200))
        before, written = digest(image), dict[int, str]()
        user = User(Path(folder))
        up = ("up", "--kernel", package, "--disk", f"data={image},keep")
        for number in range(count):
            user.type(*up)
            for block, text in written.items():
                assert read_block(user, block) == text, f"block {block} is lost"
            block, text = random.randrange(_BLOCKS), f"kill{number:04d}"
            user.type(
                "exec",
                "--",
                "sh",
                "-c",
                f"printf {text} | dd of={DISK} bs=4096 seek={block} conv=sync",
            )
            written[block] = text
            os.kill(user.ask("status")["pid"], signal.SIGKILL)
            (disk,) = kept_disks()
            checked = subprocess.run(
                ["qemu-img", "check", "-U", disk.path], capture_output=True, check=False
            )
            # 3: leaked clusters, which cost room and nothing else.
            assert checked.returncode in {0, 3}, checked
            assert digest(image) == before, "the image was written to"
            print(f"{number + 1}: {len(written)} blocks are there", flush=True)
        user.try_("down")


if __name__ == "__main__":
    main()
