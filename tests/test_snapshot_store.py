"""Saved machines are found by exactly what they depend on, and are checked."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kboot.cli import main
from kboot.deadline import Deadline
from kboot.snapshots import SnapshotStore, sparse
from kboot.state import cache_directory

PARTS = {"kernel": "abc", "qemu": "7.2"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SnapshotStore]:
    with SnapshotStore(tmp_path, limit_mib=100) as store:
        yield store


def fill(directory: Path) -> Mapping[str, str]:
    (directory / "memory").write_bytes(b"memory")
    (directory / "devices").write_bytes(b"devices")
    return {"nonce": "1234"}


def again(tmp_path: Path) -> SnapshotStore:
    """The store as another process sees it."""
    return SnapshotStore(tmp_path, limit_mib=100)


def test_what_was_added_is_found_by_the_same_parts(store: SnapshotStore, tmp_path: Path) -> None:
    store.add(PARTS, fill)
    with again(tmp_path) as other:
        entry = other.find(dict(reversed(PARTS.items())))
    assert entry is not None
    assert entry.note == {"nonce": "1234"}
    assert (entry.directory / "memory").read_bytes() == b"memory"


@pytest.mark.parametrize(
    "parts",
    [PARTS | {"qemu": "8.0"}, {"kernel": "abc"}, PARTS | {"host kernel": "6.1"}],
    ids=["another value", "one less", "one more"],
)
def test_other_parts_are_another_machine(store: SnapshotStore, parts: dict[str, str]) -> None:
    store.add(PARTS, fill)
    assert store.find(parts) is None


def flip_a_bit(directory: Path) -> None:
    (directory / "memory").write_bytes(b"memori")


def cut_off(directory: Path) -> None:
    os.truncate(directory / "devices", 3)


def lose_a_file(directory: Path) -> None:
    (directory / "devices").unlink()


def add_a_file(directory: Path) -> None:
    (directory / "more").write_bytes(b"")


def be_of_another(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["parts"]["kernel"] = "def"
    (directory / "manifest.json").write_text(json.dumps(manifest))


def be_of_another_format(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))


def be_no_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text("hello")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_off,
        lose_a_file,
        add_a_file,
        be_of_another,
        be_of_another_format,
        be_no_manifest,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_or_foreign_entry_is_refused_and_can_be_made_anew(
    store: SnapshotStore,
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    entry = store.add(PARTS, fill)
    assert entry
    damage(entry.directory)
    with again(tmp_path) as other, caplog.at_level(logging.WARNING):
        assert other.find(PARTS) is None
        assert "is refused and will be made anew" in caplog.text
        assert other.add(PARTS, fill) is not None


def test_an_entry_that_is_damaged_while_in_use_is_not_found_again(store: SnapshotStore) -> None:
    entry = store.add(PARTS, fill)
    assert entry
    assert store.find(PARTS) is entry
    flip_a_bit(entry.directory)
    assert store.find(PARTS) is None


def test_what_fails_while_it_is_made_leaves_nothing(store: SnapshotStore, tmp_path: Path) -> None:
    def fail(directory: Path) -> Mapping[str, str]:
        fill(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.add(PARTS, fail)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_begun_is_swept(store: SnapshotStore, tmp_path: Path) -> None:
    (tmp_path / ".new-0123").mkdir()
    (tmp_path / ".new-0123" / "memory").write_bytes(b"half")
    store.add(PARTS, fill)
    assert not (tmp_path / ".new-0123").exists()


def test_what_a_process_that_was_killed_while_it_removed_an_entry_has_left_is_swept(
    store: SnapshotStore, tmp_path: Path
) -> None:
    entry = store.add({"n": "half"}, fill)
    assert entry
    store.close()
    # The manifest may well be what goes first; then nobody knows any more what it was.
    (entry.directory / "manifest.json").unlink()
    waits = tmp_path / f"{entry.key}.lock"
    waits.touch()
    with again(tmp_path) as other:
        assert not waits.exists()
        assert not entry.directory.exists()
        kept = other.add(PARTS, fill)
        assert kept
        assert [path.name for path in tmp_path.iterdir()] == [kept.key]


# Makes entries and removes them, as fast as it can.
BUSY = """
import sys
from pathlib import Path
from kboot.deadline import Deadline
from kboot.snapshots import SnapshotStore
def fill(directory):
    for number in range(200):
        (directory / f"file{number}").write_bytes(b"content")
    return {}
