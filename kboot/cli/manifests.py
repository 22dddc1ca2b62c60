"""``kboot manifests``: what a run puts on a cluster, to read, or to apply by hand."""

from __future__ import annotations

import datetime
import secrets
from typing import Any

import click

from kboot.cli.options import config_options, load_config


@click.command(
    epilog="For kubectl apply -f -. What is applied by hand belongs to nobody: delete it by hand, "
    "by its label kboot.dev/run."
)
@config_options("namespace", "nginx_image", "pull_secret", "claim", "patch")
def manifests(**options: Any) -> None:
    """Print the boot server's objects as YAML, as a run would create them."""
    from kboot.kubevirt import manifests as objects  # noqa: PLC0415  where they are used
    from kboot.kubevirt import settings_from  # noqa: PLC0415
    from kboot.kubevirt.names import new_run  # noqa: PLC0415

    config = load_config(options)
    run = objects.Run(identifier=new_run(), namespace=config.namespace or "default")
    now = datetime.datetime.now(datetime.UTC)
    wanted = [
        objects.owner(run, user="kubectl", now=now),
        *objects.boot_server(run, settings_from(config), token=secrets.token_hex(32)),
    ]
    click.echo(objects.to_yaml(wanted), nl=False)
