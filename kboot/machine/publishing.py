"""What a machine loads: artifacts on the boot server, and the boot script that names them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kboot import arch, ipxe, templates
from kboot.backend import Backend, BootServer, OnProgress, Progress, ignore_progress
from kboot.ipxe import lint, user_script
from kboot.ipxe.served_tree import NOTHING, ServedTree
from kboot.ipxe.user_script import UserScript
from kboot.kernel import Kernel
from kboot.log import logger
from kboot.machine import cloud_init
from kboot.machine.phases import Expected
from kboot.machine.settings import MachineSettings, served
from kboot.machine_spec import MachineSpec

#: Beside the boot script of a machine whose own iPXE another one loads.
_LOADER, _START = "kboot-load.ipxe", "kboot-start.ipxe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A kernel and its images, all of them on the boot server."""

    kernel: Kernel
    settings: MachineSettings
    kernel_url: str
    #: In the order of `MachineSettings.initrds`.
    initrd_urls: tuple[str, ...]
    #: The size of the kernel's file; 0 if it is not known.
    kernel_bytes: int = 0


class ArtifactStore(Protocol):
    """Where files are published: a boot server is one."""

    def put(self, artifact: Path, on_progress: OnProgress) -> str:
        """As `BootServer.put`; from several threads at once."""


def upload(
    store: ArtifactStore,
    kernel: Kernel,
    settings: MachineSettings,
    on_progress: OnProgress = ignore_progress,
    *,
    kernel_url: str | None = None,
    initrd_urls: tuple[str, ...] | None = None,
) -> Load:
    """Put a kernel and its images on a boot server; what is there already is not sent again.

    All at once: most of what a file takes is the way to the server and back. `on_progress` is
    called for one file at a time. What has a URL was put there before, and its file is not looked
    at: it may have changed since, or be gone.
    """
    if kernel.on_disk:
        return Load(kernel=kernel, settings=settings, kernel_url="", initrd_urls=())
    wanted = [kernel.image] if kernel_url is None else []
    wanted += settings.initrds if initrd_urls is None else ()
    urls = _put_all(store, list(dict.fromkeys(wanted)), on_progress)
    return Load(
        kernel=kernel,
        settings=settings,
        kernel_url=urls[kernel.image] if kernel_url is None else kernel_url,
        initrd_urls=(
            tuple(urls[path] for path in settings.initrds) if initrd_urls is None else initrd_urls
        ),
        kernel_bytes=kernel.image.stat().st_size if kernel_url is None else 0,
    )


def _put_all(
    store: ArtifactStore, files: Sequence[Path], on_progress: OnProgress
) -> dict[Path, str]:
    if len(files) < 2:
        return {file: store.put(file, on_progress) for file in files}
    lock, ended = threading.Lock(), threading.Event()

    def tell(progress: Progress) -> None:
        with lock:
            if ended.is_set():
                raise _Ended
            on_progress(progress)

    pool = ThreadPoolExecutor(len(files), thread_name_prefix="kboot-put")
    try:
        puts = [pool.submit(store.put, file, tell) for file in files]
        # As soon as one has failed, the others need not go on.
        for put in as_completed(puts):
            put.result()
        return {file: put.result() for file, put in zip(files, puts, strict=True)}
    finally:
        ended.set()
        # Who presses Ctrl-C does not wait: the threads end at their next piece.
        pool.shutdown(wait=False, cancel_futures=True)


class _Ended(Exception):
    """Nobody waits for the file any more."""


def publish_script(
    server: BootServer, load: Load, *, evidence_directory: Path, nonce: str | None = None
) -> Expected:
    """Have the machine boot `load` the next time that it asks; what is to be seen of that boot.

    The script is switched in one step, and a copy of it kept as boot.ipxe. One of the user's is the
    one that its file has now; `ConfigError` if that is none any more. The `nonce` is a new one
    unless it is given. What boots from its disk has no script.
    """
    if load.kernel.on_disk:
        return _from_disk(load, nonce or ipxe.new_nonce())
    tree = publish_tree(server, load.settings, evidence_directory)
    if load.settings.boot_script:
        script = user_script.as_it_is(load.settings.boot_script, tree.scripts)
        load = replace(load, settings=replace(load.settings, boot_script=script))
    if load.settings.user_data:
        cloud_init.publish(
            server,
            load.settings.spec.name,
            load.settings.user_data,
            host_name=load.settings.host_name,
        )
    expected, text = script_for(server, load, nonce or ipxe.new_nonce(), tree)
    server.write(_script_name(load.settings), text)
    (evidence_directory / "boot.ipxe").write_text(text, encoding="utf-8")
    return expected


def publish_tree(
    server: BootServer, settings: MachineSettings, evidence_directory: Path
) -> ServedTree:
    """Publish the directory that is served beside the boot script, as it is now; what that is.

    It is listed in served.json. What has changed since it was last published is logged.
    """
    if settings.serve is None:
        return NOTHING
    tree = served(settings)
    listing = evidence_directory / "served.json"
    again = listing.is_file()
    changed = server.publish_tree(settings.spec.name, tree.files)
    if again and changed:
        logger.info("%s has changed: %s", settings.serve, ", ".join(changed))
    listing.write_text(json.dumps(tree.listing(), indent=1) + "\n", encoding="utf-8")
    return tree


