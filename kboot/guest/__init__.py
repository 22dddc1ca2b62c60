"""A booted system: log in, run commands with exact results, copy files."""

from kboot.guest.bootstrap import login
from kboot.guest.channel import Channel, Ended, Job, Runner
from kboot.guest.guest import BackgroundCommand, CommandResult, Guest

__all__ = [
    "BackgroundCommand",
    "Channel",
    "CommandResult",
    "Ended",
    "Guest",
    "Job",
    "Runner",
    "login",
]
