"""How a boot script took a fault, from what its boot raised."""

from __future__ import annotations

import pytest

from kboot.errors import (
    GuestError,
    GuestTimeout,
    InfraError,
    KbootError,
    RebootLoop,
    ScriptEnded,
    WrongKernel,
)
from kboot.machine.script_trial import ENDS, TRIALS, End, Outcome, end_of, table
from kboot.server_faults import KINDS


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, "booted"),
        (ScriptEnded("...", "prompt"), "prompt"),
        (ScriptEnded("...", "loop"), "loop"),
        (ScriptEnded("...", "hang"), "hang"),
        (ScriptEnded("...", "waits"), "waits"),
        (RebootLoop("the machine rebooted before it was ready"), "reboots"),
        (WrongKernel("uname -r says 5.10"), "fell back"),
        (GuestError("the guest is up, but this machine never fetched kernel"), "fell back"),
        (GuestTimeout("the kernel hung before it ran init"), "kernel"),
    ],
)
def test_what_a_boot_raised_tells_how_its_script_ended(error: KbootError | None, end: End) -> None:
    assert end_of(error) == end


def test_a_fault_of_the_host_is_no_answer_about_the_script() -> None:
    with pytest.raises(InfraError, match="nginx was killed"):
        end_of(InfraError("nginx was killed by signal 9"))


def test_the_table_says_at_a_glance_what_never_ends() -> None:
    def row(end: End) -> str:
        return Outcome(trial="refused, once", end=end, seconds=1.5, hits=2, words="").row()

    marks = [row(end).split()[2] for end in ENDS if end in {"booted", "prompt", "loop"}]
    assert marks == ["yes", "no", "NEVER"]
    assert row("hang").endswith("1.5 s    2  hangs")
    assert row("booted").index("yes") == table([])[0].index("boots")
    assert {end for end, (_, seen) in ENDS.items() if not seen} == {"loop", "hang"}


def test_a_script_that_reboots_while_the_fault_lasts_does_so_for_ever() -> None:
    assert end_of(RebootLoop("the machine rebooted before it was ready"), lasting=True) == "loop"


def test_the_rows_stand_in_the_order_of_the_trials() -> None:
    rows = [
        Outcome(trial=trial.name, end="booted", seconds=1, hits=1, words="").row()
        for trial in TRIALS
    ]
    assert table([*rows[7:], *rows[:7]])[1:] == rows


def test_each_trial_has_a_name_of_its_own_and_most_kinds_are_tried() -> None:
    names = [trial.name for trial in TRIALS]
    assert len(set(names)) == len(names)
    # A redirect alone leads to where it says, and a huge file is as slow as it is long.
    assert set(KINDS) - {trial.kind for trial in TRIALS} == {"redirect", "huge"}
