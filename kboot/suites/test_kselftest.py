"""One test for each of kselftest's programs; its cases are subtests."""

from __future__ import annotations

from kboot.kselftest import Program
from kboot.machine import Machine


def test_kselftest(machine: Machine, kselftest_program: Program) -> None:
    program = kselftest_program
    results = machine.ktap(
        program.command,
        timeout=program.limit_s,
        expected_failures=program.expected_failures,
    )
    results.check()
