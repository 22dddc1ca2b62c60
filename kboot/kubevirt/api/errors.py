"""Refusals of the API server, in words for those who have to act."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kboot.errors import ClusterError

#: The least that a service account needs: tried on a real cluster, with the whole life of a run.
#: Network policies are a hardening: without the right to them, a run goes on without.
RULES: tuple[dict[str, list[str]], ...] = (
    {
        "apiGroups": [""],
        "resources": ["configmaps", "secrets", "services", "pods"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods/log", "events"], "verbs": ["get", "list", "watch"]},
    {
        "apiGroups": [""],
        "resources": ["services/proxy"],
        "verbs": ["get", "create", "update", "delete"],
    },
    {
        "apiGroups": ["networking.k8s.io"],
        "resources": ["networkpolicies"],
        "verbs": ["create", "delete"],
    },
    {
        "apiGroups": ["kubevirt.io"],
        "resources": ["virtualmachines"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["kubevirt.io"],
        "resources": ["virtualmachineinstances"],
        "verbs": ["get", "list", "watch"],
    },
    {
        "apiGroups": ["subresources.kubevirt.io"],
        "resources": [
            "virtualmachines/start",
            "virtualmachines/stop",
            "virtualmachines/restart",
            "virtualmachineinstances/pause",
            "virtualmachineinstances/unpause",
            "virtualmachineinstances/reset",
            "virtualmachineinstances/softreboot",
        ],
        "verbs": ["update"],
    },
    {
        "apiGroups": ["subresources.kubevirt.io"],
        "resources": ["virtualmachineinstances/console", "virtualmachineinstances/portforward"],
        "verbs": ["get"],
    },
)

#: The setting without which KubeVirt's own pods do not pass restricted Pod Security.
SECCOMP_SETTING = (
    "spec.configuration.seccompConfiguration.virtualMachineInstanceProfile.customProfile."
    "runtimeDefaultProfile: true"
)

#: The status that says that our credentials are no good (any more).
UNAUTHORISED = 401

_ACCESS = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" '
    r'in API group "(?P<group>[^"]*)"'
)
_MISSING_NAMESPACE = re.compile(r'namespaces "([^"]+)" not found')


class ApiError(ClusterError):
    """An answer of the API server that is not a success."""

    def __init__(self, message: str, *, status: int, reason: str, text: str) -> None:
        super().__init__(message)
        #: The HTTP status.
        self.status = status
        #: In Kubernetes' words: ``AlreadyExists``; empty if the answer was not from Kubernetes.
        self.reason = reason
        #: What the server said, as it was.
        self.text = text


def api_error(method: str, path: str, status: int, body: bytes, *, namespace: str) -> ApiError:
    """The error for an answer to a request."""
    answer = _parse(body)
    text = str(answer.get("message") or body[:300].decode(errors="replace").strip())
    what = f"{method} {path.partition('?')[0]}"
    # A proxy's or KubeVirt's own answer may be several lines of text.
    words = explain(status, text, path=path, namespace=namespace) or " ".join(
        f"{what}: {status} {text}".split()
    )
    return ApiError(words, status=status, reason=str(answer.get("reason", "")), text=text)


def explain(status: int, text: str, *, path: str, namespace: str) -> str:
    """What a refusal means and what to do about it; empty if there is nothing to add."""
    words = ""
    if status == UNAUTHORISED:
        words = (
            "the cluster does not know who we are (401 Unauthorized): log in again, or choose "
            f"another context with --context; it says: {text}"
        )
    elif status == 403 and (access := _ACCESS.search(text)):
        group = f" ({access['group']})" if access["group"] else ""
        words = (
            f"{access['user']} may not {access['verb']} {access['resource']}{group} in namespace "
            f"{namespace}; an administrator can allow it with the Role that "
            "kboot doctor --backend kubevirt --rbac prints"
        )
    elif "exceeded quota" in text:
        words = quota(text, namespace=namespace)
    elif "violates PodSecurity" in text:
        words = pod_security(text, namespace=namespace)
    elif match := _MISSING_NAMESPACE.search(text):
        words = f"the cluster has no namespace {match[1]}; create it, or choose one: --namespace"
    elif status == 404 and "kubevirt.io/" in path and _is_no_api(text):
        words = "the cluster has no KubeVirt; an administrator can install it: kubevirt.io"
    elif status == 503 and "no endpoints available" in text:
        words = f"the boot server does not answer behind its Service: {text}"
    elif status in {400, 422}:
        words = f"the cluster does not take the request: {text}"
    return words


def quota(text: str, *, namespace: str) -> str:
    """What a refusal by a quota means."""
    detail = text[text.index("exceeded quota") :]
    return (
        f"a quota of namespace {namespace} does not allow the pod: {detail}; free some (kboot gc), "
        "ask for more, or lower memory and cpus"
    )


def pod_security(text: str, *, namespace: str) -> str:
    """What a refusal by Pod Security means: who has to change what."""
    if "virt-launcher" in text:
        return (
            f"Pod Security of namespace {namespace} refuses KubeVirt's pod: {_violation(text)}; an "
            "administrator of the cluster can set in the KubeVirt object "
            f"{SECCOMP_SETTING}"
        )
    return (
        f"Pod Security of namespace {namespace} refuses the boot server's pod: {_violation(text)}; "
        "what kboot makes is fit for restricted, so look at the patch and at webhooks"
    )


def role(namespace: str) -> list[dict[str, Any]]:
    """A Role for the namespace with the least that kboot needs, and a binding to fill in."""
    metadata = {"name": "kboot", "namespace": namespace}
    api_version = "rbac.authorization.k8s.io/v1"
    return [
        {
            "apiVersion": api_version,
            "kind": "Role",
            "metadata": metadata,
            "rules": [dict(rule) for rule in RULES],
        },
        {
            "apiVersion": api_version,
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kboot"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        },
    ]


def _is_no_api(text: str) -> bool:
    """Whether this is how the server answers for a path that it has no API for."""
    return "could not find the requested resource" in text or text == "404 page not found"


def _violation(text: str) -> str:
    return text[text.index("violates PodSecurity") :].replace("violates PodSecurity", "", 1).strip()


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) and answer.get("kind") == "Status" else {}
