"""One frozen `Config` from four sources: defaults < a file < ``KBOOT_*`` < options.

Each setting is declared once, as a field of `Config`. The command line's options (``--memory``),
pytest's (``--kboot-memory``, and ``--kernel``), the variables (``KBOOT_MEMORY``), the keys of
``kboot.toml`` or ``[tool.kboot]`` in ``pyproject.toml`` (``memory``) and the table in the
documentation are all made from `SETTINGS`.
"""

from kboot.config.cluster import ClusterConfig
from kboot.config.cpus import cpu_nodes, memory_nodes, read_cpus
from kboot.config.disks import read_disks
from kboot.config.impairment import read_impairment
from kboot.config.parse import working_directory
from kboot.config.shares import read_shares
from kboot.config.sources import RESERVED_VARIABLES, SETTINGS, Setting, load, markdown_table
from kboot.config.values import (
    BACKENDS,
    OF_TEST_RUNS,
    Accelerator,
    Channel,
    Config,
    FirmwareChoice,
    Isolation,
    Network,
    Warnings,
)

__all__ = [
    "BACKENDS",
    "OF_TEST_RUNS",
    "RESERVED_VARIABLES",
    "SETTINGS",
    "Accelerator",
    "Channel",
    "ClusterConfig",
    "Config",
    "FirmwareChoice",
    "Isolation",
    "Network",
    "Setting",
    "Warnings",
    "cpu_nodes",
    "load",
    "markdown_table",
    "memory_nodes",
    "read_cpus",
    "read_disks",
    "read_impairment",
    "read_shares",
    "working_directory",
]
