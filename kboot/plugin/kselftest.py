"""``--kboot-kselftest``: a test for each program of an installed kselftest tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kboot.plugin.options import MARKER

if TYPE_CHECKING:
    from kboot.config import Config

#: What the tests of `kboot.suites` take.
_FIXTURE = "kselftest_program"
_PARAMETERS = pytest.StashKey[Any]()


def configure(pytest_config: pytest.Config, config: Config) -> None:
    """Read the tree, if one was named, and have its tests collected. `ConfigError` as `read_tree`.

    Before anything is collected: a wrong path is better told at once.
    """
    if config.kselftest is None:
        return
    from kboot.kselftest import read_tree  # noqa: PLC0415  only where there is one

    tree = read_tree(
        config.kselftest,
        skip=config.kselftest_skip,
        expected_failures=config.kselftest_expected,
    )
    machine = getattr(pytest.mark, MARKER)(initrd=[*map(str, config.initrd), str(tree.initramfs)])
    pytest_config.stash[_PARAMETERS] = [
        pytest.param(
            program,
            id=program.id,
            marks=[
                machine,
                *([pytest.mark.skip(reason=program.skip_reason)] if program.skip_reason else []),
            ],
        )
        for program in tree.programs
    ]
    suites = str(Path(__file__).parent.parent / "suites")
    # Workers of pytest-xdist have it from their controller.
    if suites not in pytest_config.args:
        pytest_config.args.append(suites)


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Make a test for each program."""
    if _FIXTURE in metafunc.fixturenames:
        metafunc.parametrize(_FIXTURE, metafunc.config.stash.get(_PARAMETERS, []))
