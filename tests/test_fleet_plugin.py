"""The fixture ``fleet`` and its marker, as a user sees them."""

from __future__ import annotations

import pytest

CONFTEST = """
import pytest
from kboot import Config, open_session
from kboot.testing import FakeBackend, GuestAction, write_kernel

COMMANDS = {"true": "", "whoami": "root\\n", "false": (1, "no"), "crash": GuestAction.PANIC}

@pytest.fixture(scope="session")
def kboot_session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    config = Config(kernel=str(write_kernel(folder / "vmlinuz", "6.9.0-a")), isolation="none")
    backend = FakeBackend(commands=COMMANDS)
    with open_session(config, evidence=folder, backend=backend) as session:
        yield session
"""

SUITE = """
import time
import pytest

@pytest.mark.kboot_fleet(control=1, worker={"count": 2, "memory": "1G"})
def test_fleet(fleet):
    assert fleet.names == ("control-1", "worker-1", "worker-2")
    assert fleet["worker-1"].settings.spec.memory_mib == 1024
    assert fleet["control-1"].settings.spec.memory_mib == 512
    assert fleet.role("worker").succeed("whoami")
    with fleet.cut("worker") as cut:
        assert cut.skew_s >= 0


@pytest.mark.kboot_fleet(worker=2)
def test_one_of_them_crashes(fleet):
    fleet["worker-2"].guest.run("crash")
    while not fleet["worker-2"].console.fatal:
        time.sleep(0.01)


@pytest.mark.kboot_fleet(worker=2)
def test_a_command_fails(fleet):
    fleet.role("worker").succeed("false")


def test_has_no_marker(fleet):
    pass
"""


def test_a_fleet_is_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*m*-worker-2: kboot crash: *",
            "*m*-worker-1: kboot evidence*",
            "E *CommandFailed: worker-1: 'false' exited with 1*",
            "*a test with the fixture fleet says which: @pytest.mark.kboot_fleet(worker=3)*",
        ]
    )


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("3", "takes roles by name"),
        ("worker={'count': 1, 'memroy': '1G'}", "the role worker of kboot_fleet has no setting"),
    ],
)
def test_a_mistake_in_the_marker_ends_the_run_before_it_starts(
    pytester: pytest.Pytester, marker: str, complaint: str
) -> None:
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.kboot_fleet({marker})\ndef test_it(fleet):\n    pass\n"
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: kboot: *test_it: *{complaint}*"])
