"""Bisections of a failure that shows now and then, on a host that fails now and then.

``python -m tests.soak_bisect DEBIAN.deb HEADERS CLOUD.deb HEADERS [REAL REPLAYED]``

In a git repository of 64 commits, each says which of two real kernels its build takes, and has the
source of a module that crashes in 30 % of its loads from one commit on. While `kboot bisect` boots
them, one machine in ten is killed, and the search itself once. `REAL` searches (3) boot real
machines; in `REPLAYED` ones (200), boots are replayed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kboot import Config
from kboot.bisect.history import open_git
from kboot.bisect.search import Search, Trial
from kboot.bisect.trials import Boots, Failure
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.kernel import read_kernel
from kboot.machine_spec import MachineSpec
from kboot.testing import FakeBackend, GuestAction, write_kernel
from kboot.testing.backend import FakeVirtualMachine
from tests.users import User

COMMITS = 64
#: How often the module crashes, and the host fails.
FAILS_PERCENT = 30
HOST_FAILS = 0.1
#: The search itself is killed after so many boots.
_KILLED_AFTER = 12
#: Searches with replayed machines.
_AT_ONCE = 4
_FUNCTION = "flaky_start"

_FILES = {
    "Kbuild": "obj-m := flaky.o\n",
    "flaky.c": f"""\
// SPDX-License-Identifier: GPL-2.0-only
#include <linux/module.h>
#include <linux/random.h>
#include "fails.h"

static int *volatile nowhere;

static noinline int {_FUNCTION}(void)
{{
	if (get_random_u32() % 100 < FAILS_PERCENT)
		*nowhere = 1;
	return 0;
}}

static int __init flaky_init(void)
{{
	return {_FUNCTION}();
}}

module_init(flaky_init);
MODULE_LICENSE("GPL");
""",
    "build.sh": """\
set -eu
kernel=$KERNELS/$(cat kernel)
release=$(cat "$kernel/release")
make -s -C "$kernel/headers" M="$PWD" modules
rm -rf image
mkdir -p image/boot "image/lib/modules/$release/kernel"
cp "$kernel/vmlinuz" "image/boot/vmlinuz-$release"
cp flaky.ko "image/lib/modules/$release/kernel"
""",
}


def write_repository(folder: Path, *, culprit: int, chance: random.Random) -> list[str]:
    """Make a repository whose commit number `culprit` is the first bad one; its commits."""
    folder.mkdir()
    _git(folder, "init", "-q", "-b", "main")
    script = []
    for number in range(COMMITS):
        files = {
            "number": f"{number}\n",
            # Which of the two it is has nothing to do with the failure.
            "kernel": chance.choice(("debian\n", "cloud\n")),
            "fails.h": f"#define FAILS_PERCENT {FAILS_PERCENT if number >= culprit else 0}\n",
            **(_FILES if number == 0 else {}),
        }
        script.append("commit refs/heads/main")
        script.append(f"committer x <x@example.org> {1000 + number} +0000")
        script.append(f"data {len(str(number))}\n{number}")
        script += [f"M 644 inline {name}\ndata {len(text)}\n{text}" for name, text in files.items()]
    _git(folder, "fast-import", "--quiet", text="\n".join(script) + "\n")
    _git(folder, "reset", "-q", "--hard")
    return _git(folder, "rev-list", "--reverse", "main").split()


def _git(folder: Path, *arguments: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, input=text, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def check_replay(repository: Path, clone: Path, log: str, culprit: str) -> None:
    """``git bisect replay`` comes to the same commit."""
    _git(repository.parent, "clone", "-q", str(repository), str(clone))
    (clone / "bisect.log").write_text(log)
    _git(clone, "bisect", "replay", "bisect.log")
    assert _git(clone, "rev-parse", "refs/bisect/bad") == culprit
    shutil.rmtree(clone)


# ----------------------------------------------------------------------------------- real machines


def write_kernels(folder: Path, packages: dict[str, tuple[Path, Path]]) -> Path:
    """What builds take kernels and headers from, by the names in `packages`."""
    for name, (package, headers) in packages.items():
        place = folder / name
        place.mkdir(parents=True)
        kernel = read_kernel(package)
        shutil.copy(kernel.image, place / "vmlinuz")
        (place / "release").write_text(kernel.release)
        (place / "headers").symlink_to(headers.resolve())
    return folder


class Faults:
    """Kills one machine in ten of those that a process starts."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._seen: set[int] = set()
        self._due: dict[int, float] = {}
        #: Of machines that were killed before they ended.
        self.count = 0

    def look(self, pid: int) -> None:
        """To be called some times a second."""
        now = time.monotonic()
        machines = {each for each in _descendants(pid) if "qemu" in _name(each)}
        for machine in machines - self._seen:
            if self._chance.random() < HOST_FAILS:
                self._due[machine] = now + self._chance.uniform(0.2, 3)
        self._seen |= machines
        for machine in [each for each, when in self._due.items() if when <= now]:
            del self._due[machine]
            if machine in machines:
                os.kill(machine, signal.SIGKILL)
                self.count += 1

    def check_none_is_left(self) -> None:
        """The process was killed: its machines end with it."""
        for _ in Deadline(20).poll(0.1):
            if not any("qemu" in _name(machine) for machine in self._seen):
                return
        raise AssertionError("a machine is left")


def _descendants(pid: int) -> Iterator[int]:
    try:
        found = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text(encoding="ascii").split()
        ]
    except OSError:
        return
    for child in found:
        yield child
        yield from _descendants(child)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii")
    except OSError:
        return ""


