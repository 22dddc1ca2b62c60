"""What one run shares between its tests: a backend, a boot server, and the machine that is on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from kboot.artifacts import Kernel, read_kernel
from kboot.backend import Backend, BootServer
from kboot.boot import Boot, BootSettings, open_backend, power_on, settings_for
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError
from kboot.log import logger

_SERVER_START_LIMIT_S = 120.0


@dataclass(slots=True, kw_only=True)
class _Running:
    """A machine that is on, and how to switch it off."""

    settings: BootSettings
    boot: Boot
    power: contextlib.ExitStack


class Session:
    """Starts what is asked for when it is asked for first; `open_session` ends it all.

    One machine is on at a time. It is handed out again when the settings are the same and nothing
    has happened to it; otherwise it is switched off and another one boots.
    """

    def __init__(self, config: Config, *, evidence: Path, prefix: str) -> None:
        self.config = config
        self._evidence = evidence
        self._prefix = prefix
        self._stack = contextlib.ExitStack()
        self._running: _Running | None = None
        self._count = 0

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel under test. `ConfigError` if none was named or it is not one."""
        return kernel_of(self.config)

    @cached_property
    def backend(self) -> Backend:
        """The place to serve from and boot in."""
        return self._stack.enter_context(open_backend(self.config))

    @cached_property
    def server(self) -> BootServer:
        """The boot server."""
        return self._stack.enter_context(self.backend.serve(Deadline(_SERVER_START_LIMIT_S)))

    def settings(self, config: Config) -> BootSettings:
        """The settings of a machine under `config`."""
        return settings_for(self.kernel, config)

    def booted(
        self,
        settings: BootSettings,
        *,
        name: str,
        fresh: bool = False,
        on_attempt: Callable[[Boot], None] = lambda _attempt: None,
    ) -> Boot:
        """A machine with these settings that is ready: the one that is on, or another one.

        `fresh` demands another one. `name` names its evidence. `on_attempt` is told the machine
        before it is waited for.
        """
        running = self._running
        if running and not fresh and running.settings == settings and running.boot.pristine:
            on_attempt(running.boot)
            return running.boot
        self.switch_off()
        self._count += 1
        with contextlib.ExitStack() as power:
            attempt = power.enter_context(
                power_on(
                    self.backend,
                    self.server,
                    self.kernel,
                    replace(settings, machine_name=f"{self._prefix}{self._count}"),
                    evidence_directory=self._evidence / f"{self._count:03d}-{_file_name(name)}",
                )
            )
            on_attempt(attempt)
            attempt.wait_until_ready()
            self._running = _Running(settings=settings, boot=attempt, power=power.pop_all())
        return attempt

    def switch_off(self) -> None:
        """Switch the machine off that is on, if one is, and write its evidence."""
        if self._running:
            running, self._running = self._running, None
            for report in running.boot.judge.sort(running.boot.console.reports):
                logger.warning(
                    "the kernel reported, when no test was running: %s; see %s",
                    report.title,
                    running.boot.evidence_directory,
                )
            running.power.close()

    def close(self) -> None:
        """Switch everything off."""
        with self._stack:
            self.switch_off()


@contextlib.contextmanager
def open_session(config: Config, *, evidence: Path, prefix: str = "m") -> Iterator[Session]:
    """A session for the length of the ``with``; its boots leave their evidence below `evidence`.

    `prefix` begins the names of its machines: a DNS label's beginning, unique in a parallel run.
    """
    session = Session(config, evidence=evidence, prefix=prefix)
    try:
        yield session
    finally:
        session.close()


def kernel_of(config: Config) -> Kernel:
    """The kernel that the configuration names, read and checked."""
    if config.kernel is None:
        raise ConfigError("no kernel was named; say which: --kernel=FILE")
    return read_kernel(Path(config.kernel))


def _file_name(name: str) -> str:
    """`name` as a part of a path: readable, short, and without surprises."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "boot"
