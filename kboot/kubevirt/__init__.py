"""The cluster backend: a KubeVirt VirtualMachine, and an nginx Pod to boot it from."""

from kboot.kubevirt.backend import KubevirtBackend, join_kubevirt, open_kubevirt
from kboot.kubevirt.settings import ClusterSettings, settings_from

__all__ = ["ClusterSettings", "KubevirtBackend", "join_kubevirt", "open_kubevirt", "settings_from"]
