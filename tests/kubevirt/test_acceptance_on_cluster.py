"""The acceptance suite, as a user runs it, on the test cluster: it does not know where it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.kubevirt.cluster import TOKEN, Cluster, images
from tests.kubevirt.recordings import needs_recordings


@needs_recordings
def test_the_acceptance_suite_passes_and_leaves_nothing(
    cluster: Cluster, quick_kernel: Path, ipxe_disk: Path, tmp_path: Path
) -> None:
    image = images.reference(ipxe_disk)
    cluster.virt.disks.images[image] = ipxe_disk
    options = [f"--kernel={quick_kernel}", "--kboot-backend=kubevirt", "--pyargs"]
    options.append(f"--kboot-cluster-ipxe-disk={image}")
    evidence = tmp_path / "evidence"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            f"--kboot-evidence={evidence}",
            "kboot.acceptance",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", done.stdout)}
    assert outcomes["passed"] >= 8
    assert "skipped" not in outcomes
    for plural in ("configmaps", "pods", "secrets", "services", "virtualmachines"):
        assert cluster.objects(plural) == []
    _no_secret_in(evidence, done.stdout + done.stderr)


def _no_secret_in(evidence: Path, output: str) -> None:
    files = [path for path in evidence.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"vm.yaml", "vmi.json", "events.jsonl", "serial.log", "access.jsonl"} <= names
    for text in (output, *(path.read_text(errors="replace") for path in files)):
        assert TOKEN not in text
        assert "Bearer" not in text
        assert "kboot_may_write {" not in text
