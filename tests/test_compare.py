"""Two runs side by side: what is worse, and how sure that is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kboot import CaseResult, Evidence, Run
from kboot.cli import main
from kboot.evidence import BootRecord, PhaseRecord, run_as_dict
from kboot.results.compare import Comparison, compare
from kboot.statistics import median_change
from tests.test_evidence import evidence, folder

__all__ = ["evidence", "folder"]

BEFORE, AFTER = "a" * 64, "b" * 64


def case(name: str, outcome: str, message: str = "") -> CaseResult:
    return CaseResult(id=f"test_x.py::{name}", outcome=outcome, message=message)


def compared(before: Run, after: Run, slower: float = 0.05) -> Comparison:
    return compare(before, after, names=("before", "after"), slower=slower)


def cases(*pairs: tuple[str, str]) -> Run:
    return Run(cases=tuple(case(*pair) for pair in pairs), machines=())


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("passed", "failed", "new_failures"),
        ("passed", "flaky", "new_failures"),
        ("skipped", "failed", "new_failures"),
        ("xfailed", "failed", "new_failures"),
        ("error", "failed", "new_failures"),
        (None, "failed", "new_failures"),
        ("failed", "passed", "fixed"),
        ("flaky", "passed", "fixed"),
        ("passed", "error", "unknown"),
        ("failed", "not run", "unknown"),
        ("passed", None, "unknown"),
        ("failed", "failed", None),
        ("failed", "flaky", None),
        ("passed", "passed", None),
        ("error", "error", None),
        ("error", "passed", None),
        (None, "passed", None),
    ],
)
def test_each_pair_of_outcomes_is_told_for_what_it_is(
    before: str | None, after: str | None, where: str | None
) -> None:
    found = compared(
        cases(*([("t", before)] if before else [])), cases(*([("t", after)] if after else []))
    )
    told = {name for name in ("new_failures", "fixed", "unknown") if getattr(found, name)}
    assert told == ({where} if where else set())
    assert found.worse == (where == "new_failures")


def test_of_several_results_what_tells_most_counts() -> None:
    after = cases(("t", "error"), ("t", "passed"), ("u", "passed"), ("u", "failed"))
    found = compared(cases(("t", "passed"), ("u", "passed")), after)
    assert [each.id for each in found.new_failures] == ["test_x.py::u"]
    assert found.unknown == ()


# ------------------------------------------------------------------------------------- the boots


def boots(template: Evidence, sha256: str, times: list[dict[str, float]]) -> Run:
    """Machines that took these times for their phases."""
    machines = []
    for number, phases in enumerate(times):
        total, records = 0.0, []
        for phase, duration_s in phases.items():
            total += duration_s
            records.append(
                PhaseRecord(
                    phase=phase,
                    time_s=total,
                    duration_s=duration_s,
                    witness="console",
                    witnesses={"console": total},
                )
            )
        boot = BootRecord(
            began_s=0, phases=tuple(records), boot_id=f"{sha256}-{number}", saved=False
        )
        machines.append(
            replace(
                template,
                directory=Path(f"/{sha256}/{number}"),
                kernel={**template.kernel, "sha256": sha256, "release": f"6.1-{sha256[0]}"},
                boots=(boot,),
                crashes=(),
            )
        )
    return Run(cases=(), machines=tuple(machines))


def noisy(chance: random.Random, count: int, **phases: float) -> list[dict[str, float]]:
    """Times as those of real boots are: a few per cent of noise, and now and then a long one."""

    def draw(middle_s: float) -> float:
        slow = 1.5 if chance.random() < 0.05 else 1.0
        return middle_s * slow * chance.lognormvariate(0, 0.03)

    return [{name: draw(middle_s) for name, middle_s in phases.items()} for _ in range(count)]


PHASES = {"firmware": 3.0, "script": 2.0, "kernel": 0.5, "linux": 1.0, "init": 2.5, "ready": 0.4}


def test_a_phase_that_became_slower_is_found_with_its_interval(evidence: Evidence) -> None:
    chance = random.Random(7)
    before = boots(evidence, BEFORE, noisy(chance, 20, **PHASES))
    after = boots(evidence, AFTER, noisy(chance, 20, **{**PHASES, "init": 2.75, "script": 1.7}))
    found = compared(before, after)
    verdicts = {each.phase: each.verdict for each in found.phases}
    assert verdicts["init"] == "slower"
    assert verdicts["script"] == "faster"
    assert {verdicts[name] for name in ("firmware", "kernel", "linux", "ready")} == {"same"}
    change = next(each.change for each in found.phases if each.phase == "init")
    assert change
    assert 0 < change.low_s < 0.25 < change.high_s < 0.5
    assert found.worse


def test_a_sure_difference_that_is_small_is_of_no_interest(evidence: Evidence) -> None:
    chance = random.Random(8)
    before = boots(evidence, BEFORE, noisy(chance, 200, init=10.0))
    after = boots(evidence, AFTER, noisy(chance, 200, init=10.3))
    assert not compared(before, after, slower=0.05).worse
    assert compared(before, after, slower=0.01).worse


def test_of_few_boots_nothing_is_said(evidence: Evidence) -> None:
    before = boots(evidence, BEFORE, [{"init": 1.0}] * 4)
    after = boots(evidence, AFTER, [{"init": 9.0}] * 50)
    found = compared(before, after)
    assert {each.verdict for each in found.phases} == {"too few boots"}
    assert not found.worse


def test_equal_kernels_are_rarely_told_apart(evidence: Evidence) -> None:
    chance = random.Random(9)
    wrong = 0
    for _ in range(20):
        before, after = (
            boots(evidence, sha256, noisy(chance, 15, init=2.5, ready=0.4))
            for sha256 in (BEFORE, AFTER)
        )
        wrong += compared(before, after, slower=0.0).worse
    # One of 20 is expected; five would come by chance three times in a thousand.
    assert wrong <= 4


def test_the_interval_of_a_median_holds_the_true_one_as_often_as_it_says() -> None:
    chance = random.Random(10)
    hits = 0
    for _ in range(100):
        old = [chance.gauss(10, 1) for _ in range(30)]
        new = [chance.gauss(10.5, 1) for _ in range(31)]
        change = median_change(old, new, confidence=0.9, resamples=400)
        hits += change.low_s <= 0.5 <= change.high_s
    assert 80 <= hits <= 98


def test_boots_are_compared_with_their_like(evidence: Evidence) -> None:
    before = boots(evidence, BEFORE, [{"init": 1.0}] * 6)
    after = boots(evidence, AFTER, [{"init": 1.0}] * 6)
    slow = tuple(
        replace(each, settings={**each.settings, "firmware": "uefi"})
        for each in boots(evidence, "c" * 64, [{"init": 5.0}] * 20).machines
    )
    found = compared(before, replace(after, machines=(*after.machines, *slow)))
    assert {each.way for each in found.phases} == {"bios"}
    assert not found.worse


def test_a_restored_machine_has_not_booted_again(evidence: Evidence) -> None:
    before = boots(evidence, BEFORE, [{"init": 1.0}] * 6)
    slow = boots(evidence, AFTER, [{"init": 5.0}] * 6)
    saved = tuple(
        replace(each, boots=(replace(each.boots[0], saved=True, boot_id="one"),))
        for each in slow.machines
    )
    assert not compared(before, replace(slow, machines=saved)).worse


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def place(evidence: Evidence, tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory with a run: tests, and one machine with this kernel."""

    def make(name: str, release: str, *pairs: tuple[str, str], crashes: bool = True) -> Path:
        root = tmp_path / name
        machine = root / f"001-{release}"
        machine.mkdir(parents=True)
        value = json.loads((evidence.directory / "result.json").read_text())
        value["kernel"] |= {"release": release, "sha256": release.encode().hex().ljust(64, "0")}
        value["crashes"] = value["crashes"] if crashes else []
        (machine / "result.json").write_text(json.dumps(value))
        run = Run(
            cases=tuple(replace(case(*pair), evidence=machine) for pair in pairs), machines=()
        )
        (root / "run.json").write_text(json.dumps(run_as_dict(run, root)))
        return root

    return make


