"""The kinds of objects that kboot deals with, and where the API has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object."""

    api_version: str
    kind: str
    #: Its name in paths: ``virtualmachines``.
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The path of its list, of one object, or of a subresource of one."""
        prefix = "/apis/" if "/" in self.api_version else "/api/"
        inside = f"/namespaces/{namespace}" if namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return f"{prefix}{self.api_version}{inside}/{'/'.join(parts)}"


CONFIG_MAPS = Resource(api_version="v1", kind="ConfigMap", plural="configmaps")
SECRETS = Resource(api_version="v1", kind="Secret", plural="secrets")
SERVICES = Resource(api_version="v1", kind="Service", plural="services")
PODS = Resource(api_version="v1", kind="Pod", plural="pods")
EVENTS = Resource(api_version="v1", kind="Event", plural="events")
CLAIMS = Resource(api_version="v1", kind="PersistentVolumeClaim", plural="persistentvolumeclaims")
NETWORK_POLICIES = Resource(
    api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies"
)
KUBEVIRTS = Resource(api_version="kubevirt.io/v1", kind="KubeVirt", plural="kubevirts")
VIRTUAL_MACHINES = Resource(
    api_version="kubevirt.io/v1", kind="VirtualMachine", plural="virtualmachines"
)
VMIS = Resource(
    api_version="kubevirt.io/v1", kind="VirtualMachineInstance", plural="virtualmachineinstances"
)

#: What is done to machines, beside the objects themselves: start, stop, console...
VM_ACTIONS = Resource(
    api_version="subresources.kubevirt.io/v1", kind="VirtualMachine", plural="virtualmachines"
)
VMI_ACTIONS = Resource(
    api_version="subresources.kubevirt.io/v1",
    kind="VirtualMachineInstance",
    plural="virtualmachineinstances",
)

_ALL = (
    CONFIG_MAPS,
    SECRETS,
    SERVICES,
    PODS,
    EVENTS,
    CLAIMS,
    NETWORK_POLICIES,
    KUBEVIRTS,
    VIRTUAL_MACHINES,
    VMIS,
)


def resource_for(manifest: Mapping[str, Any]) -> Resource:
    """The kind that a manifest is of. KeyError for one that kboot does not deal with."""
    known = {(resource.api_version, resource.kind): resource for resource in _ALL}
    return known[manifest["apiVersion"], manifest["kind"]]
