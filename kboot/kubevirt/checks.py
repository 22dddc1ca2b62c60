"""Is everything on the cluster that the kubevirt backend needs? Checks as in `kboot.checks`."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from kboot import arch
from kboot.checks import Check, Finding
from kboot.config import Config, read_cpus
from kboot.deadline import Deadline
from kboot.kubevirt import manifests, ownership, preflight, vm_manifest
from kboot.kubevirt.api import CONFIG_MAPS, ApiError, Client, connect, resource_for
from kboot.kubevirt.api.client import VM_ACTIONS
from kboot.kubevirt.api.errors import OPTIONAL_RULES, RULES, SECCOMP_SETTING
from kboot.kubevirt.manifests import new_run
from kboot.machine_spec import Firmware, MachineSpec

_LIMIT_S = 10.0
_SHOWN_RIGHTS = 4
#: Rights without which a run goes on.
_OPTIONAL_GROUP = "networking.k8s.io"

_FORBIDDEN = 403
_MISSING = 404


def _client(config: Config) -> Client:
    return connect(config.context, config.namespace, kubeconfig=config.kubeconfig)


def _cluster(config: Config) -> Finding:
    client = _client(config)
    client.find(CONFIG_MAPS, Deadline(_LIMIT_S), limit="1")
    return Finding(
        level="ok", subject="cluster", text=f"{client.host}, namespace {client.namespace}"
    )


def _kubevirt(config: Config) -> Finding:
    try:
        found = _client(config).json(
            "GET", "/apis/kubevirt.io/v1/kubevirts", Deadline(_LIMIT_S), retry=False
        )["items"]
    except ApiError as error:
        if error.status != _FORBIDDEN:
            raise
        return Finding(level="warning", subject="kubevirt", text=f"cannot be looked at: {error}")
    if not found:
        return Finding(
            level="error",
            subject="kubevirt",
            text="its API is there, but no KubeVirt object",
            remedy="an administrator can create one: kubevirt.io, Installation",
        )
    status = found[0].get("status", {})
    version, phase = status.get("observedKubeVirtVersion", "unknown"), status.get("phase")
    if phase != "Deployed":
        return Finding(
            level="error",
            subject="kubevirt",
            text=f"version {version} is {phase or 'not deployed'}",
            remedy="wait until it is deployed, or ask an administrator",
        )
    if not allows_restricted(found[0]):
        return Finding(
            level="warning",
            subject="kubevirt",
            text=f"version {version}; its machines do not start in a restricted namespace",
            remedy=f"if this one is, an administrator can set in the KubeVirt object "
            f"{SECCOMP_SETTING}",
        )
    return Finding(level="ok", subject="kubevirt", text=f"version {version}")


def allows_restricted(kubevirt: Mapping[str, Any]) -> bool:
    """Whether a KubeVirt object lets machines start under restricted Pod Security."""
    found: Any = kubevirt.get("spec", {})
    *parents, last = SECCOMP_SETTING.partition(":")[0].split(".")[1:]
    for part in parents:
        found = found.get(part) or {}
    return bool(found.get(last))


def _rights(config: Config) -> Finding:
    client = _client(config)
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": client.namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = client.json("POST", path, Deadline(_LIMIT_S), body=review)["status"]
    lacking = lacking_rights(answer["resourceRules"])
    if not lacking:
        less = [
            f"{what} only with the right to {', '.join(rights)}"
            for what, rules in OPTIONAL_RULES.items()
            if (rights := lacking_rights(answer["resourceRules"], rules))
        ]
        return Finding(
            level="ok", subject="rights", text="; ".join(("all that a run needs", *less))
        )
    shown = ", ".join(lacking[:_SHOWN_RIGHTS])
    more = f" and {len(lacking) - _SHOWN_RIGHTS} more" if len(lacking) > _SHOWN_RIGHTS else ""
    # Webhooks may allow what the rules do not say.
    return Finding(
        level="warning" if answer.get("incomplete") else "error",
        subject="rights",
        text=f"we may not {shown}{more}",
        remedy="an administrator can allow it: kboot doctor --backend kubevirt --rbac",
    )


def lacking_rights(
    rules: Iterable[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]] = RULES
) -> list[str]:
    """What is `wanted` and these rules do not allow: ``update virtualmachines/start``."""
    allowed = [
        (set(rule.get("apiGroups", ())), set(rule.get("resources", ())), set(rule["verbs"]))
        for rule in rules
        if not rule.get("resourceNames")
    ]

    def may(group: str, resource: str, verb: str) -> bool:
        _, _, sub = resource.partition("/")
        names = {resource, "*", f"*/{sub}" if sub else "*"}
        return any(
            groups & {group, "*"} and resources & names and verbs & {verb, "*"}
            for groups, resources, verbs in allowed
        )

    return [
        f"{verb} {resource}"
        for rule in wanted
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if group != _OPTIONAL_GROUP and not may(group, resource, verb)
    ]


def _objects(config: Config) -> Finding:
    """Have the cluster judge all that a run would make, without making it."""
    client = _client(config)
    run = manifests.Run(identifier=new_run(), namespace=client.namespace)
    spec = MachineSpec(
        name="doctor",
        boot_file="http://none/",
        memory_mib=config.memory_mib,
        cpus=read_cpus(config.cpus)[0],
        firmware=_chosen_firmware(config),
    )
    now = datetime.datetime.now(datetime.UTC)
    wanted = [
        manifests.owner(run, user="doctor", now=now),
        *manifests.boot_server(run, config, token="doctor"),  # noqa: S106  made for nothing
        vm_manifest.manifest(spec, run, config),
    ]
    for manifest in wanted:
        if manifest["kind"] == "NetworkPolicy":
            continue
        client.json(
            "POST",
            resource_for(manifest).path(client.namespace),
            Deadline(_LIMIT_S),
            query={"fieldValidation": "Strict", "dryRun": "All"},
            body=manifest,
        )
    preflight.check(client, wanted[-1], config.cluster_patch, Deadline(_LIMIT_S))
    return Finding(
        level="ok", subject="objects", text=f"the cluster would take all {len(wanted) - 1} of a run"
    )


def _chosen_firmware(config: Config) -> Firmware:
    """The firmware of a machine of which only the configuration is known."""
    return arch.DEFAULT.firmware(config.firmware)


def _actions(config: Config) -> Finding:
    """Ask for the start of a machine that is not there, as a run asks: that has no effect."""
    client = _client(config)
    # Nobody's: a name that no machine has.
    name = manifests.Run(identifier=new_run(), namespace=client.namespace).name
    path = VM_ACTIONS.path(client.namespace, name, "start")
    try:
        client.json("PUT", path, Deadline(_LIMIT_S), body={}, retry=False)
    except ApiError as error:
        if error.status != _MISSING or name not in error.text:
            raise
    return Finding(level="ok", subject="actions", text="machines can be started and stopped")


def _firmware(config: Config) -> Finding:
    firmware = _chosen_firmware(config)
    fault = vm_manifest.firmware_fault(firmware, arch.DEFAULT.name, config)
    if fault is None:
        return Finding(level="ok", subject="firmware", text=firmware)
    return Finding(level="warning", subject="firmware", text=fault)


def _leftovers(config: Config) -> Finding:
    dead = [run for run in ownership.find_runs(_client(config)) if run.dead]
    if not dead:
        return Finding(level="ok", subject="leftovers", text="no dead run is on the cluster")
    return Finding(
        level="warning",
        subject="leftovers",
        text=f"of dead runs: {', '.join(run.name for run in dead)}",
        remedy="kboot gc --backend kubevirt --yes",
    )


#: For machines on a cluster.
CLUSTER_CHECKS: tuple[Check, ...] = (
    Check(subject="cluster", look=_cluster, essential=True),
    Check(subject="rights", look=_rights),
    Check(subject="kubevirt", look=_kubevirt),
    Check(subject="objects", look=_objects),
    Check(subject="actions", look=_actions),
    Check(subject="firmware", look=_firmware),
    Check(subject="leftovers", look=_leftovers),
)
