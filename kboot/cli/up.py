"""``kboot up``: a machine that stays."""

from __future__ import annotations

from typing import Any

import click

from kboot.cli.naming import json_option, name_argument, print_json, say_state, show_event
from kboot.cli.options import config_options, load_config
from kboot.config import SETTINGS
from kboot.errors import ConfigError

#: Those of tests.
_OTHERS = {"warnings", "isolation", "snapshot_cache"}


@click.command(
    epilog="""\
\b
Examples:
  kboot up --kernel arch/x86/boot/bzImage
  kboot up fast --kernel linux-image.deb --firmware-start saved
  kboot up && kboot run -- uname -a && kboot down

Exit codes: 0 it is up, 1 the kernel failed (the machine stays, to be looked at), 2 bad input,
3 the host failed.
""",
)
@name_argument
@config_options(*(setting.name for setting in SETTINGS if setting.name not in _OTHERS))
@json_option
@click.pass_context
def up(context: click.Context, /, *, name: str, as_json: bool, **options: Any) -> None:
    """Start a machine called NAME, which stays until ``kboot down``."""
    from kboot.boot import settings_for  # noqa: PLC0415  --help does not need it
    from kboot.machines.client import ask  # noqa: PLC0415
    from kboot.machines.finding import require_unused  # noqa: PLC0415
    from kboot.machines.launch import launch  # noqa: PLC0415
    from kboot.session import kernel_of  # noqa: PLC0415

    config = load_config(options)
    if config.kernel is None:
        raise ConfigError("no kernel was named; say which: kboot up --kernel FILE")
    # Mistakes are told here, before anything has been started.
    kernel = kernel_of(config)
    settings_for(kernel, config, machine_name=name)
    require_unused(name)
    launch(name, {key: value for key, value in options.items() if value not in (None, ())})
    if not as_json:
        click.echo(f"Linux {kernel.release} ({kernel.architecture}) from {kernel.source}")
    status = ask(name, "wait", on_event=(lambda _: None) if as_json else show_event)
    if as_json:
        print_json(status)
    else:
        click.echo(f"{name}: {say_state(status['state'], status['what'])}; {status['machine']}")
    context.exit(status["exit_code"])
