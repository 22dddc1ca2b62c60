"""The cluster backend: a KubeVirt VirtualMachine, and an nginx Pod to boot it from."""

from kboot.kubevirt.backend import KubevirtBackend, join_kubevirt, open_kubevirt
from kboot.kubevirt.persistent import (
    PersistentCluster,
    find_persistent,
    open_persistent,
    remove_persistent,
    take_over_persistent,
)

__all__ = [
    "KubevirtBackend",
    "PersistentCluster",
    "find_persistent",
    "join_kubevirt",
    "open_kubevirt",
    "open_persistent",
    "remove_persistent",
    "take_over_persistent",
]
