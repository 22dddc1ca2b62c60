"""What is kept in the cache, and what is not kept for ever."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from kboot.cache import keep_directory, keep_file, remove_unused
from kboot.cli import cli


def test_what_nobody_has_used_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    place = tmp_path / "rootfs"
    keep_file(place, "old.cpio", [b"x" * 1000])
    keep_directory(place / "folder", lambda made: made.joinpath("image").touch())
    since = time.time() + 0.05
    time.sleep(0.1)
    new = keep_file(place, "new.cpio", [b"y"])
    assert remove_unused(place, since) == (2, 1000)
    assert [path.name for path in place.iterdir() if path.name != ".lock"] == [new.name]
    assert remove_unused(tmp_path / "none", since) == (0, 0)


def test_prune_says_what_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_file(tmp_path / "kboot/rootfs", "overlay.cpio", [b"x" * 2000])
    run = CliRunner()
    kept = run.invoke(cli, ["rootfs", "prune"])
    assert kept.output == "nothing to remove\n"
    pruned = run.invoke(cli, ["rootfs", "prune", "--days", "0"])
    assert pruned.output == "small images (tiny systems, overlays, modules): 1 removed, 2.0 kB\n"
    for name in ("downloads", "kernels"):
        keep_file(tmp_path / "kboot" / name / "of-one", "vmlinuz", [b"x" * 1000])
    assert run.invoke(cli, ["rootfs", "prune"]).output == "nothing to remove\n"
    assert run.invoke(cli, ["rootfs", "prune", "--days", "0"]).output.splitlines() == [
        "downloaded kernels and disk images: 1 removed, 1.0 kB",
        "kernels unpacked from packages: 1 removed, 1.0 kB",
    ]
