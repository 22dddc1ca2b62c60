"""The architecture, enforced: who may import whom, and one home for each outside library."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot import arch
from kboot.config import BACKENDS

PACKAGE = Path(__file__).parent.parent / "kboot"

#: Each row may import from the rows above it, and a package from itself. Modules side by side in
#: one row do not know each other.
ROWS = (
    {"errors", "boot_messages"},
    {"deadline", "locks", "log", "statistics", "capacity", "arch", "network_cards"},
    {"server_faults", "server_tls", "https"},
    {"machine_spec"},
    {"process", "backend", "rpc", "templates"},
    {"machine_network"},
    {"state"},
    {"cache", "service", "certificates", "nginx_process"},
    {"config"},
    {"kernel", "checks"},
    {"disks"},
    {"rootfs", "crash"},
    {"console", "snapshots"},
    {"guest", "fault_proxy", "ipxe", "nginx_tls"},
    {"nginx"},
    {"qemu", "kubevirt", "evidence"},
    {"results"},
    {"machine", "kselftest"},
    {"isolation", "run_evidence", "shared_server", "standby", "testing"},
    {"session"},
    {"fleet", "pool"},
    {"supervisor", "bisect"},
    {"acceptance", "suites"},
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
    "cryptography": {"certificates"},
    "requests": {"kernel", "results", "kubevirt"},
    "jinja2": {"templates"},
    "click": {"cli"},
    "pycdlib": {"machine"},
    "rich": {"cli"},
}

#: What is imported under another name than it is installed by.
_MODULES = {"websocket-client": "websocket", "pyyaml": "yaml"}

#: What the plugin must not bring into the pytest runs of people who only have kboot installed.
HEAVY = {
    "click",
    "cryptography",
    "jinja2",
    "kubernetes",
    "paramiko",
    "pexpect",
    "pycdlib",
    "requests",
    "rich",
    "urllib3",
    "yaml",
    "zstandard",
}


@functools.cache
def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)


def unit_of(path: Path) -> str:
    """The module or package directly below kboot that a file belongs to; empty for kboot itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree, which no test changes."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def runtime_imports(path: Path) -> list[tuple[int, str]]:
    """Line and full name of all that a file imports, at its top or inside functions.

    What is imported for annotations only, under ``if TYPE_CHECKING``, is no dependency.
    """
    return list(_runtime_imports(path))


def _runtime_imports(path: Path) -> Iterator[tuple[int, str]]:
    pending: list[Any] = [tree_of(path)]
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


