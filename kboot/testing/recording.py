"""A recorded boot: what the console said and the boot server was asked for, made to fit another."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from kboot import boot_messages
from kboot.backend import Fetch
from kboot.console.text import normalise
from kboot.crash import CrashReport, Scanner
from kboot.errors import ConfigError

#: The one that comes with kboot: Debian's kernel with the tiny root file system, and its panic.
RECORDED_BOOT = Path(__file__).parent / "recorded_boot"

_SCRIPT = re.compile(r"^echo kboot: script (?P<nonce>\w+)$", re.MULTILINE)
_KERNEL = re.compile(
    r"^kernel --name kernel (?P<url>[^?\s]+)\?(?P<query>\S+) (?P<command_line>.*)"
    r" \|\| goto failed$",
    re.MULTILINE,
)
_INITRD = re.compile(r"^initrd --name \w+ (?P<url>[^?\s]+)\?", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootScript:
    """What a boot script has a machine load; read from its text, see ``ipxe/boot.ipxe.j2``."""

    nonce: str
    query: str
    kernel_url: str
    initrd_urls: tuple[str, ...]
    command_line: str

    @classmethod
    def parse(cls, text: str, origin: str) -> BootScript:
        """`ConfigError`, about `origin`, if the text is no boot script of kboot's."""
        nonce, kernel = _SCRIPT.search(text), _KERNEL.search(text)
        if nonce is None or kernel is None:
            raise ConfigError(f"{origin}: not a boot script that kboot has written")
        return cls(
            nonce=nonce["nonce"],
            query=kernel["query"],
            kernel_url=kernel["url"],
            initrd_urls=tuple(found["url"] for found in _INITRD.finditer(text)),
            command_line=kernel["command_line"],
        )


@dataclass(frozen=True)
class Recording:
    """The first boot in an evidence directory, and the first crash of its kernel after it.

    `ConfigError` if there is no ``serial.log``, ``boot.ipxe`` or ``access.jsonl``, or no boot of
    Linux in them.
    """

    directory: Path

    @cached_property
    def script(self) -> BootScript:
        """The boot script that was recorded."""
        return BootScript.parse(self._text("boot.ipxe"), str(self.directory / "boot.ipxe"))

    @cached_property
    def fetches(self) -> tuple[Fetch, ...]:
        """What was fetched in the first boot."""
        lines = self._text("access.jsonl").splitlines()
        fetches = [Fetch(**json.loads(line)) for line in lines]
        scripts = [number for number, fetch in enumerate(fetches) if _is_script(fetch)]
        if not scripts:
            raise ConfigError(f"{self.directory / 'access.jsonl'}: no boot script was fetched")
        return tuple(fetches[scripts[0] : scripts[1] if len(scripts) > 1 else None])

    @cached_property
    def release(self) -> str:
        """What the kernel calls itself in the record."""
        for raw in self._console.splitlines():
            message = boot_messages.kernel_message(normalise(raw))
            if message and (release := boot_messages.whole_banner(message.text)):
                return release
        raise ConfigError(f"{self.directory / 'serial.log'}: no kernel's banner is in it")

    @cached_property
    def boot(self) -> bytes:
        """What the console said up to the login prompt, without that.

        Up to its end, if no prompt came.
        """
        return self._console[: self._prompt]

    @property
    def comes_up(self) -> bool:
        """Whether there is a login prompt in the record."""
        return self._prompt is not None

    @cached_property
    def crash(self) -> bytes:
        """What the console said of the first death after the login; empty if it had none."""
        if self._prompt is None:
            return b""
        scanner = Scanner()
        events = [*scanner.feed(self._console), *scanner.close()]
        fatal = [
            event
            for event in events
            if isinstance(event, CrashReport) and event.fatal and event.start_offset > self._prompt
        ]
        if not fatal:
            return b""
        begin = self._console.rfind(b"\n", 0, fatal[0].start_offset) + 1
        return self._console[begin : _next_boot(self._console, begin)]

    def console_for(self, text: bytes, script: BootScript, release: str) -> bytes:
        """A part of the record as if `script` had been run, by a kernel of this release."""
        ours = self.script
        pairs = [
            (ours.command_line, script.command_line),
            (ours.nonce, script.nonce),
            (self.release, release),
        ]
        for old, new in pairs:
            text = text.replace(old.encode(), new.encode())
        return text

    def fetches_for(
        self, script: BootScript, *, base: str, script_path: str, time: float
    ) -> list[Fetch]:
        """The recorded fetches as those of a machine that runs `script`.

        `base` is the URL of the boot server's root.
        """
        fetched: list[Fetch] = []
        kernel = script.kernel_url.removeprefix(base)
        initrds = [url.removeprefix(base) for url in script.initrd_urls]
        for fetch in self.fetches:
            common = replace(fetch, time=time, query=script.query)
            if _is_script(fetch):
                fetched.append(replace(common, path=script_path, query=""))
            elif self.script.kernel_url.endswith(fetch.path):
                fetched.append(replace(common, path=kernel))
            elif any(url.endswith(fetch.path) for url in self.script.initrd_urls):
                # However many there were: all that the script names come with the first one.
                fetched += [replace(common, path=path) for path in initrds]
                initrds = []
            else:
                fetched.append(common)
        return fetched

    @cached_property
    def _console(self) -> bytes:
        return self._read("serial.log")

    @cached_property
    def _prompt(self) -> int | None:
        """Where the line begins on which the guest first waits for input; None if it never did."""
        position, in_user_space = 0, False
        for raw in self._console.split(b"\n"):
            line = normalise(raw)
            in_user_space = in_user_space or boot_messages.starts_init(line)
            if in_user_space and boot_messages.begins_with_prompt(line):
                return position
            position += len(raw) + 1
        return None

    def _text(self, name: str) -> str:
        return self._read(name).decode(errors="replace")

    def _read(self, name: str) -> bytes:
        path = self.directory / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}; a recording is the evidence directory of a boot"
            ) from error


def _is_script(fetch: Fetch) -> bool:
    return fetch.path.startswith("scripts/")


def _next_boot(console: bytes, begin: int) -> int:
    """Where the next boot begins; the end, if there is none."""
    position = begin
    for raw in console[begin:].split(b"\n"):
        if boot_messages.begins_boot(normalise(raw)):
            return position
        position += len(raw) + 1
    return len(console)
