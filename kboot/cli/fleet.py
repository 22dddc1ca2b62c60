"""``kboot fleet``: machines with roles on one network, which stay."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from kboot.cli.options import NeedsCommand, config_options, json_option, words_behind_dashes
from kboot.cli.output import print_json, print_table
from kboot.config import OF_TEST_RUNS, SETTINGS
from kboot.config.parse import near
from kboot.errors import ConfigError, GuestError

#: The settings of tests, and of machines that outlive kboot.
_OTHERS = {"warnings", "isolation"} | OF_TEST_RUNS

_name = click.argument("name")


@click.group()
def fleet() -> None:
    """Machines with roles on one network: cut them off at once, and heal."""


@fleet.command(
    epilog="""\
\b
Examples:
  kboot fleet up lab --kernel bzImage --role control=3 --role worker=5,memory=1G
  kboot fleet up lab --kernel bzImage --role control=3,disk=data=blank,size=2G
  kboot fleet exec lab worker -- ping -c 1 control-1
  kboot fleet cut lab worker && sleep 10 && kboot fleet heal lab
  kboot fleet down lab
""",
)
@_name
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    metavar="ROLE=COUNT[,SETTING=VALUE...]",
    help="A role, how many machines it has, and settings of theirs; may be repeated.",
)
@config_options(*(setting.name for setting in SETTINGS if setting.name not in _OTHERS))
@json_option
def up(*, name: str, roles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Start the fleet NAME; it runs until kboot fleet down."""
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.fleet.layout import read_roles  # noqa: PLC0415
    from kboot.fleet.service import KIND, configs_of  # noqa: PLC0415
    from kboot.machine import kernel_of, settings_for  # noqa: PLC0415
    from kboot.machine_network import naming  # noqa: PLC0415

    chosen = parse_roles(roles)
    given = {key: value for key, value in options.items() if value not in (None, ())}
    # Mistakes are told here, before anything has been started.
    config, configs = configs_of(read_roles(chosen), given, Path.cwd())
    kernel = kernel_of(config)
    for role, each in configs.items():
        with naming(f"the role {role}"):
            settings_for(kernel, each)
    found = service.find(KIND, name)
    order = {"roles": chosen, "options": given, "directory": str(Path.cwd())}
    service.launch(found, "kboot.fleet.service", order)
    machines = service.ask(found, "wait", on_event=_tell)
    _show(machines, as_json=as_json)


def _tell(event: dict[str, Any]) -> None:
    click.echo(event["what"], err=True)


@fleet.command()
@_name
@json_option
def status(*, name: str, as_json: bool) -> None:
    """Show the machines of the fleet NAME."""
    _show(_ask(name, "status"), as_json=as_json)


@fleet.command("list")
def list_fleets() -> None:
    """List the fleets that run."""
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.fleet.service import KIND  # noqa: PLC0415

    names = [each.name for each in service.running(KIND)]
    click.echo("\n".join(names) or "no fleets")


@fleet.command("exec", cls=NeedsCommand)
@_name
@click.argument("names", nargs=-1, metavar="[ROLE|MACHINE]...")
@click.option("--timeout", type=float, default=60.0, metavar="SECONDS", help="[default: 60]")
@json_option
@click.pass_context
def exec_command(
    context: click.Context, *, name: str, names: tuple[str, ...], timeout: float, as_json: bool
) -> None:
    """Run COMMAND in the guests of these roles or machines, or of all, at the same time.

    Exits with 1 if it failed in one of them, or if something is wrong with one, and with 3 if the
    host is at fault.
    """
    words = words_behind_dashes(context)
    command = words[0] if len(words) == 1 else shlex.join(words)
    results = _ask(name, "exec", names=names, command=command, timeout=timeout)
    for result in results.values():
        for stream in {"stdout", "stderr"} & result.keys():
            result[stream] = result[stream].encode("latin-1").decode(errors="replace")
    if as_json:
        print_json(results)
    else:
        width = max(map(len, results), default=0)
        for machine, result in results.items():
            if "error" in result:
                continue
            for line in (result["stdout"] + result["stderr"]).splitlines():
                click.echo(f"{machine:<{width}}  {line}")
            if result["exit_status"]:
                click.echo(f"{machine:<{width}}  [exit status {result['exit_status']}]")
    failed = any(result.get("exit_status") for result in results.values())
    context.exit(max(int(failed), _tell_errors(results)))


