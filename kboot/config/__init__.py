"""One frozen `Config` from four sources: defaults < a file < ``KBOOT_*`` < options.

Each setting is declared once, as a field of `Config`. The command line's options (``--memory``),
pytest's (``--kboot-memory``, and ``--kernel``), the variables (``KBOOT_MEMORY``), the keys of
``kboot.toml`` or ``[tool.kboot]`` in ``pyproject.toml`` (``memory``) and the table in the
documentation are all made from `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from kboot.backend import Firmware
from kboot.config import parse
from kboot.config.about import about
from kboot.config.cluster import ClusterConfig
from kboot.errors import ConfigError

Accelerator = Literal["auto", "kvm", "tcg"]
FirmwareStart = Literal["real", "saved"]
Isolation = Literal["auto", "test", "module", "session", "none"]
Warnings = Literal["fail", "report"]
Channel = Literal["auto", "console", "ssh"]

#: The places to boot in.
BACKENDS = ("qemu", "kubevirt")

#: Variables of kboot's own that are not settings.
RESERVED_VARIABLES = ("KBOOT_RUN", "KBOOT_DEBUG", "KBOOT_TEST_KERNEL")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(ClusterConfig):
    """What the user has decided. Paths are absolute; a source's mistakes never get this far."""

    #: A path or a URL; None if no kernel was named.
    kernel: str | None = field(
        default=None,
        metadata=about(
            "the kernel to boot: an image, a .deb or .rpm package, a build tree, or a URL",
            "FILE",
            parse.source,
        ),
    )
    backend: str = field(default="qemu", metadata=about("where to boot", "NAME", choices=BACKENDS))
    #: ``tiny``, or a path.
    rootfs: str = field(
        default="tiny",
        metadata=about(
            "what to boot into: tiny (busybox), or an initramfs image", "tiny|FILE", parse.rootfs
        ),
    )
    initrd: tuple[Path, ...] = field(
        default=(),
        metadata=about(
            "one more initramfs image to load after the root file system; may be repeated",
            "FILE",
            parse.paths,
            repeated=True,
        ),
    )
    cmdline: str = field(
        default="", metadata=about("more parameters for the kernel", "TEXT", parse.text)
    )
    memory_mib: int = field(
        default=512,
        metadata=about(
            "the machine's memory: 512 (MiB), 512M, 2G", "SIZE", parse.memory_mib, name="memory"
        ),
    )
    cpus: int = field(
        default=1, metadata=about("the machine's processors", "N", parse.number(1, 255))
    )
    firmware: Firmware = field(
        default="bios",
        metadata=about("the machine's firmware", "NAME", choices=get_args(Firmware)),
    )
    accel: Accelerator = field(
        default="auto",
        metadata=about(
            "how QEMU runs the guest: kvm if it works and tcg (emulation) if not, or one of them",
            "NAME",
            choices=get_args(Accelerator),
        ),
    )
    timeout_s: float = field(
        default=180.0,
        metadata=about(
            "the time one boot may take: 90, 90s, 3m", "TIME", parse.seconds, name="timeout"
        ),
    )
    channel: Channel = field(
        default="auto",
        metadata=about(
            "how commands reach the guest: by ssh if it has a server, by the serial console if "
            "not, or one of them",
            "NAME",
            choices=get_args(Channel),
        ),
    )
    warnings: Warnings = field(
        default="fail",
        metadata=about(
            "what a test makes of a WARNING or another report that the kernel survived",
            "WHAT",
            choices=get_args(Warnings),
        ),
    )
    firmware_start: FirmwareStart = field(
        default="real",
        metadata=about(
            "how machines start: with firmware and DHCP (real), or in a state that was saved when "
            "these were done, just before iPXE asks for its script (saved)",
            "NAME",
            choices=get_args(FirmwareStart),
        ),
    )
    isolation: Isolation = field(
        default="auto",
        metadata=about(
            "who gets a pristine machine: each test, each module, only who finds it touched "
            "(session), nobody (none); auto is test where machines are restored in no time, "
            "else session",
            "NAME",
            choices=get_args(Isolation),
        ),
    )
    snapshot_cache_mib: int = field(
        default=4096,
        metadata=about(
            "the disk space for saved machines, in the user's cache directory",
            "SIZE",
            parse.memory_mib,
            name="snapshot_cache",
        ),
    )
    #: None: kept for the length of the run only.
    evidence: Path | None = field(
        default=None,
        metadata=about(
            "the directory to keep each boot's logs and configuration in", "DIRECTORY", parse.path
        ),
    )
    user: str = field(
        default="root",
        metadata=about("who to log in as, where there is a login", "NAME", parse.word),
    )
    password: str = field(
        default="kboot", metadata=about("the password to log in with", "TEXT", parse.text)
    )
    qemu: str = field(
        default="qemu-system-x86_64", metadata=about("the QEMU program", "PROGRAM", parse.word)
    )
    qemu_arguments: tuple[str, ...] = field(
        default=(),
        metadata=about("more arguments for QEMU, as a shell would split them", "TEXT", parse.words),
    )
    nginx: str = field(default="nginx", metadata=about("the nginx program", "PROGRAM", parse.word))


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


