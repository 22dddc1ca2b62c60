"""The architecture, enforced: who may import whom, and one home for each outside library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.config import BACKENDS

PACKAGE = Path(__file__).parent.parent / "kboot"

#: Each row may import from the rows above it, and a package from itself. Modules side by side in
#: one row do not know each other.
ROWS = (
    {"errors", "boot_messages"},
    {"deadline", "locks", "log", "statistics", "capacity"},
    {"process", "backend", "rpc", "templates"},
    {"state"},
    {"cache", "service"},
    {"config"},
    {"kernel", "checks"},
    {"rootfs", "crash"},
    {"console", "snapshots", "ipxe"},
    {"guest", "nginx"},
    {"qemu", "kubevirt"},
    {"machine"},
    {"isolation", "shared_server", "standby", "testing"},
    {"session"},
    {"fleet", "pool"},
    {"supervisor"},
    {"acceptance"},
    {"plugin", "cli"},
)

#: Where each outside thing lives. Everybody else goes through that module.
HOMES = {
    "subprocess": {"process"},
    "pexpect": {"console"},
    "kubernetes": {"kubevirt"},
    "urllib3": {"kubevirt"},
    "websocket": {"kubevirt"},
    "yaml": {"kubevirt"},
    "paramiko": {"guest"},
    "requests": {"kernel"},
    "jinja2": {"templates"},
    "click": {"cli"},
    "rich": {"cli"},
}

#: What is imported under another name than it is installed by.
_MODULES = {"websocket-client": "websocket", "pyyaml": "yaml"}

#: What the plugin must not bring into the pytest runs of people who only have kboot installed.
HEAVY = {
    "click",
    "jinja2",
    "kubernetes",
    "paramiko",
    "pexpect",
    "requests",
    "rich",
    "urllib3",
    "yaml",
    "zstandard",
}


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)


def unit_of(path: Path) -> str:
    """The module or package directly below kboot that a file belongs to; empty for kboot itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def runtime_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a file imports, at its top or inside functions.

    What is imported for annotations only, under ``if TYPE_CHECKING``, is no dependency.
    """
    pending: list[Any] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: kboot imports by full names"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        else:
            pending.extend(ast.iter_child_nodes(node))


def test_every_module_has_a_row() -> None:
    units = {unit_of(path) for path in sources()} - {"", "__main__"}
    assert units - set().union(*ROWS) == set()


def test_every_row_is_about_modules_that_are_there() -> None:
    units = {unit_of(path) for path in sources()}
    assert set().union(*ROWS) - units == set()
    assert set().union(*HOMES.values()) - units == set()


def test_every_home_is_used() -> None:
    used = {
        (unit_of(path), name.split(".")[0])
        for path in sources()
        for _, name in runtime_imports(path)
    }
    homes = {(home, library) for library, units in HOMES.items() for home in units}
    assert homes - used == set()


def test_every_dependency_is_imported() -> None:
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    names = {re.split(r"[<>=]", each)[0] for each in declared["project"]["dependencies"]}
    used = {name.split(".")[0] for path in sources() for _, name in runtime_imports(path)}
    assert {_MODULES.get(name, name) for name in names} - used == set()


def test_no_module_is_in_two_rows() -> None:
    assert sum(map(len, ROWS)) == len(set().union(*ROWS))


@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda row: "+".join(sorted(ROWS[row])))
def test_imports_go_upwards_only(row: int) -> None:
    above = set().union(*ROWS[:row])
    wrong = []
    for path in sources():
        unit = unit_of(path)
        if unit not in ROWS[row]:
            continue
        for line, name in runtime_imports(path):
            parts = name.split(".")
            if parts[0] != "kboot" or parts[1] in {unit, "__version__"}:
                continue
            if parts[1] not in above:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {unit} imports {parts[1]}")
    assert wrong == []


@pytest.mark.parametrize("library", HOMES)
def test_an_outside_thing_has_one_home(library: str) -> None:
    users = {
        unit_of(path)
        for path in sources()
        for _, name in runtime_imports(path)
        if name.split(".")[0] == library
    }
    assert users <= HOMES[library]


def test_nobody_asks_which_backend_it_is() -> None:
    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Constant) and side.value in BACKENDS for side in sides):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    # machine.open_backend turns the name into the thing; that is the one place.
    assert [place for place in wrong if not place.startswith("machine/backends.py")] == []


def test_the_plugin_costs_other_peoples_test_runs_little() -> None:
    code = "import sys, kboot.plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & HEAVY == set()


def test_the_command_line_helps_without_loading_what_it_does_not_need() -> None:
    code = "import sys, kboot.cli; kboot.cli.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert loaded & (HEAVY - {"click"}) == set()
