"""Machines that are always fresh: acquired, released, and replaced when used, broken or too old."""

from kboot.pool.leases import LeasedMachine, Leases, OwnPool, PersistentPool
from kboot.pool.pool import Lease, Pool, PoolMachine, State, open_pool
from kboot.pool.run import RunPool

__all__ = [
    "Lease",
    "LeasedMachine",
    "Leases",
    "OwnPool",
    "PersistentPool",
    "Pool",
    "PoolMachine",
    "RunPool",
    "State",
    "open_pool",
]
