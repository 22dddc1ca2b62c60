"""How fast files reach the boot server of your cluster, beside ``kubectl cp``.

    python -m tests.kubevirt.measure_push [MEGABYTES]

Both send the same number of bytes to the same pod, in turn. What could not be measured is said.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kboot.config import load
from kboot.deadline import Deadline
from kboot.kubevirt import KubevirtBackend, open_kubevirt, settings_from

_ROUNDS = 3
#: What the project promises.
_WANTED = 3.0
_LIMIT_S = 900


def main(megabytes: int) -> None:
    """Print seconds, rates and their ratio."""
    config = load({"backend": "kubevirt"}, os.environ, Path.cwd())
    with (
        tempfile.TemporaryDirectory() as directory,
        open_kubevirt(settings_from(config)) as backend,
        backend.serve(Deadline(120)) as server,
    ):
        artifact = Path(directory, "artifact")
        ours, theirs, why = [], [], _no_kubectl()
        for _ in range(_ROUNDS):
            _fill(artifact, megabytes)
            start = time.monotonic()
            server.put(artifact)
            ours.append(time.monotonic() - start)
            if not why:
                start = time.monotonic()
                why = _copy(artifact, backend, config.context)
                theirs.append(time.monotonic() - start)
    _tell("kboot", megabytes, ours)
    if why:
        _say(f"kubectl cp: NOT MEASURED: {why}")
        return
    _tell("kubectl cp", megabytes, theirs)
    ratio = statistics.median(theirs) / statistics.median(ours)
    verdict = "as promised" if ratio >= _WANTED else f"LESS than the promised {_WANTED:.0f}"
    _say(f"kboot is {ratio:.1f} times as fast: {verdict}")


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
