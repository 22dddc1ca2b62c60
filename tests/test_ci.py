"""What CI systems get: the summary, annotations, and the steps of ci/, run as they run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kboot import Config, Run, read_run
from kboot.config.values import Annotations
from kboot.evidence import CaseResult
from kboot.plugin.results import annotates
from kboot.results.summary import ANNOTATIONS, github_annotations, markdown, path_in
from kboot.testing import write_kernel
from tests.test_report import CONFTEST, TESTS

CI = Path(__file__).parent.parent / "ci"


def case(name: str, outcome: str, **more: Any) -> CaseResult:
    return CaseResult(id=f"tests/test_x.py::{name}", outcome=outcome, file="test_x.py", **more)


# --------------------------------------------------------------------------------- the summary


def test_a_summary_has_the_counts_and_what_has_to_be_looked_at() -> None:
    text = markdown(
        Run(
            cases=(
                case("test_a", "passed"),
                case("test_b", "error", message="InfraError: nginx is gone"),
                case("test_c", "failed", message="KernelCrash", crashes=("panic: oom",)),
                case("test_d", "flaky", message="2 of 3"),
            ),
            machines=(),
        )
    )
    assert "**1** failed, **1** error, **1** flaky, **1** passed" in text
    rows = [line for line in text.splitlines() if "<code>" in line]
    assert ["test_c" in rows[0], "test_b" in rows[1], "test_d" in rows[2]] == [True] * 3
    assert len(rows) == 3
    assert r"panic: oom" in rows[0]


def test_a_summary_of_hostile_text_has_no_markup_of_its_own() -> None:
    hostile = "a|b\n# title\n<img src=x>`code`[link](http://x) **bold** & \x1b[31m @someone"
    text = markdown(Run(cases=(case(hostile, "failed", message=hostile),), machines=()))
    (row,) = [line for line in text.splitlines() if "<code>" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<img" not in text
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)[`*\[@]", row)


def test_a_summary_of_very_many_failures_stays_below_githubs_limit() -> None:
    cases = tuple(case(f"test_{n}", "failed", message="x" * 400) for n in range(50_000))
    text = markdown(Run(cases=cases, machines=()))
    assert len(text.encode()) < 1 << 20
    assert "49800 more are in the report" in text


# --------------------------------------------------------------------------------- annotations


def test_an_annotation_has_the_line_in_the_repository(tmp_path: Path) -> None:
    run_ = Run(
        cases=(
            case("test_b", "error", message="nginx is gone", line=3),
            case("test_c", "failed", message="100%\nbad", line=7, crashes=("panic: oom",)),
            case("test_d", "passed"),
        ),
        machines=(),
    )
    assert github_annotations(run_, path_in(tmp_path, tmp_path / "tests")) == [
        "::error file=tests/test_x.py,line=7,title=tests/test_x.py%3A%3Atest_c%3A failed"
        "::100%25%0Abad%0Akernel: panic: oom",
        "::error file=tests/test_x.py,line=3,title=tests/test_x.py%3A%3Atest_b%3A the host failed"
        "::nginx is gone",
    ]


def test_a_test_outside_of_the_repository_is_annotated_without_a_file(tmp_path: Path) -> None:
    run_ = Run(cases=(case("test_b", "failed"),), machines=())
    (line,) = github_annotations(run_, path_in(tmp_path / "repository", tmp_path))
    assert line.startswith("::error title=")


def test_parts_are_annotated_instead_of_their_whole_and_not_more_than_are_shown() -> None:
    parts = tuple(
        case(f"test_b [part {n}]", "failed", part_of="tests/test_x.py::test_b") for n in range(30)
    )
    run_ = Run(cases=(case("test_b", "failed"), *parts), machines=())
    lines = github_annotations(run_, lambda _case: "")
    assert len(lines) == ANNOTATIONS
    assert all("part" in line for line in lines)


@pytest.mark.parametrize(
    ("setting", "on_github", "annotated"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("none", True, False),
        ("github", False, True),
    ],
)
def test_failures_are_annotated_on_github_unless_the_setting_says_otherwise(
    setting: Annotations, on_github: bool, annotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if on_github else "")
    assert annotates(Config(kernel="vmlinuz", annotations=setting)) == annotated


# ------------------------------------------------------------------------------------ the steps


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with tests whose machines are replayed, and a kernel."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_demo.py").write_text(TESTS)
    write_kernel(tmp_path / "vmlinuz", "6.18.0-ours")
    return tmp_path


def run_step(script: str, project: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """A step as CI systems run it: by bash, out of a file; its exit code and output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    file = project / "step.sh"
    file.write_text(script)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(file)],
        cwd=project,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


