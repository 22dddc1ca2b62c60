"""What the API server says, in the words of the recordings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

_GROUPS = {
    "virtualmachines": "kubevirt.io",
    "virtualmachineinstances": "kubevirt.io",
    "virtualmachineinstancereplicasets": "kubevirt.io",
    "datavolumes": "cdi.kubevirt.io",
    "networkpolicies": "networking.k8s.io",
}


def status(code: int, reason: str, message: str, **details: Any) -> web.Response:
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    if details:
        body["details"] = details
    return web.json_response(body, status=code)


def message_of(answer: web.Response) -> str:
    """What a refusal says."""
    assert isinstance(answer.text, str)
    return str(json.loads(answer.text)["message"])


def full(plural: str) -> str:
    """A kind with its group, as messages name it: ``virtualmachines.kubevirt.io``."""
    group = _GROUPS.get(plural)
    return f"{plural}.{group}" if group else plural


def details(plural: str, name: str) -> dict[str, str]:
    group = {"group": _GROUPS[plural]} if plural in _GROUPS else {}
    return {"name": name, **group, "kind": plural}


def not_found(plural: str, name: str) -> web.Response:
    message = f'{full(plural)} "{name}" not found'
    return status(404, "NotFound", message, **details(plural, name))


def already_exists(plural: str, name: str) -> web.Response:
    message = f'{full(plural)} "{name}" already exists'
    return status(409, "AlreadyExists", message, **details(plural, name))


def no_machine(singular: str, name: str) -> web.Response:
    """The subresources' way of it: in the singular."""
    message = f'{singular}.kubevirt.io "{name}" not found'
    return status(404, "NotFound", message, name=name, group="kubevirt.io", kind=singular)


def conflict(name: str, why: str, *, kind: str = "virtualmachine") -> web.Response:
    message = f'Operation cannot be fulfilled on {kind}.kubevirt.io "{name}": {why}'
    return status(409, "Conflict", message, name=name, group="kubevirt.io", kind=kind)


def outdated(plural: str, name: str) -> web.Response:
    why = "the object has been modified; please apply your changes to the latest version"
    message = f'Operation cannot be fulfilled on {full(plural)} "{name}": {why} and try again'
    return status(409, "Conflict", message, **details(plural, name))


def precondition(plural: str, thing: Mapping[str, Any], wanted: str) -> web.Response:
    """A deletion of another version of the object than the one there is."""
    name, version = thing["metadata"]["name"], thing["metadata"]["resourceVersion"]
    message = (
        f'Operation cannot be fulfilled on {full(plural)} "{name}": the ResourceVersion in the '
        f"precondition ({wanted}) does not match the ResourceVersion in record ({version}). The "
        "object might have been modified"
    )
    return status(409, "Conflict", message, **details(plural, name))


def underway() -> web.Response:
    why = "unable to complete request: stop/start already underway"
    return status(
        500,
        "InternalError",
        f"Internal error occurred: {why}",
        causes=[{"message": why}],
    )


def not_running() -> web.Response:
    return status(400, "BadRequest", "VMI is not running")


def suits_any_type(accept: str) -> bool:
    """Whether an Accept header takes what has no declared type, as the answers of actions have."""
    return any(each.partition(";")[0].strip() == "*/*" for each in accept.split(","))


def not_acceptable() -> web.Response:
    """KubeVirt's own words, as text: this is said before anybody looks at the machine."""
    text = "406: Not Acceptable\n\nAvailable representations: "
    return web.Response(status=406, text=text)


def strict(faults: list[str]) -> web.Response:
    text = ", ".join(fault.replace("$.", "") for fault in faults)
    return status(400, "BadRequest", f"strict decoding error: {text}")


def unauthorised() -> web.Response:
    return status(401, "Unauthorized", "Unauthorized")
