"""``kboot completion``: the script that teaches a shell to complete kboot's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kboot.errors import ConfigError

_EPILOG = """\
\b
To have it from now on:
  bash  kboot completion bash >~/.local/share/bash-completion/completions/kboot
  zsh   kboot completion zsh >~/.zfunc/_kboot     (a directory in $fpath)
  fish  kboot completion fish >~/.config/fish/completions/kboot.fish
"""


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    found = get_completion_class(shell)
    if found is None:
        raise ConfigError(f"no completion for {shell}")
    command = context.find_root().command
    click.echo(found(command, {}, "kboot", "_KBOOT_COMPLETE").source())
