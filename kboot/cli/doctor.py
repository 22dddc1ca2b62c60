"""``kboot doctor``: check this host or cluster."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from kboot.cli.options import config_options, json_option, load_config
from kboot.cli.output import print_json
from kboot.errors import ConfigError, InfraError

if TYPE_CHECKING:
    from kboot.config import Config

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(
    epilog="Exit codes: 0 no errors, 3 something must be fixed before a machine can boot."
)
@config_options(
    "backend",
    "memory",
    "cpus",
    "firmware",
    "accel",
    "qemu",
    "nginx",
    "ipxe",
    "kubeconfig",
    "context",
    "namespace",
    "cluster_nginx_image",
    "cluster_pull_secret",
    "cluster_ipxe_disk",
    "cluster_patch",
)
@json_option
@click.option(
    "--rbac", is_flag=True, help="Print the RBAC Role that an account on the cluster needs."
)
@click.pass_context
def doctor(context: click.Context, /, *, as_json: bool, rbac: bool, **options: Any) -> None:
    """Check this host or cluster for what kboot needs; say how to fix what is missing."""
    from kboot.checks import examine  # noqa: PLC0415  --help does not need it
    from kboot.machine.backends import checks_for  # noqa: PLC0415

    config = load_config(options)
    if rbac:
        _print_role(config)
        return
    findings = examine(config, checks_for(config))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            level = click.style(f"{finding.level:<7}", fg=_COLOURS[finding.level])
            click.echo(f"{level}  {finding.subject:<11}  {finding.text}")
            if finding.remedy:
                click.echo(f"{'':22}-> {finding.remedy}")
    if any(finding.level == "error" for finding in findings):
        context.exit(InfraError.exit_code)


def _print_role(config: Config) -> None:
    from kboot.kubevirt.api import connect, role  # noqa: PLC0415
    from kboot.kubevirt.manifests import to_yaml  # noqa: PLC0415

    try:
        namespace = connect(config.context, config.namespace).namespace
    except ConfigError:
        # An administrator who grants rights to others need not have a kubeconfig here.
        namespace = config.namespace or "default"
    click.echo(to_yaml(role(namespace)), nl=False)
