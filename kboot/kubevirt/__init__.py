"""The cluster backend: a KubeVirt VirtualMachine, and an nginx Pod to boot it from."""

from kboot.kubevirt.backend import KubevirtBackend, join_kubevirt, open_kubevirt
from kboot.kubevirt.named import find_staying, open_staying, rejoin, remove_staying
from kboot.kubevirt.settings import ClusterSettings, settings_from
from kboot.kubevirt.staying import StayingCluster

__all__ = [
    "ClusterSettings",
    "KubevirtBackend",
    "StayingCluster",
    "find_staying",
    "join_kubevirt",
    "open_kubevirt",
    "open_staying",
    "rejoin",
    "remove_staying",
    "settings_from",
]
