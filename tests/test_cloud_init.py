"""cloud-init: what it is given, and when a machine with it is ready."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import ConfigError, GuestError
from kboot.kernel import read_kernel
from kboot.machine import Machine, settings_for
from kboot.machine.cloud_init import read_user_data
from kboot.session import open_session
from kboot.testing import FakeBackend, Script, write_kernel

WAIT, LONG = "cloud-init status --wait", "cloud-init status --long"
USER_DATA = "#cloud-config\nhostname: x\n"


@contextlib.contextmanager
def machine_with(directory: Path, commands: Script) -> Iterator[Machine]:
    user_data = directory / "user-data"
    user_data.write_text(USER_DATA)
    kernel = write_kernel(directory / "vmlinuz", "6.99.1")
    config = Config(kernel=str(kernel), cloud_init=user_data, isolation="none")
    backend = FakeBackend(commands=commands)
    with open_session(config, evidence=directory / "evidence", backend=backend) as session:
        yield session.machine(session.settings(config), name="cloud")


def test_its_data_is_on_the_boot_server_and_its_url_on_the_command_line(tmp_path: Path) -> None:
    written: dict[str, str] = {}
    answers: Script = {WAIT: (0, ""), LONG: (0, "status: done\n")}
    with machine_with(tmp_path, answers) as machine:
        (parameter,) = [word for word in machine.command_line.split() if word.startswith("ds=")]
        assert (
            parameter == f"ds=nocloud;dsmode=net;s={machine.server.url('scripts/m1/cloud-init')}/"
        )
        assert parameter in machine.guest.succeed("cat /proc/cmdline")
        server = machine.server
        for name in ("user-data", "meta-data", "vendor-data"):
            written[name] = server._texts[server.url(f"scripts/m1/cloud-init/{name}")]  # type: ignore[attr-defined]
    assert written["user-data"] == USER_DATA
    assert json.loads(written["meta-data"])["local-hostname"] == "m1"
    assert written["vendor-data"].startswith("#cloud-config\n")


@pytest.mark.parametrize(
    ("wait", "long", "words"),
    [
        ((1, ""), "status: error\ndetail:\n  ('write', OSError('full'))\n", "error: ('write'"),
        ((0, ""), "status: disabled\ndetail:\n  Cloud-init disabled\n", "disabled: Cloud-init dis"),
        ((127, ""), "", "there is no cloud-init in the guest"),
        # It has done all that it does without data.
        ((0, ""), "status: done\ndetail:\nDataSourceNone\n", "cloud-init has found no data"),
        ((2, ""), "status: error\ndetail: x\n", "cloud-init: error: x"),
    ],
)
def test_its_failure_is_the_guests(
    wait: tuple[int, str], long: str, words: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(GuestError) as raised,
        machine_with(tmp_path, {WAIT: wait, LONG: (0, long)}),
    ):
        pytest.fail("it is ready")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_complaint_is_no_failure(tmp_path: Path) -> None:
    answers: Script = {WAIT: (2, ""), LONG: (0, "status: done\nextended_status: degraded done\n")}
    with machine_with(tmp_path, answers) as machine:
        assert machine.pristine


def test_user_data_that_cloud_init_passes_over_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("packages: [gdb]\n")
    with pytest.raises(ConfigError, match=r"its first line is 'packages: .gdb.', which cloud"):
        read_user_data(path)
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        read_user_data(tmp_path / "none")


def test_a_kernel_that_cannot_reach_the_data_is_refused(
    second_kernel: Path, tmp_path: Path
) -> None:
    path = tmp_path / "user-data"
    path.write_text(USER_DATA)
    kernel = read_kernel(second_kernel)
    with pytest.raises(
        ConfigError, match=r"^cloud-init needs the network card \(e1000e.*no driver"
    ):
        settings_for(kernel, Config(cloud_init=path, nic_model="e1000e"))
    assert settings_for(kernel, Config(cloud_init=path)).spec.nic_model == "virtio"
