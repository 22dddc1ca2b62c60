"""A kernel that boots into a directory of this host, with another one shared."""

from __future__ import annotations

from pathlib import Path

from kboot.config import Config
from kboot.session import open_session
from tests.disk_images import tiny_tree


def test_a_directory_is_a_root_file_system_and_another_one_takes_results(
    debian_kernel: Path, tmp_path: Path
) -> None:
    tree, results = tiny_tree(tmp_path / "tree"), tmp_path / "results"
    results.mkdir()
    config = Config(
        kernel=str(debian_kernel), rootfs=str(tree), share=(f"{results}:out",), disk=("d=blank",)
    )
    with open_session(config, evidence=tmp_path / "evidence") as session:
        machine = session.machine(session.settings(config), name="directory")
        said = machine.guest.succeed(
            "cat /etc/hostname; echo written >/etc/hostname; cat /etc/hostname;"
            "ls /dev/disk/by-id; mkdir -p /mnt/out; mount -t 9p out /mnt/out;"
            "echo 42 >/mnt/out/result; uname -r"
        )
        assert said.split() == ["on-disk", "written", "virtio-d", session.kernel.release]
        assert (results / "result").read_text() == "42\n"
        assert (tree / "etc" / "hostname").read_text() == "on-disk\n"
        # It cannot be saved, so the next one boots; nothing is said of a failure.
        assert not session.snapshots.can_have(session.settings(config))
