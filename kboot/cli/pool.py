"""``kboot pool``: machines that are always fresh."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from kboot.cli.options import NeedsCommand, config_options, json_option, words_behind_dashes
from kboot.cli.output import print_json, print_table
from kboot.config import OF_TEST_RUNS, SETTINGS
from kboot.config.parse import seconds
from kboot.errors import ConfigError
from kboot.log import age

_OTHERS = {"warnings", "isolation"} | OF_TEST_RUNS

#: In the environment of a command that has a machine of a pool.
_POOL, _LEASE = "KBOOT_POOL", "KBOOT_LEASE"

_name = click.argument("name")


def _time(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else float(str(seconds(value, Path())))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not {error}") from None


@click.group()
def pool() -> None:
    """Machines that are always fresh: acquire one, use it, and another takes its place."""


@pool.command(
    epilog="""\
\b
Examples:
  kboot pool up ci --replicas 4 --max-age 3h --kernel linux-image.deb
  kboot pool acquire ci -- kboot pool exec -- uname -a
  kboot pool scale ci 8
  kboot pool down ci
""",
)
@_name
@click.option("--replicas", type=click.IntRange(1), required=True, metavar="N", help="Machines.")
@click.option(
    "--max-age",
    callback=_time,
    metavar="TIME",
    help="Replace machines that have waited for so long: 90m, 3h.",
)
@click.option(
    "--check",
    default="true",
    metavar="COMMAND",
    help="Succeeds in the guest of a machine that is good: run before it is handed out, and every "
    "10 s while it waits. [default: true]",
)
@config_options(*(setting.name for setting in SETTINGS if setting.name not in _OTHERS))
@json_option
def up(
    *,
    name: str,
    replicas: int,
    max_age: float | None,
    check: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Start the pool NAME; it runs until kboot pool down."""
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.cli.options import load_config  # noqa: PLC0415
    from kboot.machine import kernel_of, settings_for  # noqa: PLC0415

    # Mistakes are told here, before anything has been started.
    config = load_config(options)
    settings_for(kernel_of(config), config)
    found = _find(name)
    order = {
        "replicas": replicas,
        "max_age_s": max_age,
        "check": check,
        "options": {key: value for key, value in options.items() if value not in (None, ())},
        "directory": str(Path.cwd()),
    }
    service.launch(found, "kboot.pool.service", order)
    _show(service.ask(found, "wait", on_event=_tell), as_json=as_json)


def _tell(event: dict[str, Any]) -> None:
    click.echo(event["what"], err=True)


@pool.command("list")
@click.argument("name", required=False, metavar="[NAME]")
@json_option
def list_pools(*, name: str | None, as_json: bool) -> None:
    """List pools, or the machines of the pool NAME."""
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.pool.service import KIND  # noqa: PLC0415

    if name:
        _show(_ask(name, "status"), as_json=as_json)
        return
    found = [service.ask(each, "status") for each in service.running(KIND)]
    if as_json:
        print_json(found)
    elif found:
        rows = [("POOL", "REPLICAS", "READY", "LEASED")]
        for each in found:
            states = [machine["state"] for machine in each["machines"]]
            counts = (each["replicas"], states.count("ready"), states.count("leased"))
            draining = " (draining)" if each["draining"] else ""
            rows.append((each["name"] + draining, *map(str, counts)))
        print_table(rows)
    else:
        click.echo("no pools")


@pool.command()
@_name
@click.argument("replicas", type=click.IntRange(0))
@json_option
def scale(*, name: str, replicas: int, as_json: bool) -> None:
    """Have REPLICAS machines in the pool NAME. Leased ones are not taken away."""
    _show(_ask(name, "scale", replicas=replicas), as_json=as_json)


@pool.command()
@_name
@json_option
def drain(*, name: str, as_json: bool) -> None:
    """Hand out no more machines; those that nobody has are stopped. Undone by scale."""
    _show(_ask(name, "drain"), as_json=as_json)


