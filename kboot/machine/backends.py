"""The backend that a configuration names, and its persistent machines: knows backends' names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from kboot.backend import Backend, DiskStore, FoundRun, PersistentBackend, PersistentMachine
from kboot.checks import Check
from kboot.config import Config
from kboot.errors import ConfigError

# Each backend is imported where it is chosen: one loads a hypervisor's part, one a cluster's.


@contextlib.contextmanager
def open_backend(config: Config, *, run: str = "", machine: str = "") -> Iterator[Backend]:
    """The backend that the configuration names.

    With `run`, its machines belong to the run of another process, see `SharedRunBackend`. With the
    name of a `machine`, it is for this one only; it is a `PersistentBackend` where machines
    can stay without us. `ConfigError` if one of that name stays there already.
    """
    match config.backend:
        case "qemu":
            from kboot.qemu import open_qemu  # noqa: PLC0415

            with open_qemu(
                program=config.qemu,
                accelerator=config.accel,
                nginx=config.nginx,
                snapshot_cache_mib=config.snapshot_cache_mib,
                ipxe=config.ipxe,
                network=config.network,
                debian_mirror=config.debian_mirror,
                tls_authority=config.tls_ca,
            ) as backend:
                yield backend
        case "kubevirt":
            from kboot import kubevirt  # noqa: PLC0415

            opened: contextlib.AbstractContextManager[Backend]
            if machine:
                opened = kubevirt.open_persistent(config, machine)
            elif run:
                opened = kubevirt.join_kubevirt(config, run)
            else:
                opened = kubevirt.open_kubevirt(config)
            with opened as cluster:
                yield cluster
        case unknown:
            raise AssertionError(f"config let the backend {unknown!r} pass")


@contextlib.contextmanager
def reopen_backend(
    config: Config, machine: str, *, by_force: bool = False
) -> Iterator[PersistentBackend]:
    """The backend of a persistent machine, taken up; see `kboot.backend.PersistentBackend`.

    `ConfigError` if there is none of that name, or if another supervisor controls it, from which it
    may be taken `by_force`.
    """
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt import take_over_persistent  # noqa: PLC0415

            with take_over_persistent(config, machine, by_force=by_force) as cluster:
                yield cluster
        case name:
            raise ConfigError(f"machines of {name} end with their supervisor")


def can_persist(config: Config) -> bool:
    """Whether machines on this backend can stay without us."""
    return config.backend == "kubevirt"


def persistent_machines(config: Config) -> list[PersistentMachine]:
    """The persistent machines on the backend, of all owners."""
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt import find_persistent  # noqa: PLC0415

            return find_persistent(config)
        case _:
            return []


def remove_machine(config: Config, machine: str) -> bool:
    """Remove a persistent machine of ours that has no supervisor.

    Whether it was there. `ConfigError` if it has a supervisor.
    """
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt import remove_persistent  # noqa: PLC0415

            return remove_persistent(config, machine)
        case _:
            return False


def disk_store(config: Config, is_on: Callable[[str], bool]) -> DiskStore:
    """The kept disks of the backend; `is_on` says whether a local machine of a name is on."""
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt.kept_disks import ClusterDisks  # noqa: PLC0415

            return ClusterDisks(config)
        case _:
            from kboot.disks import LocalDisks  # noqa: PLC0415

            return LocalDisks(is_on)


def checks_for(config: Config) -> tuple[Check, ...]:
    """What `kboot doctor` looks at for the backend that the configuration names."""
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt.checks import CLUSTER_CHECKS  # noqa: PLC0415

            return CLUSTER_CHECKS
        case _:
            from kboot.qemu.checks import LOCAL_CHECKS  # noqa: PLC0415

            return LOCAL_CHECKS


def find_runs(config: Config) -> list[FoundRun]:
    """The runs on the backend that the configuration names, of all users."""
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt import runs as cluster_runs  # noqa: PLC0415

            return cluster_runs.find_runs(config)
        case _:
            from kboot.qemu import runs as local_runs  # noqa: PLC0415

            return local_runs.find_runs()


def dead_runs(config: Config, *, remove: bool) -> Iterator[str]:
    """What killed runs have left there, in a line each; it is gone then, if it is to be removed."""
    match config.backend:
        case "kubevirt":
            from kboot.kubevirt import runs as cluster_runs  # noqa: PLC0415

            yield from cluster_runs.dead_runs(config, remove=remove)
        case _:
            from kboot.qemu import runs as local_runs  # noqa: PLC0415

            yield from local_runs.dead_runs(remove=remove)