INPUTS = {
    "kernel": "vmlinuz",
    "tests": "test_demo.py",
    "arguments": "-k 'uptime or panic' -q --kboot-timeout=60",
}


def test_the_github_action_runs(project: Path) -> None:
    action = yaml.safe_load((CI / "github" / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    inputs = {name: each.get("default", "") for name, each in action["inputs"].items()} | INPUTS
    inputs["arguments"] = "-k 'uptime or hostile'"
    github = {
        "GITHUB_WORKSPACE": str(project),
        "GITHUB_STEP_SUMMARY": str(project / "step-summary.md"),
        "GITHUB_OUTPUT": str(project / "outputs"),
        "GITHUB_ACTIONS": "true",
    }
    (project / "step-summary.md").write_text("Of another step.\n")
    ran = []
    for step in action["runs"]["steps"]:
        if "run" not in step:
            assert step["uses"].startswith("actions/upload-artifact@")
            continue
        assert step["shell"] == "bash"
        # What people type never becomes a part of a script.
        assert "${{" not in step["run"]
        values = {
            name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], value)
            for name, value in step["env"].items()
        }
        code, output = run_step(step["run"], project, github | values)
        ran.append((step["name"], code))
    # One of the tests fails, and so does the step.
    assert ran == [("Install", 0), ("Boot and test", 1)], output
    line = TESTS[: TESTS.index("<b onclick")].count("\n") + 1
    annotation = (
        f"::error file=test_demo.py,line={line},title=test_demo.py%3A%3Atest_hostile_output"
    )
    assert f"\n{annotation}" in output
    summary = (project / "step-summary.md").read_text()
    assert summary.startswith("Of another step.\n")
    assert "**1** failed, **1** passed" in summary
    outputs = dict(line.split("=", 1) for line in (project / "outputs").read_text().splitlines())
    assert set(outputs) == set(action["outputs"])
    assert all((project / path).is_file() for path in outputs.values())
    assert len(read_run(project / "kboot-results" / "evidence").cases) == 2


def test_the_gitlab_template_runs(project: Path) -> None:
    head, job = yaml.safe_load_all((CI / "gitlab" / "kboot.yml").read_text())
    inputs = {name: each.get("default", "") for name, each in head["spec"]["inputs"].items()}
    inputs |= INPUTS

    def filled(value: Any) -> Any:
        return re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda found: inputs[found[1]], str(value))

    ((name, steps),) = job.items()
    assert filled(name) == "kboot"
    values = {name: filled(value) for name, value in steps["variables"].items()}
    lines = [*steps["before_script"], *steps["script"]]
    assert not any("$[[" in line for line in lines)
    code, output = run_step("\n".join(lines), project, values)
    assert code == 0, output
    (kept,) = map(filled, steps["artifacts"]["paths"])
    junit = filled(steps["artifacts"]["reports"]["junit"])
    assert (project / kept / "report.html").is_file()
    assert "**2** passed" in (project / kept / "summary.md").read_text()
    assert 'tests="2"' in (project / junit).read_text()


def test_both_install_the_same() -> None:
    lists = {
        re.findall(r"packages=\((.*?)\)", path.read_text())[0]
        for path in (CI / "github" / "action.yml", CI / "gitlab" / "kboot.yml")
    }
    assert len(lists) == 1
