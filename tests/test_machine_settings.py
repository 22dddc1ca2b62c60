"""From what the user has decided to the machine: each setting has one way."""

from __future__ import annotations

from pathlib import Path

from kboot.config import Config
from kboot.kernel import read_kernel
from kboot.machine import settings_for


def test_what_is_decided_about_a_machine_arrives_in_its_description(debian_kernel: Path) -> None:
    config = Config(
        memory_mib=768, cpus=3, firmware_start="saved", channel="ssh", qemu_arguments=("-S",)
    )
    spec = settings_for(read_kernel(debian_kernel), config, machine_name="one").spec
    assert (spec.name, spec.memory_mib, spec.cpus, spec.firmware) == ("one", 768, 3, "bios")
    assert (spec.firmware_start, spec.ssh, spec.extra_arguments) == ("saved", True, ("-S",))
    assert spec.architecture == "x86_64"


def test_a_machine_that_is_reached_by_its_console_has_no_ssh_port(debian_kernel: Path) -> None:
    settings = settings_for(read_kernel(debian_kernel), Config(channel="console"))
    assert not settings.spec.ssh
    assert settings.reached_by("ssh").spec.ssh


def test_settings_are_told_flat_and_without_the_password(debian_kernel: Path) -> None:
    told = settings_for(read_kernel(debian_kernel), Config(password="secret")).as_dict()
    assert {"machine_name", "memory_mib", "firmware", "command_line", "timeout_s"} <= set(told)
    assert not {"spec", "password", "boot_file", "name"} & set(told)
