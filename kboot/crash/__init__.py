"""Console text to crash reports: pure, streaming, fast.

`Scanner` takes the bytes of a serial line in pieces of any size and returns events: `Opened` as
soon as a report's first line is complete, `CrashReport` when the report is.
"""

from kboot.crash.addresses import AddressNames
from kboot.crash.model import COMPLAINTS, CrashKind, CrashReport, Event, Frame, Opened
from kboot.crash.scanner import Scanner

__all__ = [
    "COMPLAINTS",
    "AddressNames",
    "CrashKind",
    "CrashReport",
    "Event",
    "Frame",
    "Opened",
    "Scanner",
]
