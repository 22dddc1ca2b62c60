"""``kboot up``, ``down``, ``list``, ``status``, ``take``: persistent machines."""

from __future__ import annotations

from typing import Any

import click

from kboot.backend import PersistentMachine
from kboot.cli.options import (
    config_options,
    json_option,
    load_config,
    location_options,
    machine_argument,
    name_argument,
    resolve_name,
)
from kboot.cli.output import print_json, print_table, say_state, show_event
from kboot.config import OF_TEST_RUNS, SETTINGS
from kboot.errors import ConfigError
from kboot.log import age

#: What `kboot up` calls a machine that is given no name.
_DEFAULT_NAME = "default"

#: The settings of tests.
_OTHERS = {"warnings", "isolation", "snapshot_cache"} | OF_TEST_RUNS


@click.command(
    epilog="""\
\b
Examples:
  kboot up --kernel arch/x86/boot/bzImage
  kboot up fast --kernel linux-image.deb --firmware-start saved
  kboot up --kernel bzImage && kboot exec -- uname -a && kboot down

Exit codes: 0 it is up, 1 the kernel failed (the machine is kept for inspection), 2 bad input,
3 the host failed.
""",
)
@name_argument
@config_options(*(setting.name for setting in SETTINGS if setting.name not in _OTHERS))
@json_option
@click.pass_context
def up(context: click.Context, /, *, name: str | None, as_json: bool, **options: Any) -> None:
    """Start a persistent machine called NAME (or "default"); it runs until kboot down."""
    from kboot.machine import kernel_of, settings_for  # noqa: PLC0415
    from kboot.supervisor.client import ask, launch  # noqa: PLC0415
    from kboot.supervisor.locate import require_new_name  # noqa: PLC0415

    name = name or _DEFAULT_NAME
    config = load_config(options)
    if not config.names_kernel:
        raise ConfigError(
            "no kernel was named; say which: kboot up --kernel FILE, or boot what is on a disk: "
            "--boot disk --disk FILE"
        )
    # Mistakes are told here, before anything has been started.
    kernel = kernel_of(config)
    settings_for(kernel, config, machine_name=name)
    require_new_name(name)
    launch(name, {key: value for key, value in options.items() if value not in (None, ())})
    if not as_json:
        click.echo(str(kernel))
    status = ask(name, "wait", on_event=(lambda _: None) if as_json else show_event)
    if as_json:
        print_json(status)
    else:
        click.echo(f"{name}: {say_state(status['state'], status['what'])}; {status['machine']}")
    context.exit(status["exit_code"])


@click.command()
@name_argument
@click.option("--all", "everything", is_flag=True, help="All machines that this host knows of.")
@location_options
def down(*, name: str | None, everything: bool, **location: Any) -> None:
    """Stop and remove the machine NAME. Its console log and evidence are kept."""
    from kboot.supervisor.locate import remove  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.registry import known_names  # noqa: PLC0415

    names = known_names() if everything else [resolve_name(name, location)]
    for each in names:
        click.echo(f"{each}: stopped; {remove(each, location)}")
    if not names:
        click.echo("no machines")


@click.command("list")
@location_options
@json_option
def list_machines(*, as_json: bool, **location: Any) -> None:
    """List persistent machines, on this host and on clusters."""
    from kboot import service  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.locate import list_persistent  # noqa: PLC0415
    from kboot.supervisor.registry import KIND  # noqa: PLC0415

    found: list[dict[str, Any]] = [service.ask(each, "status") for each in service.running(KIND)]
    ours = {each["identifier"] for each in found}
    found += [_describe(each) for each in list_persistent(location) if each.identifier not in ours]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no machines; start one: kboot up --kernel FILE")
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
    """A machine without a supervisor on this host, with the keys of ``kboot status``."""
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


@click.command(epilog="Exit codes: 0 ready or booting, 1 the kernel failed, 3 the host failed.")
@machine_argument
@json_option
@click.pass_context
def status(context: click.Context, /, *, name: str, as_json: bool) -> None:
    """Show the state of the machine NAME: what it runs, and what it boots next."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    # A supervisor that has just found its machine does not know its state yet.
    found = ask(name, "wait" if ask(name, "status")["taking_over"] else "status")
    if as_json:
        print_json(found)
    else:
        upcoming = found["next"]
        release = upcoming["release"] or "what is on its disk"
        lines = [
            f"{name}: {say_state(found['state'], found['what'])}",
            f"  kernel    {found['release']}, boot {found['boots']} of this machine",
            f"  next      {release} (push {upcoming['number']}) {upcoming['kernel']}",
            f"  machine   {found['machine']}, process {found['pid']}, up {age(found['up_s'])}",
            f"  evidence  {found['evidence']}",
        ]
        lines += [f"  reported  {title}" for title in found["reports"]]
        lines += [f"  repaired  {text}" for text in found["notices"]]
        if found["writer"]:
            lines.append(f"  console   process {found['writer']} types")
        click.echo("\n".join(lines))
    context.exit(found["exit_code"])


@click.command(epilog="The supervisor it has had until now exits; the machine runs on.")
@name_argument
@location_options
def take(*, name: str | None, **location: Any) -> None:
    """Take over the machine NAME on a cluster: this host supervises it from now on."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.locate import ensure_supervisor  # noqa: PLC0415

    name = resolve_name(name, location)
    ensure_supervisor(name, location, by_force=True)
    status = ask(name, "wait")
    click.echo(f"{name}: {say_state(status['state'], status['what'])}; {status['machine']}")
