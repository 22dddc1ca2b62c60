"""Machines with roles on one network: cut off at one instant, partitioned, healed."""

from kboot.fleet.fleet import Cut, Fleet, Group
from kboot.fleet.layout import Role, read_roles
from kboot.fleet.start import open_fleet

__all__ = ["Cut", "Fleet", "Group", "Role", "open_fleet", "read_roles"]
