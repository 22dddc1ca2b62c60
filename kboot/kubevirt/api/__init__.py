"""Speak with a Kubernetes cluster: the only home of `kubernetes`, which is loaded on connecting."""

from kboot.kubevirt.api.client import (
    CLAIMS,
    CONFIG_MAPS,
    DATA_VOLUMES,
    EVENTS,
    KUBEVIRTS,
    PODS,
    REPLICA_SETS,
    SECRETS,
    SERVICES,
    VIRTUAL_MACHINES,
    VMIS,
    Client,
    Resource,
    resource_for,
)
from kboot.kubevirt.api.connect import connect, current_context
from kboot.kubevirt.api.errors import ApiError, explain, role
from kboot.kubevirt.api.watch import Watch
from kboot.kubevirt.api.websocket import WebSocket, open_websocket

__all__ = [
    "CLAIMS",
    "CONFIG_MAPS",
    "DATA_VOLUMES",
    "EVENTS",
    "KUBEVIRTS",
    "PODS",
    "REPLICA_SETS",
    "SECRETS",
    "SERVICES",
    "VIRTUAL_MACHINES",
    "VMIS",
    "ApiError",
    "Client",
    "Resource",
    "Watch",
    "WebSocket",
    "connect",
    "current_context",
    "explain",
    "open_websocket",
    "resource_for",
    "role",
]
