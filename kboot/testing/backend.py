"""A backend that replays a recorded boot: no hypervisor, no nginx, no waiting."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kboot import arch
from kboot.backend import Fetch, OnProgress, VirtualMachine, ignore_progress
from kboot.cache import sha256_of
from kboot.deadline import Deadline
from kboot.errors import ConfigError
from kboot.kernel import read_kernel
from kboot.machine_network import PathCondition
from kboot.machine_spec import Disk, Firmware, Link, MachineSpec
from kboot.server_faults import Fault, Faulty
from kboot.server_tls import Certificate, TlsServer, WithTls
from kboot.testing.guest import PROMPT, FakeGuest, GuestAction, Script
from kboot.testing.recording import RECORDED_BOOT, BootScript, Recording

#: How long the line is quiet before a guest dies of what a command did: the answer is read first.
_LEAD_S = 0.02


class FakeBackend:
    """Boots every kernel as one was recorded; see `kboot.backend.Backend`.

    `recording` is the evidence directory of a real boot, unless given the one that comes with
    kboot. Where that boot came up, so do all machines, each with a nonce, kernel and command line
    of its own; where it did not, neither do they. A panic is the one that was recorded after the
    login. `commands` says what the guest answers; to all others it has the exit status 127.
    """

    name = "fake"

    def __init__(self, recording: Path = RECORDED_BOOT, *, commands: Script | None = None) -> None:
        self._recording = Recording(recording)
        self._commands = {} if commands is None else commands
        self._server = FakeServer()

    def firmware_fault(
        self, firmware: Firmware, _architecture: str = arch.DEFAULT.name
    ) -> str | None:
        """None if its machines can have this firmware, or else why not."""
        return None if firmware == "bios" else "a replayed boot is the one of a BIOS machine"

    def disk_fault(self, disk: Disk) -> str | None:
        """None if its machines can have such a disk: what the guest says of it is made up."""
        return None if disk.kind == "blank" else "a replayed boot reads no disk; give a blank one"

    def processor_fault(self, spec: MachineSpec) -> str | None:
        """None if it has machines with these NUMA nodes and huge pages, or else why not."""
        return "a replayed boot has one NUMA node" if spec.numa > 1 else None

    def chain_loads(self, _spec: MachineSpec) -> bool:
        """No: a replayed boot has the iPXE that it had."""
        return False

    def share_fault(self) -> str | None:
        """None if its machines can have directories of this host, or else why not."""
        return "a replayed boot mounts nothing"

    @contextlib.contextmanager
    def serve(self, deadline: Deadline) -> Iterator[FakeServer]:
        """The boot server, which is a dictionary."""
        yield self._server

    @contextlib.contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[FakeVirtualMachine]:
        """Replay a boot from its beginning."""
        vm = FakeVirtualMachine(spec, self._recording, self._server, self._commands)
        try:
            yield vm
        finally:
            vm.stream.close()

    @contextlib.contextmanager
    def open_network(self, members: Sequence[str], deadline: Deadline) -> Iterator[FakeNetwork]:
        """A network that remembers what was done to it."""
        yield FakeNetwork(members)


class FakeNetwork:
    """A network on which nothing is sent; see `kboot.machine_network.MachineNetwork`."""

    def __init__(self, members: Sequence[str]) -> None:
        self._members = tuple(members)
        #: Whose cables are pulled at the moment.
        self.pulled: set[str] = set()
        #: The conditions that hold at the moment.
        self.paths: Mapping[tuple[str, str], PathCondition] = {}

    @property
    def drivers(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def search_domain(self) -> str:
        """There is no DNS."""
        return ""

    @property
    def starts_at_once(self) -> None:
        """As this host has room."""
        return

    def link(self, member: str) -> Link:
        """Its only card."""
        return Link(network="fake", member=member)

    def interface(self, _member: str) -> None:
        """There is nothing to set."""
        return

    def addresses(self) -> Mapping[str, str]:
        """None is known."""
        return {}

    def set_links(self, machines: Mapping[str, VirtualMachine], *, up: bool) -> Mapping[str, float]:
        """Remember it."""
        self.pulled = self.pulled - machines.keys() if up else self.pulled | machines.keys()
        return dict.fromkeys(machines, time.monotonic())

    def path_fault(self) -> None:
        """It can."""
        return

    def set_paths(self, paths: Mapping[tuple[str, str], PathCondition]) -> float:
        """Remember them."""
        self.paths = dict(paths)
        return time.monotonic()


class FakeServer(Faulty, WithTls):
    """A boot server that nobody can reach; see `kboot.backend.BootServer`."""

    _BASE = "http://192.0.2.1/fake/"

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._texts: dict[str, str] = {}
        self._fetches: list[Fetch] = []

    def url(self, path: str) -> str:
        """The URL of `path`."""
        return f"{self._BASE}{path}"

    def put(self, artifact: Path, _on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256."""
        try:
            url = self.url(f"artifacts/{sha256_of(artifact)}")
        except OSError as error:
            raise ConfigError(f"{artifact}: cannot be read: {error.strerror}") from error
        self._files[url] = artifact
        return url

    def remove(self, url: str) -> int:
        """Drop a file."""
        file = self._files.pop(url, None)
        return file.stat().st_size if file else 0

    def write(self, name: str, text: str) -> str:
        """Publish or replace a text."""
        url = self.url(f"scripts/{name}")
        self._texts[url] = text
        return url

    def publish_tree(self, folder: str, files: Mapping[str, Path]) -> Sequence[str]:
        """Publish files."""
        self._files.update({self.url(f"scripts/{folder}/{name}"): files[name] for name in files})
        return sorted(files)

    def fetches(self) -> Sequence[Fetch]:
        """Every request so far."""
        return tuple(self._fetches)

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """Those of `fetches` from the running number `position` on, and that of the next one."""
        fetches = self.fetches()
        return fetches[position:], len(fetches)

    def catch_up(self, deadline: Deadline) -> bool:
        """It is never late."""
        return True

    def faults_fault(self) -> str | None:
        """Why it cannot do wrong on purpose."""
        return "a boot server that nobody reaches does no wrong on purpose"

    def set_fault(self, _fault: Fault) -> int:
        """It cannot."""
        raise ConfigError(str(self.faults_fault()))

    def clear_faults(self, number: int | None = None) -> None:
        """There are none."""

    def fault_hits(self, _number: int) -> int:
        """There are none."""
        return 0

    def tls_fault(self) -> str | None:
        """Why it does not serve by HTTPS."""
        return "a boot server that nobody reaches serves nothing by HTTPS"

    def serve_tls(self, _certificate: Certificate) -> TlsServer:
        """It cannot."""
        raise ConfigError(str(self.tls_fault()))

    def check(self) -> None:
        """It is always fine."""

    def evidence(self, _directory: Path) -> None:
        """It has no configuration."""

    # ------------------------------------------------------------------ for the virtual machine

    def boot_script(self, url: str) -> BootScript:
        """What a machine boots by."""
        return BootScript.parse(self._texts.get(url, ""), url)

    def kernel_release(self, url: str) -> str:
        """Of a kernel that was published."""
        return read_kernel(self._files[url]).release

    def log(self, fetches: Sequence[Fetch]) -> None:
        """A machine has fetched this: where a file was published, as much as that has."""
        for fetch in fetches:
            file = self._files.get(self.url(fetch.path)) if fetch.complete else None
            self._fetches.append(replace(fetch, size=file.stat().st_size) if file else fetch)


