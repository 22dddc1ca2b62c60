"""What the account may do: all, all but some, or what a Role allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from tests.kubevirt.cluster import answers

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Rights:
    def __init__(self) -> None:
        #: Verb and resource (``update virtualmachines/start``) that the account may not.
        self.forbidden: set[str] = set()
        #: The rules of a Role that has all the account's rights; None for an account that may all.
        self.rules: Sequence[Mapping[str, Any]] | None = None

    def review(self) -> list[Mapping[str, Any]]:
        """The rules that the account is told to have."""
        if self.rules is not None:
            return list(self.rules)
        everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        return [] if self.forbidden else [everything]

    def refuse(self, request: web.Request, where: Mapping[str, str]) -> web.Response | None:
        """The answer to a request that the account may not make."""
        resource = "/".join(filter(None, (where["plural"], where["sub"])))
        verb, group = _verb(request, where), where["version"].rpartition("/")[0]
        if f"{verb} {resource}" not in self.forbidden and self._has(verb, group, resource):
            return None
        text = (
            f'{answers.full(where["plural"])} is forbidden: User "tester" cannot {verb} resource '
            f'"{resource}" in API group "{group}" in the namespace "{where["namespace"]}"'
        )
        return answers.status(403, "Forbidden", text)

    def _has(self, verb: str, group: str, resource: str) -> bool:
        return self.rules is None or any(
            verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"]
            for rule in self.rules
        )


def _verb(request: web.Request, where: Mapping[str, str]) -> str:
    if request.method in _VERBS:
        return _VERBS[request.method]
    if where["name"]:
        return "get"
    return "watch" if request.query.get("watch") == "true" else "list"