def decided_by(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """What code chooses by, with its line: operands of comparisons, keys, and patterns."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                asked = [node.left, *node.comparators]
            case ast.Dict():
                asked = [key for key in node.keys if key]
            case ast.MatchValue():
                asked = [node.value]
            case ast.Call(func=ast.Attribute(attr="startswith" | "endswith")):
                asked = node.args
            case _:
                continue
        for each in asked:
            # One of several: `in {"a", "b"}`.
            parts = each.elts if isinstance(each, ast.Tuple | ast.List | ast.Set) else [each]
            yield from ((node.lineno, part) for part in parts)


def test_nobody_asks_which_backend_it_is() -> None:
    wrong = []
    for path in sources():
        for line, asked in decided_by(tree_of(path)):
            if isinstance(asked, ast.Constant) and asked.value in BACKENDS:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}")
    # machine.backends turns the name into the thing; a backend may call itself by its name.
    homes = ("machine/backends.py", *(f"{name}/" for name in BACKENDS))
    assert [place for place in wrong if not place.startswith(homes)] == []


#: What only `kboot.arch` may know: names of architectures, and what is there because of one.
_OF_AN_ARCHITECTURE = re.compile(
    r"x86[-_]64|amd64|i[36]86|aarch64|arm64|riscv|loongarch|ttyS\d|ttyAMA|isa-debug-exit|gic-version"
    r"|\bq35\b|\bOVMF|\bAAVMF|BOOT(?:X64|AA64)|qemu-system-\w|^(?:x86|arm)$"
)
#: A crash's log is in the words of every architecture's kernel, and a recorded boot is of one.
_MANY_TONGUES = {"crash", "testing"}


#: Rows of the table by their names; and the row of a machine about which nobody has said anything,
#: which is good for nothing else.
_ROWS_OF_ARCHITECTURES = {row.name.upper() for row in arch.ARCHITECTURES}
_DEFAULT_ROW = {"DEFAULT"}


def test_architectures_have_one_home() -> None:
    wrong = []
    for path in sources():
        if unit_of(path) not in _MANY_TONGUES | {"arch"}:
            wrong += [
                f"{path.relative_to(PACKAGE)}:{line}: {text[:60]!r}"
                for line, text in _texts(path)
                if _OF_AN_ARCHITECTURE.search(text)
            ]
    assert wrong == []


def test_nobody_asks_which_architecture_it_is() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sources()
        if unit_of(path) != "arch"
        for line in asks_which_architecture(tree_of(path))
    ]
    assert wrong == []


def asks_which_architecture(tree: ast.AST) -> list[int]:
    """The lines on which code names a row of the table, or chooses by an architecture's name."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in _ROWS_OF_ARCHITECTURES)
        or (isinstance(node, ast.Name) and node.id in _ROWS_OF_ARCHITECTURES)
        or (
            isinstance(node, ast.ImportFrom)
            and any(alias.name in _ROWS_OF_ARCHITECTURES | _DEFAULT_ROW for alias in node.names)
            and node.module == "kboot.arch"
        )
    ]
    for line, asked in decided_by(tree):
        inside = list(ast.walk(asked))
        names = any(
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _OF_AN_ARCHITECTURE.search(node.value)
            for node in inside
        )
        default = any(
            isinstance(node, ast.Attribute)
            and node.attr in _DEFAULT_ROW
            and ast.unparse(node.value) == "arch"
            for node in inside
        )
        if names or default:
            lines.append(line)
    return sorted(set(lines))


@pytest.mark.parametrize(
    "code",
    [
        'if architecture == "aarch64": pass',
        'if row.name != "x86_64": pass',
        'if name in ("x86_64", "aarch64"): pass',
        'if name in {"riscv64"}: pass',
        'if name.startswith("arm64"): pass',
        'if name.startswith("arm"): pass',
        'cards = {"x86_64": "e1000e", "aarch64": "virtio"}[name]',
        'match name:\n    case "aarch64" | "arm64":\n        pass',
        "if row is arch.AARCH64: pass",
        "cards = {arch.X86_64.name: 1}",
        "from kboot.arch import RISCV64",
        "if architecture != arch.DEFAULT.name: pass",
        "if row is arch.DEFAULT: pass",
        "match name:\n    case arch.DEFAULT.name:\n        pass",
    ],
)
def test_code_that_asks_which_architecture_it_is_would_be_seen(code: str) -> None:
    assert asks_which_architecture(ast.parse(code)) != []


@pytest.mark.parametrize(
    "code",
    [
        "if row.has_bios: pass",
        "if row is arch.host(): pass",
        "if kernel.architecture != machine_architecture: pass",
        "def boot(architecture: str = arch.DEFAULT.name) -> None: pass",
    ],
)
def test_code_that_asks_the_table_is_as_it_should_be(code: str) -> None:
    assert asks_which_architecture(ast.parse(code)) == []


def test_no_file_of_a_guest_or_a_boot_server_is_for_one_architecture() -> None:
    root = PACKAGE.parent
    places = (PACKAGE / "rootfs", PACKAGE / "guest", root / "ipxe", root / "nginx")
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix not in {".py", ".pyc"}]
    assert len(texts) > 5
    assert [path for path in texts if _OF_AN_ARCHITECTURE.search(path.read_text())] == []


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of all that a file says to others than its readers."""
    tree = tree_of(path)
    told = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in told:
            text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
            if isinstance(text, str):
                yield node.lineno, text


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
