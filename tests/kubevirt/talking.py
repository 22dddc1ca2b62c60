"""A guest that talks: numbered lines, quicker than anybody reads, and an echo of what is typed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster.guests import Guest


class TalkingGuest:
    """Says ``line 0``, ``line 1``...; what is typed it says back at once.

    Started paused, it shows a boot menu first and waits for a key, as KubeVirt's firmware does.
    """

    def __init__(self, *, interval_s: float, paused: bool) -> None:
        self._interval_s = interval_s
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._going = asyncio.Event()
        self._dead = False
        self.off = False
        self.commands: list[str] = []
        self._number = 0
        self._menu = paused
        if not paused:
            self._going.set()

    async def read(self) -> bytes:
        await self._going.wait()
        if self._menu:
            self._menu = False
            # Until somebody presses a key.
            self._going.clear()
            return b"Press ESC for boot menu.\r\n"
        try:
            said = await asyncio.wait_for(self._said.get(), self._interval_s)
        except TimeoutError:
            said = b"line %d\r\n" % self._number
            self._number += 1
        return b"" if self._dead else said

    def write(self, data: bytes) -> None:
        self._going.set()
        self._said.put_nowait(b"echo " + data.strip() + b"\r\n")

    def command(self, name: str) -> None:
        self.commands.append(name)
        if name == "unpause":
            self._going.set()

    def powered_off(self) -> bool:
        return self.off

    def kill(self) -> None:
        self._dead = True
        self._going.set()


def talking(_spec: MachineSpec, _directory: Path, paused: bool) -> Guest:
    return TalkingGuest(interval_s=0.002, paused=paused)
