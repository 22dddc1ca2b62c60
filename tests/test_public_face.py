"""The public interface: what the documentation tells people to type is in `kboot.__all__`."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import kboot
import kboot.testing
from kboot import errors

ROOT = Path(__file__).parent.parent
#: What may be imported, by module.
PUBLIC = {"kboot": set(kboot.__all__), "kboot.testing": set(kboot.testing.__all__)}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: A name of ours in running text or a table: a class in backquotes.
_CLASS = re.compile(r"`([A-Z]\w+)(?:\(.*?\))?`")


def python_blocks(page: Path) -> Iterator[ast.Module]:
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            yield ast.parse(textwrap.dedent(text))


@pytest.mark.parametrize("name", kboot.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kboot, name).__name__ == name


def test_the_list_is_sorted_and_has_all_errors() -> None:
    assert kboot.__all__ == sorted(kboot.__all__)
    found = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.KbootError)
    }
    assert found <= set(kboot.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bot'"):
        _ = kboot.Bot  # type: ignore[attr-defined]


def test_kboot_itself_imports_nothing() -> None:
    script = "import sys, kboot; print(sorted(name for name in sys.modules if 'kboot.' in name))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_in_the_documentation_uses_public_names_alone(page: Path) -> None:
    for module in python_blocks(page):
        for node in ast.walk(module):
            match node:
                case ast.ImportFrom(module=str(home), names=names) if home.startswith("kboot"):
                    assert home in PUBLIC, f"{page.name}: from {home} import ..."
                    assert {each.name for each in names} <= PUBLIC[home]
                case ast.Import(names=names):
                    assert all(not each.name.startswith("kboot.") for each in names), page.name
                case ast.Attribute(value=ast.Name(id="kboot"), attr=name):
                    assert name in kboot.__all__, f"{page.name}: kboot.{name}"
                case _:
                    pass


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_classes_that_the_code_in_the_documentation_calls_are_imported_or_public(
    page: Path,
) -> None:
    for module in python_blocks(page):
        for node in ast.walk(module):
            # Constants of the examples are all in capitals.
            if isinstance(node, ast.Name) and node.id[0].isupper() and not node.id.isupper():
                known = {*set().union(*PUBLIC.values()), *dir(builtins), "Path"}
                assert node.id in known, f"{page.name}: {node.id}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_errors_that_the_documentation_names_are_public(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # Everything that our modules call an error, wherever it is defined.
    ours = {
        name
        for path in (ROOT / "kboot").rglob("*.py")
        for name in re.findall(
            r"^class (\w+)\(\w*(?:Error|Crash|Timeout|NoReboot)\)",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    assert set(_CLASS.findall(text)) & ours <= set(kboot.__all__)