@fleet.command()
@_name
@click.argument("names", nargs=-1, metavar="[ROLE|MACHINE]...")
@click.pass_context
def restart(context: click.Context, *, name: str, names: tuple[str, ...]) -> None:
    """Power these roles or machines off and on, or all, and wait until they are back.

    So one comes back that has crashed, or has switched itself off.
    """
    results = _ask(name, "restart", names=names)
    if back := [machine for machine, result in results.items() if "error" not in result]:
        click.echo(f"restarted: {', '.join(back)}")
    context.exit(_tell_errors(results))


def _tell_errors(results: dict[str, Any]) -> int:
    """Tell what is wrong with some machines; what to exit with for that."""
    code = 0
    for machine, result in results.items():
        if error := result.get("error"):
            click.echo(f"kboot: error: {machine}: {error['message']}", err=True)
            code = max(code, error["exit_code"])
    return code


@fleet.command()
@_name
@click.argument("names", nargs=-1, required=True, metavar="ROLE|MACHINE...")
def cut(*, name: str, names: tuple[str, ...]) -> None:
    """Pull the cables of these roles or machines, all at one instant."""
    found = _ask(name, "cut", names=names)
    click.echo(f"cut: {', '.join(found['machines'])}; {1000 * found['skew_s']:.1f} ms apart")


@fleet.command()
@_name
def heal(*, name: str) -> None:
    """Plug all cables in again."""
    click.echo(f"healed: {', '.join(_ask(name, 'heal')) or 'nothing was cut'}")


@fleet.command()
@_name
def down(*, name: str) -> None:
    """Stop and remove the fleet NAME. Consoles and evidence are kept."""
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.fleet.service import KIND  # noqa: PLC0415

    click.echo(f"{name}: stopped; its consoles and logs: {service.stop(service.find(KIND, name))}")


def parse_roles(texts: tuple[str, ...]) -> dict[str, Any]:
    """``worker=5,memory=1G`` as what `read_roles` takes.

    A comma ends a value only where the name of a setting follows; all others belong to the value:
    ``control=1,disk=data=blank,size=64M,memory=1G``.
    """
    roles: dict[str, Any] = {}
    for text in texts:
        first, *others = text.split(",")
        role, equals, count = first.partition("=")
        if not equals or not count.isdecimal():
            raise ConfigError(f"--role {text}: write it as worker=5, or worker=5,memory=1G")
        if role in roles:
            raise ConfigError(f"--role {text}: the role {role} was given before")
        roles[role] = {"count": int(count), **_settings(text, others)}
    return roles


def _settings(text: str, pieces: list[str]) -> dict[str, Any]:
    """The settings in what was between commas; those that may be repeated as lists."""
    known = {setting.name: setting for setting in SETTINGS}
    given: list[tuple[str, str]] = []
    for piece in pieces:
        word, equals, value = piece.partition("=")
        # As the option is spelled: --cloud-init.
        name = word.replace("-", "_")
        if equals and name in known:
            given.append((name, value))
        elif given:
            name, value = given[-1]
            given[-1] = (name, f"{value},{piece}")
        elif equals:
            raise ConfigError(f"--role {text}: there is no setting {word}{near(name, known)}")
        else:
            raise ConfigError(f"--role {text}: write it as worker=5, or worker=5,memory=1G")
    found: dict[str, Any] = {}
    for name, value in given:
        if known[name].repeated:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise ConfigError(f"--role {text}: {name} was given before")
        else:
            found[name] = value
    return found


def _ask(name: str, verb: str, **arguments: Any) -> Any:
    from kboot import service  # noqa: PLC0415  --help does not need them
    from kboot.fleet.service import KIND  # noqa: PLC0415

    return service.ask(service.find(KIND, name), verb, **arguments)


def _show(machines: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(machines)
    else:
        rows = [("MACHINE", "ROLE", "ADDRESS", "STATE", "WHAT")]
        rows += [
            (each["name"], each["role"], each["address"], each["state"], each["what"])
            for each in machines
        ]
        print_table(rows)
    if failed := [each["name"] for each in machines if each["state"] == "failed"]:
        raise GuestError(f"failed: {', '.join(failed)}")
