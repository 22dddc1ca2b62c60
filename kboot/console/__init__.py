"""The serial console: always read, recorded with times, waited on in races with the crash."""

from kboot.console.console import Console
from kboot.console.crashes import CrashScanner, ExpectedCrash
from kboot.console.expect import Match
from kboot.console.text import Line

__all__ = ["Console", "CrashScanner", "ExpectedCrash", "Line", "Match"]
