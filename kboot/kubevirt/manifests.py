"""What kboot puts on a cluster, its names and labels: functions of values to lists of objects."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kboot import templates
from kboot.config import ClusterConfig
from kboot.errors import ClusterError
from kboot.kubevirt import patch

#: Which run an object belongs to.
RUN_LABEL = "kboot.dev/run"
#: Which of the run's machines an object belongs to.
MACHINE_LABEL = "kboot.dev/machine"
#: The name of a persistent machine, and its owner.
NAME_LABEL = "kboot.dev/name"
OWNER_LABEL = "kboot.dev/owner"
#: On everything that kboot has made; what is without it, kboot never touches.
MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
#: The component that a run's owner object is, see `labels`.
RUN = "run"

#: A DNS label; Services, and host names made of machines' names, take no more.
_LONGEST = 63


def new_run() -> str:
    """An identifier for a run: 10 characters that may begin, end and fill a DNS label."""
    return "r" + secrets.token_hex(5)[:9]


def object_name(run: str, what: str = "") -> str:
    """The name of an object of a run: ``kboot-<run>``, or ``kboot-<run>-<what>``.

    Valid as a DNS label whatever `what` is, and different for different ones: what has to be
    changed or cut short ends in a hash of the whole.
    """
    prefix = f"kboot-{run}"
    if not what:
        return prefix
    return f"{prefix}-{label(what, _LONGEST - len(prefix) - 1)}"


def label(text: str, longest: int = _LONGEST) -> str:
    """`text` as a DNS label, and different for different ones; see `object_name`."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= longest:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    kept = plain[: longest - len(digest) - 1].rstrip("-")
    return f"{kept}-{digest}" if kept else digest


def labels(run: str, *, component: str) -> dict[str, str]:
    """The labels of an object of a run."""
    return {
        "app.kubernetes.io/name": "kboot",
        "app.kubernetes.io/instance": object_name(run),
        COMPONENT: component,
        "app.kubernetes.io/part-of": "kboot",
        MANAGED_BY: "kboot",
        RUN_LABEL: run,
    }


def lasting_labels(*, component: str) -> dict[str, str]:
    """The labels of an object that no run owns."""
    return {
        "app.kubernetes.io/name": "kboot",
        COMPONENT: component,
        "app.kubernetes.io/part-of": "kboot",
        MANAGED_BY: "kboot",
    }


def selector(run: str = "", *, component: str = "") -> str:
    """The label selector for the objects of a run, or of all runs of kboot; of one component."""
    wanted = {MANAGED_BY: "kboot", RUN_LABEL: run, COMPONENT: component}
    return ",".join(f"{key}={value}" for key, value in wanted.items() if value)


Manifest = dict[str, Any]

#: On machines that are on a network with others: which, and who they are there.
NETWORK_LABEL = "kboot.dev/network"
MEMBER_LABEL = "kboot.dev/member"

#: The component that nginx is, see `labels`.
SERVER = "boot-server"

#: Of a pod that only has a claim bound.
FIRST_POD = "first-pod"

HTTP_PORT = 8080
UPLOAD_PORT = 8081

HEARTBEAT = "kboot.dev/heartbeat"
TTL = "kboot.dev/ttl-seconds"
USER = "kboot.dev/user"
#: The supervisor of a persistent machine, see `kboot.kubevirt.ownership`.
HOLDER = "kboot.dev/holder"
#: The process of a run that ends with it, in the same form.
PROCESS = "kboot.dev/process"

_TOKEN_FILE = "token.conf"  # noqa: S105  a file's name
_TOKEN = re.compile(r'"(\w+)" 1;')

#: A run whose heartbeat is older than this is dead.
TTL_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, as its objects know it."""

    #: From `kboot.kubevirt.manifests.new_run`.
    identifier: str
    namespace: str
    #: The uid of its owner object; empty before that is there, and for people who only read.
    owner_uid: str = ""

    @property
    def name(self) -> str:
        """The name of the owner, the boot server and its Service."""
        return object_name(self.identifier)

    @property
    def note_name(self) -> str:
        """The name of the Secret that is kept beside a persistent machine."""
        return f"{self.name}-note"

    @property
    def nginx_name(self) -> str:
        """The name of the ConfigMap with the boot server's configuration."""
        return f"{self.name}-nginx"


