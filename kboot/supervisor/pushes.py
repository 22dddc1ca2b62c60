"""What was pushed to a machine: kernels and images on its boot server, the newest last."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kboot.backend import BootServer, OnProgress, Progress, RecreatableServer, ignore_progress
from kboot.cache import FileStamp
from kboot.config import Channel, Config
from kboot.errors import ConfigError, InfraError
from kboot.kernel import Kernel, local_path, read_kernel, require_architecture, sha256_of
from kboot.kernel.compression import MAGIC, compression_of, decompressed
from kboot.kernel.image import HEAD_SIZE
from kboot.machine import Load, MachineSettings, own_kernel, settings_for, upload
from kboot.rootfs import is_debian, is_module_file, module_name
from kboot.rootfs.modules_image import NONE
from kboot.rootfs.system import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What was dropped from a store."""

    files: int
    size: int


class Store:
    """Puts files on a boot server, and knows which; several threads may put some at once."""

    def __init__(self, server: BootServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._urls: set[str] = set()
        #: Bytes that went to the server so far: what was there already is not among them.
        self.sent = 0

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """As `BootServer.put`."""
        sent = 0

        def count(progress: Progress) -> None:
            nonlocal sent
            if progress.step == "send":
                sent = progress.done
            on_progress(progress)

        try:
            url = self._server.put(artifact, count)
        finally:
            with self._lock:
                self.sent += sent
        with self._lock:
            self._urls.add(url)
        return url

    def know(self, urls: Iterable[str]) -> None:
        """Another process has put these there."""
        self._urls.update(urls)

    def keep_only(self, urls: Collection[str]) -> Freed:
        """Drop all files but these."""
        unused = self._urls.difference(urls)
        sizes = [self._server.remove(url) for url in unused]
        self._urls -= unused
        return Freed(files=len(sizes), size=sum(sizes))


_CPIO = (b"070701", b"070702")


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One kernel with its images that the machine can boot."""

    #: From 1, in the order of the pushes.
    number: int
    #: The configuration it was made from.
    config: Config
    load: Load
    #: Seconds since the epoch.
    time: float

    @property
    def urls(self) -> tuple[str, ...]:
        """All files that it is made of, on the boot server; none for what is on a disk."""
        return tuple(filter(None, (self.load.kernel_url, *self.load.initrd_urls)))

    @property
    def files(self) -> tuple[Path, ...]:
        """Where these were on the host that has pushed them."""
        if self.load.kernel.on_disk:
            return ()
        return (self.load.kernel.image, *self.load.settings.initrds)

    def as_json(self) -> dict[str, Any]:
        """For people and programs to read."""
        load = self.load
        return {
            "number": self.number,
            "release": load.kernel.release,
            "version": load.kernel.version,
            "kernel": str(load.kernel.source),
            "sha256": load.kernel.sha256,
            "initrds": [url.rpartition("/")[2] for url in load.initrd_urls],
            "cmdline": load.settings.command_line,
            "time": self.time,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be pushed; None is for what stays as it is."""

    #: Kernels, root file systems and modules, told apart by what is in them.
    files: Sequence[Path] = ()
    command_line: str | None = None
    #: They take the place of all that there were; one without a name is for none.
    initrds: Sequence[Path] | None = None
    #: Names, to be added to those there were; an empty one takes these away.
    modules: Sequence[str] | None = None


class Pushes:
    """Puts files on a boot server, and remembers what they make up."""

    def __init__(self, server: BootServer, config: Config, machine_name: str) -> None:
        #: Held by who adds or drops files.
        self.changing = threading.Lock()
        self._store = Store(server)
        self._config = config
        self._machine_name = machine_name
        self._kernels: dict[FileStamp, Kernel] = {}
        self._all: list[Push] = []
        self._count = 0
        self._channel: Channel | None = None
        #: The one that the boot script names.
        self.current: Push | None = None

    @property
    def all(self) -> Sequence[Push]:
        """Every push that can be gone back to."""
        return tuple(self._all)

    @property
    def sent(self) -> int:
        """Bytes that went to the boot server so far."""
        return self._store.sent

    def prepare(
        self,
        wanted: Wanted,
        on_progress: OnProgress = ignore_progress,
    ) -> Push:
        """Read and upload files; what is not among them stays as it is in the current push.

        Nothing is switched yet, see `accept`. `ConfigError` for a file that is neither a kernel,
        a module nor an initramfs, and for one that changes while it is read.
        """
        current = self.current.load if self.current else None
        config = self.current.config if self.current else self._config
        if config.boot == "disk":
            raise ConfigError(
                f"{self._machine_name} boots from its disk, and nothing is pushed to it; change "
                "what is there, or start a machine without --boot disk"
            )
        drivers = current is not None and _has_drivers(current.settings, config)
        config, new_kernel, new_images = _changed(config, wanted, has_drivers=drivers)
        return self.read(
            config,
            on_progress,
            kernel_of=None if new_kernel else current,
            images_of=None if new_images else current,
        )

    def read(
        self,
        config: Config,
        on_progress: OnProgress = ignore_progress,
        *,
        kernel_of: Load | None = None,
        images_of: Load | None = None,
    ) -> Push:
        """Read and upload what a configuration names, but for what is taken from another push."""
        kernel = kernel_of.kernel if kernel_of else self._kernel_of(config, on_progress)
        if self.current:
            require_architecture(kernel, self.current.load.settings.spec.architecture)
        # The machine's ssh port can be reached or not, as it was switched on.
        if self._channel == "console":
            config = replace(config, channel="console")
        settings = settings_for(
            kernel,
            config,
            machine_name=self._machine_name,
            images_of=images_of.settings if images_of else None,
        )
        self._channel = self._channel or settings.channel
        settings = settings.reached_by(self._channel)
        load = upload(
            self._store,
            kernel,
            settings,
            on_progress,
            kernel_url=kernel_of.kernel_url if kernel_of else None,
            initrd_urls=images_of.initrd_urls if images_of else None,
        )
        if not load.kernel_url.endswith(kernel.sha256):
            raise ConfigError(
                f"{kernel.source} was written to while it was pushed; push it again when it is done"
            )
        return Push(number=0, config=config, load=load, time=time.time())

    def accept(self, push: Push) -> Push:
        """Make a push the current one; the same as an earlier one keeps that one's number."""
        same = next((old for old in self._all if _same(old, push)), None)
        if same is None:
            self._count += 1
            same = replace(push, number=self._count)
            self._all.append(same)
        self.current = same
        return same

    def restore(self, pushes: Sequence[Push], current: int) -> None:
        """Go on with what another process has pushed; `current` is the number of the current one.

        `ConfigError` if that is not among them.
        """
        self._all = list(pushes)
        self._count = max((push.number for push in pushes), default=0)
        self.current = self.find(current)
        self._channel = self.current.load.settings.channel
        self._store.know(url for push in pushes for url in push.urls)

    def restock(self, push: Push, server: RecreatableServer) -> None:
        """Upload again what a push is made of and the boot server has lost.

        `InfraError` if a file is not here, or is another one by now.
        """
        for path, url in zip(push.files, push.urls, strict=True):
            if server.has(url):
                continue
            digest = url.rpartition("/")[2]
            source = push.load.kernel.source if path == push.load.kernel.image else path
            if not path.is_file() or sha256_of(path) != digest:
                raise InfraError(
                    f"the boot server has lost {path.name} of push {push.number}, and {source} is "
                    "not that file on this host: push it again, or another one"
                )
            self._store.put(path)

    def find(self, number: int | None) -> Push:
        """The push of this number, or the one before the current one."""
        if number is None:
            at = self._all.index(self.current) if self.current else 0
            found = self._all[at - 1] if at > 0 else None
        else:
            found = next((push for push in self._all if push.number == number), None)
        if found is None:
            which = "push before the current one" if number is None else f"push {number}"
            raise ConfigError(f"there is no {which} to go back to; see kboot pushes")
        return found

    def gc(self, keep: int, running: Collection[str]) -> tuple[list[Push], Freed]:
        """Forget all pushes but the last `keep`, and drop the files that none needs any more.

        The current one always stays, and so do pushes and files with one of the URLs `running`.
        """
        recent = self._all[len(self._all) - keep :] if keep else []
        kept = [
            push
            for push in self._all
            if push in recent or push is self.current or set(running) == set(push.urls)
        ]
        forgotten = [push for push in self._all if push not in kept]
        self._all = kept
        kernels = {push.load.kernel.sha256 for push in kept}
        self._kernels = {
            stamp: kernel for stamp, kernel in self._kernels.items() if kernel.sha256 in kernels
        }
        urls = {url for push in kept for url in push.urls}
        return forgotten, self._store.keep_only(urls.union(running))

    def _kernel_of(self, config: Config, on_progress: OnProgress) -> Kernel:
        """What a configuration names; a file that has not changed is not read again."""
        if config.boot == "disk":
            return own_kernel(config)
        path = local_path(config.kernel or "")
        try:
            stamp = FileStamp.of(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        # A directory's own times tell nothing about what is below it.
        if path.is_dir() or stamp not in self._kernels:
            on_progress(Progress(file=path, step="read", done=0, size=stamp.size))
            self._kernels[stamp] = read_kernel(path)
        return self._kernels[stamp]


def _has_drivers(settings: MachineSettings, config: Config) -> bool:
    """Whether drivers are loaded for the machine, as `kboot.rootfs.system` chooses them."""
    disks, rootfs = settings.spec.disks, config.rootfs
    # An initramfs of the user's has its own.
    on_disk = rootfs.startswith("disk:") or any(disk.name == ROOT for disk in disks)
    for_disks = bool(disks) and (rootfs == "tiny" or on_disk)
    return bool(settings.spec.shares) or for_disks or is_debian(rootfs)


def _changed(config: Config, wanted: Wanted, *, has_drivers: bool) -> tuple[Config, bool, bool]:
    """A configuration with what is wanted, and whether its kernel, and its images, are new."""
    modules = list(wanted.modules or ())
    new_kernel, new_images = False, wanted.initrds is not None
    for file in wanted.files:
        if is_module_file(file.name):
            modules.append(str(file))
        elif _is_initramfs(file):
            config, new_images = replace(config, rootfs=str(file)), True
        else:
            config, new_kernel = replace(config, kernel=str(file)), True
    if wanted.command_line is not None:
        config = replace(config, cmdline=wanted.command_line)
    if wanted.initrds is not None:
        config = replace(config, initrd=tuple(file for file in wanted.initrds if file.name))
    if modules:
        # An empty name takes away what there was; else a new one replaces its namesake.
        before = () if "" in modules else config.module
        named = {module_name(each): each for each in (*before, *modules) if each}
        config = replace(config, module=tuple(named.values()))
    # Modules are those of their kernel.
    has_modules = has_drivers or config.module or config.modules != NONE
    return config, new_kernel, new_images or bool(modules or (new_kernel and has_modules))


def _same(one: Push, other: Push) -> bool:
    def parts(push: Push) -> tuple[object, ...]:
        load, settings = push.load, push.load.settings
        script = settings.boot_script and settings.boot_script.text
        return load.kernel_url, load.initrd_urls, settings.command_line, script, settings.serve

    return parts(one) == parts(other)


def _is_initramfs(path: Path) -> bool:
    """Whether a file is a cpio archive, plain or compressed."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_SIZE)
            form = compression_of(head)
            if form not in {"gzip", "xz", "zstd", "lzma"}:
                return head.startswith(_CPIO) or form in MAGIC
            file.seek(0)
            with decompressed(file, form, str(path)) as content:
                return content.read(len(_CPIO[0])) in _CPIO
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
