"""Who is in a fleet: roles, how many machines of each, and their settings; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kboot.config.parse import near
from kboot.errors import ConfigError

#: The beginning of a DNS label; the machine's number comes behind it.
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?")
_MOST = 200
_COUNT = "count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Machines that are alike."""

    name: str
    count: int
    #: By their names, where they are other ones than the fleet's.
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of its machines: ``worker-1``, ``worker-2``."""
        return tuple(f"{self.name}-{number}" for number in range(1, self.count + 1))


def read_roles(chosen: Mapping[str, object]) -> tuple[Role, ...]:
    """The roles in ``control=3, worker={"count": 5, "memory": "1G"}``. `ConfigError` for mistakes.

    The settings of a role are not looked at.
    """
    roles = tuple(_role(name, value) for name, value in chosen.items())
    if not roles:
        raise ConfigError("a fleet has at least one role: control=3")
    if (total := sum(role.count for role in roles)) > _MOST:
        raise ConfigError(f"a fleet has at most {_MOST} machines, not {total}")
    names = [member for role in roles for member in role.members]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two roles have a machine called {', '.join(sorted(twice))}")
    for role in roles:
        if role.name in names:
            raise ConfigError(
                f"the role {role.name} is called as a machine of another role is; rename one"
            )
    return roles


def _role(name: str, value: object) -> Role:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a role: at most 20 of a-z, 0-9 and -, a letter first"
        )
    settings = dict(value) if isinstance(value, Mapping) else {_COUNT: value}
    count = settings.pop(_COUNT, None)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(
            f"{name}={count!r}: say how many machines, as {name}=3, or with settings, as "
            f"{name}={{'count': 3, 'memory': '1G'}}"
        )
    return Role(name=name, count=count, settings=settings)


def members_of(roles: tuple[Role, ...]) -> dict[str, Role]:
    """Every machine's role, by the machine's name."""
    return {member: role for role in roles for member in role.members}


def select(roles: tuple[Role, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """The machines that `names`, of roles or machines, stand for, in the fleet's order.

    `ConfigError` for a name that is neither.
    """
    by_role = {role.name: role.members for role in roles}
    members = members_of(roles)
    chosen: set[str] = set()
    for name in names:
        if name not in by_role and name not in members:
            known = [*by_role, *members]
            raise ConfigError(
                f"no role or machine {name} in this fleet{near(name, known)}; it has: "
                f"{', '.join(by_role)} and {', '.join(members)}"
            )
        chosen |= {*by_role.get(name, (name,))}
    return tuple(member for member in members if member in chosen)