def timestamp(moment: datetime.datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def owner(run: Run, *, user: str, now: datetime.datetime) -> Manifest:
    """The object that owns all others of the run: deleting it deletes them.

    The run renews the heartbeat; when that is older than the time to live, the run is dead.
    """
    metadata = _metadata(replace(run, owner_uid=""), RUN)
    metadata["annotations"] = {HEARTBEAT: timestamp(now), TTL: str(TTL_S), USER: user}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def note(run: Run, texts: Mapping[str, str]) -> Manifest:
    """The Secret beside a persistent machine; the password of its guest is in it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(run, "note", name=run.note_name),
        "type": "Opaque",
        "stringData": dict(texts),
    }


def boot_server(run: Run, settings: ClusterConfig, *, token: str) -> list[Manifest]:
    """Secret, ConfigMap, Service, Pod and NetworkPolicy of the boot server, in that order.

    Who has the `token` may store files on it; machines only read.
    """
    made = [
        _token_secret(run, token),
        _nginx_configuration(run),
        _service(run),
        _pod(run, settings),
        _network_policy(run),
    ]
    return [patch.apply(settings.cluster_patch, manifest) for manifest in made]


def _metadata(run: Run, component: str, *, name: str = "") -> dict[str, Any]:
    """Every object carries the run's labels, and belongs to its ConfigMap."""
    return owned(run, labels(run.identifier, component=component), name or run.name)


def owned(run: Run, own_labels: Mapping[str, str], name: str) -> dict[str, Any]:
    """The metadata of an object that goes with its run."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": run.namespace,
        "labels": dict(own_labels),
    }
    if run.owner_uid:
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": run.name, "uid": run.owner_uid}
        ]
    return metadata


def _token_secret(run: Run, token: str) -> Manifest:
    conf = f"""map $http_x_kboot_token $kboot_may_write {{
    default 0;
    "{token}" 1;
}}
"""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(run, SERVER),
        "type": "Opaque",
        "stringData": {_TOKEN_FILE: conf},
    }


def _nginx_configuration(run: Run) -> Manifest:
    conf = templates.render(
        "nginx/kubernetes/nginx.conf",
        run=run.identifier,
        http_port=HTTP_PORT,
        upload_port=UPLOAD_PORT,
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(run, SERVER, name=run.nginx_name),
        "data": {"nginx.conf": conf},
    }


def _service(run: Run) -> Manifest:
    # The port for uploads is reached by the API server's service proxy only.
    ports = [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "upload", "port": UPLOAD_PORT, "targetPort": "upload"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(run, SERVER),
        "spec": {"selector": _server_labels(run), "ports": ports},
    }


def network_service(run: Run, name: str) -> Manifest:
    """A Service that names machines, from before they are ready; it has no address or port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(run, "network", name=name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {NETWORK_LABEL: name},
        },
    }


def _pod(run: Run, settings: ClusterConfig) -> Manifest:
    spec: dict[str, Any] = {
        **_restricted(),
        "containers": [_nginx_container(run, settings)],
        "volumes": _volumes(run, settings),
    }
    if settings.cluster_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.cluster_pull_secrets]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(run, SERVER), "spec": spec}


def first_pod(claim: Manifest, settings: ClusterConfig) -> Manifest:
    """A pod that only has a claim, so that storage which waits for one makes its volume."""
    metadata = claim["metadata"]
    own = lasting_labels(component=FIRST_POD)
    place = "/srv/volume"
    if claim["spec"].get("volumeMode") == "Block":
        uses: dict[str, Any] = {"volumeDevices": [{"name": "volume", "devicePath": place}]}
    else:
        uses = {"volumeMounts": [{"name": "volume", "mountPath": place, "readOnly": True}]}
    owner_reference = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    spec: dict[str, Any] = {
        **_restricted(),
        "containers": [
            {
                "name": "wait",
                "image": settings.cluster_nginx_image,
                "command": ["true"],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": _RESTRICTED_CONTAINER,
                **uses,
            }
        ],
        "volumes": [
            {"name": "volume", "persistentVolumeClaim": {"claimName": metadata["name"]}},
        ],
    }
    if settings.cluster_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.cluster_pull_secrets]
    made = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{label(metadata['name'], 50)}-first",
            "namespace": metadata["namespace"],
            "labels": own,
            # It goes with its claim, if not before.
            "ownerReferences": [owner_reference],
        },
        "spec": spec,
    }
    return patch.apply(settings.cluster_patch, made)


