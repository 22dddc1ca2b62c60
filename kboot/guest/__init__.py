"""A booted system: log in, run commands with exact results, copy files."""

from kboot.guest.guest import BackgroundCommand, Channel, CommandResult, Ended, Guest, Job, Runner
from kboot.guest.history import CommandHistory, CommandRecord
from kboot.guest.login import log_in

__all__ = [
    "BackgroundCommand",
    "Channel",
    "CommandHistory",
    "CommandRecord",
    "CommandResult",
    "Ended",
    "Guest",
    "Job",
    "Runner",
    "log_in",
]
