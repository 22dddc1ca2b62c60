"""Leases in a row: ``python -m tests.soak_pool KERNEL.deb [LEASES [PANICS [KILLED [POOLS]]]]``.

A pool of four. Machines are leased and given back, some of them panicked by who has them, some by
who waits; holders are killed, and at last the pool itself. Nobody may ever get a machine that was
used, and nothing may be left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _holders() -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(service.find(KIND, _NAME).path).encode() in words:
            yield int(entry.name)


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
        seconds = [lease(_TOUCH) for _ in range(leases)]
        print(f"{leases} leases, each of a machine that nobody had touched: {median(seconds)}")
        for _ in range(panics):
            lease("echo c >/proc/sysrq-trigger", check=False)
        print(f"{panics} panics; complete again after {wait_until_complete():.1f} s", flush=True)
        for _ in range(killed):
            killed_holder()
        print(f"{killed} holders killed; complete after {wait_until_complete():.1f} s", flush=True)
        lease(_TOUCH)
        broken = status()["broken"]
        assert len(broken) >= min(panics, 1), "no evidence of what broke"
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
        if left:
            sys.exit(1)


if __name__ == "__main__":
    main()
