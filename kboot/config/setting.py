"""The fields of `Config` as settings: what each is called in every source."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kboot.config import parse
from kboot.config.cluster import ClusterConfig
from kboot.config.values import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its names in every source, and what it takes."""

    #: Its key in a file.
    name: str
    #: The field of `Config` that holds it: the name, with the unit if there is one.
    field: str
    default: object
    #: One line, without a full stop.
    help: str
    metavar: str
    #: All that it may be; empty if there is no list.
    choices: tuple[str, ...]
    #: Whether its option may be given more than once.
    repeated: bool
    parse: parse.Parse

    @property
    def option(self) -> str:
        """Its option on kboot's own command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def pytest_option(self) -> str:
        """Its option on pytest's command line."""
        return "--kernel" if self.name == "kernel" else "--kboot-" + self.option[2:]

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "KBOOT_" + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as a user would write it; empty if there is none."""
        if self.default is None or self.default == ():
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


_OF_CLUSTERS = {each.name for each in fields(ClusterConfig)}

#: Every setting: those for all backends first, those about a cluster last.
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(
        field=each.name,
        default=each.default,
        **{**each.metadata, "name": each.metadata["name"] or each.name},
    )
    for each in sorted(fields(Config), key=lambda each: each.name in _OF_CLUSTERS)
)


def markdown_table() -> str:
    """The settings as a Markdown table, for the documentation."""
    lines = ["| key | option | pytest option | variable | default | meaning |", "|" + "---|" * 6]
    for setting in SETTINGS:
        names = (setting.name, setting.option, setting.pytest_option, setting.variable)
        cells = " | ".join(f"`{cell}`" if cell else "" for cell in (*names, setting.default_text))
        choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
        lines.append(f"| {cells} | {setting.help}{choices} |")
    return "\n".join(lines)
