"""A guest whose boot was recorded, and that asks the boot server for what it boots by.

It fetches its script, its kernel and its images from the pod's nginx, says what the recorded
machine said with the nonce of this boot, and then answers commands: both witnesses are real.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from kboot.machine_spec import MachineSpec
from kboot.testing import GuestAction
from kboot.testing.guest import PROMPT, Answer, FakeGuest
from kboot.testing.recording import RECORDED_BOOT, BootScript, Recording
from tests.kubevirt.cluster.guests import Guest

#: The release of the kernels that these guests boot, see `kboot.testing.write_kernel`.
RELEASE = "6.99.1-mine"
_RECORDING = Recording(RECORDED_BOOT)
#: How long a guest takes to die of a command: its answer is read first.
_LEAD_S = 0.02

Commands = Callable[[str], Answer]


def everything_succeeds(command: str) -> Answer:
    """Commands that only change the guest do as they should; its facts are its own."""
    return "" if "resolv" in command or "hostname" in command else None


class ReplayedGuest:
    def __init__(
        self, spec: MachineSpec, *, paused: bool, commands: Commands, boot_s: float
    ) -> None:
        self._spec = spec
        self._commands = commands
        self._boot_s = boot_s
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._guest: FakeGuest | None = None
        self._script: BootScript
        self._going = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        #: What the guest was told by QEMU's buttons and cables.
        self.commands: list[str] = []
        self.off = False
        #: Whether its ssh server can be reached.
        self.listens = False
        if not paused:
            self._going.set()
        self._spawn(self._boot())

    async def read(self) -> bytes:
        return await self._said.get()

    def write(self, data: bytes) -> None:
        if self._guest is None:
            return
        if said := self._guest.type(data):
            self._said.put_nowait(said)
        if action := self._guest.action:
            self._guest = None
            self.listens = False
            self._spawn(self._end(action))

    def command(self, name: str) -> None:
        self.commands.append(name)
        match name:
            case "unpause":
                self._going.set()
            case "reset":
                self._guest = None
                self._spawn(self._boot())

    def powered_off(self) -> bool:
        return self.off

    def kill(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._said.put_nowait(b"")

    # -------------------------------------------------------------------------------- inside

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _boot(self) -> None:
        await self._going.wait()
        base, _, path = self._spec.boot_file.partition("/scripts/")
        place = urlsplit(base)
        here = f"http://127.0.0.1:{place.port}{place.path}/"
        async with aiohttp.ClientSession(headers={"User-Agent": "iPXE/1.21.1"}) as web:
            text = await _get(web, f"{here}scripts/{path}")
            script = self._script = BootScript.parse(text, self._spec.boot_file)
            published = script.kernel_url.partition("artifacts/")[0]
            fetches = _RECORDING.fetches_for(
                script, base=published, script_path=f"scripts/{path}", time=0.0
            )
            for fetch in fetches[1:]:
                await _get(web, f"{here}{fetch.path}?{fetch.query}")
        said = _RECORDING.console_for(_RECORDING.boot, script, RELEASE)
        half = said.rfind(b"\n", 0, len(said) // 2) + 1
        self._said.put_nowait(said[:half])
        await asyncio.sleep(self._boot_s)
        self._said.put_nowait(said[half:])
        self._guest = FakeGuest(
            script=self._commands,
            boot_id=str(uuid.uuid4()),
            release=RELEASE,
            command_line=script.command_line,
        )
        self._said.put_nowait(PROMPT)
        self.listens = True

    async def _end(self, action: GuestAction) -> None:
        await asyncio.sleep(_LEAD_S)
        if action is GuestAction.PANIC:
            self._said.put_nowait(_RECORDING.console_for(_RECORDING.crash, self._script, RELEASE))
            if "panic=0" in self._script.command_line.split():
                return
        await self._boot()


async def _get(web: aiohttp.ClientSession, url: str) -> str:
    async with web.get(url) as answer:
        assert answer.status == 200, f"{url}: {answer.status}"
        return (await answer.read()).decode(errors="replace")


def replayed(
    commands: Commands = everything_succeeds,
    *,
    boot_s: float = 0.05,
    make_commands: Callable[[], Commands] | None = None,
) -> Callable[[MachineSpec, Path, bool], Guest]:
    """What makes such guests, for a test cluster; `make_commands` for commands that remember."""

    def make(spec: MachineSpec, _directory: Path, paused: bool) -> Guest:
        answers = make_commands() if make_commands else commands
        return ReplayedGuest(spec, paused=paused, commands=answers, boot_s=boot_s)

    return make
