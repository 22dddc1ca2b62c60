"""In which order the files of tests run, and which of them share a worker of pytest-xdist."""

from __future__ import annotations

from pathlib import Path

_TESTS = Path(__file__).parent

#: Files that share what takes long to make: see the session's fixtures in conftest.py.
_TOGETHER = {
    "test_expectations_boot.py": "zoo",
    "test_zoo.py": "zoo",
}

#: The groups that take longest, in that order. Were one of them the last, all workers but one would
#: wait for it.
LONGEST_FIRST = (
    "zoo",
    "test_isolation.py",
    "test_acceptance_suite.py",
    "test_workers.py",
    "test_persistent.py",
    "test_persistent_loop.py",
    "test_failures.py",
    "test_arm64.py",
    "test_qemu_network_boot.py",
    "test_persistent_both.py",
    "test_healthy_kernels.py",
    "test_snapshot_firmware.py",
    "kubevirt/test_any_cluster.py",
    "kubevirt/test_acceptance_on_cluster.py",
    "kubevirt/test_persistent_on_cluster.py",
    "test_command_line_length.py",
    "test_plugin.py",
    "test_snapshot.py",
    "test_persistent_ssh.py",
    "test_ssh.py",
    "kubevirt/test_waiting.py",
    "kubevirt/test_ownership.py",
    "test_guest_qemu.py",
    "kubevirt/test_machines_on_cluster.py",
)


def group(path: Path) -> str:
    """What a file's tests run with, on one worker: fixtures of modules are made once."""
    name = path.relative_to(_TESTS).as_posix()
    return _TOGETHER.get(name, name)


def rank(path: Path) -> int:
    """Where a file's tests stand in the order of all."""
    name = group(path)
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)