class FakeVirtualMachine:
    """A machine whose serial line is a recording; see `kboot.backend.VirtualMachine`."""

    def __init__(
        self, spec: MachineSpec, recording: Recording, server: FakeServer, commands: Script
    ) -> None:
        self._spec = spec
        self._recording = recording
        self._server = server
        self._commands = commands
        self._guest: FakeGuest | None = None
        self._script: BootScript
        self._release = ""
        self._line = _Line(self._typed)
        self._boot()

    @property
    def stream(self) -> _Line:
        """Its serial line."""
        return self._line

    @property
    def description(self) -> str:
        """One line for people."""
        return f"no machine: {self._recording.directory}, replayed"

    def reset(self) -> None:
        """Replay the boot again, on the same line."""
        self._boot()

    def restart(self) -> None:
        """Replay the boot again, on another line."""
        self._line.close()
        self._line = _Line(self._typed)
        self._boot()

    def set_link(self, *, up: bool) -> None:
        """It has no network cable: what it says is recorded."""

    def check(self) -> None:
        """It is always fine."""

    def evidence(self, directory: Path) -> None:
        """Write where the recording is."""
        (directory / "replayed").write_text(f"{self._recording.directory}\n", encoding="utf-8")

    def _boot(self) -> None:
        """Fetch the boot script as it is now, and say what the recorded machine said."""
        recording = self._recording
        script = self._script = self._server.boot_script(self._spec.boot_file)
        self._release = self._server.kernel_release(script.kernel_url)
        base = self._server.url("")
        self._server.log(
            recording.fetches_for(
                script,
                base=base,
                script_path=self._spec.boot_file.removeprefix(base),
                time=time.time(),
            )
        )
        self._guest = None
        self._line.say(recording.console_for(recording.boot, script, self._release))
        if recording.comes_up:
            # In a piece of its own: who sees it has been told of all that came before.
            self._line.say(PROMPT)
            self._guest = FakeGuest(
                script=self._commands,
                boot_id=str(uuid.uuid4()),
                release=self._release,
                command_line=script.command_line,
            )

    def _typed(self, data: bytes) -> bytes:
        """What it says to what was typed."""
        if self._guest is None:
            return b""
        said = self._guest.type(data)
        if self._guest.action:
            action, self._guest = self._guest.action, None
            self._line.say_later(lambda: self._end(action))
        return said

    def _end(self, action: GuestAction) -> None:
        """The guest ends its boot."""
        if action is GuestAction.PANIC:
            crash = self._recording.crash
            self._line.say(self._recording.console_for(crash, self._script, self._release))
            if "panic=0" in self._script.command_line.split():
                return
        self._boot()


