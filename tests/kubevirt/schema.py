"""Strict validation of manifests: what the API server does with ``fieldValidation=Strict``."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from tests.kubevirt.recordings import RECORDINGS


@functools.cache
def _kubevirt_schemas() -> dict[str, Any]:
    text = (RECORDINGS / "openapi-kubevirt.io-v1.json").read_text()
    schemas: dict[str, Any] = json.loads(text)["components"]["schemas"]
    return schemas


def faults(manifest: dict[str, Any]) -> list[str]:
    """What the API server would refuse in a manifest: unknown fields, wrong types, lacking ones."""
    if manifest["apiVersion"].startswith("kubevirt.io/"):
        schema = _kubevirt_schemas()[f"io.kubevirt.v1.{manifest['kind']}"]
        return list(_against_schema(manifest, schema, "$"))
    if manifest["apiVersion"].startswith("cdi.kubevirt.io/"):
        # As KubeVirt publishes it: in what its machines may have made for them.
        machine = _kubevirt_schemas()["io.kubevirt.v1.VirtualMachine"]
        templates = machine["properties"]["spec"]["properties"]["dataVolumeTemplates"]
        return list(_against_schema(manifest, templates["items"], "$"))
    version = manifest["apiVersion"].rpartition("/")[2].capitalize()
    return list(_against_model(manifest, f"{version}{manifest['kind']}", "$"))


def _against_schema(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if "allOf" in schema:
        schema = schema["allOf"][0]
    if "$ref" in schema:
        schema = _kubevirt_schemas()[schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        yield from _object(value, schema, path)
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        for key, item in value.items():
            yield from _against_schema(item, schema["additionalProperties"], f"{path}.{key}")
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{path}: not a list"
            return
        for number, item in enumerate(value):
            yield from _against_schema(item, schema["items"], f"{path}[{number}]")
    elif kind in _SCALARS and not _is(value, kind):
        yield f"{path}: {value!r} is not a {kind}"


def _object(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: not a mapping"
        return
    known = schema["properties"]
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        yield from (f"{path}: unknown field {key}" for key in value.keys() - known.keys())
    yield from (f"{path}: no {key}" for key in schema.get("required", ()) if key not in value)
    for key in value.keys() & known.keys():
        yield from _against_schema(value[key], known[key], f"{path}.{key}")


def _against_model(value: Any, name: str, path: str) -> Iterator[str]:
    from kubernetes.client import models

    if match := re.fullmatch(r"list\[(.*)\]", name, re.IGNORECASE):
        if not isinstance(value, list):
            yield f"{path}: not a list"
            return
        for number, item in enumerate(value):
            yield from _against_model(item, match[1], f"{path}[{number}]")
        return
    if match := re.fullmatch(r"dict[\[(]str, (.*)[\])]", name, re.IGNORECASE):
        for key, item in value.items():
            yield from _against_model(item, match[1], f"{path}.{key}")
        return
    model = getattr(models, name, None)
    if model is None or not isinstance(value, dict):
        if name in _PYTHON and not _is(value, _PYTHON[name]):
            yield f"{path}: {value!r} is not a {name}"
        return
    fields = {model.attribute_map[field]: kind for field, kind in model.openapi_types.items()}
    yield from (f"{path}: unknown field {key}" for key in value.keys() - fields.keys())
    for key in value.keys() & fields.keys():
        yield from _against_model(value[key], fields[key], f"{path}.{key}")


_PYTHON = {"str": "string", "int": "integer", "bool": "boolean"}
_SCALARS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
}


def _is(value: Any, kind: str) -> bool:
    # Ports may be numbers or names, which the schemas call a string with a format of its own.
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _SCALARS[kind])
