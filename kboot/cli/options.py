"""Options made from `kboot.config.SETTINGS`, for the commands that take them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from kboot.config import SETTINGS, Config, Setting, load

_Function = TypeVar("_Function", bound=Callable[..., Any])


def config_options(*names: str) -> Callable[[_Function], _Function]:
    """Give a command the options of the settings of these names, in the order of `SETTINGS`.

    The command gets them as keyword arguments, and passes them on to `load_config`.
    """
    chosen = [setting for setting in SETTINGS if setting.name in names]

    def decorate(function: _Function) -> _Function:
        for setting in reversed(chosen):
            function = click.option(
                setting.option,
                setting.name,
                # Not a click.Choice: the configuration judges values from all sources alike.
                metavar="|".join(setting.choices) or setting.metavar,
                multiple=setting.repeated,
                help=_help(setting),
            )(function)
        return function

    return decorate


def load_config(options: Mapping[str, object]) -> Config:
    """The configuration of a command that runs here, from all its sources.

    `options` maps settings' names to values. `ConfigError` names what is wrong, and where.
    """
    return load(options, os.environ, Path.cwd())


def _help(setting: Setting) -> str:
    text = setting.help[0].upper() + setting.help[1:]
    default = "" if setting.default in {None, "", ()} else f"  [default: {setting.default}]"
    return f"{text}.{default}"
