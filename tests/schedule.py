"""In which order the files of tests run, and which of them share a worker of pytest-xdist."""

from __future__ import annotations

#: Files whose tests share nothing that takes long to make: any worker may have any of them.
APART = frozenset(
    {
        "kubevirt/test_any_cluster.py",
        "test_acceptance_suite.py",
        "test_command_line_length.py",
        "test_expectations_boot.py",
        "test_failures.py",
        "test_healthy_kernels.py",
        "test_isolation.py",
        "test_persistent_both.py",
        "test_qemu_network_boot.py",
        "test_workers.py",
        "test_fleet_and_pool_cli.py",
        "test_standby.py",
        "test_zoo.py",
    }
)

#: Of these, tests that share one machine, in their order.
TOGETHER = frozenset({"test_zoo.py::test_a_crash_that_the_kernel_survives"})

#: The files and tests that take longest, in that order. Were one of them the last, all workers but
#: one would wait for it.
LONGEST_FIRST = (
    "kubevirt/test_acceptance_on_cluster.py",
    "test_acceptance_suite.py::test_a_good_kernel_passes_it_all",
    "test_persistent_loop.py",
    "test_persistent_both.py",
    "test_arm64.py",
    "test_fleet_boot.py",
    "test_systems_boot.py",
    "kubevirt/test_persistent_on_cluster.py",
    "test_fleet_and_pool_cli.py",
    "test_disks_boot.py",
    "test_boot_disk.py",
    "test_processors.py",
    "test_ipxe_boots.py",
    "kubevirt/test_fleet_on_cluster.py",
    "kubevirt/test_disks.py",
    "test_snapshot_firmware.py",
    "test_ipxe_prompt.py",
    "test_persistent.py",
    "test_zoo.py",
    "test_expectations_boot.py",
    "test_suites_boot.py",
    "test_workers.py",
    "test_isolation.py",
    "test_qemu_network_boot.py",
    "kubevirt/test_any_cluster.py",
    "test_snapshot.py",
    "test_persistent_ssh.py",
    "test_standby.py",
    "test_guest.py",
    "kubevirt/test_workers_on_cluster.py",
    "kubevirt/test_waiting.py",
    "kubevirt/test_ownership.py",
    "kubevirt/test_machines_on_cluster.py",
    "test_command_line_length.py",
    "test_healthy_kernels.py",
    "test_ssh.py",
    "test_guest_qemu.py",
    "test_failures.py",
    "kubevirt/test_witnesses_on_cluster.py",
    "test_qemu_isolated.py",
    "test_rootfs_boot.py",
    "test_ipxe_tls.py",
    "crash/test_crash_golden.py",
    "test_report.py",
    "test_plugin.py",
    "test_bisect.py",
    "test_acceptance_suite.py",
)


def group(nodeid: str) -> str:
    """What a test runs with, on one worker: those of a file, whose fixtures are made once."""
    file, test = _parts(nodeid)
    if f"{file}::{test}" in TOGETHER:
        return f"{file}::{test}"
    return nodeid if file in APART else file


def rank(nodeid: str) -> int:
    """Where a test stands in the order of all."""
    file, test = _parts(nodeid)
    for known in (f"{file}::{test}", file):
        if known in LONGEST_FIRST:
            return LONGEST_FIRST.index(known)
    return len(LONGEST_FIRST)


def _parts(nodeid: str) -> tuple[str, str]:
    """The file below tests, and the test's name without its parameters."""
    file, _, test = nodeid.partition("::")
    return file.removeprefix("tests/"), test.partition("[")[0]
