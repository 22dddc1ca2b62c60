"""Selectors and patches, as far as kboot uses them."""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from typing import Any

from tests.kubevirt.cluster.store import Object


def selects(query: Mapping[str, str], thing: Object) -> bool:
    labels = thing["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value:
            return False
    if field := query.get("fieldSelector"):
        path, _, value = field.partition("=")
        found: Any = thing
        for part in path.split("."):
            found = found.get(part, {})
        return bool(found == value)
    return True


def merge(current: Object, change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(current.get(key), dict):
            merge(current[key], value)
        elif value is None:
            current.pop(key, None)
        else:
            current[key] = copy.deepcopy(value)


class Unfit(Exception):
    """What a JSON patch wants to be there is not."""


def json_patch(current: Any, step: Mapping[str, Any]) -> None:
    parts = [part.replace("~1", "/") for part in step["path"].lstrip("/").split("/")]
    *parents, last = parts
    for part in parents:
        current = current[int(part) if isinstance(current, list) else part]
    match step["op"]:
        case "test":
            if current.get(last) != step["value"]:
                raise Unfit
        case "remove":
            del current[last]
        case "add":
            current[last] = step["value"]
        case other:
            raise AssertionError(other)


def is_outdated(change: Any, thing: Object) -> bool:
    """Whether a merge patch is for another version of an object: it names the one it has seen."""
    if not isinstance(change, dict):
        return False
    wanted = change.get("metadata", {}).get("resourceVersion")
    return wanted not in {None, thing["metadata"]["resourceVersion"]}


def encode_strings(thing: Object) -> None:
    """A Secret is never read as text: what is written as such is kept in base64."""
    for key, text in thing.pop("stringData", {}).items():
        thing.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
