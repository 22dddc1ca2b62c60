"""The server's log is a witness that comes through the cluster, and may be late."""

from __future__ import annotations

from pathlib import Path

from kboot.config import Config
from kboot.machine import Phase
from kboot.session import open_session
from tests.kubevirt.cluster import Cluster


def test_a_kernel_is_not_blamed_for_a_log_that_stands_still(
    cluster: Cluster, quick_kernel: Path, tmp_path: Path
) -> None:
    cluster.order("GET .*log.*follow", delay_s=600)
    config = Config(kernel=str(quick_kernel), backend="kubevirt")
    with open_session(config, evidence=tmp_path / "evidence") as session:
        machine = session.machine(session.settings(config), name="late")
        seen = {phase: milestone.witness for phase, milestone in machine.boot.reached.items()}
    assert seen[Phase.KERNEL] == seen[Phase.INITRD] == "server"
    assert seen[Phase.READY] == "console"
