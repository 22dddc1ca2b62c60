"""``kboot up``, ``down``, ``list``, ``status``, ``take``: persistent machines."""

from __future__ import annotations

from typing import Any

import click

from kboot.backend import PersistentMachine
from kboot.cli.machines import (
    json_option,
    machine_argument,
    name_argument,
    place_options,
    print_json,
    say_state,
    show_event,
)
from kboot.cli.maintenance import age
from kboot.cli.options import config_options, load_config
from kboot.cli.terminal import print_table
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
    from kboot.machine import settings_for  # noqa: PLC0415  --help does not need it
    from kboot.session import kernel_of  # noqa: PLC0415
    from kboot.supervisor.client import ask, launch  # noqa: PLC0415
    from kboot.supervisor.locate import require_unused  # noqa: PLC0415

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


@click.command()
@name_argument
@click.option("--all", "everything", is_flag=True, help="All machines that this host knows of.")
@place_options
def down(*, name: str, everything: bool, **place: Any) -> None:
    """Switch the machine NAME off; nothing of it stays but the record of its console."""
    from kboot.supervisor.locate import remove  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.registry import known_names  # noqa: PLC0415

    names = known_names() if everything else [name]
    for each in names:
        click.echo(f"{each} is off; {remove(each, place)}")
    if not names:
        click.echo("there are no machines")


@click.command("list")
@place_options
@json_option
def list_machines(*, as_json: bool, **place: Any) -> None:
    """List the machines that were started with ``kboot up``, on this host and where they stay."""
    from kboot.supervisor.client import ask, live_places  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.locate import elsewhere  # noqa: PLC0415

    found: list[dict[str, Any]] = [ask(here.name, "status") for here in live_places()]
    ours = {each["identifier"] for each in found}
    found += [_describe(each) for each in elsewhere(place) if each.identifier not in ours]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("there are no machines; start one: kboot up --kernel FILE")
    else:
        rows = [["NAME", "STATE", "KERNEL", "BOOTS", "UP", "MACHINE"]]
        rows += [
            [
                each["name"],
                say_state(each["state"], each["what"]),
                each["release"],
                str(each["boots"] or ""),
                age(each["up_s"]),
                each["machine"],
            ]
            for each in found
        ]
        print_table(rows)


def _describe(machine: PersistentMachine) -> dict[str, Any]:
    """A machine that no process of this host looks after, in the words of ``kboot status``."""
    return {
        "name": machine.name,
        "state": "elsewhere" if machine.holder else "unattended",
        "what": machine.holder,
        "release": "",
        "boots": None,
        "up_s": round(machine.age_s, 1),
        "machine": f"{machine.condition}, of {machine.owner}, started by {machine.user}",
        "owner": machine.owner,
        "identifier": machine.identifier,
        "silent_s": round(machine.silent_s, 1),
        "ttl_s": machine.ttl_s,
    }


@click.command(epilog="Exit code 0: it is ready, or boots. 1: its kernel failed. 3: the host did.")
@machine_argument
@json_option
@click.pass_context
def status(context: click.Context, /, *, name: str, as_json: bool) -> None:
    """Tell what the machine NAME is doing."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    # A supervisor that has just met its machine does not know yet how it is.
    found = ask(name, "wait" if ask(name, "status")["meets"] else "status")
    if as_json:
        print_json(found)
    else:
        upcoming = found["next"]
        lines = [
            f"{name}: {say_state(found['state'], found['what'])}",
            f"  kernel    {found['release']}, boot {found['boots']} of this machine",
            f"  next      {upcoming['release']} (push {upcoming['number']}) {upcoming['kernel']}",
            f"  machine   {found['machine']}, process {found['pid']}, up {found['up_s']:.0f} s",
            f"  evidence  {found['evidence']}",
        ]
        lines += [f"  reported  {title}" for title in found["reports"]]
        lines += [f"  mended    {text}" for text in found["notices"]]
        if found["writer"]:
            lines.append(f"  console   process {found['writer']} types")
        click.echo("\n".join(lines))
    context.exit(found["exit_code"])


@click.command(epilog="The process that has looked after it so far ends; the machine runs on.")
@name_argument
@place_options
def take(*, name: str, **place: Any) -> None:
    """Look after the machine NAME, which stays on a cluster, from this host from now on."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.locate import summon  # noqa: PLC0415

    summon(name, place, by_force=True)
    status = ask(name, "wait")
    click.echo(f"{name}: {say_state(status['state'], status['what'])}; {status['machine']}")