def script_for(
    server: BootServer, load: Load, nonce: str, tree: ServedTree = NOTHING
) -> tuple[Expected, str]:
    """What is to be seen of a boot of `load`, and the text of its boot script.

    `tree` is what is served beside it.
    """
    settings = load.settings
    if load.kernel.on_disk:
        return _from_disk(load, nonce), ""
    query = f"m={settings.spec.name}&b={nonce}"
    command_line = ipxe.command_line(
        nonce=nonce,
        architecture=settings.spec.architecture,
        firmware=settings.spec.firmware,
        initrd_count=len(load.initrd_urls),
        extra=_parameters(server, settings),
    )
    script = _user_script if settings.boot_script else _own_script
    text = script(_Urls.of(server, load), load, nonce, query, command_line)
    base = server.url("")
    row = arch.of(settings.spec.architecture)
    expected = Expected(
        nonce=nonce,
        query=query,
        script_path=f"scripts/{_script_name(settings)}",
        kernel_path=load.kernel_url.removeprefix(base),
        initrd_paths={
            url.removeprefix(base): path.name
            for url, path in zip(load.initrd_urls, settings.initrds, strict=True)
        },
        release=load.kernel.release,
        command_line=command_line,
        console=row.console,
        early_console=row.early_console,
        whole_system=settings.whole_system,
        tls=settings.spec.tls,
        kernel_bytes=load.kernel_bytes,
    )
    if settings.boot_script:
        expected = _of_user_script(expected, settings.boot_script, tree)
    return expected, text


def _from_disk(load: Load, nonce: str) -> Expected:
    """What is to be seen of a boot from the machine's own disk: what it loads, nobody serves."""
    row = arch.of(load.settings.spec.architecture)
    return Expected(
        nonce=nonce,
        query=f"m={load.settings.spec.name}&b={nonce}",
        script_path=f"scripts/{_script_name(load.settings)}",
        kernel_path="",
        initrd_paths={},
        release="",
        command_line="",
        console=row.console,
        early_console=row.early_console,
        whole_system=True,
        boot_disk=load.settings.spec.boot_disk,
    )


def _parameters(server: BootServer, settings: MachineSettings) -> str:
    """What is appended to kboot's own kernel parameters."""
    if not settings.user_data:
        return settings.command_line
    return f"{cloud_init.parameter(server, settings.spec.name)} {settings.command_line}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Urls:
    """The URLs in a boot script, as its machine asks for them."""

    kernel: str
    initrds: tuple[str, ...]
    beacon: str
    #: Where what is served beside the script lies.
    folder: str

    @classmethod
    def of(cls, server: BootServer, load: Load) -> _Urls:
        tls = load.settings.spec.tls

        def asked(url: str) -> str:
            return url if tls == "off" else server.https(url, tls)

        return cls(
            kernel=asked(load.kernel_url),
            initrds=tuple(map(asked, load.initrd_urls)),
            beacon=asked(server.url("beacon")),
            folder=asked(server.url(f"scripts/{load.settings.spec.name}")),
        )


def _own_script(urls: _Urls, _load: Load, nonce: str, query: str, command_line: str) -> str:
    """The text of kboot's boot script for this boot."""
    return ipxe.boot_script(
        nonce=nonce,
        query=query,
        kernel_url=urls.kernel,
        initrd_urls=urls.initrds,
        beacon_url=urls.beacon,
        command_line=command_line,
    )


def _user_script(urls: _Urls, load: Load, nonce: str, query: str, command_line: str) -> str:
    """The text of the user's own boot script for this boot."""
    settings = load.settings
    if settings.boot_script is None:
        raise TypeError("there is no boot script of the user's")
    values = user_script.ScriptValues(
        kernel_url=f"{urls.kernel}?{query}",
        initrd_urls=tuple(f"{url}?{query}" for url in urls.initrds),
        command_line=command_line,
        base_url=urls.folder,
        nonce=nonce,
        query=query,
        machine=settings.spec.name,
    )
    text = settings.boot_script.render(values)
    return user_script.with_values(text, values, urls.beacon)


def _of_user_script(expected: Expected, script: UserScript, tree: ServedTree) -> Expected:
    """`expected`, with what the script's text tells of the boot."""
    findings = script.findings(tree.scripts)
    texts = [script.text, *tree.scripts.values()]
    return replace(
        expected,
        user_script=str(script.path),
        served_scripts=tuple(expected.folder + name for name in tree.scripts),
        script_waits_s=lint.longest_wait_s(texts),
        script_pauses_s=lint.longest_pause_s(texts),
        script_asks=tuple(
            (f"{name or script.path.name}:{line}: {words}", name)
            for name, text in {"": script.text, **tree.scripts}.items()
            for line, words in lint.asking(text)
        ),
        findings=tuple(
            (each.kind, f"{name or script.path.name}:{each.line}: {each.text}", each.source, name)
            for name, found in findings.items()
            for each in found
        ),
    )


def booting(backend: Backend, server: BootServer, spec: MachineSpec, path: str) -> MachineSpec:
    """The machine, with what DHCP tells it to boot: `path` on the server, as the machine asks.

    Where its own iPXE has to be loaded by another one, it is a script that does so.
    """
    url = server.url(path)
    if spec.ipxe and backend.chain_loads(spec):
        start = templates.render("ipxe/start.ipxe", script_url=url)
        start_url = server.write(f"{spec.name}/{_START}", start)
        text = templates.render(
            "ipxe/load.ipxe", ipxe_url=server.put(spec.ipxe), start_url=start_url
        )
        loader_url = server.write(f"{spec.name}/{_LOADER}", text)
        return replace(spec, boot_file=loader_url, loaded_file=start_url)
    if spec.tls == "off":
        return replace(spec, boot_file=url)
    # Those whose certificate is bad are all of the same authority.
    authority = server.serve_tls(spec.tls).authority
    return replace(spec, boot_file=server.https(url, spec.tls), authority=authority)


def _script_name(settings: MachineSettings) -> str:
    """The name under which the server has a machine's boot script."""
    return f"{settings.spec.name}/{ipxe.SCRIPT_NAME}"
