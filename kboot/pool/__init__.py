"""Machines that are always fresh: acquired, released, and replaced when used, broken or too old."""

from kboot.pool.pool import Lease, Pool, PoolMachine, State, open_pool

__all__ = ["Lease", "Pool", "PoolMachine", "State", "open_pool"]
