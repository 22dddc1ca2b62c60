"""What is written down of a machine and of how it ended, and read again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kboot import Config, Evidence, Phase, Run, open_session, read_evidence, read_run
from kboot.errors import ConfigError, GuestError, InfraError
from kboot.evidence import PHASES, CaseResult, run_as_dict, run_from
from kboot.machine.evidence import verdict
from kboot.testing import Answer, FakeBackend, GuestAction, write_kernel


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "passed"),
        (GuestError("no login prompt"), "failed"),
        (InfraError("nginx is gone"), "error"),
        (ConfigError("no kernel"), "error"),
        (KeyboardInterrupt(), "interrupted"),
        (AssertionError("1 == 2"), "test failed"),
        (KeyError("name"), "test failed"),
    ],
    ids=repr,
)
def test_only_a_guests_own_fault_is_its_failure(error: BaseException | None, told: str) -> None:
    assert verdict(error) == told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evidence of a machine that panicked and came back, in a run."""
    folder = tmp_path_factory.mktemp("evidence")
    kernel = write_kernel(folder / "vmlinuz", "6.18.0-ours")
    commands: dict[str, Answer] = {"uptime": "up 3 days\n", "insmod bad.ko": GuestAction.PANIC}
    with open_session(
        Config(kernel=str(kernel), isolation="none"),
        evidence=folder / "run",
        backend=FakeBackend(commands=commands),
    ) as session:
        machine = session.machine(session.settings(session.config), name="panics")
        machine.guest.succeed("uptime")
        with machine.expect_crash("panic"):
            machine.guest.run("insmod bad.ko")
        machine.wait_for_reboot()
    return folder / "run"


@pytest.fixture(scope="module")
def evidence(folder: Path) -> Evidence:
    return read_evidence(folder / "001-panics")


def test_it_tells_what_ran_where_and_how_it_ended(evidence: Evidence) -> None:
    assert (evidence.verdict, evidence.error) == ("passed", None)
    assert evidence.kernel["release"] == "6.18.0-ours"
    assert "kboot.nonce=" in evidence.command_line
    assert evidence.settings["memory_mib"] == 512
    assert evidence.started
    assert 0 <= (datetime.now(UTC) - evidence.started).total_seconds() < 3600


def test_each_boot_has_its_phases_and_both_witnesses(evidence: Evidence) -> None:
    first, second = evidence.boots
    assert first.ready
    assert second.ready
    assert first.began_s <= second.began_s
    assert first.boot_id != second.boot_id
    script = next(each for each in first.phases if each.phase == "script")
    assert script.witness == "server"
    assert set(script.witnesses) == {"server", "console"}
    assert sum(each.duration_s for each in first.phases) == pytest.approx(first.duration_s, abs=0.1)


def test_the_phases_are_those_of_boots() -> None:
    assert list(PHASES) == [phase.value for phase in Phase]


def test_its_crash_commands_and_fetches_are_values_again(evidence: Evidence) -> None:
    (crash,) = evidence.crashes
    assert crash.kind == "panic"
    assert evidence.console[crash.start_offset : crash.end_offset].startswith(b"[")
    assert [each.command for each in evidence.commands] == ["uptime", "insmod bad.ko"]
    assert evidence.commands[0].output_tail == "up 3 days\n"
    assert all(each.status == 200 for each in evidence.fetches)
    assert "echo kboot: script" in evidence.texts["boot.ipxe"]


def test_its_console_has_lines_with_times_and_places(evidence: Evidence) -> None:
    lines = list(evidence.lines())
    (banner, again) = [line for line in lines if "Linux version 6.18.0-ours" in line.text]
    assert b"Linux version" in evidence.console[banner.start : banner.end]
    assert evidence.console_began_s <= banner.time_s <= again.time_s <= evidence.duration_s
    assert [line.start for line in lines[1:]] == [line.end for line in lines[:-1]]


def test_a_machine_whose_process_was_killed_is_unfinished(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_bytes(b"Linux version 6.1\nhalf a li")
    (tmp_path / "serial.timing").write_bytes(b"0.5 18\n0.")
    found = read_evidence(tmp_path)
    assert found.verdict == "unfinished"
    assert [(line.text, line.time_s) for line in found.lines()] == [
        ("Linux version 6.1", 0.5),
        ("half a li", 0.5),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("{}", "has no version"),
        ('{"version": 99}', "has version 99, and this kboot reads version 1"),
        ('{"version": 1}', "not as kboot writes it: KeyError"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_result_that_cannot_be_read_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "result.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=words):
        read_evidence(tmp_path)


def test_what_is_no_evidence_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the evidence of a machine"):
        read_evidence(tmp_path)
    with pytest.raises(ConfigError, match="no evidence of kboot's"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="no such directory"):
        read_run(tmp_path / "gone")


def test_fields_that_a_later_kboot_adds_are_no_mistake(evidence: Evidence, tmp_path: Path) -> None:
    value = json.loads((evidence.directory / "result.json").read_text())
    value["colour"] = "blue"
    value["crashes"][0]["mood"] = "bad"
    (tmp_path / "result.json").write_text(json.dumps(value))
    assert read_evidence(tmp_path).crashes == evidence.crashes


def test_a_run_is_read_as_it_was_written_wherever_it_lies_now(folder: Path, tmp_path: Path) -> None:
    case = CaseResult(
        id="test_x.py::test_y",
        outcome="failed",
        message="KernelCrash: panic",
        started=datetime.now(UTC),
        duration_s=1.5,
        file="test_x.py",
        line=7,
        evidence=folder / "001-panics",
        console=(100, 200),
        crashes=("panic: sysrq triggered crash",),
    )
    run = Run(cases=(case,), machines=(), duration_s=2.0, version="0.1.0", notes=("cut short",))
    written = json.loads(json.dumps(run_as_dict(run, folder)))
    assert written["cases"][0]["evidence"] == "001-panics"
    assert run_from(written, folder) == run
    moved = run_from(written, tmp_path).cases[0]
    assert moved.evidence == tmp_path / "001-panics"


def test_a_run_has_all_its_machines(folder: Path) -> None:
    assert [each.name for each in read_run(folder).machines] == ["m1"]
    assert read_run(folder, folder / "001-panics").machines == read_run(folder).machines
