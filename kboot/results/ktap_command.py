"""A command in a guest that prints KTAP: how it is run.

Its output goes to the serial line itself. So it stands there among the kernel's messages, in their
order, and is there even if the kernel dies right behind it. And as on any terminal, programs do not
keep their lines back until they have a few kilobytes of them, as they do with a file or a pipe.
"""

from __future__ import annotations

import shlex

# An empty line first: what stood on the line is no part of the command's first one.
_SCRIPT = """\
if [ -c {device} ] && [ -w {device} ]; then exec >{device}; echo; fi
exec 2>&1
sh -c {command}
"""


def script(command: str, device: str) -> str:
    """A shell script that runs `command` with its output on the serial line `device`.

    It has the exit status of `command`. Where the line cannot be written to, the script prints what
    the command prints.
    """
    return _SCRIPT.format(command=shlex.quote(command), device=shlex.quote(device))
