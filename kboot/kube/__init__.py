"""Speak with a Kubernetes cluster: the only home of `kubernetes`, which is loaded on connecting."""

from kboot.kube.client import Client
from kboot.kube.connect import connect, current_context
from kboot.kube.errors import ApiError, explain, role
from kboot.kube.resources import (
    CONFIG_MAPS,
    EVENTS,
    KUBEVIRTS,
    PODS,
    SECRETS,
    SERVICES,
    VIRTUAL_MACHINES,
    VMIS,
    Resource,
    resource_for,
)
from kboot.kube.watch import Watch
from kboot.kube.websocket import WebSocket, open_websocket

__all__ = [
    "CONFIG_MAPS",
    "EVENTS",
    "KUBEVIRTS",
    "PODS",
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
