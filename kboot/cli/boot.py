"""``kboot boot``: one boot, followed live."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kboot.cli.options import config_options, load_config
from kboot.cli.output import say_phase
from kboot.config import OF_TEST_RUNS, SETTINGS
from kboot.errors import ConfigError, KbootError

if TYPE_CHECKING:
    from kboot.config import Config
    from kboot.machine import Machine, Milestone

#: The kernel is an argument; the others are about tests that share machines.
_NOT_FOR_A_BOOT = {"kernel", "warnings", "isolation", "snapshot_cache"} | OF_TEST_RUNS


@click.command(
    epilog="""\
\b
Examples:
  kboot boot arch/x86/boot/bzImage
  kboot boot vmlinuz --console --cmdline 'debug ignore_loglevel'
  kboot boot --boot disk --rootfs debian.qcow2 --memory 1G
  kboot boot vmlinuz --expect 'Run /init as init process'
  git bisect run kboot boot --git-bisect arch/x86/boot/bzImage

Exit codes: 0 it came up, 1 the kernel failed, 2 bad input, 3 the host failed.
""",
)
@click.argument("kernel", required=False, type=click.Path(path_type=str))
@config_options(*(setting.name for setting in SETTINGS if setting.name not in _NOT_FOR_A_BOOT))
@click.option(
    "--expect",
    metavar="PATTERN",
    help="Succeed at a console line that matches this regular expression, not at a login.",
)
@click.option("--console", "show_console", is_flag=True, help="Show the console's lines.")
@click.option("--git-bisect", is_flag=True, help="Exit with 125 (skip) where it would be 2 or 3.")
def boot(
    *,
    kernel: str | None,
    expect: str | None,
    show_console: bool,
    git_bisect: bool,
    **options: Any,
) -> None:
    """Boot KERNEL (an image, a .deb, a build tree, or a URL) once, through DHCP, iPXE and HTTP.

    With --boot disk, boot what is on the machine's disk instead, with the boot loader there.
    """
    _check_pattern(expect)
    with _exit_125(when=git_bisect):
        config = load_config({**options, "kernel": kernel})
        if not config.names_kernel:
            raise ConfigError(
                "no kernel was named; say which: kboot boot FILE, or boot what is on a disk: "
                "--boot disk"
            )
        _boot(config, expect=expect, show_console=show_console)


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(f"--expect: {pattern!r} is no regular expression: {error}") from error


@contextmanager
def _exit_125(*, when: bool) -> Iterator[None]:
    try:
        yield
    except KbootError as error:
        if when and error.exit_code in {2, 3}:
            click.echo(f"kboot: cannot test: {error}", err=True)
            click.get_current_context().exit(125)
        raise


def _boot(config: Config, *, expect: str | None, show_console: bool) -> None:
    # They bring in all of kboot, which --help can do without.
    from kboot.deadline import Deadline  # noqa: PLC0415
    from kboot.machine import (  # noqa: PLC0415
        kernel_of,
        open_backend,
        power_on,
        settings_for,
    )
    from kboot.state import evidence_directory  # noqa: PLC0415

    kernel = kernel_of(config)
    settings = settings_for(kernel, config)
    evidence = config.evidence or evidence_directory(kernel.release or kernel.source.name)
    click.echo(str(kernel))
    try:
        with (
            open_backend(config) as backend,
            backend.serve(Deadline(settings.timeout_s)) as server,
            power_on(
                backend,
                server,
                kernel,
                settings,
                evidence_directory=evidence,
                on_phase=_print_phase,
            ) as machine,
        ):
            _print_machine(machine)
            if show_console:
                machine.console.subscribe(lambda line: click.echo(f"| {line.text}"))
            if expect is None:
                machine.wait_until_ready()
            else:
                click.echo(f"  found: {machine.wait_for_line(expect)}")
            machine.check()
            if config.ipxe and (build := machine.ipxe):
                click.echo(f"  iPXE {build.version}, Features: {' '.join(build.features)}")
            if kernel.on_disk and machine.boot.ready:
                click.echo(f"  Linux {machine.kernel.release}; {machine.command_line}")
    finally:
        if evidence.is_dir() and any(evidence.iterdir()):
            click.echo(f"evidence: {evidence}")
        elif config.evidence is None and evidence.is_dir():
            # Nothing was switched on that could have left any.
            evidence.rmdir()


def _print_machine(machine: Machine) -> None:
    spec = machine.settings.spec
    parts = [
        machine.machine_description,
        f"{spec.firmware}, {spec.memory_mib} MiB, {spec.cpus} CPU",
        # What is on its disk, nobody knows yet.
        machine.command_line,
    ]
    click.echo("; ".join(filter(None, parts)))


def _print_phase(milestone: Milestone, seconds: float) -> None:
    what = milestone.detail or milestone.phase
    click.echo(say_phase(what, seconds, milestone.witness))
