"""Options made from `kboot.config.SETTINGS`, for the commands that take them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from kboot.config import SETTINGS, Config, Setting, load, working_directory

_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _SettingOption(click.Option):
    """An option that pytest's spelling names as well, which --help does not repeat."""

    def __init__(self, *declarations: Any, alias: str, **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self._alias = alias

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Have the parser know both spellings."""
        declared = self.opts
        self.opts = [*dict.fromkeys((*declared, self._alias))]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = declared


def config_options(*names: str) -> Callable[[_Function], _Function]:
    """Give a command the options of the settings of these names, in the order of `SETTINGS`.

    Each is called ``--memory``, and as in pytest ``--kboot-memory``. The command gets them as
    keyword arguments, and passes them on to `load_config`.
    """
    chosen = [setting for setting in SETTINGS if setting.name in names]

    def decorate(function: _Function) -> _Function:
        for setting in reversed(chosen):
            function = click.option(
                setting.option,
                setting.name,
                cls=_SettingOption,
                alias=setting.pytest_option,
                # Not a click.Choice: the configuration judges values from all sources alike.
                metavar="|".join(setting.choices) or setting.metavar,
                shell_complete=_completion(setting),
                multiple=setting.repeated,
                help=_help(setting),
            )(function)
        return function

    return decorate


def load_config(options: Mapping[str, object]) -> Config:
    """The configuration of a command that runs here, from all its sources.

    `options` maps settings' names to values. `ConfigError` names what is wrong, and where.
    """
    return load(options, os.environ, working_directory())


def _completion(setting: Setting) -> _Completion | None:
    """What the shell offers: the choices there are, or files; None for neither."""
    if setting.choices:
        return lambda _context, _parameter, begun: [
            CompletionItem(word) for word in setting.choices if word.startswith(begun)
        ]
    if {"FILE", "DIRECTORY"}.intersection(setting.metavar.split("|")):
        return lambda _context, _parameter, begun: [CompletionItem(begun, type="file")]
    return None


def _help(setting: Setting) -> str:
    text = setting.help[0].upper() + setting.help[1:]
    default = f"  [default: {setting.default_text}]" if setting.default_text else ""
    return f"{text}.{default}"