class _Line:
    """A serial line in memory; see `kboot.backend.Stream`."""

    def __init__(self, typed: Callable[[bytes], bytes]) -> None:
        self._typed = typed
        #: As it is read: what comes in one piece was printed at one time.
        self._said: deque[bytes] = deque()
        self._later: Callable[[], None] | None = None
        self._closed = False
        self._changed = threading.Condition(threading.RLock())

    def say(self, data: bytes) -> None:
        """Print this."""
        with self._changed:
            self._said.append(data)
            self._changed.notify_all()

    def say_later(self, act: Callable[[], None]) -> None:
        """Do this when all that was printed has been read, and the line was quiet for a moment."""
        with self._changed:
            self._later = act
            self._changed.notify_all()

    def recv(self, size: int, /) -> bytes:
        """Wait for what is printed."""
        with self._changed:
            while not self._said and not self._closed:
                if self._later is None:
                    self._changed.wait()
                elif not self._changed.wait(_LEAD_S):
                    act, self._later = self._later, None
                    act()
            if self._closed:
                return b""
            data = self._said.popleft()
            if len(data) > size:
                self._said.appendleft(data[size:])
            return data[:size]

    def sendall(self, data: bytes, /) -> None:
        """Type this."""
        with self._changed:
            if self._closed:
                raise BrokenPipeError("the machine is off")
            if said := self._typed(data):
                self.say(said)

    def close(self) -> None:
        """End it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
