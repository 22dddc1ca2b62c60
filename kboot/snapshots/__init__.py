"""Saved machines on this host: kept by all that they depend on, checked, and limited in size."""

from kboot.snapshots.store import Entry, SnapshotStore

__all__ = ["Entry", "SnapshotStore"]
