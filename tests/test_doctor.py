"""kboot.doctor: findings with remedies, from real programs and real faults."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kboot import state
from kboot.checks import Check, Finding, examine
from kboot.cli import main
from kboot.config import Config
from kboot.errors import InfraError
from kboot.qemu.checks import LOCAL_CHECKS

EMULATED = Config(accel="tcg")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and caches of this test only."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o711)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return runtime


def find(config: Config, subject: str) -> Finding:
    (finding,) = examine(config, [check for check in LOCAL_CHECKS if check.subject == subject])
    return finding


def program(directory: Path, name: str, script: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_this_host_has_all_that_a_boot_needs() -> None:
    # The temporary directory of a test is closed to others; here is none for nginx to read.
    checks = [check for check in LOCAL_CHECKS if check.subject != "passage"]
    findings = examine(EMULATED, checks)
    assert [finding for finding in findings if finding.level == "error"] == []
    assert [finding.subject for finding in findings] == [check.subject for check in checks]


def test_nothing_is_looked_at_behind_an_essential_error() -> None:
    def fail(_: Config) -> Finding:
        return Finding(level="error", subject="cluster", text="none")

    checks = [
        Check(subject="cluster", look=fail, essential=True),
        Check(subject="rights", look=fail),
    ]
    assert [finding.subject for finding in examine(Config(), checks)] == ["cluster"]


def test_what_a_check_raises_is_an_error_found() -> None:
    def look(_: Config) -> Finding:
        raise InfraError("nginx stopped; see nginx.log")

    assert examine(EMULATED, [Check(subject="x", look=look)]) == [
        Finding(level="error", subject="x", text="nginx stopped; see nginx.log")
    ]


@pytest.mark.parametrize("subject", ["qemu", "ipxe"])
def test_a_missing_qemu_is_an_error(subject: str) -> None:
    found = find(Config(qemu="qemu-that-is-not-there"), subject)
    assert found.level == "error"
    assert "install it" in found.text


def test_a_qemu_without_the_machine_is_an_error(tmp_path: Path) -> None:
    found = find(Config(qemu=program(tmp_path, "qemu", "echo pc microvm")), "qemu")
    assert (found.level, "q35" in found.text) == ("error", True)
    assert "apt-get install qemu-system-x86" in found.remedy


def test_a_qemu_without_network_boot_images_is_an_error(tmp_path: Path) -> None:
    found = find(Config(qemu=program(tmp_path, "qemu", f"echo {tmp_path}")), "ipxe")
    assert (found.level, str(tmp_path) in found.text) == ("error", True)
    assert "ipxe-qemu" in found.remedy


def test_an_nginx_that_refuses_our_configuration_is_an_error(tmp_path: Path) -> None:
    script = 'case "$*" in -v) echo nginx version: nginx/0 >&2;; *) echo no >&2; exit 1;; esac'
    found = find(Config(nginx=program(tmp_path, "nginx", script)), "nginx")
    assert (found.level, found.text.endswith(": no")) == ("error", True)


def test_kvm_is_not_looked_at_when_it_is_not_wanted() -> None:
    assert find(EMULATED, "kvm").level == "ok"


def test_a_machine_larger_than_the_host_is_a_warning() -> None:
    found = find(Config(memory_mib=16 * 1024 * 1024), "memory")
    assert (found.level, found.remedy) == ("warning", "end other programs, or lower memory")


def test_what_a_killed_run_left_is_a_warning(own_place: Path) -> None:
    with state.run_directory():
        litter = own_place / "kboot" / "run-killed"
        litter.mkdir()
        found = find(EMULATED, "leftovers")
        assert (found.level, str(litter) in found.text) == ("warning", True)
        assert "kboot gc --yes" in found.remedy


@pytest.mark.parametrize("subject", ["run space", "cache space", "state space"])
def test_a_directory_that_cannot_be_made_is_an_error(
    subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for variable in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(file))
    monkeypatch.setattr("tempfile.tempdir", str(file))
    found = find(EMULATED, subject)
    assert found.level == "error"
    assert "set " in found.text


@pytest.mark.parametrize(("mode", "level"), [(0o700, "error"), (0o711, "ok")])
def test_root_needs_a_way_for_nginx_to_its_files(
    mode: int, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    place = Path("/tmp") / f"kboot-test-{os.getpid()}"
    place.mkdir(mode=0o711)
    inner = place / "inner"
    inner.mkdir(mode=mode)
    monkeypatch.setattr("tempfile.tempdir", str(inner))
    try:
        found = find(EMULATED, "passage")
        # An ordinary user's nginx runs as that user, and passes where the user does.
        assert found.level == (level if os.geteuid() == 0 else "ok")
    finally:
        (inner / f"kboot-{os.geteuid()}").rmdir()
        inner.rmdir()
        place.rmdir()


def test_the_command_prints_findings_and_exits_with_3_on_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--accel", "tcg", "--qemu", "qemu-that-is-not-there"]) == 3
    out = capsys.readouterr().out
    assert "error    qemu         qemu-that-is-not-there not found" in out
    assert "ok       setpriv" in out


def test_the_command_prints_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--accel", "tcg", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert [found["subject"] for found in findings] == [c.subject for c in LOCAL_CHECKS]
    assert all(set(found) == {"level", "subject", "text", "remedy"} for found in findings)