def search_real(user: User, kernels: Path, number: int, chance: random.Random) -> None:
    """One search with real boots."""
    culprit = chance.randrange(1, COMMITS)
    repository = user.home / f"repository-{number}"
    commits = write_repository(repository, culprit=culprit, chance=chance)
    user.environ["KERNELS"] = str(kernels)
    log = user.home / f"bisect-{number}.log"
    command = user.command(
        *("bisect", commits[0], commits[-1], "--repo", str(repository)),
        *("--build", "sh build.sh", "--image", "image", "--module", "flaky", "--settle", "0.3"),
        *("--title", f"NULL pointer dereference in {_FUNCTION}", "--accel", "tcg"),
        *("--log", str(log), "--json"),
    )
    faults = Faults(chance)
    start = time.monotonic()
    assert _run(user, command, faults, kill_after=_KILLED_AFTER) is None
    faults.check_none_is_left()
    found = json.loads(_run(user, command, faults) or "")
    took_s = time.monotonic() - start
    tallies = found["revisions"].values()
    infra = sum(each["infra"] for each in tallies)
    others = sum(each["others"] for each in tallies)
    print(
        f"real search {number}: culprit {commits.index(found['culprit'])}, and it is {culprit}; "
        f"{found['boots']} boots in {took_s:.0f} s, {infra} failed by the host "
        f"({faults.count} machines were killed), {others} in other ways; "
        f"rate {found['rate']:.2f}, confidence {found['confidence']:.4f}",
        flush=True,
    )
    assert found["culprit"] == commits[culprit]
    assert found["parents"] == [commits[culprit - 1]]
    assert found["confidence"] >= 0.99
    check_replay(repository, user.home / "clone", log.read_text(), found["culprit"])


def _run(user: User, command: list[str], faults: Faults, *, kill_after: int = 0) -> str | None:
    """What the search prints, or None if it was killed after so many boots."""
    before = _boots(user)
    with subprocess.Popen(
        command, cwd=user.home, env=user.environ, stdout=subprocess.PIPE, text=True
    ) as child:
        while child.poll() is None:
            faults.look(child.pid)
            time.sleep(0.1)
            if kill_after and _boots(user) - before >= kill_after:
                child.kill()
                child.wait()
                return None
        assert child.returncode == 0, child.returncode
        assert child.stdout
        return child.stdout.read()


def _boots(user: User) -> int:
    """How many are on record."""
    place = Path(user.environ["XDG_STATE_HOME"], "kboot", "bisect")
    return sum(path.read_bytes().count(b'"trial"') for path in place.glob("*/trials.jsonl"))


# -------------------------------------------------------------------------------- replayed machines


class _FailingHost(FakeBackend):
    """Replays boots whose guest crashes now and then, on a host that fails now and then."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(commands=self._answer)
        self._chance = chance
        self.is_bad = False

    def _answer(self, command: str) -> GuestAction | str | None:
        if "flaky" not in command:
            return None
        fails = self.is_bad and self._chance.random() * 100 < FAILS_PERCENT
        return GuestAction.PANIC if fails else ""

    @contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[FakeVirtualMachine]:
        if self._chance.random() < HOST_FAILS:
            raise InfraError("no machine can be had")
        with super().power_on(spec, deadline) as machine:
            yield machine


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a search with replayed boots went."""

    is_right: bool
    boots: int
    infra: int


def search_replayed(seed: int) -> Replayed:
    """One search whose boots are replayed; its commits are those of a repository."""
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as name:
        return _search_replayed(Path(name), random.Random(seed))


def _search_replayed(folder: Path, chance: random.Random) -> Replayed:
    culprit = chance.randrange(1, COMMITS)
    repository = folder / "repository"
    commits = write_repository(repository, culprit=culprit, chance=chance)
    kernel = write_kernel(folder / "vmlinuz", "6.18.0-ours")
    backend = _FailingHost(chance)
    # As long as a replayed guest may take to die of a command.
    failure = Failure(command="modprobe flaky", title="sysrq triggered", settle_s=0.1)
    with (
        open_git(repository, folder / "worktree", commits[0], commits[-1]) as history,
        Boots(Config(), failure, evidence=folder / "evidence", backend=backend) as boots,
    ):

        def trial(revision: str) -> Trial:
            backend.is_bad = commits.index(revision) >= culprit
            return boots.boot(revision, kernel)

        found = Search(history, trial).run()
    check_replay(repository, folder / "clone", found.log, str(found.culprit))
    return Replayed(
        is_right=found.culprit == commits[culprit],
        boots=found.boots,
        infra=sum(each.infra for each in found.tallies.values()),
    )


def search_all_replayed(count: int) -> None:
    """So many searches, several at once: each waits for its guests most of the time."""
    start = time.monotonic()
    with ProcessPoolExecutor(max_workers=_AT_ONCE) as workers:
        done = list(workers.map(search_replayed, range(count)))
    right = sum(each.is_right for each in done)
    boots = sum(each.boots for each in done)
    print(
        f"replayed searches: {right} of {count} are right; {boots / count:.0f} boots each, "
        f"{sum(each.infra for each in done)} of {boots} failed by the host; "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    assert right >= 0.99 * count


def main() -> None:
    """Run them."""
    logging.getLogger("kboot").setLevel(logging.ERROR)
    debian, debian_headers, cloud, cloud_headers = map(Path, sys.argv[1:5])
    real, replayed = map(int, sys.argv[5:7] or (3, 200))
    chance = random.Random()
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as name:
        folder = Path(name)
        packages = {"debian": (debian, debian_headers), "cloud": (cloud, cloud_headers)}
        kernels = write_kernels(folder / "kernels", packages)
        user = User(folder)
        for number in range(1, real + 1):
            search_real(user, kernels, number, chance)
    if replayed:
        search_all_replayed(replayed)


if __name__ == "__main__":
    main()