def test_the_command_tells_what_is_worse(
    place: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = place("a", "6.1", ("t", "passed"), ("u", "failed"), crashes=False)
    after = place("b", "6.2", ("t", "failed"), ("u", "passed"))
    assert main(["compare", str(before), str(after)]) == 1
    output = capsys.readouterr().out
    assert "new failures: 1" in output
    assert "test_x.py::t  passed  failed" in output
    assert "panic: sysrq triggered crash" in output
    assert "too few boots to compare (bios): 1 and 1, and 5 are needed" in output
    assert main(["compare", str(after), str(before)]) == 1
    assert main(["compare", str(before), str(before)]) == 0


def test_two_kernels_of_one_run_are_compared_too(
    place: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place("runs/a", "6.1", ("t", "passed"))
    place("runs/b", "6.2", ("t", "failed"))
    runs = str(tmp_path / "runs")
    assert main(["compare", runs, "--kernels", "6.1", "6.2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in found["new_failures"]] == ["test_x.py::t"]
    assert found["worse"]
    assert main(["compare", runs, "--kernels", "6.2", "6.1"]) == 0
    assert main(["compare", runs]) in {0, 1}


def test_what_the_host_failed_is_neither_better_nor_worse(place: Callable[..., Path]) -> None:
    before, after = place("a", "6.1", ("t", "passed")), place("b", "6.2", ("t", "error"))
    assert main(["compare", str(before), str(after)]) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "has 1 kernels, and not two: 6.1"),
        (["a", "gone"], "no such directory"),
        (["a", "a/run.json"], "not a directory"),
        (["a", "--kernels", "6.1", "6.9"], "no kernel is 6.9; there are: 6.1"),
    ],
)
def test_what_cannot_be_compared_is_named(
    place: Callable[..., Path],
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[Any],
) -> None:
    place("a", "6.1", ("t", "passed"))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err