_RESTRICTED_CONTAINER: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _restricted() -> dict[str, Any]:
    """What the spec of a pod has that keeps to restricted Pod Security."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 101,
            "runAsGroup": 101,
            "fsGroup": 101,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _nginx_container(run: Run, settings: ClusterConfig) -> dict[str, Any]:
    return {
        "name": "nginx",
        "image": settings.cluster_nginx_image,
        "command": ["nginx", "-e", "stderr", "-c", "/etc/kboot/nginx/nginx.conf"],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT},
            {"name": "upload", "containerPort": UPLOAD_PORT},
        ],
        "readinessProbe": {
            "httpGet": {"path": f"/{run.identifier}/beacon/up", "port": "http"},
            "periodSeconds": 1,
        },
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": _RESTRICTED_CONTAINER,
        "volumeMounts": [
            {"name": "files", "mountPath": "/srv"},
            {"name": "nginx", "mountPath": "/etc/kboot/nginx", "readOnly": True},
            {"name": "token", "mountPath": "/etc/kboot/token", "readOnly": True},
        ],
    }


def _volumes(run: Run, settings: ClusterConfig) -> list[dict[str, Any]]:
    files: dict[str, Any] = {"emptyDir": {}}
    if settings.cluster_claim:
        files = {"persistentVolumeClaim": {"claimName": settings.cluster_claim}}
    return [
        {"name": "files", **files},
        {"name": "nginx", "configMap": {"name": run.nginx_name}},
        {"name": "token", "secret": {"secretName": run.name}},
    ]


def _network_policy(run: Run) -> Manifest:
    # Machines of this run may read, and CDI's importers in the namespace, which bear no label of
    # ours. The port for uploads is open to all, as the API server's addresses cannot be selected;
    # it asks for the token.
    readers = [
        {"podSelector": {"matchLabels": {RUN_LABEL: run.identifier}}},
        {"podSelector": {"matchLabels": {"cdi.kubevirt.io": "importer"}}},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(run, SERVER),
        "spec": {
            "podSelector": {"matchLabels": _server_labels(run)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": readers, "ports": [{"port": "http"}]},
                {"ports": [{"port": "upload"}]},
            ],
        },
    }


def _server_labels(run: Run) -> dict[str, str]:
    return {COMPONENT: SERVER, RUN_LABEL: run.identifier}


def token_of(secret: Manifest) -> str:
    """What opens the port for uploads, from the boot server's Secret as the cluster has it.

    `ClusterError` if it is not in there.
    """
    text = base64.b64decode(secret.get("data", {}).get(_TOKEN_FILE, "")).decode()
    if match := _TOKEN.search(text):
        return match[1]
    raise ClusterError(f"the Secret {secret['metadata']['name']} has no token for uploads")


def storage(namespace: str, settings: ClusterConfig) -> Manifest:
    """The claim for artifacts that outlive runs: shared by all that name it, owned by none."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{settings.cluster_storage_gib}Gi"}},
    }
    if settings.cluster_storage_class:
        spec["storageClassName"] = settings.cluster_storage_class
    own = lasting_labels(component="artifacts")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": settings.cluster_claim, "namespace": namespace, "labels": own},
        "spec": spec,
    }
    return patch.apply(settings.cluster_patch, claim)


def to_yaml(manifests: list[Manifest]) -> str:
    """Manifests as text for ``kubectl apply -f -``."""
    import yaml  # noqa: PLC0415

    text: str = yaml.dump_all(manifests, Dumper=_dumper(), sort_keys=False)
    return text


def from_yaml(text: str) -> Manifest:
    """The one manifest in a text that `to_yaml` has made."""
    import yaml  # noqa: PLC0415

    manifest: Manifest = yaml.safe_load(text)
    return manifest


def _dumper() -> Any:
    """A dumper that writes texts of several lines as lines, and everything in full."""
    import yaml  # noqa: PLC0415

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    in_full = {"ignore_aliases": lambda _self, _data: True}
    dumper: Any = type("Dumper", (yaml.SafeDumper,), in_full)
    dumper.add_representer(str, text)
    return dumper
