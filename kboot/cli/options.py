"""What commands have in common: options for settings, and the NAME of a machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from kboot.config import SETTINGS, Config, Setting, load, working_directory
from kboot.errors import ConfigError

_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


#: As in kubectl.
_SHORT = {"namespace": "-n"}

#: The settings that say where a persistent machine is.
_LOCATION = ("backend", "kubeconfig", "context", "namespace", "cluster_owner")


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


def config_options(*names: str, short: bool = True) -> Callable[[_Function], _Function]:
    """Give a command the options of the settings of these names, in the order of `SETTINGS`.

    Each is called ``--memory``, and as in pytest ``--kboot-memory``. The command gets them as
    keyword arguments, and passes them on to `load_config`. Without `short`, none has one letter.
    """
    chosen = [setting for setting in SETTINGS if setting.name in names]

    def decorate(function: _Function) -> _Function:
        for setting in reversed(chosen):
            function = click.option(
                *([_SHORT[setting.name]] if short and setting.name in _SHORT else []),
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


_COMMAND = "kboot.command"


class BehindDashes(click.Command):
    """A command whose arguments after ``--`` are another program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Separate the two."""
        ours, theirs = args, []
        if "--" in args:
            at = args.index("--")
            ours, theirs = args[:at], args[at + 1 :]
        ctx.meta[_COMMAND] = theirs
        return super().parse_args(ctx, ours)


class NeedsCommand(BehindDashes):
    """One that does nothing without them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say so before anything else: words without ``--`` would be refused as too many names."""
        asks_for_help = {"-h", "--help"}.intersection(args)
        if args[-1:] == ["--"] or not (
            {"--"} & set(args) or asks_for_help or ctx.resilient_parsing
        ):
            raise click.UsageError(
                f"the command goes after --: {ctx.command_path} NAME -- uname -a", ctx
            )
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """For --help."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


def words_behind_dashes(context: click.Context) -> list[str]:
    """What stood behind ``--``, in a command of one of these classes."""
    words: list[str] = context.meta[_COMMAND]
    return words


def json_option(function: _Function) -> _Function:
    """``--json``: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


# ------------------------------------------------------------------------------ machines by NAME


def _complete_name(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    from kboot.supervisor.registry import known_names  # noqa: PLC0415  --help does not need it

    return [CompletionItem(name) for name in known_names() if name.startswith(begun)]


def complete_name_or_file(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """For an argument that is a machine or a file."""
    return [CompletionItem(begun, type="file"), *_complete_name(context, parameter, begun)]


#: The first argument, optional; the command resolves it with `resolve_name`.
name_argument = click.argument(
    "name", required=False, metavar="[NAME]", shell_complete=_complete_name
)

#: The options that say where to look for a machine that has no supervisor on this host.
location_options = config_options(*_LOCATION)


def resolve_name(name: str | None, location: Mapping[str, Any]) -> str:
    """`name`, or where none was given, that of the only machine there is.

    Machines that this host knows of come first; if it knows none, those at `location`.
    `ConfigError` if there is none, or more than one.
    """
    if name is not None:
        return name
    # --help does not need them.
    from kboot import service  # noqa: PLC0415
    from kboot.supervisor.locate import list_persistent  # noqa: PLC0415
    from kboot.supervisor.registry import KIND, all_locations, known_names  # noqa: PLC0415

    alive = {each.name for each in service.known(KIND) if each.is_alive}
    names = alive | {each.name for each in all_locations()} or set(known_names())
    names = names or {each.name for each in list_persistent(location) if each.ours}
    if not names:
        raise ConfigError("there is no machine; start one: kboot up --kernel FILE")
    if len(names) > 1:
        command = click.get_current_context().command_path
        raise ConfigError(
            f"there is more than one machine: {', '.join(sorted(names))}; "
            f"name one: {command} {min(names)}"
        )
    return names.pop()


def find_machine(name: str | None, location: Mapping[str, Any]) -> str:
    """The name of a machine that has a supervisor on this host; one on a cluster gets one.

    `ConfigError` if there is no such machine.
    """
    # --help does not need them.
    from kboot import service  # noqa: PLC0415
    from kboot.supervisor.registry import directory_of  # noqa: PLC0415

    name = resolve_name(name, location)
    if not directory_of(name).is_alive:
        from kboot.supervisor.locate import ensure_supervisor  # noqa: PLC0415  most have one

        ensure_supervisor(name, location)
        # Raises that there is none, if that is so.
        service.connect(directory_of(name)).close()
    return name


def with_machine(function: _Function) -> _Function:
    """The command gets ``name``, that of a machine found by `find_machine`.

    It takes an optional ``name`` from the decorator below this one, and options for its location.
    """

    @functools.wraps(function)
    def find_and_call(*arguments: Any, name: str | None, **options: Any) -> Any:
        location = {key: options.pop(key) for key in _LOCATION}
        return function(*arguments, name=find_machine(name, location), **options)

    return location_options(cast("_Function", find_and_call))


def machine_argument(function: _Function) -> _Function:
    """The command's only argument is the NAME of a machine."""
    return name_argument(with_machine(function))


def machine_arguments(*others: str) -> Callable[[_Function], _Function]:
    """The command's arguments are the NAME of a machine, which may be left out, and `others`."""

    def decorate(function: _Function) -> _Function:
        found = with_machine(function)

        @functools.wraps(found)
        def split_and_call(*arguments: Any, words: tuple[str, ...], **options: Any) -> Any:
            if len(words) not in {len(others), len(others) + 1}:
                raise click.UsageError(f"give {' '.join(others)}, or NAME {' '.join(others)}")
            name = words[0] if len(words) > len(others) else None
            values = zip(map(str.lower, others), words[-len(others) :], strict=True)
            return found(*arguments, name=name, **dict(values), **options)

        return click.argument(
            "words",
            nargs=-1,
            metavar=f"[NAME] {' '.join(others)}",
            shell_complete=complete_name_or_file,
        )(cast("_Function", split_and_call))

    return decorate
