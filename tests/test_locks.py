"""kboot.locks, and the claims of machines that are built on them: many processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kboot.locks import is_locked, lock_directory, lock_file, try_lock

# One process that claims a machine of its own again and again, and lets go of it; it sees its own
# machine as it is, whatever others do.
CLAIMS = """
import os, sys, time
from kboot import service
from kboot.supervisor import registry
print('ready', flush=True)
sys.stdin.readline()
place = registry.directory_of(sys.argv[1])
ends = time.monotonic() + float(sys.argv[2])
tries = faults = 0
while time.monotonic() < ends:
    tries += 1
    try:
        lock = service.claim(place)
        place.order.write_text("{}")
        if not place.is_alive:
            raise RuntimeError("a machine that is held is said to be dead")
        os.close(lock)
        if place.is_alive:
            raise RuntimeError("a machine that nobody holds is said to be alive")
    except Exception as error:
        faults += 1
        print(repr(error), flush=True)
print(f"{faults} of {tries} went wrong", flush=True)
sys.exit(faults > 0 or tries < 10)
"""

# One process that looks which machines are alive, and removes the dead ones, as most commands do.
LOOKS = """
import sys, time
from kboot import service
from kboot.supervisor import registry
print('ready', flush=True)
sys.stdin.readline()
ends = time.monotonic() + float(sys.argv[1])
while time.monotonic() < ends:
    for place in service.known(registry.KIND):
        place.is_alive
        service.remove_if_dead(place)
"""


def test_machines_are_claimed_seen_and_cleared_by_many_at_once(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    commands = [[CLAIMS, name, "1"] for name in ("one", "two")] + [[LOOKS, "1"]] * 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", *command],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], "".join(said)[-2000:]


def test_who_looks_whether_a_lock_is_held_does_not_hold_it(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    looking = try_lock(tmp_path, shared=True)
    assert looking is not None
    # Somebody else looks at this very moment.
    assert not is_locked(tmp_path)
    os.close(looking)
    with lock_directory(tmp_path):
        assert is_locked(tmp_path)
        assert try_lock(tmp_path) is None


# Waits for the lock on a directory, and says what was in it then.
WAITS = """
import sys
from pathlib import Path
from kboot.locks import lock_directory
print("waits", flush=True)
with lock_directory(Path(sys.argv[1])):
    print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_a_lock_on_what_was_replaced_meanwhile_is_none(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with lock_directory(place):
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITS, str(place)], stdout=subprocess.PIPE, text=True
        )
        assert waiting.stdout
        assert waiting.stdout.readline() == "waits\n"
        place.rename(tmp_path / "old")
        place.mkdir()
        new = try_lock(place)
        assert new is not None
    (place / "new").touch()
    os.close(new)
    assert waiting.communicate(timeout=30)[0] == "['new']\n"


def test_a_lock_file_can_be_removed_by_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with lock_file(path):
            path.unlink()
    assert list(tmp_path.iterdir()) == []
