"""The user's own changes to what kboot puts on a cluster: strategic merge, as kubectl does it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError

#: The kinds that a patch may be for.
PATCHABLE = ("VirtualMachine", "Pod", "Service", "NetworkPolicy", "PersistentVolumeClaim")

_DIRECTIVE = "$patch"


def merge(base: Any, patch: Any) -> Any:
    """`base` with `patch` merged into it; neither is changed.

    Mappings are merged key by key, and null removes a key. Lists of mappings that have a ``name``
    are merged by it; all other lists are replaced. ``$patch: delete`` in a mapping removes it, and
    ``$patch: replace`` puts it in the place of the old one.
    """
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        return _merge_mappings(base, patch)
    if _is_named_list(base) and _is_named_list(patch):
        return _merge_named(base, patch)
    return _without_directives(patch)


def apply(path: Path | None, manifest: dict[str, Any]) -> dict[str, Any]:
    """`manifest` with every patch for its kind in the file `path` merged into it, in their order.

    `ConfigError` as from `read`.
    """
    patched: dict[str, Any] = manifest
    for patch in read(path) if path else ():
        if patch["kind"] == manifest["kind"]:
            changes = {key: value for key, value in patch.items() if key not in _IDENTITY}
            patched = merge(patched, changes)
    return patched


_IDENTITY = {"apiVersion", "kind"}


@functools.cache
def read(path: Path) -> tuple[dict[str, Any], ...]:
    """The patches in a YAML file: documents with a ``kind`` and what is to be changed in it.

    Read once, so that all objects of a run are patched alike.

    `ConfigError` if it cannot be read, or is for a kind that kboot does not make.
    """
    import yaml  # noqa: PLC0415  only where a patch is used

    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    patches = [document for document in documents if document is not None]
    for patch in patches:
        if not isinstance(patch, dict) or patch.get("kind") not in PATCHABLE:
            raise ConfigError(
                f"{path}: a patch is a mapping with a kind of {', '.join(PATCHABLE)}; "
                f"this one is {str(patch)[:80]!r}"
            )
        for key in ("name", "namespace"):
            if key in (patch.get("metadata") or {}):
                raise ConfigError(f"{path}: metadata.{key} is kboot's to choose; remove it")
    return tuple(patches)


def _merge_mappings(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    if patch.get(_DIRECTIVE) == "replace":
        replacement: dict[str, Any] = _without_directives(patch)
        return replacement
    merged = dict(base)
    for key, value in patch.items():
        deleted = isinstance(value, Mapping) and value.get(_DIRECTIVE) == "delete"
        if value is None or deleted:
            merged.pop(key, None)
        elif key != _DIRECTIVE:
            merged[key] = merge(base.get(key), value)
    return merged


def _merge_named(base: list[Any], patch: list[Any]) -> list[Any]:
    changes = {item["name"]: item for item in patch}
    merged = []
    for item in base:
        change = changes.pop(item["name"], {})
        if change.get(_DIRECTIVE) != "delete":
            merged.append(merge(item, change))
    new = [item for item in changes.values() if item.get(_DIRECTIVE) != "delete"]
    return [*merged, *_without_directives(new)]


def _is_named_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and "name" in item for item in value)
    )


def _without_directives(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without_directives(item)
            for key, item in value.items()
            if key != _DIRECTIVE and item is not None
        }
    if isinstance(value, list):
        return [_without_directives(item) for item in value]
    return value