with SnapshotStore(Path(sys.argv[1]), limit_mib=100) as store:
    print("ready", flush=True)
    for number in range(100_000):
        parts = {"n": str(number)}
        with store.making(parts, Deadline(5)):
            entry = store.add(parts, fill)
        store.close()
        store.remove(entry)
"""


@pytest.mark.parametrize("after_s", [0.05, 0.13])
def test_a_killed_process_leaves_nothing_that_stays(tmp_path: Path, after_s: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout
        assert busy.stdout.readline() == b"ready\n"
        time.sleep(after_s)
        busy.kill()
    with again(tmp_path) as store:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {entry.key for entry in store.entries()}
        assert len(names) <= 1


def test_an_entry_that_is_removed_and_made_again_is_held_by_who_uses_it(tmp_path: Path) -> None:
    with again(tmp_path) as first:
        entry = first.add(PARTS, fill)
        assert entry
        # Another one has removed it, and a third one made it again.
        first.discard(entry.key)
        with again(tmp_path) as second:
            assert second.add(PARTS, fill)
            first.close()
            assert not first.remove(entry)
        assert first.remove(entry)


def big(directory: Path) -> Mapping[str, str]:
    (directory / "memory").write_bytes(os.urandom(1 << 20))
    return {}


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    limit_mib = 4
    for number in range(6):
        with SnapshotStore(tmp_path, limit_mib=limit_mib) as store:
            if number:
                assert store.find({"n": "0"}) is not None
            store.add({"n": str(number)}, big)
    left = {entry.parts["n"] for entry in again(tmp_path).entries()}
    assert len(left) < limit_mib
    assert {"0", "5"} <= left


def test_what_somebody_uses_is_not_removed(store: SnapshotStore, tmp_path: Path) -> None:
    entry = store.add(PARTS, fill)
    assert entry
    other = again(tmp_path)
    assert not other.remove(entry)
    store.close()
    assert other.remove(entry)
    assert list(tmp_path.iterdir()) == []


def test_the_same_made_twice_at_once_is_one_entry(tmp_path: Path) -> None:
    meet = threading.Barrier(2)

    def add() -> None:
        def wait_and_fill(directory: Path) -> Mapping[str, str]:
            meet.wait(10)
            return fill(directory)

        with again(tmp_path) as store:
            assert store.add(PARTS, wait_and_fill) is not None

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(again(tmp_path).entries()) == 1
    assert not list(tmp_path.glob(".new-*"))


def test_who_makes_the_same_waits_for_it_but_not_for_ever(
    store: SnapshotStore, tmp_path: Path
) -> None:
    other = again(tmp_path)
    with store.making(PARTS, Deadline(1)):
        waited = Deadline(0.3)
        with other.making(PARTS, waited):
            assert waited.expired
        with other.making({"n": "0"}, Deadline(1)):
            pass


def test_zeros_are_neither_copied_nor_checked(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"begin" + bytes(1 << 20))
        file.seek(30 << 20)
        file.write(b"end")
    with source.open("rb") as read, target.open("wb") as write:
        sparse.copy(read.fileno(), write.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20
    assert sparse.digest(target) == sparse.digest(source)
    with target.open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"x")
    assert sparse.digest(target) != sparse.digest(source)


def test_the_length_counts_even_if_it_is_all_zeros(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").write_bytes(bytes(1001))
    (tmp_path / "c").write_bytes(b"")
    assert len({sparse.digest(tmp_path / name) for name in "abc"}) == 3


def test_the_cache_is_listed_and_cleared_but_for_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with SnapshotStore(cache_directory("snapshots"), limit_mib=100) as user:
        kept = user.add(PARTS, lambda directory: {**fill(directory), "about": "Linux 6.1, bios"})
        assert kept
        with SnapshotStore(cache_directory("snapshots"), limit_mib=100) as other:
            other.add({"n": "1"}, big)
        assert main(["cache", "--snapshot-cache=64M"]) == 0
        listed = capsys.readouterr().out.splitlines()
        assert kept.key[:12] in listed[0]
        assert listed[0].endswith("Linux 6.1, bios")
        assert listed[-1].startswith("2 saved machines, 1 MiB of at most 64 MiB")
        assert main(["cache", "--json"]) == 0
        assert [each["removed"] for each in json.loads(capsys.readouterr().out)] == [False] * 2
        assert main(["cache", "--clear"]) == 0
        cleared = capsys.readouterr().out.splitlines()
        assert cleared[0].endswith("in use, kept")
        assert cleared[1].endswith("removed")
        assert cleared[-1].startswith("1 saved machines")
        assert user.entries() == [kept]
