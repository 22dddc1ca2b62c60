"""pytest-xdist on the test cluster: many workers, one run, one boot server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubevirt.cluster import TOKEN, Cluster, cluster_without_firmware
from tests.kubevirt.recordings import needs_recordings
from tests.test_isolation import outcomes, properties

SUITE = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_gets_a_machine_of_its_own(machine, number, record_property):
    assert machine.guest.run("test -e /root/mark").exit_status == 1
    machine.guest.succeed("touch /root/mark")
    record_property("machine", machine.machine_description)
    record_property("server", machine.server.url(""))
    record_property("boot_id", machine.boot_id)
"""


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with cluster_without_firmware() as cluster:
        yield cluster


@needs_recordings
def test_workers_share_a_run_and_tests_no_machine(
    cluster: Cluster, quick_kernel: Path, tmp_path: Path
) -> None:
    """No machine can be saved there, so a pristine one is one that has just booted."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"),
            *(f"--kernel={quick_kernel}", "--kboot-backend=kubevirt", "--kboot-isolation=test"),
            *("-n2", "--junitxml=junit.xml", "--kboot-evidence=evidence", "test_suite.py"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    assert set(outcomes(tmp_path).values()) == {"passed"}, done.stdout + done.stderr
    assert len(set(properties(tmp_path, "boot_id"))) == 3
    assert len(set(properties(tmp_path, "server"))) == 1
    machines = properties(tmp_path, "machine")
    runs, workers = zip(
        *(re.findall(r"machine kboot-(\w+)-(gw\d)-\d+$", each)[0] for each in machines),
        strict=True,
    )
    assert len(set(runs)) == 1
    assert set(workers) == {"gw0", "gw1"}
    assert len(cluster.calls("POST /api/v1/namespaces/team/pods")) == 1
    # The kernel and the root file system, once each, whoever came first.
    assert len([call for call in cluster.calls("artifacts/") if call.startswith("PUT")]) == 2
    for plural in ("configmaps", "pods", "secrets", "services", "virtualmachines"):
        assert cluster.objects(plural) == []
    assert TOKEN not in done.stdout + done.stderr
