"""Test your tests without a hypervisor: a recorded boot is replayed, in milliseconds.

`FakeBackend` goes to `kboot.open_session`, or into the fixture ``kboot_session``; see
docs/testing.md.
"""

from kboot.testing.backend import FakeBackend
from kboot.testing.guest import Answer, GuestAction, Script
from kboot.testing.kernel import write_kernel
from kboot.testing.recording import RECORDED_BOOT, Recording

__all__ = [
    "RECORDED_BOOT",
    "Answer",
    "FakeBackend",
    "GuestAction",
    "Recording",
    "Script",
    "write_kernel",
]
