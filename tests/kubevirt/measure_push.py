"""How fast files reach the boot server of your cluster, beside ``kubectl cp``.

    python -m tests.kubevirt.measure_push [MEGABYTES]

Both send the same number of bytes to the same pod, in turn, each first in every other round. What
could not be measured is said.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kboot.config import load
from kboot.deadline import Deadline
from kboot.kubevirt import KubevirtBackend, open_kubevirt

_ROUNDS = 9
#: The second lowest and the second highest of nine have the median between them with 96 %
#: confidence, however such times are distributed: 1 - 2 * (1 + 9) / 2**9.
_LOW, _HIGH = 1, 7
#: What the project promises.
_WANTED = 3.0
_LIMIT_S = 900


def main(megabytes: int) -> None:
    """Print seconds, rates and their ratio."""
    config = load({"backend": "kubevirt"}, os.environ, Path.cwd())
    with (
        tempfile.TemporaryDirectory() as directory,
        open_kubevirt(config) as backend,
        backend.serve(Deadline(120)) as server,
    ):
        artifact = Path(directory, "artifact")
        ours: list[float] = []
        theirs: list[float] = []
        why = _no_kubectl()

        def push() -> None:
            start = time.monotonic()
            url = server.put(artifact)
            ours.append(time.monotonic() - start)
            # The pod's disk need not hold all rounds.
            server.remove(url)

        def copy() -> None:
            nonlocal why
            if not why:
                start = time.monotonic()
                why = _copy(artifact, backend, config.context)
                theirs.append(time.monotonic() - start)

        for number in range(_ROUNDS):
            _fill(artifact, megabytes)
            for measure in (push, copy) if number % 2 == 0 else (copy, push):
                measure()
    _tell("kboot", megabytes, ours)
    if why:
        _say(f"kubectl cp: NOT MEASURED: {why}")
        return
    _tell("kubectl cp", megabytes, theirs)
    _say(verdict(ours, theirs))


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times as fast we are, by the ratios of the rounds, and whether that is promised."""
    ratios = sorted(their / our for our, their in zip(ours, theirs, strict=True))
    low, high = ratios[_LOW], ratios[_HIGH]
    if low >= _WANTED:
        words = "as promised"
    elif high < _WANTED:
        words = f"LESS than the promised {_WANTED:.0f}"
    else:
        words = f"whether it is the promised {_WANTED:.0f} cannot be told on this cluster now"
    return (
        f"kboot is {statistics.median(ratios):.1f} times as fast ({low:.1f} to {high:.1f} in 96 of "
        f"100 such runs): {words}"
    )


def _fill(artifact: Path, megabytes: int) -> None:
    """Write bytes that are on no server yet, and that nothing can compress."""
    with artifact.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))


def _no_kubectl() -> str:
    return "" if shutil.which("kubectl") else "there is no kubectl"


def _copy(artifact: Path, backend: KubevirtBackend, context: str | None) -> str:
    """Copy the file into the boot server's pod with kubectl; why it cannot, or an empty text."""
    run = backend.run
    target = f"{run.namespace}/{run.name}:/srv/files/copied"
    named = ["--context", context] if context else []
    done = subprocess.run(
        ["kubectl", *named, "cp", "--container", "nginx", str(artifact), target],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    # It tells some failures by its output alone.
    failed = done.returncode or "error" in done.stderr.lower()
    return (done.stderr.strip()[:300] or f"exit status {done.returncode}") if failed else ""


def _tell(who: str, megabytes: int, seconds: list[float]) -> None:
    median = statistics.median(seconds)
    each = ", ".join(f"{one:.2f}" for one in seconds)
    _say(f"{who}: {megabytes} MB in {median:.2f} s, {megabytes / median:.0f} MB/s ({each} s)")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
