"""``kboot status``: what a machine is doing."""

from __future__ import annotations

import click

from kboot.cli.naming import json_option, machine_argument, print_json, say_state


@click.command(epilog="Exit code 0: it is ready, or boots. 1: its kernel failed. 3: the host did.")
@machine_argument
@json_option
@click.pass_context
def status(context: click.Context, /, *, name: str, as_json: bool) -> None:
    """Tell what the machine NAME is doing."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it

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
