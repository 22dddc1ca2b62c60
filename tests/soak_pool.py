"""Leases in a row: ``python -m tests.soak_pool KERNEL.deb [LEASES [PANICS [KILLED [POOLS]]]]``.

A pool of four. Machines are leased and given back, some of them panicked by who has them; QEMUs of
machines that wait are killed, holders are killed, and at last the pool itself. Nobody may ever get
a machine that was used, nothing may be left, and there may never be fewer than four for longer
than it takes to restore what is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from kboot import service
from kboot.pool.service import KIND
from kboot.statistics import median

_NAME = "soak"
_REPLICAS = 4
_TOUCH = "test ! -e /root/mark && touch /root/mark"


def kboot(*words: str) -> list[str]:
    """A command of kboot's."""
    return [sys.executable, "-m", "kboot", *words]


def up(kernel: str) -> None:
    """A pool that is complete."""
    subprocess.run(
        kboot("pool", "up", _NAME, f"--replicas={_REPLICAS}", f"--kernel={kernel}", "--accel=tcg"),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def lease(command: str, *, check: bool = True) -> float:
    """Have a machine and run a command in its guest; seconds."""
    begin = time.monotonic()
    inner = kboot("pool", "exec", "--", command)
    subprocess.run(kboot("pool", "acquire", _NAME, "--", *inner), check=check)
    return time.monotonic() - begin


def killed_holder() -> None:
    """A holder that is killed while it has a machine."""
    words = kboot("pool", "acquire", _NAME, "--", "sh", "-c", "echo here; exec sleep 60")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"here\n"
        holder.kill()


def status() -> dict[str, Any]:
    """The pool's."""
    found: dict[str, Any] = service.ask(service.find(KIND, _NAME), "status")
    return found


class Watch:
    """Looks at the pool all the time: how long it has fewer machines than it should."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        #: Of each time that some were missing: seconds, and how many at the most.
        self.gaps: list[tuple[float, int]] = []
        #: Seconds that each machine took to start, by its name.
        self.starts: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        since, most = 0.0, 0
        while not self._ended.wait(0.02):
            machines = status()["machines"]
            now = time.monotonic()
            self.starts |= {each["name"]: each["start_s"] for each in machines}
            missing = _REPLICAS - sum(each["state"] != "ending" for each in machines)
            if missing > 0:
                since, most = since or now, max(most, missing)
            elif since:
                self.gaps.append((now - since, most))
                since, most = 0.0, 0

    def tell(self) -> bool:
        """Print it; whether it is as it must be."""
        slowest = max(self.starts.values())
        longest, missing = max(self.gaps)
        starts, gaps = median([*self.starts.values()]), median([each for each, _ in self.gaps])
        print(f"{len(self.starts)} machines started in {starts}, at most {slowest:.2f} s")
        print(
            f"fewer than {_REPLICAS} of them {len(self.gaps)} times, for {gaps}, at most "
            f"{longest:.2f} s ({missing} were missing)"
        )
        # One after the other; and half a second to look, on a busy host.
        return all(seconds <= missing * slowest + 0.5 for seconds, missing in self.gaps)


def wait_until_complete() -> float:
    """Until all machines are ready again; seconds."""
    begin = time.monotonic()
    while [each["state"] for each in status()["machines"]].count("ready") < _REPLICAS:
        assert time.monotonic() - begin < 120, status()
        time.sleep(0.05)
    return time.monotonic() - begin


def supervisor() -> int:
    """The process that holds the pool."""
    return next(_holders())


def emulators() -> list[int]:
    """Those of its machines, when all of them wait."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (entry / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]
            program = (entry / "exe").readlink().name
            if program.startswith("qemu-") and int(parent) == supervisor():
                found.append(int(entry.name))
    return sorted(found)


def _holders() -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(service.find(KIND, _NAME).path).encode() in words:
            yield int(entry.name)


def use(leases: int, panics: int, killed: int) -> None:
    """Lease machines, break them, and kill who has them."""
    seconds = [lease(_TOUCH) for _ in range(leases)]
    print(f"{leases} leases, each of a machine that nobody had touched: {median(seconds)}")
    for _ in range(panics):
        lease("echo c >/proc/sysrq-trigger", check=False)
    print(f"{panics} panics; complete again after {wait_until_complete():.1f} s", flush=True)
    for number in range(killed):
        wait_until_complete()
        os.kill(emulators()[number % _REPLICAS], 9)
        lease(_TOUCH)
    print(f"{killed} QEMUs killed; complete again after {wait_until_complete():.1f} s", flush=True)
    for _ in range(killed):
        killed_holder()
    print(f"{killed} holders killed; complete after {wait_until_complete():.1f} s", flush=True)
    lease(_TOUCH)
    broken = status()["broken"]
    assert len(broken) >= min(panics, 1), "no evidence of what broke"
    for each in broken:
        assert Path(each["evidence"], "serial.log").is_file(), each


def main() -> None:
    """Run it."""
    kernel = str(Path(sys.argv[1]).resolve())
    counts = [int(word) for word in sys.argv[2:]]
    leases, panics, killed, supervisors = [*counts, *(100, 20, 10, 2)[len(counts) :]]
    with tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        os.environ["XDG_RUNTIME_DIR"] = folder
        Path(folder).chmod(0o711)
        up(kernel)
        with Watch() as watch:
            use(leases, panics, killed)
        in_time = watch.tell()
        for _ in range(supervisors):
            os.kill(supervisor(), 9)
            assert subprocess.run(
                kboot("pool", "list"), check=True, capture_output=True, text=True
            ).stdout in {"no pools\n"}
            up(kernel)
            lease(_TOUCH)
        subprocess.run(kboot("pool", "down", _NAME), check=True, stdout=subprocess.DEVNULL)
        left = [*_holders(), *(Path(folder) / "kboot").glob("run-*")]
        print(f"{supervisors} pools killed and begun again; left behind: {left}")
        if left or not in_time:
            sys.exit(1)


if __name__ == "__main__":
    main()