@pool.command()
@_name
def down(*, name: str) -> None:
    """Stop and remove the pool NAME, also while its machines are leased."""
    from kboot import service  # noqa: PLC0415  --help does not need it

    kept = Path(service.stop(_find(name)))
    is_any = kept.is_dir() and any(kept.iterdir())
    told = f"; consoles and logs that are kept: {kept}" if is_any else ""
    click.echo(f"{name}: stopped{told}")


@pool.command(cls=NeedsCommand)
@_name
@click.option("--ttl", default="1h", callback=_time, metavar="TIME", help="[default: 1h]")
@click.option(
    "--wait", default="5m", callback=_time, metavar="TIME", help="For a machine. [default: 5m]"
)
@click.pass_context
def acquire(context: click.Context, *, name: str, ttl: float, wait: float) -> None:
    """Run COMMAND here while it has a machine of the pool NAME: kboot pool exec runs in its guest.

    The machine is given back when COMMAND ends, when we end however that is, or when its time is
    over. COMMAND's exit status is ours.
    """
    from kboot import process, service  # noqa: PLC0415  --help does not need them

    words = words_behind_dashes(context)
    # A mistake is not worth a machine, and not to wait for one.
    process.find_program(words[0])
    client = service.connect(_find(name))
    try:
        holder = f"process {os.getpid()}: {shlex.join(words)[:60]}"
        lease = client.ask("acquire", holder=holder, ttl=ttl, timeout=wait)
        begin = time.monotonic()
        environ = {**os.environ, _POOL: name, _LEASE: lease["lease"]}
        status = process.foreground(words, env=environ)
    finally:
        client.close()
    if time.monotonic() - begin >= ttl:
        click.echo(
            f"kboot: the lease was over after {ttl:g} s, before the command was; ask for a longer "
            "one: --ttl",
            err=True,
        )
    context.exit(status)


@pool.command("exec", cls=NeedsCommand)
@click.option("--timeout", type=float, default=60.0, metavar="SECONDS", help="[default: 60]")
@json_option
@click.pass_context
def exec_command(context: click.Context, *, timeout: float, as_json: bool) -> None:
    """Run COMMAND in the guest of the machine that was acquired. Inside kboot pool acquire."""
    name, lease = os.environ.get(_POOL), os.environ.get(_LEASE)
    if not name or not lease:
        raise ConfigError("no machine was acquired: kboot pool acquire NAME -- COMMAND")
    words = words_behind_dashes(context)
    command = words[0] if len(words) == 1 else shlex.join(words)
    result = _ask(name, "exec", lease=lease, command=command, timeout=timeout)
    output = {each: result[each].encode("latin-1") for each in ("stdout", "stderr")}
    if as_json:
        texts = {each: data.decode(errors="replace") for each, data in output.items()}
        print_json({**result, **texts})
    else:
        for stream, data in zip((sys.stdout, sys.stderr), output.values(), strict=True):
            stream.buffer.write(data)
            stream.flush()
    context.exit(result["exit_status"])


def _find(name: str) -> Any:
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.pool.service import KIND  # noqa: PLC0415

    return service.find(KIND, name)


def _ask(name: str, verb: str, **arguments: Any) -> Any:
    from kboot import service  # noqa: PLC0415  --help does not need it

    return service.ask(_find(name), verb, **arguments)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [("MACHINE", "STATE", "AGE", "HOLDER")]
    rows += [
        (each["name"], each["state"], age(each["age_s"]), each["holder"])
        for each in found["machines"]
    ]
    print_table(rows)
    for each in found["broken"]:
        click.echo(f"taken out: {each['name']}: {each['fault']}; see {each['evidence']}")
    if found["draining"]:
        click.echo(f"draining: hands out nothing until kboot pool scale {found['name']} N")
    if found["trouble"]:
        click.echo(f"no machine can be started: {found['trouble']}", err=True)