def load(
    options: Mapping[str, object],
    environ: Mapping[str, str],
    directory: Path,
    *,
    spell: Callable[[Setting], str] = lambda setting: setting.option,
) -> Config:
    """The configuration for a run in `directory`.

    `options` maps settings' names to what was given on the command line; None and empty lists mean
    "not given", and so do empty variables. `spell` says how an option is written, for errors.
    `ConfigError` names the key, the value, where it was written, and the remedy.
    """
    here = directory.absolute()
    values = _from_file(here) | _from_environment(environ, here)
    for setting in SETTINGS:
        given = options.get(setting.name)
        if given is not None and given not in ((), []):
            values[setting.field] = _value(setting, given, spell(setting), here)
    return Config(**values)


def markdown_table() -> str:
    """The settings as a Markdown table, for the documentation."""
    lines = ["| key | option | pytest option | variable | default | meaning |", "|" + "---|" * 6]
    for setting in SETTINGS:
        names = (setting.name, setting.option, setting.pytest_option, setting.variable)
        cells = " | ".join(f"`{cell}`" if cell else "" for cell in (*names, setting.default_text))
        choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
        lines.append(f"| {cells} | {setting.help}{choices} |")
    return "\n".join(lines)


def _from_environment(environ: Mapping[str, str], directory: Path) -> dict[str, Any]:
    known = {setting.variable: setting for setting in SETTINGS}
    values = {}
    for variable, value in environ.items():
        if not variable.startswith("KBOOT_") or variable in RESERVED_VARIABLES:
            continue
        if variable not in known:
            remedy = parse.near(variable, known, prefix="KBOOT_") or "; unset it"
            raise ConfigError(f"no setting is called {variable} (environment variable){remedy}")
        if value:
            setting = known[variable]
            values[setting.field] = _value(setting, value, variable, directory)
    return values


def _from_file(directory: Path) -> dict[str, Any]:
    path, entries = _find_file(directory)
    known = {setting.name: setting for setting in SETTINGS}
    values = {}
    for key, value in entries.items():
        if key not in known:
            remedy = parse.near(key, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"{path}: no setting is called {key!r}{remedy}")
        setting = known[key]
        values[setting.field] = _value(setting, value, f"{path}: {key}", path.parent)
    return values


def _find_file(directory: Path) -> tuple[Path, Mapping[str, object]]:
    """The nearest configuration file, upwards from `directory`, and what it says."""
    for place in (directory, *directory.parents):
        path = place / "kboot.toml"
        if path.is_file():
            return path, _read_toml(path)
        path = place / "pyproject.toml"
        if path.is_file():
            tool = _read_toml(path, only_with=b"kboot").get("tool")
            if isinstance(tool, dict) and isinstance(tool.get("kboot"), dict):
                return path, tool["kboot"]
    return directory, {}


def _read_toml(path: Path, *, only_with: bytes = b"") -> dict[str, Any]:
    # Parsing takes time that every pytest run would pay, most of them for another's file.
    import tomllib  # noqa: PLC0415

    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode()) if only_with in content else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _value(setting: Setting, given: object, origin: str, directory: Path) -> object:
    try:
        return setting.parse(given, directory)
    except ValueError as error:
        raise ConfigError(f"{origin}: {given!r} is not {error}") from None
